"""`facesyn report`: what it finds in planted sets, what it survives, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import finish, spawn
from tiny_detector import write_detector
from tiny_recognizer import face, write_faces, write_recognizer

from facesyn_cli.artifacts.benchmark_table import BenchmarkRow, BenchmarkTable
from facesyn_cli.artifacts.context_set import write_contexts
from facesyn_cli.artifacts.header import Parent
from facesyn_cli.artifacts.output import open_output
from facesyn_cli.data.pixels import encode_jpeg, encode_png, to_pixels
from facesyn_cli.evaluation.set_distance import frechet_distance
from facesyn_cli.models.inception import LoadedFeatures
from facesyn_cli.models.loading import load_backbone
from facesyn_cli.models.lpips import LoadedLpips
from facesyn_cli.stages import report as stage
from facesyn_cli.stages.report import ReportConfig


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict[str, Path]:
    """A set, a reference with other people, and two judges."""
    folder = tmp_path_factory.mktemp("inputs")
    places = {
        "faces": write_faces(folder / "faces", people=6, photos=4),
        "judge": write_recognizer(folder / "judge"),
        "other": write_recognizer(folder / "other"),
    }
    for person in range(50, 58):
        (folder / "real" / f"r{person}").mkdir(parents=True)
        for photo in range(3):
            (folder / "real" / f"r{person}" / f"{photo}.png").write_bytes(encode_png(face(person, photo)))
    return {**places, "real": folder / "real"}


@pytest.fixture
def report(run_cli, inputs, tmp_path):
    """Return a function that makes a report and reads it."""

    def run(*arguments: object, out: str = "out") -> dict:
        ran = run_cli("report", *arguments, "--judge", inputs["judge"], "--out", tmp_path / out, "workers=1")
        assert ran.code == 0, ran.err
        return json.loads((tmp_path / out / "report.json").read_text())

    return run


def figures(data: dict, name: str, judge: int = 0) -> dict[str, dict]:
    result = [r for r in data["results"] if r["set"] == name][judge]
    return {f["id"]: f for s in result["sections"].values() for f in s["figures"] if f["group"] is None}


def rows(data: dict, name: str) -> list[dict]:
    return [row for s in data["results"][0]["sections"].values() for x in s["lists"] if x["id"] == name
            for row in x["rows"]]


def test_everything_is_written(report, inputs, tmp_path):
    data = report(inputs["faces"], "--reference", inputs["real"])
    assert data["sets"][0]["images"] == 24 and data["sets"][0]["identities"] == 6
    assert data["reference"]["name"] == "reference" and data["reference"]["images"] == 24
    assert data["judges"][0]["digest"] == load_backbone(inputs["judge"]).digest
    assert set(data["results"][0]["sections"]) == {"identity", "diversity", "quality", "privacy", "fairness"}
    found = figures(data, "faces")
    assert found["privacy.copies"]["value"] == 0 and found["quality.frechet"]["value"] > 0
    assert set(data["definitions"]) >= set(found)
    assert "NaN" not in (tmp_path / "out" / "report.json").read_text()
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<html" in page and "faces" in page
    assert (tmp_path / "out" / "README.md").read_text().startswith("---")
    assert json.loads((tmp_path / "out" / "facesyn.json").read_text())["kind"] == "Report"


def test_a_gallery_lies_beside_the_page_and_can_be_added_later(report, inputs, tmp_path):
    page, gallery = tmp_path / "out" / "report.html", tmp_path / "out" / "gallery" / "index.html"
    report(inputs["faces"], inputs["real"], "--reference", inputs["real"], "gallery_images=0")
    assert not gallery.parent.exists() and "gallery/index.html" not in page.read_text()
    report(inputs["faces"], inputs["real"], "--reference", inputs["real"])
    assert 'href="gallery/index.html"' in page.read_text()
    held = json.loads(gallery.read_text().split('id="data">')[1].split("</script>")[0])
    assert held["names"] == [f"p{k}" for k in range(6)] and held["starts"] == [0, 4, 8, 12, 16, 20, 24]
    assert all(length > 0 for length in held["quality"]) and len(set(held["quality"])) > 1
    assert set(held["trainingKeys"]) <= {f"r{person}/{photo}" for person in range(50, 58) for photo in range(3)}
    assert (gallery.parent / "set-2.html").is_file() and len(list(gallery.parent.glob("thumbs-2/*.jpg"))) == 1
    report(inputs["faces"], inputs["real"], "--reference", inputs["real"], "gallery_images=9")
    assert "8 of 24" in gallery.read_text() and "where the people shown agree" in gallery.read_text()


def test_sets_of_every_kind_give_the_same_figures(run_cli, report, inputs, tmp_path):
    with zipfile.ZipFile(tmp_path / "faces.zip", "w") as archive:
        for path in sorted(inputs["faces"].rglob("*.png"), reverse=True):
            archive.write(path, path.relative_to(inputs["faces"]).as_posix())
    assert run_cli("pack", "--in", inputs["faces"], "--out", tmp_path / "packed" / "faces", "size=112").code == 0
    found = [
        report(path, out=f"out-{k}")["results"]
        for k, path in enumerate((inputs["faces"], tmp_path / "faces.zip", tmp_path / "packed" / "faces"))
    ]
    assert found[0] == found[1]
    ours, packed = (
        {f["id"]: (f["value"], f["n"]) for f in result[0]["sections"]["identity"]["figures"]}
        for result in (found[0], found[2])
    )
    assert packed["identity.consistency"] == pytest.approx(ours["identity.consistency"], abs=0.02)  # JPEG
    assert {name: n for name, (_, n) in packed.items()} == {name: n for name, (_, n) in ours.items()}


def test_copies_of_training_faces_are_found(report, inputs, tmp_path):
    own = shutil.copytree(inputs["faces"], tmp_path / "own")
    real = face(53, 1)
    (own / "p1" / "0.png").write_bytes(encode_png(real))
    (own / "p2" / "1.png").write_bytes(encode_png(np.ascontiguousarray(real[:, ::-1])))
    (own / "p3" / "2.png").unlink()
    (own / "p3" / "2.jpg").write_bytes(encode_jpeg(face(51, 2), 60))
    data = report(own, "--reference", inputs["real"])
    assert figures(data, "own")["privacy.copies"]["value"] == 3
    pairs = {(row["images"][0]["key"], row["images"][1]["key"]): row["label"] for row in rows(data, "privacy.copies")}
    assert pairs == {("p1/0", "r53/1"): "copy", ("p2/1", "r53/1"): "copy, mirrored", ("p3/2", "r51/2"): "copy"}
    assert any(f["level"] == "fault" and "copies of training images" in f["text"] for f in data["summary"])


def test_repeated_images_are_found(report, inputs, tmp_path):
    own = shutil.copytree(inputs["faces"], tmp_path / "own")
    (own / "p1" / "3.png").write_bytes(encode_png(face(1, 0)))
    data = report(own)
    assert figures(data, "own")["diversity.near_duplicates_within"]["value"] >= 1 / 24
    assert {"p1/0", "p1/3"} in [{i["key"] for i in row["images"]} for row in rows(data, "diversity.near_duplicates")]
    said = [finding["text"] for finding in data["summary"] if "repeat an image of their own" in finding["text"]]
    assert len(said) == 1
    twice = report(own, "--judge", inputs["other"], out="twice")["summary"]
    assert [finding["text"] for finding in twice if "repeat an image of their own" in finding["text"]] == said


def test_several_sets_and_judges_side_by_side(run_cli, inputs, tmp_path):
    ran = run_cli("report", inputs["faces"], inputs["real"], "--judge", inputs["judge"], "--judge", inputs["other"],
                  "--out", tmp_path / "out", "--json")
    assert ran.code == 0, ran.err
    data = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [(r["set"], r["judge"]) for r in data["results"]] == [
        ("faces", "judge"), ("faces", "other"), ("real", "judge"), ("real", "other")]
    row = next(r for r in data["comparison"] if r["id"] == "identity.consistency" and r["judge"] == "judge")
    a, b = (figures(data, name)["identity.consistency"] for name in ("faces", "real"))
    assert row["values"] == [a["value"], b["value"]] and row["difference"] == pytest.approx(b["value"] - a["value"])
    assert row["error"] == pytest.approx(np.hypot(a["error"], b["error"]))
    assert row["clear"] == (abs(row["difference"]) > 2 * row["error"])
    assert (tmp_path / "out" / "cards" / "real" / "README.md").is_file()
    assert ran.json()["comparison"] == data["comparison"] and set(ran.json()) >= {"summary", "figures", "folder"}


def test_a_reference_of_one_image(report, inputs, tmp_path):
    shutil.copytree(inputs["faces"] / "p0", tmp_path / "one" / "p0")
    for path in sorted((tmp_path / "one" / "p0").iterdir())[1:]:
        path.unlink()
    data = report(tmp_path / "one", "--reference", tmp_path / "one")
    assert data["results"][0]["sections"]["privacy"]["verdict"]["level"] == "fault"


def test_groups(report, inputs, tmp_path):
    (tmp_path / "groups.csv").write_text("identity,side\n" + "".join(f"p{i},{'left' if i < 3 else 'right'}\n"
                                                                      for i in range(6)))
    data = report(inputs["faces"], "--groups", tmp_path / "groups.csv")
    found = {(f["id"], f["group"]): f for f in data["results"][0]["sections"]["fairness"]["figures"]}
    assert found["fairness.images", "side=left"]["value"] == 12
    assert found["fairness.identity.consistency_spread", "side"]["value"] >= 0


def test_a_judge_shows_how_alike_the_images_of_an_identity_look(report, inputs, tmp_path):
    own = shutil.copytree(inputs["faces"], tmp_path / "own")
    for person in range(6):
        for photo in range(1, 4):
            shutil.copy(own / f"p{person}" / "0.png", own / f"p{person}" / f"{photo}.png")
    found = figures(report(own, inputs["faces"], "--reference", inputs["real"]), "own")
    assert found["diversity.perceptual"]["value"] == pytest.approx(0, abs=1e-6)
    assert found["diversity.perceptual_between"]["value"] > 0.01 and found["diversity.perceptual_real"]["value"] > 0.01


class Blurred(torch.nn.Module):
    """A network for images in general, small enough to be followed by hand: 2 x 2 means of each channel."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(pixels, 2).flatten(1)


def test_features_of_a_network(report, run_cli, assert_refused, inputs, tmp_path, monkeypatch):
    network = LoadedFeatures(Blurred(), "inception-v3-fid", "sha256:1", 112, "bilinear")
    monkeypatch.setattr(stage, "load_features", lambda path: network)
    data = report(inputs["faces"], inputs["real"], "--reference", inputs["real"], "--features", "weights.pth")
    (found,) = data["networks"]
    assert (found["name"], found["section"]) == ("inception-v3-fid", "quality") and "bilinear" in found["about"]
    values = {name: {f["id"]: f for f in section["figures"]} for name, section in found["sets"].items()}
    faces, real = (
        np.stack([to_pixels(face(person, photo)).unflatten(-2, (2, 56)).unflatten(-1, (2, 56)).mean((-3, -1)).flatten()
                  for person in people for photo in range(photos)])
        for people, photos in ((range(6), 4), (range(50, 58), 3))
    )
    assert values["faces"]["features.frechet"]["value"] == pytest.approx(frechet_distance(real, faces), rel=1e-4)
    assert values["real"]["features.frechet"]["value"] == pytest.approx(0, abs=1e-6)
    assert values["real"]["features.precision"]["value"] == 1 and "features.d_intra" in values["faces"]
    row = next(r for r in data["comparison"] if r["id"] == "features.frechet")
    assert row["judge"] == "inception-v3-fid" and row["values"][1] == values["real"]["features.frechet"]["value"]
    assert set(data["definitions"]) >= set(values["faces"])
    assert "inception-v3-fid" in (tmp_path / "out" / "report.html").read_text()
    assert "inception-v3-fid" in (tmp_path / "out" / "README.md").read_text()
    assert_refused("report", inputs["faces"], "--judge", inputs["judge"], "--features", "weights.pth",
                   "--out", tmp_path / "out2", says="need real images: --reference")


def test_lpips_from_two_files(report, inputs, monkeypatch):
    network = LoadedLpips(pixels_as_maps(), [torch.ones(3)], "lpips-alex", "sha256:2", 112)
    monkeypatch.setattr(stage, "load_lpips", lambda paths: network)
    data = report(inputs["faces"], "--perceptual", "a.pth", "--perceptual", "b.pth")
    (found,) = data["networks"]
    values = {f["id"]: f for f in found["sets"]["faces"]["figures"]}
    assert found["section"] == "diversity" and values["diversity.lpips"]["n"] == 6
    assert 0 < values["diversity.lpips"]["value"] < values["diversity.lpips_between"]["value"]


def pixels_as_maps() -> torch.nn.Module:
    """A module whose only map is the pixels."""
    module = torch.nn.Identity()
    module.forward = lambda pixels: [pixels]
    return module


def test_groups_of_a_benchmark(report, assert_refused, inputs, tmp_path):
    rows = [BenchmarkRow(benchmark=f"rfw-{name}", pairs=100, folds=10, accuracy=value, accuracy_std=0.02, group="rfw")
            for name, value in (("african", 0.8), ("asian", 0.9))]
    BenchmarkTable(backbone="ir-50", weights="sha256:1", flip=True, rows=rows).write(tmp_path / "table")
    data = report(inputs["faces"], "--table", tmp_path / "table" / "table.json")
    found = {(f["id"], f["group"]): f["value"] for f in data["benchmark"]["fairness"]["figures"]}
    assert found["fairness.benchmark_accuracy", "rfw=asian"] == 0.9
    assert found["fairness.benchmark_accuracy_spread", "rfw"] == pytest.approx(0.1)
    assert "RFW: the recognizer" in (tmp_path / "out" / "report.html").read_text()
    assert_refused("report", inputs["faces"], "--judge", inputs["judge"], "--table", tmp_path / "none",
                   "--out", tmp_path / "out2", says="none")


def test_poses_need_a_detector(report, assert_refused, inputs, tmp_path):
    detector = write_detector(tmp_path / "detector.onnx")
    pixels = report(inputs["faces"], "--reference", inputs["real"], f"detector={detector}")["pixels"]
    for name in ("faces", "reference"):
        found = {f["id"]: f for f in pixels[name]["figures"]}
        assert found["pixels.faces_found"]["n"] == 24 and "pixels.yaw_within" in found
        assert found["pixels.sharpness"]["n"] == 24 and found["pixels.sharpness"]["value"] > 0
    assert_refused("report", inputs["faces"], "--judge", inputs["judge"], "detector=none.onnx", "--out",
                   tmp_path / "out2", says="YuNet")


def test_names_of_sets_and_settings_are_told_apart(report, run_cli, inputs, tmp_path):
    odd = shutil.copytree(inputs["faces"], tmp_path / "seed=3")
    data = report(odd, inputs["faces"], "max_pairs=20000", "r=0.9")
    assert [s["name"] for s in data["sets"]] == ["seed=3", "faces"] and data["seed"] == 0
    assert {f["id"]: f["threshold"] for f in data["results"][0]["sections"]["identity"]["figures"]}[
        "identity.unique_share"] == 0.9
    twice = report(inputs["faces"], shutil.copytree(inputs["faces"], tmp_path / "again" / "faces"), out="twice")
    assert [s["name"] for s in twice["sets"]] == ["faces", "faces-2"]
    assert all(row["difference"] == 0 for row in twice["comparison"])


def test_whole_identities_of_a_large_set(report, inputs):
    data = report(inputs["faces"], "--max-images", 10)
    assert data["sets"][0]["images"] == 8 and data["sets"][0]["of_images"] == 24


def make_run(work: Path, inputs: dict[str, Path]) -> None:
    """A run with real images, contexts with a face, and samples made with the judge's embeddings."""
    shutil.copytree(inputs["real"], work / "0-images")
    digest = load_backbone(inputs["judge"]).digest
    cfg = ReportConfig()
    with open_output(work / "3-contexts", "ContextSet", "gen-contexts", cfg, {}) as out:
        (out.folder / "faces").mkdir()
        (out.folder / "faces" / "p0.png").write_bytes(encode_png(face(0, 0)))
        faces = ["p0.png"] + [None] * 5
        write_contexts(out.folder, [f"p{i}" for i in range(6)], np.eye(6, 8), [{"name": "r50/0"}, *[{}] * 5], faces)
        out.finish({"contexts": 6}, {"embedder": digest})
    with open_output(work / "4-samples", "ImageSet", "sample", cfg, {"ldm": Parent("2-ldm", "sha256:1")}) as out:
        shutil.copytree(inputs["faces"], out.folder, dirs_exist_ok=True)
        out.finish({"images": 24}, {"embedder": digest})
    (work / "2-ldm").mkdir()
    (work / "2-ldm" / "metrics.jsonl").write_text("".join(f'{{"step": {k}, "loss": 1.0}}\n' for k in range(1, 1201)))


def test_a_run(run_cli, inputs, tmp_path):
    work = tmp_path / "run"
    make_run(work, inputs)
    words = ("report", "--work", work, "--judge", inputs["judge"])
    ran = run_cli(*words)
    assert ran.code == 0, ran.err
    data = json.loads((work / "9-report" / "report.json").read_text())
    assert data["reference"]["path"] == str(work / "0-images")
    assert [stage["folder"] for stage in data["sets"][0]["chain"]] == ["3-contexts", "4-samples"]
    assert [s["context_face"] for s in data["sets"][0]["strips"]] == [True] + [False] * 5
    assert figures(data, "4-samples")["identity.fidelity"]["n"] == 1  # drawn from a photo of the reference
    assert any("4-samples was conditioned on embeddings of judge" in f["text"] for f in data["summary"])
    assert 250 < len(data["training"]["ldm"]["lines"]) <= 500 and data["training"]["fr"] is None
    before = (work / "9-report" / "facesyn.json").read_bytes()
    with open(work / "2-ldm" / "metrics.jsonl", "a") as file:
        file.write('{"step": 1300, "loss": 0.5}\n')
    assert run_cli(*words).code == 0
    again = json.loads((work / "9-report" / "report.json").read_text())
    assert again["training"]["ldm"]["lines"] != data["training"]["ldm"]["lines"]
    assert again["results"] == data["results"] and (work / "9-report" / "facesyn.json").read_bytes() == before
    other = run_cli("report", "--work", work, "--judge", inputs["other"], "--out", tmp_path / "second", "--json")
    assert other.code == 0 and "conditioned on" in str(other.json()["summary"]), "the other file has the same weights"


def test_a_dry_run_writes_nothing(run_cli, inputs, tmp_path):
    ran = run_cli("report", inputs["faces"], "--judge", inputs["judge"], "--reference", inputs["real"],
                  "--out", tmp_path / "out", "--dry-run", "--json")
    assert ran.code == 0 and not (tmp_path / "out").exists()
    plan = ran.json()["plan"]
    assert plan["network_evaluations"] == {"judge": 3 * 48} and plan["state"] == "new"
    assert plan["counts"] == {"sets": 1, "judges": 1, "images": 48}
    assert plan["chosen"]["sets"]["faces"] == "24 of 24 images"


def test_a_second_run_finds_it_finished_and_embeddings_can_be_shared(run_cli, inputs, tmp_path):
    words = ("report", inputs["faces"], "--judge", inputs["judge"], f"cache={tmp_path / 'cache'}")
    assert run_cli(*words, "--out", tmp_path / "a").code == 0
    parts = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*.npz")}
    assert len(parts) == 2
    assert run_cli(*words, "--out", tmp_path / "b", "r=0.5").code == 0
    swapped = ("report", inputs["real"], "--reference", inputs["faces"], *words[2:], "--out", tmp_path / "c")
    assert run_cli(*swapped).code == 0
    now = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*.npz")}
    assert len(now) == 4 and parts.items() <= now.items(), "a set is known again where it is the reference"
    ran = run_cli(*words, "--out", tmp_path / "a", "--dry-run", "--json")
    plan = ran.json()["plan"]
    assert plan["state"] == "finished" and plan["network_evaluations"] == {"judge": 0}


def test_a_killed_run_goes_on_and_ends_alike(inputs, tmp_path, run_cli):
    words = ("report", inputs["faces"], "--judge", inputs["judge"], "--reference", inputs["real"], "workers=1")
    process = spawn(*words, "--out", tmp_path / "killed")
    end = time.monotonic() + 120
    while not list((tmp_path / "killed").glob("cache/*-judge/*.npz")) and time.monotonic() < end:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    finish(process)
    assert run_cli(*words, "--out", tmp_path / "killed").code == 0
    assert run_cli(*words, "--out", tmp_path / "whole").code == 0
    one, other = ((tmp_path / name / "report.json").read_bytes() for name in ("killed", "whole"))
    assert one == other
    pages = [(tmp_path / name / "report.html").read_bytes() for name in ("killed", "whole")]
    assert pages[0] == pages[1]


def test_unreadable_images_are_counted(report, inputs, tmp_path):
    own = shutil.copytree(inputs["faces"], tmp_path / "own")
    (own / "p0" / "0.png").write_bytes(b"no image")
    data = report(own)
    assert data["sets"][0]["images"] == 23 and data["sets"][0]["unreadable"] == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{faces}"], "--judge"),
        (["--judge", "{judge}", "--work", "{tmp}/none"], "4-samples does not exist"),
        (["{tmp}/none", "--judge", "{judge}"], "none does not exist"),
        (["{faces}", "--judge", "{faces}/p0/0.png"], "0.png"),
        (["{faces}", "--judge", "{judge}", "--reference", "{tmp}/none"], "none does not exist"),
        (["{faces}", "--judge", "{judge}", "--groups", "{tmp}/none.csv"], "none.csv"),
        (["{faces}", "--judge", "{judge}", "--reference", "{real}", "--features", "{judge}/model.safetensors"],
         "a state dict of Inception-v3 was expected"),
        (["{faces}", "--judge", "{judge}", "--perceptual", "{judge}/model.safetensors"], "two files"),
        (["{faces}", "--judge", "{judge}", "--groups", "{tmp}/bad.csv"], "bad.csv: a first line"),
        (["{faces}", "--judge", "{judge}", "--groups", "{tmp}/others.csv"], "no identity of the set has a value"),
        (["{broken}", "--judge", "{judge}"], "none of the 1 images"),
        (["{faces}", "--judge", "{judge}", "rr=1"], "did you mean 'r'?"),
        (["{faces}", "--judge", "{judge}", "r=2"], "r"),
        (["{faces}", "--judge", "{judge}", "max_pairs=5"], "max_pairs"),
        (["{faces}", "--judge", "{judge}", "--device", "gpu9"], "gpu9"),
    ],
)
def test_wrong_inputs(assert_refused, inputs, tmp_path, arguments, says):
    (tmp_path / "broken" / "a").mkdir(parents=True)
    (tmp_path / "broken" / "a" / "0.png").write_bytes(b"x")
    (tmp_path / "bad.csv").write_text("who,what\na,b\n")
    (tmp_path / "others.csv").write_text("identity,what\na,b\n")
    places = {"tmp": tmp_path, "broken": tmp_path / "broken", **inputs}
    words = [word.format(**places) for word in arguments]
    assert_refused("report", *words, "--out", tmp_path / "out", says=says)
    assert not (tmp_path / "out" / "report.json").exists()


def test_other_settings_or_sets_are_refused_with_the_difference(assert_refused, report, inputs, tmp_path):
    report(inputs["faces"])
    words = ("report", "--judge", inputs["judge"], "--out", tmp_path / "out")
    assert_refused(*words, inputs["faces"], "r=0.5", says="r 0.3 0.5")
    assert_refused(*words, inputs["faces"], inputs["real"], says="input set real absent sha256:")
