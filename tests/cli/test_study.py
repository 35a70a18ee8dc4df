"""`facesyn study` on a tiny LDM: figures, tables, resume, growth."""

from __future__ import annotations

import csv
import json
import shutil
import statistics
from pathlib import Path

import numpy as np
import pytest
from fill import fill_state
from tiny_recognizer import write_recognizer

from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.artifacts.ldm_settings import LdmSettings
from facesyn_cli.artifacts.weights import write_weights
from facesyn_cli.data.pixels import decode_image
from facesyn_cli.models.idiff_unet import ConditionalUNet, UnetConfig

TINY = {
    "name": "idiff-unet", "in_channels": 3, "channels": 32, "multipliers": [1, 1], "attention": [False, True],
    "num_blocks": 1, "context_size": 8, "context_width": 32,
}
IDS, PER_ID = 3, 4


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    unet = fill_state(ConditionalUNet(UnetConfig(**TINY)))
    settings = LdmSettings(
        denoiser=TINY, latent_size=6, latent_mean=[0.0] * 3, latent_std=[0.003] * 3, image_size=24, output_size=21,
        autoencoder={"name": "pixels", "settings": {"downscale": 4}}, embedding_size=8,
    )
    write_weights(folder / "ldm", unet.state_dict(), settings.model_dump(mode="json"))
    np.save(folder / "contexts.npy", np.random.RandomState(0).standard_normal((5, 8)).astype(np.float32))
    write_recognizer(folder / "judge")
    return folder


def words(inputs: Path, out: Path, *more: object) -> list[object]:
    return ["study", "--ldm", inputs / "ldm", "--contexts", inputs / "contexts.npy", "--judge", inputs / "judge",
            "--out", out, "--device", "cpu", "assume_embedder=any", "--ids", IDS, "--per-id", PER_ID,
            "--batch-size", 5, "reference_steps=6", "method_steps=2", *more]


GRID = ("--schedulers", "ddim,unipc", "--steps", "2,3", "--seeds", 2)


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory) -> Path:
    from facesyn_cli.cli.main import run_command_line

    out = tmp_path_factory.mktemp("study") / "out"
    arguments = words(inputs, out, *GRID, "--methods", "negfacediff,idperturb", "--json")
    assert run_command_line([str(word) for word in arguments]) == 0
    return out


def rows_of(folder: Path) -> list[dict]:
    return json.loads((folder / "study.json").read_text())["rows"]


def test_a_row_for_every_setting_the_reference_first(finished):
    rows = rows_of(finished)
    assert [(r["scheduler"], r["steps"], r["method"], r["evaluations"]) for r in rows] == [
        ("ddim", 6, "", 6.0), ("ddim", 2, "", 2.0), ("ddim", 3, "", 3.0), ("unipc", 2, "", 2.0), ("unipc", 3, "", 3.0),
        ("ddim", 2, "negfacediff", 4.0), ("ddim", 2, "idperturb", 2.0),
    ]
    for row in rows:
        assert len(row["seeds"]) == 2
        for name in ("consistency", "eer", "fdr", "vendi_within", "rms"):
            values = [seed[name] for seed in row["seeds"]]
            figure = row["figures"][name]
            assert figure["mean"] == pytest.approx(statistics.fmean(values))
            assert figure["error"] == pytest.approx(statistics.stdev(values) / 2**0.5)
        assert 1 <= row["figures"]["vendi_within"]["mean"] <= PER_ID + 1e-6
    assert rows[0]["figures"]["rms"] == {"mean": 0.0, "error": 0.0}
    assert all(row["figures"]["rms"]["mean"] > 0 for row in rows[1:])
    assert rows[2]["figures"]["rms"]["mean"] < rows[1]["figures"]["rms"]["mean"]  # more steps come nearer


def test_figures_are_those_of_the_images_that_sample_writes(finished, inputs, run_cli, tmp_path):
    def images(steps: int) -> np.ndarray:
        out = tmp_path / str(steps)
        ran = run_cli("sample", "--ldm", inputs / "ldm", "--contexts", inputs / "contexts.npy", "--out", out, "--ids",
                      IDS, "--per-id", PER_ID, "--scheduler", "ddim", "--steps", steps, "--device", "cpu",
                      "--assume-embedder", "any", "--batch-size", 5, "--seed", 1)
        assert ran.code == 0, ran.err
        found = ImageSet.open(out)
        return np.stack([decode_image(found.read(entry)) for entry in found.entries]).astype(float)

    rms = np.sqrt(np.square(images(2) - images(6)).mean(axis=(1, 2, 3))).mean()
    assert rows_of(finished)[1]["seeds"][1]["rms"] == pytest.approx(rms, rel=1e-5)


def test_the_tables_agree(finished):
    rows = rows_of(finished)
    lines = list(csv.DictReader((finished / "study.csv").read_text().splitlines()))
    assert [float(line["fdr"]) for line in lines] == [row["figures"]["fdr"]["mean"] for row in rows]
    assert [float(line["eer_error"]) for line in lines] == [row["figures"]["eer"]["error"] for row in rows]
    markdown = (finished / "study.md").read_text().splitlines()
    assert len(markdown) == 2 + len(rows)
    assert markdown[0].startswith("| scheduler | steps | method | evaluations | consistency")
    assert f"{rows[1]['figures']['consistency']['mean']:.4f} +- " in markdown[3]


def test_a_killed_study_measures_only_what_is_missing(finished, inputs, run_cli, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    (out / "facesyn.json").rename(out / "facesyn.begun.json")
    (out / "results" / "unipc-3-plain-seed-1.json").unlink()
    kept = out / "results" / "ddim-2-plain-seed-0.json"
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "rms": 12345.0}))
    again = words(inputs, out, *GRID, "--methods", "negfacediff,idperturb")
    ran = run_cli(*again, "--dry-run", "--json")
    assert ran.json()["plan"]["counts"]["rows_left"] == 1
    assert ran.json()["plan"]["network_evaluations"]["denoiser"] == 3 * IDS * PER_ID
    assert run_cli(*again).code == 0
    before, after = rows_of(finished), rows_of(out)
    assert after[1]["seeds"][0]["rms"] == 12345.0  # not measured again
    after[1] = before[1]
    assert after == before
    for name in ("study.csv", "study.md"):
        lines = [(folder / name).read_text().splitlines() for folder in (finished, out)]
        assert sum(a != b for a, b in zip(*lines, strict=True)) == 1, "times are in no table"
    lines = run_cli(*again).out.splitlines()  # finished: the table again
    assert lines[0].startswith("scheduler  ") and lines[0].endswith("images/s") and "n/a" not in lines[1]


def test_more_seeds_are_added(inputs, run_cli, tmp_path, assert_refused):
    small = words(inputs, tmp_path / "out", "--schedulers", "ddim", "--steps", "2")
    assert run_cli(*small, "--seeds", 1).code == 0
    assert rows_of(tmp_path / "out")[0]["figures"]["fdr"]["error"] is None  # one seed has no spread
    assert run_cli(*small, "--seeds", 2).code == 0
    assert [len(row["seeds"]) for row in rows_of(tmp_path / "out")] == [2, 2]
    assert_refused(*words(inputs, tmp_path / "out", "--schedulers", "ddim", "--steps", "3"), says="steps")


def test_methods_may_be_combined_and_a_filter_is_charged(inputs, run_cli, tmp_path):
    again = f"{{name: consistency, judge: {inputs / 'judge'}, lowest: 0.95, attempts: 1, center_images: 3}}"
    both = "{name: both, guidance: {name: cfg, scale: 2}, variation: gaussian}"
    method = f"methods=[{both}, {{name: redrawn, filter: {again}}}]"
    ran = run_cli(*words(inputs, tmp_path / "out", "schedulers=[]", "--seeds", 1, method, "--json"))
    assert ran.code == 0, ran.err
    rows = {row["method"]: row for row in ran.json()["rows"]}
    assert rows["both"]["evaluations"] == 4
    assert 2 < rows["redrawn"]["evaluations"] <= 4
    assert rows["redrawn"]["figures"]["consistency"]["mean"] > rows[""]["figures"]["consistency"]["mean"]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--methods", "negface"), "unknown method 'negface'"),
        (("--schedulers", "ddimm"), "did you mean 'ddim'"),
        (("--schedulers", "ddim-admis", "--steps", "7"), "7"),
        (("--steps", "0"), "0 steps"),
        (("--steps", "many"), "steps"),
        (("--ids", 9), "ids is 9"),
        (("methods=[{name: a, guidance: cfg}, {name: a, guidance: cfg}]",), "same name"),
        (("methods=[{name: plain, guidance: cfg}]",), "one is called plain"),
        (("methods=[{name: a, guidance: {name: cfg, w: 2}}]",), "w"),
        (("methods=[{name: a, filter: {name: consistency}}]",), "filter.judge"),
    ],
)
def test_mistakes_are_one_line_before_any_work(assert_refused, inputs, tmp_path, more, says):
    assert_refused(*words(inputs, tmp_path / "out", *more), says=says)
    assert not (tmp_path / "out").exists()


def test_a_judge_is_needed(assert_refused, inputs, tmp_path):
    arguments = words(inputs, tmp_path / "out")
    at = arguments.index("--judge")
    assert_refused(*arguments[:at], *arguments[at + 2 :], says="--judge FILE")
