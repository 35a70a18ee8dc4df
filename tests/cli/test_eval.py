"""`facesyn eval`: benchmarks to a table, one broken one does not lose the others, wrong inputs are refused."""

from __future__ import annotations

import json
import os
import pickle
import time

import numpy as np
import pytest
from conftest import finish, spawn
from tiny_recognizer import embedding_rounding, face, write_faces, write_recognizer

from facesyn_cli.artifacts.benchmark_table import BenchmarkTable
from facesyn_cli.data.pixels import encode_png, to_pixels
from facesyn_cli.evaluation.verification import squared_distances, unit_rows, verify_folds
from facesyn_cli.models.loading import load_backbone

PEOPLE = 5


def pair_rows() -> list[tuple[tuple[int, int], tuple[int, int], bool]]:
    """Ten pairs: photos 0 and 1 of each person, and each person with the next one, in turn."""
    rows = []
    for person in range(PEOPLE):
        rows.append(((person, 0), (person, 1), True))
        rows.append(((person, 0), ((person + 1) % PEOPLE, 1), False))
    return rows


def write_bin(path, shift: int = 0, side: int = 112) -> None:
    images = [encode_png(face(p + shift, k, side)) for first, second, _ in pair_rows() for p, k in (first, second)]
    path.write_bytes(pickle.dumps((images, [same for *_, same in pair_rows()]), 2))


def write_list(path, folds: int = 5) -> None:
    lines = [f"p{a}/{i}.jpg p{b}/{j}.jpg {int(same)}" for (a, i), (b, j), same in pair_rows()]
    path.write_text("\n".join([str(folds), *lines]) + "\n")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder with faces/, fr/, bins/ and pairs.txt."""
    folder = tmp_path_factory.mktemp("inputs")
    write_faces(folder / "faces", people=PEOPLE, photos=2)
    write_recognizer(folder / "fr")
    (folder / "bins").mkdir()
    write_bin(folder / "bins" / "lfw.bin")
    write_bin(folder / "bins" / "cfp_fp.bin", shift=50)
    write_list(folder / "pairs.txt")
    return folder


def bins(folder, *names: str) -> tuple:
    return ("eval", "--weights", folder / "fr", "--benchmarks", ",".join(names), "--data", folder / "bins")


def test_table_of_bins(run_cli, inputs, tmp_path):
    ran = run_cli(*bins(inputs, "lfw", "cfp-fp"), "--work", tmp_path, "--json", "--batch-size", 8)
    assert ran.code == 0, ran.err
    table = BenchmarkTable.read(tmp_path / "8-table")
    assert [(r.benchmark, r.pairs, r.genuine, r.folds) for r in table.rows] == [
        ("lfw", 10, 5, 10), ("cfp-fp", 10, 5, 10)]
    assert ran.json()["rows"] == table.to_json()["rows"]
    assert table.rows[0].auc == 1.0 and table.rows[0].accuracy >= 0.9, "genuine pairs are nearer"
    assert "has 10 pairs, the official protocol 6000" in ran.err
    assert (tmp_path / "8-table" / "table.csv").is_file() and (tmp_path / "8-table" / "table.md").is_file()


def test_figures_follow_from_the_network(run_cli, inputs, tmp_path):
    """The whole protocol written out: f(x) + f(flip x), unit rows, squared distance, folds."""
    assert run_cli(*bins(inputs, "lfw"), "--out", tmp_path / "out").code == 0
    module = load_backbone(inputs / "fr").module
    rows = pair_rows()

    def embed(photos):
        images = np.stack([face(*photo) for photo in photos])
        plain, mirrored = (module(to_pixels(np.ascontiguousarray(x))).detach().numpy().astype(np.float64)
                           for x in (images, images[:, :, ::-1]))
        return unit_rows(plain + mirrored)

    distance = squared_distances(embed([r[0] for r in rows]), embed([r[1] for r in rows]))
    with np.load(tmp_path / "out" / "scores" / "lfw.npz") as scores:
        np.testing.assert_allclose(scores["distance"], distance, rtol=0, atol=_tolerance(inputs))
        np.testing.assert_array_equal(scores["is_same"], [r[2] for r in rows])
    result = verify_folds(distance, np.array([r[2] for r in rows]), 10)
    row = BenchmarkTable.read(tmp_path / "out").rows[0]
    assert row.accuracy == result.accuracy.mean() and row.accuracy_std == result.accuracy.std()
    assert row.threshold == pytest.approx(result.threshold.mean())


def _tolerance(inputs) -> float:
    """Return what rounding may change of |u - v|^2: |u - v| <= 2 times what it changes of u and of v, twice."""
    return 8 * embedding_rounding(inputs / "fr")


def test_list_and_bin_agree(run_cli, inputs, tmp_path):
    """The same pairs as a list of files and as a .bin with any name; folds come from the list."""
    write_bin(tmp_path / "African_test.bin")
    ran = run_cli("eval", "--weights", inputs / "fr", "--pairs", inputs / "pairs.txt", "--pairs",
                  tmp_path / "African_test.bin", "--images", inputs / "faces", "--out", tmp_path / "out")
    assert ran.code == 0, ran.err
    table = BenchmarkTable.read(tmp_path / "out")
    assert [(r.benchmark, r.folds) for r in table.rows] == [("pairs", 5), ("African_test", 10)]
    one, two = (np.load(tmp_path / "out" / "scores" / f"{r.benchmark}.npz") for r in table.rows)
    with one, two:
        np.testing.assert_allclose(one["distance"], two["distance"], rtol=0, atol=_tolerance(inputs))
    lines = ran.out.splitlines()
    assert lines[0].split()[:3] == ["benchmark", "accuracy", "%"] and lines[3].split()[0] == "average"


def test_genuine_pairs_are_told_from_impostors_not_the_reverse(run_cli, inputs, tmp_path):
    images = [encode_png(face(*photo)) for first, second, _ in pair_rows() for photo in (first, second)]
    (tmp_path / "swapped.bin").write_bytes(pickle.dumps((images, [not same for *_, same in pair_rows()])))
    ran = run_cli("eval", "--weights", inputs / "fr", "--pairs", tmp_path / "swapped.bin", "--out", tmp_path / "out",
                  "--json")
    assert ran.code == 0 and ran.json()["rows"][0]["auc"] == 0.0 and ran.json()["rows"][0]["eer"] == 1.0


def test_flip_is_used_and_symmetric(run_cli, inputs, tmp_path):
    mirrored = [encode_png(np.ascontiguousarray(face(*photo)[:, ::-1]))
                for first, second, _ in pair_rows() for photo in (first, second)]
    answers = [same for *_, same in pair_rows()]
    (tmp_path / "lfw.bin").write_bytes(pickle.dumps((mirrored, answers)))
    (tmp_path / "plain").mkdir()
    found = {}
    for name, file, flip in (("a", inputs / "bins" / "lfw.bin", "true"), ("b", tmp_path / "lfw.bin", "true"),
                             ("c", tmp_path / "lfw.bin", "false")):
        assert run_cli("eval", "--weights", inputs / "fr", "--pairs", file, "--out", tmp_path / name,
                       f"flip={flip}").code == 0
        with np.load(tmp_path / name / "scores" / "lfw.npz") as scores:
            found[name] = scores["distance"]
    np.testing.assert_allclose(found["a"], found["b"], rtol=0, atol=_tolerance(inputs))
    assert np.abs(found["a"] - found["c"]).max() > 1e-3


def test_batch_size_does_not_matter(run_cli, inputs, tmp_path):
    rows = []
    for size in (1, 7, 64):
        ran = run_cli(*bins(inputs, "lfw"), "--out", tmp_path / str(size), "--batch-size", size, "--json")
        rows.append(ran.json()["rows"][0])
    assert rows[0] == rows[1] == rows[2]


def test_malicious_pickle_is_refused(assert_refused, inputs, tmp_path, monkeypatch):
    class Payload:
        def __reduce__(self):
            return os.system, ("echo pwned > pwned.txt",)

    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.bin").write_bytes(pickle.dumps(([Payload()] * 2, [True])))
    assert_refused("eval", "--weights", inputs / "fr", "--pairs", tmp_path / "evil.bin", "--out", tmp_path / "out",
                   says=("evil.bin", "safe to read", "system"))
    assert not (tmp_path / "pwned.txt").exists()


def test_one_broken_benchmark_does_not_lose_the_others(run_cli, inputs, tmp_path, monkeypatch):
    """Exit code 2 and the reason; once the file is right again, only the broken one is evaluated."""
    import facesyn_cli.stages.eval as stage

    original, fail = stage.embed_images, True

    def sometimes(network, pairs, *rest):
        if pairs.name == "lfw":
            if fail:
                from facesyn_cli.errors import UserError

                raise UserError("lfw: the disk is on fire")
        elif not fail:
            pytest.fail("cfp-fp was evaluated twice")
        return original(network, pairs, *rest)

    monkeypatch.setattr(stage, "embed_images", sometimes)
    arguments = (*bins(inputs, "lfw", "cfp-fp"), "--out", tmp_path / "out")
    ran = run_cli(*arguments)
    assert ran.code == 2 and "1 of 2 benchmarks failed; lfw: the disk is on fire" in ran.err
    rows = json.loads((tmp_path / "out" / "table.json").read_text())["rows"]
    assert rows[0]["problem"] == "lfw: the disk is on fire" and rows[1]["accuracy"] is not None
    assert not (tmp_path / "out" / "facesyn.json").exists()
    fail = False
    assert run_cli(*arguments).code == 0
    assert [row.problem for row in BenchmarkTable.read(tmp_path / "out").rows] == [None, None]


def test_all_pairs_of_a_folder(run_cli, inputs, tmp_path):
    write_faces(tmp_path / "people", people=6, photos=3)
    words = ("eval", "--weights", inputs / "fr", "--benchmarks", "folder")
    ran = run_cli(*words, "--images", tmp_path / "people", "--out", tmp_path / "table", "--json")
    assert ran.code == 0, ran.err
    row, = ran.json()["rows"]
    assert row["benchmark"] == "people" and row["pairs"] == 18 * 17 // 2 and row["genuine"] == 18
    assert (row["identities"], row["gallery"], row["probes"]) == (6, 6, 12)
    assert row["accuracy"] is None and ran.json()["average_accuracy"] is None
    assert row["tar"] == {"1e-02": None, "1e-03": None, "1e-04": None, "1e-05": None}  # of 135 impostor pairs
    for name, value in (("eer", row["eer"]), ("auc", row["auc"]), ("rank 1", row["rank"]["1"])):
        low, high = row["interval"][name]
        assert 0 <= low <= value <= high <= 1
    assert row["auc"] > 0.9, "the recognizer tells these people"
    table = (tmp_path / "table" / "table.md").read_text()
    assert "EER 95 %" in table and "gallery" in table and "rank-1 %" in table


def test_all_pairs_against_another_recognizer(run_cli, assert_refused, inputs, tmp_path):
    people = write_faces(tmp_path / "people", people=6, photos=3)
    for a, b in ((0, 1), (2, 3), (4, 5)):  # wrong labels, so that no recognizer is right
        (people / f"p{a}" / "2.png").rename(people / f"p{b}" / "3.png")
    write_recognizer(tmp_path / "other", widths=[6, 8, 12, 16])
    folder = ("--benchmarks", "folder", "--images", tmp_path / "people")
    first, second, again = (tmp_path / name for name in ("first", "second", "again"))
    assert run_cli("eval", "--weights", inputs / "fr", *folder, "--out", first).code == 0
    ran = run_cli("eval", "--weights", tmp_path / "other", *folder, "--against", first, "--out", second, "--json")
    assert ran.code == 0, ran.err
    row, = ran.json()["rows"]
    before, = json.loads((first / "table.json").read_text())["rows"]
    value, low, high = row["difference"]["auc"]
    assert value == pytest.approx(row["auc"] - before["auc"], abs=1e-6) and low <= value <= high and value != 0
    assert "AUC change" in (second / "table.md").read_text()
    ran = run_cli("eval", "--weights", inputs / "fr", *folder, "--against", first, "--out", again, "--json")
    assert all(numbers == [0, 0, 0] for numbers in ran.json()["rows"][0]["difference"].values())

    new = ("--out", tmp_path / "new")
    fewer = write_faces(tmp_path / "fewer" / "people", people=5, photos=3)
    assert_refused("eval", "--weights", inputs / "fr", "--benchmarks", "folder", "--images", fewer, "--against", first,
                   *new, says="no row of all pairs")
    assert_refused(*bins(inputs, "lfw"), "--against", first, *new, says="against compares rows")
    (first / "scores" / "people.npz").write_bytes(b"no archive")
    assert_refused("eval", "--weights", inputs / "fr", *folder, "--against", first, *new, says="people.npz")


def test_a_folder_without_two_people_is_refused(assert_refused, inputs, tmp_path):
    words = ("eval", "--weights", inputs / "fr", "--benchmarks", "folder")
    assert_refused(*words, "--out", tmp_path / "out", says="--images FOLDER")
    for name, people, photos in (("one", 1, 3), ("singles", 4, 1)):
        faces = write_faces(tmp_path / name, people=people, photos=photos)
        assert_refused(*words, "--images", faces, "--out", tmp_path / "out", says="at least 2 identities")
    assert not (tmp_path / "out").exists()


def test_other_image_sizes_need_resize(assert_refused, run_cli, inputs, tmp_path):
    write_bin(tmp_path / "big.bin", side=140)
    arguments = ("eval", "--weights", inputs / "fr", "--pairs", tmp_path / "big.bin")
    assert_refused(*arguments, "--out", tmp_path / "a", says=("image 0 of big.bin: 140 x 140 pixels, 112 x 112 were",))
    assert run_cli(*arguments, "--out", tmp_path / "b", "resize=true").code == 0


def test_diverged_network_is_named(assert_refused, inputs, tmp_path, monkeypatch):
    import facesyn_cli.stages.eval as stage

    monkeypatch.setattr(stage, "embed_images", lambda network, pairs, *rest: np.full((len(pairs.images), 8), np.nan))
    assert_refused(*bins(inputs, "lfw"), "--out", tmp_path / "out",
                   says=("lfw: 10 of 10 pair distances are not finite",))


def test_dry_run_and_second_run(run_cli, inputs, tmp_path, monkeypatch):
    arguments = (*bins(inputs, "lfw"), "--out", tmp_path / "out", "--json")
    ran = run_cli(*arguments, "--dry-run", "--batch-size", 4)
    assert ran.code == 0, ran.err
    plan = ran.json()["plan"]
    assert plan["chosen"]["benchmarks"] == {"lfw": "10 pairs of 10 images, 10 folds"} and plan["state"] == "new"
    assert plan["counts"] == {"benchmarks": 1, "pairs": 10, "images": 10}
    assert plan["network_evaluations"] == {"recognizer": 2 * 12}
    assert not (tmp_path / "out").exists()
    first = run_cli(*arguments)
    import facesyn_cli.stages.eval as stage

    monkeypatch.setattr(stage, "embed_images", lambda *args: pytest.fail("evaluated again"))
    assert run_cli(*arguments).json() == first.json()


def test_killed_and_started_again(run_cli, inputs, tmp_path):
    arguments = (*bins(inputs, "lfw", "cfp-fp"), "--device", "cpu", "batch_size=1")
    assert run_cli(*arguments, "--out", tmp_path / "whole").code == 0
    process = spawn(*arguments, "--out", tmp_path / "out")
    deadline = time.monotonic() + 120
    while process.poll() is None and not (tmp_path / "out" / "results" / "lfw.json").is_file():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.communicate()
    ran = finish(spawn(*arguments, "--out", tmp_path / "out"))
    assert ran.code == 0, ran.err
    for name in ("table.json", "table.csv", "table.md"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def wrong_inputs(folder, tmp_path) -> dict[str, tuple[list, tuple[str, ...]]]:
    fr, data = ["--weights", folder / "fr"], ["--data", folder / "bins"]
    lists = ["--pairs", folder / "pairs.txt"]
    (tmp_path / "text.pth").write_text("not weights")
    (tmp_path / "bad.txt").write_text("2\np0/0 p0/1 1\np0/0 p0/1\n")
    (tmp_path / "far.txt").write_text("2\np0/0 p0/1 1\np8/0 p9/1 0\n")
    (tmp_path / "one.txt").write_text("1\np0/0 p0/1 1\np0/0 p0/1 1\n")
    (tmp_path / "junk.bin").write_bytes(b"\x80\x04junk")
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "diary.txt").write_text("mine")
    return {
        "nothing asked": (fr, ("nothing to evaluate",)),
        "no weights": ([*data, "--benchmarks", "lfw", "--work", tmp_path / "w"], ("7-fr does not exist", "--weights")),
        "missing weights": (["--weights", tmp_path / "none", *data, "--benchmarks", "lfw"], ("none does not exist",)),
        "not weights": (["--weights", tmp_path / "text.pth", *data, "--benchmarks", "lfw"], ("text.pth",)),
        "unknown benchmark": ([*fr, *data, "--benchmarks", "lfw,cfpfp"], ("'cfpfp'", "did you mean 'cfp-fp'")),
        "no data": ([*fr, "--benchmarks", "lfw"], ("lfw need --data",)),
        "data is a file": ([*fr, "--benchmarks", "lfw", "--data", folder / "pairs.txt"], ("is not a folder",)),
        "missing file": ([*fr, *data, "--benchmarks", "lfw,calfw"], ("benchmark calfw", "calfw.bin does not exist")),
        "no images": ([*fr, *lists, "--work", tmp_path / "w"], ("--images",)),
        "missing images": ([*fr, *lists, "--images", tmp_path / "none"], ("none does not exist",)),
        "missing pairs": ([*fr, "--pairs", tmp_path / "none.txt"], ("none.txt",)),
        "bad line": ([*fr, "--pairs", tmp_path / "bad.txt", "--images", folder / "faces"], ("bad.txt line 3",)),
        "names not there": ([*fr, "--pairs", tmp_path / "far.txt", "--images", folder / "faces"],
                            ("2 images", "p8/0, p9/1")),
        "one fold": ([*fr, "--pairs", tmp_path / "one.txt", "--images", folder / "faces"], ("at least 2 folds",)),
        "not a bin": ([*fr, "--pairs", tmp_path / "junk.bin"], ("junk.bin", "safe to read")),
        "two of one name": ([*fr, *lists, *lists, "--images", folder / "faces"], ("are called 'pairs'",)),
        "unknown setting": ([*fr, *data, "--benchmarks", "lfw", "flop=true"], ("did you mean 'flip'",)),
        "wrong type": ([*fr, *data, "--benchmarks", "lfw", "--batch-size", "0"], ("batch_size",)),
        "another backbone": ([*fr, *data, "--benchmarks", "lfw", "--backbone", "ir-50"], ("ir-tiny", "ir-50")),
        "somebody's folder": ([*fr, *data, "--benchmarks", "lfw", "--out", tmp_path / "strange"], ("diary.txt",)),
    }


def test_wrong_inputs(assert_refused, inputs, tmp_path):
    for arguments, says in wrong_inputs(inputs, tmp_path).values():
        out = [] if "--out" in arguments or "--work" in arguments else ["--out", tmp_path / "out"]
        assert_refused("eval", *arguments, *out, says=says)
        assert not (tmp_path / "out" / "facesyn.json").exists()
