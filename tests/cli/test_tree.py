"""`--tree`: every stage and `run` on a small tree with the published names and file forms."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from published_layout import (
    AUTOENCODER,
    CONTEXT_EMBEDDINGS,
    CONTEXT_FACES,
    FACE_EMBEDDINGS,
    FACES,
    LDM,
    RECOGNISER,
    RECORDS,
    SAMPLES,
    TRAINED,
    snapshot,
    write_tree,
)

from facesyn_cli.artifacts.context_set import ContextSet
from facesyn_cli.artifacts.embedding_set import EmbeddingSet
from facesyn_cli.artifacts.image_set import ImageSet

SMALL_LDM = ["image_size=16", "output_size=16", "preview_every=0", "validate_every=0", "validation_fraction=0",
             "denoiser.channels=32", "denoiser.multipliers=[1]", "denoiser.attention=[false]", "denoiser.num_blocks=1",
             "denoiser.context_width=32"]
SMALL_FR = ["train-fr.backbone=mobilefacenet", "train-fr.epochs=1", "train-fr.batch_size=8",
            "train-fr.norm_batch_size=8", "train-fr.lr_schedule.name=constant", "train-fr.save_epochs=[]",
            "train-fr.workers=1"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """Everything but what the recognizer's training makes."""
    parts = ("networks", "faces", "contexts", "samples", "records", "benchmarks")
    return write_tree(tmp_path_factory.mktemp("tree"), *parts)


@pytest.fixture
def stage(run_cli, tree, tmp_path):
    def run(*arguments):
        before = snapshot(tree)
        ran = run_cli(*arguments, "--tree", tree, "--work", tmp_path / "work", "--device", "cpu")
        assert snapshot(tree) == before, "something in the tree was touched"
        return ran

    return run


def parents(folder: Path) -> dict[str, str]:
    header = json.loads((folder / "facesyn.json").read_text())
    return {name: parent["path"] for name, parent in header["parents"].items()}


def files(folder: Path) -> dict[str, tuple[int, int]]:
    return {name: state for name, state in snapshot(folder).items() if (folder / name).is_file()}


def tree_lines(err: str) -> list[str]:
    return [line.removeprefix("tree: ") for line in err.splitlines() if line.startswith("tree: ")]


# --- single stages ----------------------------------------------------------------------------------------------


def test_embed(stage, tree, tmp_path):
    ran = stage("embed", "--json", "--batch-size", 4)
    assert ran.code == 0 and ran.json()["embeddings"] == 12, ran.err
    assert parents(tmp_path / "work/1-embeddings") == {
        "images": str(tree / FACES), "weights": str(tree / RECOGNISER)
    }
    assert len(tree_lines(ran.err)) == 2 and f"{tree / FACES}: faces of real people, 3 entries" in ran.err


def test_train_ldm_joins_published_embeddings_by_name(stage, tree, tmp_path):
    ran = stage("train-ldm", "--steps", 1, "--batch-size", 2, "--json", *SMALL_LDM)
    assert ran.code == 0 and ran.json()["images"] == 12, ran.err
    found = parents(tmp_path / "work/2-ldm")
    assert found["images"] == str(tree / FACES) and found["embeddings"] == str(tree / FACE_EMBEDDINGS)
    assert Path(found["autoencoder"]) == (tree / AUTOENCODER).resolve()
    keys = EmbeddingSet.open(tree / FACE_EMBEDDINGS).keys
    assert keys[0] == "0000001/001" and set(keys) == {e.key for e in ImageSet.open(tree / FACES).entries}


def test_train_embedder_learns_published_embeddings(stage, tree, tmp_path):
    small = ("backbone.widths=[4,8]", "backbone.blocks=[1,1]", "batch_size=4", "norm_batch_size=4")
    ran = stage("train-embedder", "--steps", 1, "--json", "validation_fraction=0", *small)
    assert ran.code == 0 and ran.json()["images"] == 12, ran.err
    found = parents(tmp_path / "work/1-embedder")
    assert found == {"images": str(tree / FACES), "embeddings": str(tree / FACE_EMBEDDINGS)}


def test_gen_contexts_takes_published_contexts_with_their_faces(stage, tree, tmp_path):
    ran = stage("gen-contexts", "filters=[]", "--json")
    assert ran.code == 0 and ran.json()["source"] == "embeddings" and ran.json()["faces"] == 3, ran.err
    found = ContextSet.open(tmp_path / "work/3-contexts")
    given = np.load(tree / CONTEXT_EMBEDDINGS)
    np.testing.assert_allclose(found.vectors, given / np.linalg.norm(given, axis=1, keepdims=True), atol=1e-6)
    names = ["1.png", "10.png", "2.png"]  # string order, as published
    assert [f.read_bytes() for f in found.faces] == [(tree / CONTEXT_FACES / name).read_bytes() for name in names]


def test_gen_contexts_from_the_published_faces(stage, tree, tmp_path):
    ran = stage("gen-contexts", "--source", "images", "filters=[]", "--json", "--batch-size", 3)
    assert ran.code == 0 and ran.json()["contexts"] == 3, ran.err
    assert parents(tmp_path / "work/3-contexts") == {
        "images": str(tree / CONTEXT_FACES), "weights": str(tree / RECOGNISER)
    }
    ran = stage("gen-contexts", "--source", "two-stage", "--count", 2, "--dry-run", "--json", "--out", tmp_path / "x")
    assert ran.code == 0 and set(ran.json()["plan"]["inputs"]) == {"ldm", "autoencoder", "weights"}, ran.err
    pca = ("gen-contexts", "--source", "pca", "--count", 2, "--dry-run", "--json", "--out", tmp_path / "x")
    ran = stage(*pca)
    assert ran.code == 0 and ran.json()["plan"]["inputs"] == {"known": str(tree / FACE_EMBEDDINGS)}, ran.err
    ran = stage(*pca, "filters=[quality]")
    assert ran.code == 0 and set(ran.json()["plan"]["inputs"]) == {"known", "ldm", "autoencoder", "weights"}, ran.err


def test_sample(stage, tree, tmp_path):
    ran = stage("sample", "--ids", 2, "--per-id", 1, "scheduler.name=ddim-admis", "scheduler.steps=1", "--json")
    assert ran.code == 0 and ran.json()["images"] == 2, ran.err
    assert parents(tmp_path / "work/4-samples") == {
        "ldm": str(tree / LDM), "contexts": str(tree / CONTEXT_EMBEDDINGS),
        "autoencoder": str(tree / AUTOENCODER / "first_stage_decoder_state_dict.pt"),
    }
    assert "do not say which recognizer" not in ran.err, "the layout says it"


def test_augment_links_the_published_face_of_each_row(stage, tree, tmp_path):
    ran = stage("augment", "--copies", 2, "--json")
    assert ran.code == 0 and ran.json()["added"] == 6, ran.err
    for row, name in enumerate(("1.png", "10.png", "2.png")):
        added = tmp_path / "work/5-augmented" / str(row) / "5.png"
        assert added.read_bytes() == (tree / CONTEXT_FACES / name).read_bytes()
    assert parents(tmp_path / "work/5-augmented") == {"images": str(tree / SAMPLES), "faces": str(tree / CONTEXT_FACES)}


def test_faces_of_the_tree_are_only_for_samples_of_its_contexts(run_cli, assert_refused, tree, tmp_path):
    few = ["--ids", 1, "--per-id", 1, "scheduler.steps=1"]
    np.save(tmp_path / "mine.npy", np.load(tree / CONTEXT_EMBEDDINGS)[::-1])
    for name, words in (("theirs", ()), ("mine", ("--contexts", tmp_path / "mine.npy"))):
        ran = run_cli("sample", "--tree", tree, "--work", tmp_path / name, "--device", "cpu", *few, *words)
        assert ran.code == 0, ran.err
    ran = run_cli("augment", "--tree", tree, "--work", tmp_path / "theirs", "--json")
    assert ran.code == 0 and ran.json()["added"] == 5, ran.err
    assert_refused("augment", "--tree", tree, "--work", tmp_path / "mine", says="3-contexts")
    ran = run_cli("run", "--config", "admis", "--tree", tree, "--work", tmp_path / "new", "--dry-run", "--json",
                  f"sample.contexts={tmp_path / 'mine.npy'}", "sample.ids=1")
    assert planned(ran)["augment"] == "run" and "faces of the contexts" not in ran.err, ran.err


def test_pack_and_then_what_the_work_folder_holds_comes_first(stage, tree, tmp_path):
    ran = stage("pack", "--json")
    assert ran.code == 0 and ran.json()["images"] == 15, ran.err
    ran = stage("train-fr", "--dry-run", "--json")
    assert ran.json()["plan"]["inputs"] == {"input-1": str(tmp_path / "work/6-records")} and not tree_lines(ran.err)


def test_train_fr_on_published_records(stage, tree):
    ran = stage("train-fr", "--dry-run", "--json", "batch_size=4", "norm_batch_size=4")
    assert ran.code == 0 and ran.json()["plan"]["inputs"] == {"input-1": str(tree / RECORDS / "Syn_10k.index")}, ran.err
    assert ran.json()["plan"]["counts"]["identities"] == 3


def test_eval(run_cli, tmp_path):
    tree = write_tree(tmp_path / "tree", "trained", "benchmarks")
    ran = run_cli("eval", "--tree", tree, "--work", tmp_path / "work", "--device", "cpu", "--json", "--batch-size", 3)
    assert ran.code == 0 and [row["benchmark"] for row in ran.json()["rows"]] == ["lfw", "agedb-30"], ran.err
    assert parents(tmp_path / "work/8-table")["weights"] == str(tree / TRAINED / "Backbone_Epoch_40_checkpoint.pth")


def test_flags_recipes_and_words_come_before_the_tree(stage, tree, tmp_path):
    (tmp_path / "recipe.yaml").write_text(f"pack: {{inputs: ['{tree / FACES}']}}\n")
    for words in (["--in", tree / FACES], ["--config", tmp_path / "recipe.yaml"], [f"inputs=['{tree / FACES}']"]):
        ran = stage("pack", *words, "--dry-run", "--json")
        assert ran.json()["plan"]["counts"]["images"] == 12 and not tree_lines(ran.err), ran.err


def test_the_namelist_names_the_rows_of_embeddings(run_cli, tree, tmp_path):
    """As a row-order list given by name; the rows here are not in its order, so the keys differ from the pickle's."""
    np.save(tmp_path / "lone.npy", np.load(tree / FACE_EMBEDDINGS))
    names = tree / "dataset/CASIA/CASIA_namelist.txt"
    ran = run_cli("train-ldm", "--tree", tree, "--embeddings", tmp_path / "lone.npy", f"embedding_names={names}",
                  *SMALL_LDM, "--work", tmp_path / "work", "--dry-run", "--json")
    assert ran.code == 0 and ran.json()["plan"]["counts"]["images_without_embedding"] == 0, ran.err
    assert EmbeddingSet.open(tmp_path / "lone.npy", names).keys == [
        e.key for e in ImageSet.open(tree / FACES).entries
    ]


def test_the_namelist_is_a_set_of_images(run_cli, tree, tmp_path):
    ran = run_cli("pack", "--in", tree / "dataset/CASIA/CASIA_namelist.txt", "--out", tmp_path / "r", "--json")
    assert ran.code == 0 and ran.json()["images"] == 12 and ran.json()["identities"] == 3, ran.err


def test_wrong_trees(assert_refused, run_cli, tree, tmp_path):
    assert_refused("embed", "--tree", tmp_path / "none", says="is not a directory")
    assert_refused("run", "--config", "admis", "--tree", tmp_path, says="nothing of the published layout")
    assert_refused("embed", "--tree", tree / "dataset/CASIA", says=f"did you mean {tree}?")
    assert_refused("align", "--tree", tree, says="No such option: --tree")
    lone = write_tree(tmp_path / "lone", "samples")
    ran = assert_refused("train-fr", "--tree", lone, "--work", tmp_path / "w", says="6-records does not exist")
    assert "missing: training records" in ran.err and "`facesyn pack --tree` makes it" in ran.err


# --- run --------------------------------------------------------------------------------------------------------


def planned(ran) -> dict[str, str]:
    assert ran.code == 0, ran.err
    return {name: "skipped" if result.get("state") == "skipped" else "run" for name, result in ran.json().items()}


STAGES = ("embed", "train-ldm", "gen-contexts", "sample", "augment", "pack", "train-fr", "eval")


@pytest.mark.parametrize(("parts", "left"), [
    (["networks", "faces", "contexts", "samples"], "augment pack train-fr eval"),
    (["networks", "faces", "contexts"], "sample augment pack train-fr eval"),
    (["samples", "contexts"], "augment pack train-fr eval"),
    (["networks", "contexts", "records"], "train-fr eval"),
    (["trained"], "eval"),
    (["faces"], "train-ldm gen-contexts sample augment pack train-fr eval"),
])
def test_run_goes_on_from_what_is_there(run_cli, tmp_path, parts, left):
    tree = write_tree(tmp_path / "tree", *parts)
    ran = run_cli("run", "--config", "admis", "--tree", tree, "--work", tmp_path / "work", "--dry-run", "--json")
    expected = {name: "run" if name in left.split() else "skipped" for name in STAGES}
    assert planned(ran) == expected
    lines = tree_lines(ran.err)
    assert len(lines) == len(set(lines)) and not (tmp_path / "work").exists()


def test_run_without_context_embeddings_makes_them_and_needs_no_embed(run_cli, tmp_path):
    tree = write_tree(tmp_path / "tree", "networks", "contexts")
    (tree / CONTEXT_EMBEDDINGS).unlink()
    ran = run_cli("run", "--config", "admis", "--tree", tree, "--work", tmp_path / "work", "--dry-run", "--json")
    assert [name for name, what in planned(ran).items() if what == "run"] == [
        "gen-contexts", "sample", "augment", "pack", "train-fr", "eval"
    ]
    line = f"{tree / RECOGNISER}: the recognizer behind the embeddings (for gen-contexts weights)"
    assert line in tree_lines(ran.err)


def test_report_looks_at_the_samples_beside_the_real_faces(stage, tree):
    judge = tree / RECOGNISER
    ran = stage("report", "--judge", judge, "--dry-run", "--json")
    assert ran.code == 0, ran.err
    settings = ran.json()["config"]["runtime"]
    assert settings["sets"] == [str(tree / SAMPLES)] and settings["reference"] == str(tree / FACES)


def test_stages_that_are_for_people_are_never_skipped(run_cli, tmp_path):
    tree = write_tree(tmp_path / "tree", "networks", "contexts", "samples")
    (tmp_path / "recipe.yaml").write_text("sample: {}\nselect: {}\nstudy: {}\n")
    ran = run_cli("run", "--config", tmp_path / "recipe.yaml", "--tree", tree, "--work", tmp_path / "work", "--dry-run",
                  "--json")
    assert planned(ran) == {"sample": "skipped", "select": "run", "study": "run"}
    assert f"{tree / SAMPLES}: samples, 3 entries (for select images)" in tree_lines(ran.err)
    assert f"{tree / LDM}: the LDM (for study ldm)" in tree_lines(ran.err)


def test_stages_asked_for_by_name_are_run(run_cli, tree, tmp_path):
    plan = ["run", "--config", "admis", "--tree", tree, "--work", tmp_path / "work", "--dry-run", "--json"]
    assert planned(run_cli(*plan, "--from", "sample"))["sample"] == "run"
    found = planned(run_cli(*plan, "sample.ids=2"))
    assert found["sample"] == "run" and found["gen-contexts"] == found["train-ldm"] == "skipped"
    assert found["pack"] == "run", "the records of the tree are not of these samples"


def test_samples_that_hold_their_faces_are_packed_as_they_are(run_cli, tmp_path):
    tree = write_tree(tmp_path / "tree", "samples", "contexts")
    for row in range(3):
        for k in range(50, 55):
            (tree / SAMPLES / str(row) / f"{k}.png").write_bytes((tree / SAMPLES / str(row) / "0.png").read_bytes())
    ran = run_cli("run", "--config", "admis", "--tree", tree, "--work", tmp_path / "work", "--dry-run", "--json")
    assert planned(ran)["augment"] == "skipped" and list(ran.json()["pack"]["inputs"].values()) == [str(tree / SAMPLES)]


def test_run_to_the_end_and_again(run_cli, tree, tmp_path):
    shutil.copytree(tree, tmp_path / "tree")
    shutil.rmtree(tmp_path / "tree" / RECORDS)
    before = snapshot(tmp_path / "tree")
    words = ["run", "--config", "admis", "--tree", tmp_path / "tree", "--work", tmp_path / "work", "--device", "cpu",
             "--json", *SMALL_FR, "eval.benchmarks=[lfw]", "eval.batch_size=3"]
    ran = run_cli(*words)
    assert ran.code == 0, ran.err
    found = ran.json()
    assert found["augment"]["added"] == 15 and found["pack"]["images"] == 27 and found["train-fr"]["identities"] == 3
    assert found["eval"]["rows"][0]["pairs"] == 20 and found["sample"]["state"] == "skipped"
    assert snapshot(tmp_path / "tree") == before
    work = files(tmp_path / "work")
    assert run_cli(*words).code == 0 and files(tmp_path / "work") == work


def test_a_recipes_benchmarks_that_are_not_there_keep_no_others_from_being_evaluated(run_cli, tmp_path):
    root, work = write_tree(tmp_path / "tree", "trained", "benchmarks"), tmp_path / "work"
    asked = ("--config", "admis", "--tree", root)
    plan = run_cli("eval", *asked, "--work", work, "--dry-run", "--json")
    assert list(plan.json()["plan"]["chosen"]["benchmarks"]) == ["lfw", "agedb-30"], plan.err
    ran = run_cli("run", *asked, "--work", work, "--device", "cpu")
    assert ran.code == 0, ran.err
    line = "benchmarks = lfw, agedb-30; missing: cfp_fp.bin, cplfw.bin, calfw.bin (for eval)"
    assert line in tree_lines(ran.err) and (work / "8-table" / "table.md").is_file()
    ran = run_cli("eval", *asked, "--work", tmp_path / "other", "--benchmarks", "lfw,cfp-fp")
    assert ran.code == 2 and "cfp_fp.bin does not exist" in ran.err, ran.err
