"""`facesyn ablate` with the smallest networks: rows, shared work, kills, growth, failures."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import tiny_fr
import yaml
from fill import fill_state
from tiny_recogniser import write_recogniser

from facesyn_cli.artifacts.images import ImageSet
from facesyn_cli.artifacts.ldm import LdmSettings
from facesyn_cli.artifacts.weights import write_weights
from facesyn_cli.models.idiff_unet import UnetConfig, build_idiff_unet

UNET = {
    "name": "idiff-unet", "in_channels": 3, "channels": 32, "multipliers": [1], "attention": [False], "num_blocks": 1,
    "context_size": 512, "context_width": 32,
}
TWO_STAGE = {"name": "two-stage", "scheduler": {"name": "ddim", "steps": 2}}
TABLE = {
    "ablate": {
        "seeds": 2, "images": 12,
        "rows": [
            {"name": "real", "title": "real faces", "real": True, "identities": 4},
            {"name": "sphere", "gen-contexts": {"source": "sphere", "filters": []}},
            {"name": "faces", "base": "sphere", "gen-contexts": {"source": TWO_STAGE}},
            {"name": "copies", "title": "+ copies", "base": "faces",
             "augment": {"augmentation": {"name": "oversample", "copies": 2}}},
            {"name": "guided", "base": "copies", "sample": {"guidance": {"name": "cfg", "scale": 2}}},
        ],
    },
    "gen-contexts": {"count": 4},
    "sample": {"ids": 3, "per_id": 4, "batch_size": 5, "scheduler": {"name": "ddim", "steps": 2}},
    "train-fr": {
        "backbone": {"name": "ir-tiny", "widths": [4, 8, 12, 16], "embedding_size": 16}, "epochs": 1, "batch_size": 8,
        "norm_batch_size": 4, "workers": 0,
    },
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    unet = fill_state(build_idiff_unet(UnetConfig(**UNET)))
    settings = LdmSettings(
        denoiser=UNET, latent_size=6, latent_mean=[0.0] * 3, latent_std=[0.003] * 3, image_size=24, output_size=112,
        autoencoder={"name": "pixels", "settings": {"downscale": 4}},
    )
    write_weights(folder / "ldm", unet.state_dict(), settings.model_dump(mode="json"))
    write_recogniser(folder / "recogniser")
    tiny_fr.write_faces(folder / "real", seed=1)
    tiny_fr.write_faces(folder / "test", seed=2)
    lines = ["2\t3"]
    for fold in range(2):
        lines += [f"p{person}\t{fold}\t{fold + 1}" for person in range(3)]
        lines += [f"p{person}\t{fold}\tp{person + 1}\t{fold}" for person in range(3)]
    (folder / "pairs.txt").write_text("\n".join(lines) + "\n")
    (folder / "table.yaml").write_text("# a tiny table\n" + yaml.safe_dump(TABLE, sort_keys=False))
    return folder


def words(inputs: Path, work: Path, *more: object) -> list[object]:
    return ["ablate", "--config", inputs / "table.yaml", "--work", work, "--ldm", inputs / "ldm", "--weights",
            inputs / "recogniser", "--real", inputs / "real", "--pairs", inputs / "pairs.txt", "--images",
            inputs / "test", "--device", "cpu", *more]


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory) -> Path:
    from facesyn_cli.cli.main import run_command_line

    work = tmp_path_factory.mktemp("ablate") / "work"
    assert run_command_line([str(word) for word in words(inputs, work)]) == 0
    return work


def table_of(work: Path) -> dict:
    return json.loads((work / "ablation/table/table.json").read_text())


def row_of(work: Path, name: str) -> dict:
    return next(row for row in table_of(work)["rows"] if row["name"] == name)


def parts_of(work: Path, stage: str) -> list[Path]:
    return sorted(path for path in (work / "ablation/parts").glob(f"{stage}-*") if path.is_dir())


def headers_of(work: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in (work / "ablation/parts").glob("*/facesyn.json")}


def images_of(work: Path, name: str, stage: str, seed: int = 0) -> ImageSet:
    return ImageSet.open(work / "ablation/parts" / row_of(work, name)["parts"][str(seed)][stage])


def test_every_row_is_finished_with_the_same_number_of_images(finished):
    table = table_of(finished)
    assert [row["name"] for row in table["rows"]] == ["real", "sphere", "faces", "copies", "guided"]
    for row in table["rows"]:
        assert row["status"] == "finished" and list(row["seeds"]) == ["0", "1"]
        assert row["images"] == {"mean": 12, "error": 0}
        last = "augment" if row["name"] in ("copies", "guided") else "cut"
        for seed in (0, 1):
            found = images_of(finished, row["name"], last, seed)
            assert len(found.entries) == 12 and len(found.by_identity()) == row["identities"]["mean"]
        for figures in row["seeds"].values():
            assert 0 <= figures["accuracy"] <= 1 and 0 <= figures["auc"] <= 1 and figures["minutes"] > 0
    assert [row["identities"]["mean"] for row in table["rows"]] == [4, 3, 3, 3, 3]


def test_samples_give_way_to_augmentation(finished):
    samples = images_of(finished, "copies", "sample").by_identity()
    assert {len(entries) for entries in images_of(finished, "copies", "cut").by_identity().values()} == {2}
    assert {len(entries) for entries in images_of(finished, "copies", "augment").by_identity().values()} == {4}
    assert {len(entries) for entries in samples.values()} == {4}                 # of the row below, shared
    own = images_of(finished, "guided", "sample").by_identity()
    assert {len(entries) for entries in own.values()} == {2}                     # no more than are used


def test_work_that_rows_share_is_made_once(finished):
    parts = {row["name"]: row["parts"]["0"] for row in table_of(finished)["rows"]}
    assert parts["faces"]["gen-contexts"] == parts["copies"]["gen-contexts"] == parts["guided"]["gen-contexts"]
    assert parts["faces"]["sample"] == parts["copies"]["sample"] != parts["guided"]["sample"]
    counts = {stage: len(parts_of(finished, stage)) for stage in ("gen-contexts", "sample", "cut", "train-fr", "eval")}
    assert counts == {"gen-contexts": 2 * 2, "sample": 3 * 2, "cut": 5 * 2, "train-fr": 5 * 2, "eval": 5 * 2}


def test_network_evaluations_are_those_of_the_row(finished):
    evaluations = {row["name"]: row["evaluations"]["mean"] for row in table_of(finished)["rows"]}
    contexts, samples, fewer = 4 * 2, 12 * 2, 6 * 2
    assert evaluations == {
        "real": 0, "sphere": samples, "faces": contexts + samples, "copies": contexts + fewer,
        "guided": contexts + 2 * fewer,
    }


def test_a_seed_decides_everything(finished):
    for name, stage in (("real", "cut"), ("sphere", "sample")):
        first, second = (images_of(finished, name, stage, seed) for seed in (0, 1))
        assert [first.read(entry) for entry in first.entries] != [second.read(entry) for entry in second.entries]
    parts = row_of(finished, "faces")["parts"]
    assert not set(parts["0"].values()) & set(parts["1"].values())


def test_accuracy_is_what_eval_says_and_differences_are_paired(finished):
    rows = {row["name"]: row for row in table_of(finished)["rows"]}
    for row in rows.values():
        for seed, figures in row["seeds"].items():
            table = json.loads((finished / "ablation/parts" / row["parts"][seed]["eval"] / "table.json").read_text())
            assert figures["accuracy"] == table["rows"][0]["accuracy"]
    faces, copies = rows["faces"]["seeds"], rows["copies"]["seeds"]
    expected = {seed: copies[seed]["accuracy"] - faces[seed]["accuracy"] for seed in ("0", "1")}
    assert rows["copies"]["difference"]["seeds"] == pytest.approx(expected) and rows["real"]["difference"] is None


def test_the_tables_agree(finished):
    folder = finished / "ablation/table"
    lines = list(csv.DictReader((folder / "table.csv").read_text().splitlines()))
    rows = table_of(finished)["rows"]
    assert [float(line["accuracy"]) for line in lines] == [row["accuracy"]["mean"] for row in rows]
    markdown = (folder / "table.md").read_text()
    assert markdown.splitlines()[2].startswith("| real faces | 12 | 4 | ")
    assert "- benchmark: pairs" in markdown and "+ copies, against faces: " in markdown
    assert "ir-tiny, 0.00" in markdown and "GFLOP" in markdown


def test_again_makes_nothing(finished, inputs, run_cli):
    before = headers_of(finished)
    ran = run_cli(*words(inputs, finished))
    assert ran.code == 0 and headers_of(finished) == before
    assert ran.out.splitlines()[0].startswith("training set ") and "+ copies, against faces" in ran.out
    plan = run_cli(*words(inputs, finished), "--dry-run", "--json").json()
    assert plan["left"] == {"network evaluations": 0, "faces the recogniser trains on": 0, "expected minutes": 0}
    assert plan["rows"]["copies"]["seeds finished"] == "2 of 2"


def test_a_killed_table_goes_on(finished, inputs, run_cli, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(finished, work)
    lost = [work / "ablation/parts" / row_of(work, name)["parts"]["1"][stage]
            for name, stage in (("guided", "eval"), ("faces", "eval"), ("faces", "train-fr"))]
    accuracy = row_of(work, "guided")["seeds"]["1"]["accuracy"]
    for path in lost:
        shutil.rmtree(path)
    before = headers_of(work)
    plan = run_cli(*words(inputs, work), "--dry-run", "--json").json()
    assert plan["left"]["faces the recogniser trains on"] == 16 and plan["left"]["network evaluations"] == 0
    assert plan["left"]["expected minutes"] >= 0
    assert run_cli(*words(inputs, work)).code == 0
    after = headers_of(work)
    assert {name: time for name, time in after.items() if name in before} == before
    assert set(after) - set(before) == {path.name for path in lost}
    assert row_of(work, "guided")["seeds"]["1"]["accuracy"] == accuracy
