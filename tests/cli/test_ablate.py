"""`facesyn ablate` with the smallest networks: rows, shared work, kills, growth, failures."""

from __future__ import annotations

import csv
import json
import os
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import tiny_fr
import yaml
from fill import fill_state
from tiny_recognizer import write_recognizer

from facesyn_cli.artifacts.atomic_files import host_tag
from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.artifacts.ldm_settings import LdmSettings
from facesyn_cli.artifacts.weights import write_weights
from facesyn_cli.cli.ablate import EXAMPLES
from facesyn_cli.config.ablation_rows import expand_rows, select_rows
from facesyn_cli.config.recipe import load_sections
from facesyn_cli.models.idiff_unet import ConditionalUNet, UnetConfig

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
    unet = fill_state(ConditionalUNet(UnetConfig(**UNET)))
    settings = LdmSettings(
        denoiser=UNET, latent_size=6, latent_mean=[0.0] * 3, latent_std=[0.003] * 3, image_size=24, output_size=112,
        autoencoder={"name": "pixels", "settings": {"downscale": 4}},
    )
    write_weights(folder / "ldm", unet.state_dict(), settings.model_dump(mode="json"))
    write_recognizer(folder / "recognizer")
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
            inputs / "recognizer", "--real", inputs / "real", "--pairs", inputs / "pairs.txt", "--images",
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


def files_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}


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
            assert 0 <= figures["accuracy"] <= 1 and 0 <= figures["auc"] <= 1 and "minutes" not in figures
    assert [row["identities"]["mean"] for row in table["rows"]] == [4, 3, 3, 3, 3]
    times = json.loads((finished / "ablation" / table["table"] / "times.json").read_text())["minutes"]
    assert set(times) == {row["name"] for row in table["rows"]} and all(times["real"][seed] > 0 for seed in ("0", "1"))


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
    before, files = headers_of(finished), files_of(finished / "ablation/table")
    ran = run_cli(*words(inputs, finished))
    assert ran.code == 0 and headers_of(finished) == before and files_of(finished / "ablation/table") == files
    assert ran.out.splitlines()[0].startswith("training set ") and "+ copies, against faces" in ran.out
    plan = run_cli(*words(inputs, finished), "--dry-run", "--json").json()
    assert plan["left"] == {"network_evaluations": 0, "training_faces": 0, "expected_minutes": 0}
    assert plan["rows"]["copies"]["seeds_finished"] == 2


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
    assert plan["left"]["training_faces"] == 16 and plan["left"]["network_evaluations"] == 0
    assert plan["left"]["expected_minutes"] >= 0
    assert run_cli(*words(inputs, work)).code == 0
    for name in ("table.csv", "table.md"):
        tables = [folder / "ablation/table" / name for folder in (finished, work)]
        assert tables[0].read_bytes() == tables[1].read_bytes(), "times are in no table"
    after = headers_of(work)
    assert {name: time for name, time in after.items() if name in before} == before
    assert set(after) - set(before) == {path.name for path in lost}
    assert row_of(work, "guided")["seeds"]["1"]["accuracy"] == accuracy


def test_a_stage_killed_after_its_header_is_ended(finished, inputs, run_cli, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(finished, work)
    whole = {path.relative_to(work) for path in work.rglob("*")}
    before = headers_of(work)
    parts, times = work / "ablation/parts", work / "ablation/times"
    gone = {"host": socket.gethostname(), "process": 2**22, "started": "1"}
    for name, stage in (("faces", "sample"), ("copies", "eval")):
        part = row_of(work, name)["parts"]["0"][stage]
        (parts / part / ".lock-all").write_text(json.dumps(gone))
        (times / f"{part}.json").write_text('{"running": true, "seconds": 7}')
        (parts / f"{part}.contact_sheet.png").unlink(missing_ok=True)
    of_a_full_disk = row_of(work, "guided")["parts"]["1"]["sample"]
    (parts / f"{of_a_full_disk}.contact_sheet.png").unlink()
    for path in (parts / "a.json", parts / f"{part}.strip.png", times / "a.json", work / "ablation/table/table.json"):
        left = path.with_name(f".tmp-{path.name}-{host_tag()}-{2**22}-1")
        left.write_text("half")
        os.utime(left, (0, 0))
    assert run_cli(*words(inputs, work)).code == 0
    assert {path.relative_to(work) for path in work.rglob("*")} == whole
    assert headers_of(work) == before, "nothing finished is made again"
    for name in ("table.csv", "table.md"):
        assert (work / "ablation/table" / name).read_bytes() == (finished / "ablation/table" / name).read_bytes()
    assert json.loads((times / f"{part}.json").read_text())["seconds"] >= 7
    assert not any("running" in json.loads(path.read_text()) for path in times.iterdir())


def test_finished_rows_do_not_need_what_was_removed_since(finished, inputs, run_cli, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(finished, work)
    parts = row_of(work, "real")["parts"]["0"]
    shutil.rmtree(work / "ablation/parts" / parts["train-fr"])
    time = work / "ablation/times" / f"{parts['cut']}.json"
    time.write_text('{"running": true, "seconds": 7}')
    assert run_cli(*words(inputs, work)).code == 0
    assert not (work / "ablation/parts" / parts["train-fr"]).exists() and "running" not in time.read_text()


def write_table(folder: Path, rows: list[dict], **settings: object) -> Path:
    """Write another table with the tiny recipe, and return its file."""
    table = {**TABLE, "ablate": {"seeds": 1, "images": 6, "rows": rows, **settings}}
    (folder / "table.yaml").write_text(yaml.safe_dump(table, sort_keys=False))
    return folder / "table.yaml"


SPHERE = {"name": "sphere", "gen-contexts": {"source": "sphere", "filters": []}}


def test_rows_and_seeds_may_be_added(inputs, run_cli, tmp_path):
    table = write_table(tmp_path, [SPHERE, {"name": "few", "base": "sphere", "sample": {"ids": 2}, "images": 4}])
    again = [*words(inputs, tmp_path / "work"), "--config", table]
    assert run_cli(*again, "--rows", "few").code == 0
    assert [row["status"] for row in table_of(tmp_path / "work")["rows"]] == ["not run", "finished"]
    assert "| sphere |  |  |  |  |  |  |  | not run |" in (tmp_path / "work/ablation/table/table.md").read_text()
    before = headers_of(tmp_path / "work")
    assert run_cli(*again, "--seeds", 2, "--rows", "sphere,few").code == 0
    work = tmp_path / "work"
    assert [row["status"] for row in table_of(work)["rows"]] == ["finished", "finished"]
    samples = images_of(work, "sphere", "sample")
    assert images_of(work, "few", "sample").path == samples.path and len(samples.entries) == 6  # grown from 4
    after = headers_of(work)
    assert {name: time for name, time in after.items() if name in before and name != samples.path.name} == {
        name: time for name, time in before.items() if name != samples.path.name
    }
    evaluations = {row["name"]: row["evaluations"]["mean"] for row in table_of(work)["rows"]}
    assert evaluations == {"sphere": 6 * 2, "few": 4 * 2}  # its share of what both have
    assert run_cli(*again, "--json").json()["rows"][0]["status"] == "finished"  # one seed is asked for again


def test_rows_that_are_decided_get_no_further_seeds(inputs, run_cli, tmp_path):
    table = write_table(tmp_path, [SPHERE, {"name": "same", "base": "sphere"}])
    again = [*words(inputs, tmp_path / "work"), "--config", table, "--seeds", 3]
    ran = run_cli(*again, "ablate.stop_decided=true")
    assert ran.code == 0 and "same, seed 2: left out, it is decided" in ran.err, ran.err
    rows = table_of(tmp_path / "work")["rows"]
    assert [row["status"] for row in rows] == ["decided, 2 of 3 seeds"] * 2
    assert [list(row["seeds"]) for row in rows] == [["0", "1"]] * 2
    assert "97.5 % interval +0.00 to +0.00" in (tmp_path / "work/ablation/table/table.md").read_text()
    assert run_cli(*again).code == 0
    assert [row["status"] for row in table_of(tmp_path / "work")["rows"]] == ["finished"] * 2


def test_seeds_made_by_several_processes_come_together(inputs, run_cli, tmp_path):
    again = [*words(inputs, tmp_path / "work"), "--config", write_table(tmp_path, [{"name": "real", "real": True,
                                                                                     "identities": 3}])]
    for seed in (0, 1):
        assert run_cli(*again, "--seed", seed, "--seeds", 1).code == 0
        assert list(table_of(tmp_path / "work")["rows"][0]["seeds"]) == [str(seed)]
    before = headers_of(tmp_path / "work")
    assert run_cli(*again, "--seeds", 2).code == 0 and headers_of(tmp_path / "work") == before
    assert list(table_of(tmp_path / "work")["rows"][0]["seeds"]) == ["0", "1"]


def test_samples_are_made_for_the_row_that_needs_most(inputs, run_cli, tmp_path):
    table = write_table(tmp_path, [SPHERE, {"name": "more", "base": "sphere", "images": 12}])
    again = [*words(inputs, tmp_path / "work"), "--config", table]
    assert run_cli(*again, "--rows", "sphere,more").code == 0
    work = tmp_path / "work"
    sample = json.loads((images_of(work, "sphere", "sample").path / "facesyn.json").read_text())
    assert sample["config"]["growing"] == {"ids": 3, "per_id": 4}
    assert len(images_of(work, "sphere", "cut").entries) == 6 and len(images_of(work, "more", "cut").entries) == 12


def test_cut_to_the_smallest_row(inputs, run_cli, tmp_path):
    rows = [{"name": "real", "real": True}, SPHERE, {"name": "few", "base": "sphere", "sample": {"ids": 2}}]
    table = write_table(tmp_path, rows, images="smallest")
    plan = run_cli(*words(inputs, tmp_path / "work"), "--config", table, "--rows", "sphere", "--dry-run", "--json")
    assert plan.json()["rows"]["sphere"]["images"] == 2 * 4  # also where the smallest row is not run
    assert not (tmp_path / "work").exists()


def test_a_failed_row_is_said_and_others_go_on(inputs, run_cli, tmp_path):
    twins = {"name": "twins", "gen-contexts": {"source": TWO_STAGE, "filters": [{"name": "unique", "r": -1}]}}
    copies = {"augmentation": {"name": "oversample", "copies": 1}}
    rows = [{**twins, "gen-contexts": {**twins["gen-contexts"], "patience": 8}},
            {"name": "copied", "base": "twins", "augment": copies}, SPHERE]
    again = [*words(inputs, tmp_path / "work"), "--config", write_table(tmp_path, rows)]
    ran = run_cli(*again)
    assert ran.code == 2 and ran.out.splitlines()[0].startswith("training set ")
    last = ran.err.strip().splitlines()[-1]
    assert last.startswith("error: 2 of 3 runs failed: twins, seed 0: source two-stage is given up")
    found = {row["name"]: row for row in table_of(tmp_path / "work")["rows"]}
    assert found["twins"]["status"].startswith("failed: seed 0: source two-stage is given up")
    assert found["copied"]["problems"] == found["twins"]["problems"]
    assert found["sphere"]["status"] == "finished" and found["twins"]["accuracy"]["mean"] is None
    plain = run_cli(*again, "--rows", "sphere")
    assert plain.code == 0 and "failed: seed 0" in plain.out  # still known
    assert run_cli(*again, "--rows", "copied", "gen-contexts.count=3").code == 2  # tried again: as wrong as before


def test_stopped_after_the_row_that_is_being_made(inputs, run_cli, tmp_path, monkeypatch):
    from facesyn_cli import signals
    from facesyn_cli.stages import eval as evaluation

    run = evaluation.run

    def run_and_stop(cfg, work):
        outcome = run(cfg, work)
        signals._remember(15, None)
        return outcome

    table = write_table(tmp_path, [SPHERE, {"name": "real", "real": True, "identities": 3}])
    again = [*words(inputs, tmp_path / "work"), "--config", table]
    monkeypatch.setattr(evaluation, "run", run_and_stop)
    assert run_cli(*again).code == 143
    assert [row["status"] for row in table_of(tmp_path / "work")["rows"]] == ["finished", "not run"]
    before = headers_of(tmp_path / "work")
    monkeypatch.setattr(evaluation, "run", run)
    signals.reset()
    assert run_cli(*again).code == 0
    assert [row["status"] for row in table_of(tmp_path / "work")["rows"]] == ["finished", "finished"]
    assert before.items() <= headers_of(tmp_path / "work").items()


def test_a_filter_takes_the_judge(inputs, run_cli, assert_refused, tmp_path):
    again = {"name": "consistency", "lowest": 0.99, "attempts": 1, "center_images": 2}
    rows = [SPHERE, {"name": "filter", "base": "sphere", "sample": {"filter": again}}]
    arguments = [*words(inputs, tmp_path / "work"), "--config", write_table(tmp_path, rows)]
    assert_refused(*arguments, says="row filter: a filter needs a judge")
    assert_refused(*arguments, "--judge", inputs / "recognizer", "ablate.images=3", says="filter.center_images")
    ran = run_cli(*arguments, "--judge", inputs / "recognizer", "--dry-run")
    assert "rejection sampling: adds evaluations" in ran.out
    assert run_cli(*arguments, "--judge", inputs / "recognizer").code == 0
    evaluations = {row["name"]: row["evaluations"]["mean"] for row in table_of(tmp_path / "work")["rows"]}
    assert evaluations["sphere"] == 12 < evaluations["filter"] <= 24


def test_another_input_is_another_row(inputs, run_cli, tmp_path):
    shutil.copytree(inputs, tmp_path / "inputs")
    table = write_table(tmp_path, [SPHERE])
    again = [*words(tmp_path / "inputs", tmp_path / "work"), "--config", table]
    assert run_cli(*again).code == 0
    pairs = tmp_path / "inputs/pairs.txt"
    pairs.write_text(pairs.read_text().replace("p0\t0\t1", "p0\t0\t2", 1))
    plan = run_cli(*again, "--dry-run", "--json").json()
    assert plan["rows"]["sphere"]["seeds_finished"] == 0
    assert plan["left"] == {"network_evaluations": 0, "training_faces": 0, "expected_minutes": 0}
    plan = run_cli(*again, "--dry-run", "--json", "sample.scheduler.steps=3").json()
    assert plan["left"]["network_evaluations"] == 6 * 3


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--rows", "faces,fcaes"), ("there is no row fcaes", "did you mean 'faces'")),
        (("--seeds", 0), "seeds"),
        (("ablate.imagse=3",), "did you mean 'images'"),
        (("samples.ids=3",), "stages of a table are"),
        (("ablate.images=13", "--rows", "sphere"), "row sphere: 13 images are wanted, the row has 12"),
        (("ablate.images=12", "sample.per_id=2", "--rows", "sphere,faces"), "rows sphere, faces: 12 images are wanted"),
        (("sample.ids=5", "--rows", "sphere"), "sample.ids is 5, but gen-contexts.count is 4"),
        (("sample.scheduler.steps=0",), "steps"),
        (("sample.layout=tar",), "layout=tar"),
        (("train-fr.inputs=[a]",), "train-fr.inputs"),
        (("train-fr.head=arcfaec",), "did you mean 'arcface'"),
        (("--ldm", "nowhere", "--rows", "sphere"), "nowhere does not exist"),
        (("--weights", "nowhere", "--rows", "faces"), "row faces: nowhere does not exist"),
        (("--pairs", "nowhere"), "nowhere does not exist"),
        (("--real", "nowhere"), "nowhere does not exist"),
        (("ablate.rows=[{name: real, real: true, identities: 9}]",), "row real: 9 identities are wanted"),
        (("ablate.rows=[{name: real, real: true}]", "ablate.images=10"), "fewer than 2 each"),
        (("ablate.rows=[{name: a, base: b}]",), "'b' is no row above it"),
    ],
)
def test_mistakes_are_one_line_before_any_work(assert_refused, inputs, tmp_path, more, says):
    assert_refused(*words(inputs, tmp_path / "work", *more), says=says)
    assert not (tmp_path / "work").exists()


def test_what_a_table_needs(assert_refused, inputs, tmp_path):
    assert_refused("ablate", says="--config NAME or FILE")
    assert_refused("ablate", "--config", "small", says="a recipe without rows")
    start = ["ablate", "--config", inputs / "table.yaml", "--work", tmp_path / "work", "--ldm", inputs / "ldm"]
    assert_refused(*start, says="nothing to evaluate")
    pairs = ["--pairs", inputs / "pairs.txt", "--images", inputs / "test"]
    assert_refused(*start, *pairs, "--rows", "real", says="row real: give the folder of real faces with --real")
    assert_refused(*start[:-2], *pairs, "--rows", "sphere", says="give --ldm PATH, or write it with: facesyn train-ldm")
    assert_refused(*start, *pairs, "--rows", "faces", says="--weights, or run embed")


def test_networks_lie_in_the_work_folder_where_none_is_named(inputs, run_cli, tmp_path):
    shutil.copytree(inputs / "ldm", tmp_path / "work/2-ldm")
    arguments = words(inputs, tmp_path / "work", "--rows", "sphere", "--dry-run", "--json")
    at = arguments.index("--ldm")
    ran = run_cli(*arguments[:at], *arguments[at + 2 :])
    assert ran.code == 0 and ran.json()["rows"]["sphere"]["network_evaluations_per_seed"] == 24


def test_real_faces_are_as_many_people_as_the_table_says(inputs, run_cli, tmp_path):
    table = write_table(tmp_path, [{"name": "real", "real": True}, {"name": "two", "real": True, "identities": 2}],
                        identities=3)
    plan = run_cli(*words(inputs, tmp_path / "work"), "--config", table, "--dry-run", "--json").json()
    assert [row["identities"] for row in plan["rows"].values()] == [3, 2]


def test_generated_faces_stand_beside_real_ones(inputs, run_cli, tmp_path):
    rows = [{"name": "real", "real": True, "identities": 4, "images": 8},
            {"name": "both", "beside": "real", "sample": {"ids": 2}, "gen-contexts": SPHERE["gen-contexts"]},
            {"name": "more", "base": "both", "sample": {"ids": 3}}]
    table = {**TABLE, "ablate": {"seeds": 1, "rows": rows}}
    (tmp_path / "table.yaml").write_text(yaml.safe_dump(table, sort_keys=False))
    arguments = words(inputs, tmp_path / "work")
    arguments[arguments.index("--config") + 1] = tmp_path / "table.yaml"
    ran = run_cli(*arguments, "--json")
    assert ran.code == 0, ran.err
    found = ran.json()["rows"]
    assert [(row["images"]["mean"], row["identities"]["mean"]) for row in found] == [(8, 4), (16, 6), (20, 7)]
    assert [row["difference"] and row["difference"]["to"] for row in found] == [None, "real", "both"]
    trained = tmp_path / "work" / "ablation/parts" / row_of(tmp_path / "work", "both")["parts"]["0"]["train-fr"]
    parents = json.loads((trained / "facesyn.json").read_text())["parents"]
    assert len(parents) == 2 and Path(parents["input-1"]["path"]).name.startswith("cut-")
    real = row_of(tmp_path / "work", "real")["parts"]["0"]["cut"]
    assert Path(parents["input-1"]["path"]).name == real, "the same real faces as in the row of real faces"


def test_only_one_process(assert_refused, inputs, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert_refused(*words(inputs, tmp_path / "work"), says="runs in one process")


@pytest.mark.parametrize(("name", "images"), [("table1", [800] * 9),
                                              ("table2", [1600] * 4 + [800, 3200]),
                                              ("table3", [800] * 6),
                                              ("table4", [800, 880, 1200, 1600, 4000, 800, 3200]),
                                              ("table5", [800] * 5)])
def test_the_tables_that_come_with_facesyn(inputs, run_cli, name, images, tmp_path):
    real = tmp_path / "real"
    for person in range(80):
        (real / f"p{person}").mkdir(parents=True)
        for photo in range(10):
            (real / f"p{person}/{photo}.png").touch()
    arguments = words(inputs, tmp_path / "work", "--judge", inputs / "recognizer", "--dry-run", "--json")
    arguments[arguments.index("--real") + 1] = real
    arguments[arguments.index("--config") + 1] = name
    if name != "table1":
        np.save(tmp_path / "known.npy", np.eye(512, dtype=np.float32)[:9])
        arguments.append(f"gen-contexts.known={tmp_path / 'known.npy'}")
    ran = run_cli(*arguments)
    assert ran.code == 0, ran.err
    rows = ran.json()["rows"]
    assert [row["images"] for row in rows.values()] == images
    gflops = float(ran.json()["recognizer"].split(", ")[1].removesuffix(" GFLOP an image; cosface"))
    assert gflops <= 1
    assert ran.json()["seeds"].startswith("0, 1, 2, 3, 4;")


def test_the_examples_name_rows_that_exist():
    for example in EXAMPLES:
        arguments = example.split()
        table = arguments[arguments.index("--config") + 1]
        names = arguments[arguments.index("--rows") + 1] if "--rows" in arguments else None
        sections = load_sections(table)
        assert select_rows(expand_rows(sections["ablate"]["rows"], sections), names)
