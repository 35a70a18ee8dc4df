"""The starter: packed from a tiny run, shown, and used where nothing else is there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_starter import EMBEDDING_SIZE, NUM_CONTEXTS, write_run, write_starter

from facesyn_cli.artifacts import starter_files as layout
from facesyn_cli.artifacts.context_set import ContextSet
from facesyn_cli.artifacts.digest import file_digest
from facesyn_cli.artifacts.header import read_header
from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.artifacts.weights import read_config, read_tensors
from facesyn_cli.data.pixels import decode_image, encode_png
from facesyn_cli.models.loading import load_denoiser


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the run `run` and the starter `starter` packed from it."""
    folder = tmp_path_factory.mktemp("made")
    write_starter(folder)
    return folder


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the same with a rectified flow on latents of the packaged autoencoder."""
    folder = tmp_path_factory.mktemp("flow")
    write_starter(folder, is_flow=True)
    return folder


@pytest.fixture
def starter(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the starter as the packaged one, in a fresh working folder, where `--work` is not given."""
    monkeypatch.setattr(layout, "packaged_folder", lambda: made / "starter")
    monkeypatch.setattr("facesyn_cli.pipelines.inputs.packaged_folder", lambda: made / "starter")
    monkeypatch.chdir(tmp_path)
    return made / "starter"


def digests(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): file_digest(p) for p in sorted(folder.glob("*/*.png"))}


# packing


def test_matrices_are_halved_and_vectors_kept(made: Path) -> None:
    for part, source in {"autoencoder": "2-autoencoder", "ldm": "2-ldm", "embedder": "1-embedder"}.items():
        before = read_tensors(made / "run" / source / "model.safetensors")
        after = read_tensors(made / "starter" / part / "model.safetensors")
        assert before.keys() == after.keys()
        for name, value in before.items():
            is_matrix = value.is_floating_point() and value.ndim > 1
            assert after[name].dtype == (torch.float16 if is_matrix else value.dtype), name
            assert torch.equal(after[name], value.half() if is_matrix else value)


def test_the_ldm_finds_its_autoencoder_wherever_the_starter_lies(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "starter", tmp_path / "moved")
    section = load_denoiser(tmp_path / "moved" / "ldm").config.autoencoder
    assert Path(section["path"]) == (tmp_path / "moved" / "autoencoder").resolve()
    assert section["digest"] == file_digest(tmp_path / "moved" / "autoencoder" / "model.safetensors")
    embedder = file_digest(made / "starter" / "embedder" / "model.safetensors")
    assert read_config(made / "starter" / "ldm")["embedder"] == embedder
    contexts = ContextSet.open(made / "starter" / "contexts")
    assert contexts.embedder == embedder and contexts.vectors.shape == (NUM_CONTEXTS, EMBEDDING_SIZE)


def test_an_autoencoder_of_the_package_is_named_and_not_packed(flow: Path, run_cli, tmp_path: Path) -> None:
    starter = flow / "starter"
    assert {path.name for path in starter.iterdir() if path.is_dir()} == {"ldm", "embedder", "contexts"}
    config = read_config(starter / "ldm")
    assert config["autoencoder"]["path"] == "taesd3" and config["prediction"] == "flow"
    assert "taesd3 (sha256:" in (starter / "ldm" / "README.md").read_text()
    settings = json.loads((starter / "starter.json").read_text())["settings"]
    assert settings["sample"]["scheduler"]["name"] == "flow-euler"
    assert settings["gen-contexts"]["source"] == {"name": "pca"}, "packed people have no names to group them by"
    words = ("--starter", shutil.copytree(starter, tmp_path / "moved"), "--work", tmp_path / "w", "--device", "cpu")
    ran = run_cli("sample", *words, "--ids", 2, "--per-id", 2)
    assert ran.code == 0 and len(ImageSet.open(tmp_path / "w" / "4-samples").entries) == 4, ran.err
    assert read_header(tmp_path / "w" / "4-samples").config["identity"]["scheduler"]["name"] == "flow-euler"
    ran = run_cli("embed", *words, "--images", tmp_path / "w" / "4-samples")
    assert ran.code == 0, ran.err
    ran = run_cli("train-ldm", *words, "--images", tmp_path / "w" / "4-samples", "--steps", 1, "image_size=16",
                  "preview_every=0", "prediction=flow", "denoiser={name: dit, patch: 1, context_size: 16}", "--dry-run")
    assert ran.code == 0 and "autoencoder taesd3 of the starter" in ran.err, ran.err


def test_another_autoencoder_beside_it_is_refused(flow: Path, made: Path, assert_refused, tmp_path: Path) -> None:
    other = ("--part", f"autoencoder={made / 'run' / '2-autoencoder'}")
    says = ("2-ldm was trained on the latents of taesd3, which comes with facesyn", "leave --part autoencoder out")
    assert_refused("starter", "pack", "--work", flow / "run", "--out", tmp_path / "out", *other, says=says)


@pytest.mark.parametrize("is_flow", [False, True])
def test_no_path_and_no_real_name_is_packed(made: Path, flow: Path, is_flow: bool) -> None:
    folder = flow if is_flow else made
    for path in (folder / "starter").rglob("*"):
        if path.is_file() and path.suffix in (".md", ".json", ".jsonl"):
            text = path.read_text(encoding="utf-8")
            assert str(folder) not in text and "somebody" not in text, path


def test_cards_say_figures_recipe_and_what_the_maker_says(made: Path, run_cli, tmp_path: Path) -> None:
    card = tmp_path / "card.yaml"
    card.write_text("data: thirty photos\nsplit: the first\nfigures: {ldm: {eer: 0.125}}\nnotes: {ldm: A note.}\n")
    out = tmp_path / "out"
    ran = run_cli("starter", "pack", "--work", made / "run", "--out", out, "--card", card, "--count", 5, "--json")
    assert ran.code == 0, ran.err
    found = ran.json()
    assert found["contexts"] == 5 == len(ContextSet.open(out / "contexts").identities)
    assert found["half_precision"]["mean_gray_levels"] < 1 and found["half_precision"]["least_cosine"] > 0.999
    text = (out / "ldm" / "README.md").read_text()
    digest = file_digest(out / "ldm" / "model.safetensors")
    for said in ("thirty photos", "A note.", "| eer | 0.125 |", "| loss | 0.25 |", "idiff-unet", digest):
        assert said in text, said
    assert "thirty photos" in (out / "contexts" / "README.md").read_text()


def test_the_contact_sheet_goes_along(made: Path, run_cli, tmp_path: Path) -> None:
    assert not (made / "starter" / "contact_sheet.jpg").exists()  # this run has none
    run, out = tmp_path / "run", tmp_path / "out"
    shutil.copytree(made / "run", run, symlinks=True)
    pixels = np.zeros((112, 224, 3), np.uint8)
    pixels[:, 112:] = 200
    (run / "4-samples").mkdir(exist_ok=True)
    (run / "4-samples.contact_sheet.png").write_bytes(encode_png(pixels))
    assert run_cli("starter", "pack", "--work", run, "--out", out).code == 0
    packed = decode_image((out / "contact_sheet.jpg").read_bytes())
    assert packed.shape == pixels.shape and abs(packed.astype(int) - pixels).max() <= 8
    assert "](contact_sheet.jpg)" in (out / "README.md").read_text()


def test_people_can_be_left_out_and_the_others_keep_their_names(made: Path, run_cli, assert_refused, tmp_path) -> None:
    (tmp_path / "out.txt").write_text("0\n 3 \n\n")
    pack = ("starter", "pack", "--work", made / "run", "--without", tmp_path / "out.txt")
    ran = run_cli(*pack, "--out", tmp_path / "out", "--json")
    assert ran.code == 0 and ran.json()["contexts"] == NUM_CONTEXTS - 2, ran.err
    whole, found = ContextSet.open(made / "starter" / "contexts"), ContextSet.open(tmp_path / "out" / "contexts")
    assert found.identities == [name for name in whole.identities if name not in ("0", "3")]
    assert np.array_equal(found.vectors, np.delete(whole.vectors, [0, 3], axis=0))
    assert found.origins == [origin for k, origin in enumerate(whole.origins) if k not in (0, 3)]
    assert_refused(*pack, "--out", tmp_path / "b", "--count", NUM_CONTEXTS - 1, says="holds 10 contexts without those")
    (tmp_path / "out.txt").write_text("somebody\n")
    assert_refused(*pack, "--out", tmp_path / "b", says="has no identity somebody")


def test_settings_come_from_the_run(made: Path) -> None:
    settings = json.loads((made / "starter" / "starter.json").read_text())["settings"]
    assert settings["sample"] == {
        "scheduler": {"name": "ddim", "steps": 2}, "guidance": {"name": "cfg", "scale": 1.5},
        "variation": {"name": "idperturb", "lowest": 0.9},
    }
    assert settings["gen-contexts"]["source"]["name"] == "two-stage"
    assert [item["name"] for item in settings["gen-contexts"]["filters"]] == ["unique"], "novel needs real embeddings"


def test_what_does_not_belong_together_is_refused(tmp_path: Path, assert_refused, run_cli) -> None:
    work = write_run(tmp_path / "run")
    config = json.loads((work / "2-ldm" / "config.json").read_text())
    other = {**config, "autoencoder": {**config["autoencoder"], "digest": "sha256:" + "1" * 64}}
    (work / "2-ldm" / "config.json").write_text(json.dumps(other))
    pack = ("starter", "pack", "--work", work, "--out", tmp_path / "out")
    assert_refused(*pack, says=("2-autoencoder", "trained on the latents of another one"))
    assert not (tmp_path / "out").exists()
    ran = run_cli(*pack, "--part", f"autoencoder={work / '2-autoencoder'}")
    assert ran.code == 0 and "another one" in ran.err

    (work / "2-ldm" / "config.json").write_text(json.dumps({**config, "embedder": "sha256:" + "2" * 64}))
    assert_refused(*pack[:-1], tmp_path / "out2", says="come from different recognizers")
    header = json.loads((work / "3-contexts" / "facesyn.json").read_text())
    header["extra"]["face_origin"] = "photo"
    (work / "3-contexts" / "facesyn.json").write_text(json.dumps(header))
    assert_refused(*pack[:-1], tmp_path / "out3", says="embeddings of photos of real people")


def test_a_student_stands_in_for_its_teacher(tmp_path: Path, run_cli, assert_refused) -> None:
    work = write_run(tmp_path / "run")
    teacher = "sha256:" + "3" * 64
    config = json.loads((work / "2-ldm" / "config.json").read_text())
    (work / "2-ldm" / "config.json").write_text(json.dumps({**config, "embedder": teacher}))
    header = json.loads((work / "3-contexts" / "facesyn.json").read_text())
    (work / "3-contexts" / "facesyn.json").write_text(json.dumps({**header, "extra": {"embedder": teacher}}))
    pack = ("starter", "pack", "--work", work, "--out", tmp_path / "out")
    assert_refused(*pack, says="not that one's student")
    student = json.loads((work / "1-embedder" / "facesyn.json").read_text())
    (work / "1-embedder" / "facesyn.json").write_text(json.dumps({**student, "extra": {"distilled_from": teacher}}))
    ran = run_cli(*pack)
    assert ran.code == 0, ran.err
    assert f"stands in for its teacher ({teacher})" in (tmp_path / "out" / "embedder" / "README.md").read_text()
    assert read_config(tmp_path / "out" / "ldm")["embedder"] != teacher


def test_too_much_too_large_and_damaged_are_refused(tmp_path: Path, assert_refused, monkeypatch) -> None:
    from facesyn_cli.artifacts.weights import write_tensors

    work = write_run(tmp_path / "run")
    pack = ("starter", "pack", "--work", work, "--out", tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr("facesyn_cli.stages.starter.MAX_BYTES", 10**6)
        assert_refused(*pack, says=("at most 1 MB", "ldm 0.8"))
    assert_refused(*pack, "--count", NUM_CONTEXTS + 1, says=f"holds {NUM_CONTEXTS} contexts")
    tensors = read_tensors(work / "2-ldm" / "model.safetensors")
    name = next(key for key, value in tensors.items() if value.ndim > 1)
    write_tensors(work / "2-ldm" / "model.safetensors", {**tensors, name: tensors[name] * 1e9})
    assert_refused(*pack, says=(name, "too large for half precision"))
    write_tensors(work / "2-ldm" / "model.safetensors", {key: value * 0 for key, value in tensors.items()})
    decoder = work / "2-autoencoder" / "model.safetensors"
    write_tensors(decoder, {key: value * 0 for key, value in read_tensors(decoder).items()})
    assert_refused(*pack, "--part", f"autoencoder={work / '2-autoencoder'}", says="single color")
    assert not (tmp_path / "out").exists()


def test_wrong_words_are_refused(made: Path, tmp_path: Path, assert_refused) -> None:
    run, out = made / "run", tmp_path / "out"
    assert_refused("starter", "sell", says="No such command 'sell'")
    assert_refused("starter", "show", "--out", out, says="No such option: --out")
    assert_refused("starter", "pack", "--work", run, says="Missing option '--out'")
    assert_refused("starter", "pack", "--work", tmp_path, "--out", out, says=("1-embedder", "train-embedder makes it"))
    assert_refused("starter", "pack", "--work", run, "--out", out, "--part", "ldm", says="NAME=FOLDER")
    assert_refused("starter", "pack", "--work", run, "--out", out, "--part", "nose=x", says="no part nose")
    card = tmp_path / "card.yaml"
    card.write_text("date: 1\nfigures: {nose: {}}\n")
    assert_refused("starter", "pack", "--work", run, "--out", out, "--card", card, says=("date", "nose"))


def test_show_checks_what_is_there(starter: Path, run_cli, assert_refused, tmp_path: Path) -> None:
    ran = run_cli("starter", "--json")
    assert ran.code == 0 and set(ran.json()["parts"]) == {"autoencoder", "ldm", "embedder", "contexts"}
    text = run_cli("starter", "show", starter).out
    assert file_digest(starter / "ldm" / "model.safetensors") in text
    shutil.copytree(starter, tmp_path / "bad")
    np.save(tmp_path / "bad" / "contexts" / "contexts.npy", np.ones((2, 2)))
    assert_refused("starter", "show", tmp_path / "bad", says="has changed")


def test_it_is_listed_and_examined(starter: Path, made: Path, run_cli, monkeypatch, tmp_path: Path) -> None:
    listed = run_cli("models", "list", "--json").json()
    ldm = listed["starter-ldm"]
    assert ldm["architecture"] == "idiff-unet" and ldm["where"] == str(starter / "ldm")
    examined = run_cli("doctor", "--json").json()["starter"]
    assert examined["packaged"] and examined["parts"]["embedder"]["digest"].startswith("sha256:")
    assert "starter: packaged, 1.3 MB" in run_cli("doctor").out
    shutil.copytree(starter, tmp_path / "bad")
    (tmp_path / "bad" / "ldm" / "model.safetensors").write_bytes(b"other")
    monkeypatch.setattr(layout, "packaged_folder", lambda: tmp_path / "bad")
    ran = run_cli("doctor")
    assert ran.code == 2 and "has changed" in ran.out
    monkeypatch.setattr(layout, "packaged_folder", lambda: tmp_path / "none")
    assert "starter: not packaged" in run_cli("doctor").out
    assert not [name for name in run_cli("models", "list", "--json").json() if name.startswith("starter")]


# using


def test_sample_with_nothing_takes_the_starter(starter: Path, run_cli) -> None:
    ran = run_cli("sample", "--ids", 2, "--per-id", 3, "--device", "cpu", "--json")
    assert ran.code == 0, ran.err
    assert sum("starter: LDM, contexts" in line for line in ran.err.splitlines()) == 1
    images = ImageSet.open(Path("work/4-samples"))
    assert len(images.entries) == 6
    config = read_header(Path("work/4-samples")).config
    assert "'steps': 2" in str(config) and "'scale': 1.5" in str(config)
    again = run_cli("sample", "--ids", 2, "--per-id", 3, "--device", "cpu", "--json")
    assert again.json()["made_now"] == 0


def test_flags_come_on_top_of_the_starters_settings(starter: Path, run_cli) -> None:
    ran = run_cli("sample", "--ids", 2, "--steps", 3, "--dry-run", "guidance.scale=2.5", "--json")
    assert ran.code == 0, ran.err
    text = json.dumps(ran.json()["config"])
    assert '"steps": 3' in text and '"scale": 2.5' in text


def test_a_named_folder_never_yields_starter_faces(starter: Path, assert_refused, run_cli) -> None:
    assert_refused("sample", "--work", "mistyped", "--ids", 2, says="does not exist")
    assert_refused("sample", "--config", "small", "--ids", 2, says="does not exist")
    assert_refused("embed", "--work", "mistyped", "--images", starter, says="--weights")
    ran = run_cli("sample", "--work", "new", "--starter", "packaged", "--ids", 2, "--per-id", 1, "--device", "cpu")
    assert ran.code == 0, ran.err


def test_what_the_work_folder_holds_comes_before_the_starter(starter: Path, made: Path, run_cli) -> None:
    shutil.copytree(made / "run", "work", ignore=shutil.ignore_patterns("4-samples"))
    for folder in (Path("work/2-ldm"),):
        config = json.loads((folder / "config.json").read_text())
        config["autoencoder"]["path"] = str(Path("work/2-autoencoder").resolve())
        (folder / "config.json").write_text(json.dumps(config))
    ran = run_cli("sample", "--ids", 2, "--per-id", 1, "--device", "cpu", "--steps", 2)
    assert ran.code == 0 and "starter" not in ran.err, ran.err
    parents = read_header(Path("work/4-samples")).parents
    assert Path(parents["ldm"].path) == Path("work/2-ldm")


def test_new_contexts_then_samples_of_them(starter: Path, run_cli, assert_refused) -> None:
    ran = run_cli("gen-contexts", "--count", 3, "--device", "cpu", "--json")
    assert ran.code == 0 and ran.json()["contexts"] == 3, ran.err
    assert "starter: LDM, recognizer" in ran.err
    ran = run_cli("sample", "--per-id", 1, "--device", "cpu", "--json")
    assert ran.code == 0 and ran.json()["identities"] == 3, ran.err
    assert "contexts of" not in ran.err
    header = json.loads(Path("work/3-contexts/facesyn.json").read_text())
    header["extra"]["embedder"] = "sha256:" + "4" * 64
    Path("work/3-contexts/facesyn.json").write_text(json.dumps(header))
    assert_refused("sample", "--per-id", 1, "--out", "other", says="make the contexts with the LDM's recognizer")


def test_embed_takes_the_starters_recognizer(starter: Path, run_cli) -> None:
    run_cli("sample", "--ids", 2, "--per-id", 1, "--device", "cpu")
    ran = run_cli("embed", "--images", "work/4-samples", "--device", "cpu", "--json")
    assert ran.code == 0, ran.err
    assert ran.json()["embedder"] == file_digest(starter / "embedder" / "model.safetensors")


def test_the_same_starter_elsewhere_gives_the_same_faces(starter: Path, run_cli, tmp_path: Path) -> None:
    shutil.copytree(starter, tmp_path / "mine")
    for name, words in {"a": (), "b": ("--starter", tmp_path / "mine")}.items():
        ran = run_cli("sample", "--ids", 2, "--per-id", 2, "--device", "cpu", "--out", name, *words)
        assert ran.code == 0, ran.err
    assert digests(Path("a")) == digests(Path("b")) and len(digests(Path("a"))) == 4


def test_a_starter_is_refused_where_it_is_no_use_or_not_there(starter: Path, assert_refused, run_cli) -> None:
    assert_refused("pack", "--starter", "packaged", says="No such option: --starter")
    assert_refused("sample", "--starter", "nowhere", says="nowhere is no starter")
    assert_refused("sample", "--starter", "packaged", "--tree", starter, says="give one of them")


def test_without_a_packaged_one_the_missing_file_is_named(tmp_path: Path, monkeypatch, assert_refused) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("facesyn_cli.pipelines.inputs.packaged_folder", lambda: tmp_path / "starter")
    ran = assert_refused("sample", "--ids", 2, says="does not exist")
    assert "none is packaged with this facesyn" in ran.err


def test_training_takes_its_autoencoder_where_none_is_given(starter: Path, made: Path, run_cli) -> None:
    run_cli("sample", "--ids", 3, "--per-id", 2, "--device", "cpu")
    assert run_cli("embed", "--images", "work/4-samples", "--device", "cpu").code == 0
    words = ("--images", "work/4-samples", "--steps", 2, "--dry-run", "image_size=16", "preview_every=0", "--json")
    ran = run_cli("train-ldm", *words, "denoiser.context_size=16")
    assert ran.code == 0, ran.err
    assert "starter: autoencoder of the packaged starter" in ran.err
    ran = run_cli("train-ldm", *words, "denoiser.context_size=16", "autoencoder_model={name: pixels, downscale: 2}")
    assert ran.code == 0 and "starter" not in ran.err, ran.err
    shutil.copytree(made / "run" / "2-autoencoder", "work/2-autoencoder")
    ran = run_cli("train-ldm", *words, "denoiser.context_size=16")
    assert ran.code == 0 and "starter" not in ran.err, ran.err


def test_a_study_of_its_networks(starter: Path, run_cli) -> None:
    judge = starter / "embedder"
    ran = run_cli("study", "--judge", judge, "--dry-run", "--json", "ids=3", "per_id=2", "steps=2", "schedulers=ddim")
    assert ran.code == 0, ran.err
    assert "starter: LDM, contexts" in ran.err


def test_faces_are_compared_by_it(starter: Path, tmp_path: Path, run_cli, monkeypatch, assert_refused) -> None:
    run_cli("sample", "--ids", 1, "--per-id", 2, "--device", "cpu")
    pair = ("work/4-samples/0/0.png", "work/4-samples/0/1.png")
    own = run_cli("compare", *pair, "--weights", starter / "embedder", "--json").json()
    ran = run_cli("compare", *pair, "--json")
    assert ran.code == 0 and ran.json() == own and "starter: recognizer" in ran.err
    monkeypatch.setattr(layout, "packaged_folder", lambda: tmp_path / "none")
    assert_refused("compare", *pair, says="--weights FILE")


def test_the_same_starter_again_is_left_alone_and_another_one_is_refused(
    made: Path, run_cli, assert_refused, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ("starter", "pack", "--work", made / "run", "--out", out)
    first = run_cli(*command, "--json")
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.rglob("*") if path.is_file()}
    again = run_cli(*command, "--json")
    assert again.code == 0 and again.json() == first.json() and "is finished already" in again.err
    assert_refused(*command, "--count", 5, says=("exists with other content", "contexts/contexts.jsonl differs"))
    assert before == {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.rglob("*") if path.is_file()}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
