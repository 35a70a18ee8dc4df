"""The recipe that `init` writes resolves for every combination of answers, and reads back as it was made."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from facesyn_cli.artifacts.atomic_files import write_json
from facesyn_cli.artifacts.context_set import ContextSet
from facesyn_cli.artifacts.starter_files import Starter, packaged_folder
from facesyn_cli.artifacts.work import Work
from facesyn_cli.config.recipe import load_recipe
from facesyn_cli.pipelines.init_inputs import Machine, Network, Photos
from facesyn_cli.pipelines.init_recipe import Choices, expected_disk_gib, make_sections, proposed_size
from facesyn_cli.pipelines.init_text import recipe_text
from facesyn_cli.pipelines.open_inputs import require_inputs
from facesyn_cli.pipelines.stage import resolve_stage

PHOTOS = Photos(Path("my faces/a: b #1.zip"), 9000, 90, True, True, ("112 x 112",))
ONNX, SHORT, LATENTS = Network("onnx", 512), Network("ir-50", 256), Network("kl-f8", 4)
FILE = Path("some file.onnx")
PACKED = ContextSet.open(packaged_folder() / "contexts").vectors.shape[0]


def combinations() -> list[Choices]:
    found = [Choices(ids=ids, judge=judge, pairs=pairs, pair_images=images) for ids, judge, (pairs, images) in
             product((20, PACKED + 1), (None, FILE), ((None, None), (FILE, None), (FILE, FILE)))]
    recognizers = ((None, None), (FILE, ONNX), (FILE, SHORT))
    autoencoders = ((None, None), (FILE, LATENTS))
    for size, align, (weights, embedding), (autoencoder, latents), judge in product(
        ("small", "medium", "full"), (False, True), recognizers, autoencoders, (None, FILE)
    ):
        if autoencoder is None or size != "small":
            found.append(Choices(size, 7, 3, PHOTOS, align, FILE if align else None, weights, embedding, autoencoder,
                                 latents, True, FILE, None, judge))
    return found


@pytest.mark.parametrize("choices", combinations(), ids=lambda c: f"{c.size}-{c.ids}")
def test_every_recipe_resolves_and_reads_back(choices: Choices, tmp_path: Path) -> None:
    sections = make_sections(choices)
    (tmp_path / "r.yaml").write_text(recipe_text(sections, ["Head: of it"]), encoding="utf-8")
    assert load_recipe(str(tmp_path / "r.yaml")) == sections
    configs = {stage: resolve_stage(stage, settings, [], {}) for stage, settings in sections.items()}
    require_inputs(configs, Work(tmp_path))
    assert configs["sample"].ids == choices.ids and configs["sample"].per_id == choices.per_id
    assert ("align" in sections) == choices.align and ("eval" in sections) == (choices.pairs is not None)
    if choices.photos is None:
        assert configs["sample"].ldm.is_dir() and ("gen-contexts" in sections) == (choices.ids == PACKED + 1)
        assert configs["sample"].scheduler.temperature == 1 and configs["sample"].variation.lowest == 0.6
    else:
        size = choices.embedding.size if choices.embedding else 512
        assert configs["train-ldm"].denoiser.context_size == size
        assert configs["gen-contexts"].count == choices.ids
        readers = [stage for stage in ("embed", "train-autoencoder", "train-ldm") if stage in configs]
        assert {configs[stage].images for stage in readers} == {None if choices.align else PHOTOS.path}
    assert expected_disk_gib(choices, sections) > 0


def test_every_setting_has_a_comment() -> None:
    lines = recipe_text(make_sections(Choices("full", photos=PHOTOS)), ["x"]).splitlines()
    settings = [number for number, line in enumerate(lines) if line.startswith("  ") and not line.startswith("  #")]
    assert len(settings) > 30
    assert not [lines[k] for k in settings if "  # " not in lines[k] and not lines[k - 1].startswith("  # ")]
    assert max(len(line) for line in lines if line.lstrip().startswith("#")) <= 120


def test_the_sizes_are_those_of_the_built_in_recipes() -> None:
    published = load_recipe("admis")
    full = make_sections(Choices("full", photos=PHOTOS, autoencoder=FILE, latents=Network("vq-f4", 3)))
    changed = {"denoiser": {**published["train-ldm"]["denoiser"], "in_channels": 3}, "context_dropout": 0.1,
               "images": str(PHOTOS.path), "autoencoder": str(FILE)}
    assert full["train-ldm"] == {**published["train-ldm"], **changed}
    assert full["train-fr"] == published["train-fr"]
    small = make_sections(Choices("small", photos=PHOTOS))
    assert small["train-ldm"]["denoiser"] == load_recipe("starter")["train-ldm"]["denoiser"]


@pytest.mark.parametrize(("photos", "steps"), [(40, 300), (6400, 4000), (10**6, 20_000)])
def test_few_photos_are_seen_about_eighty_times_and_for_ten_minutes(photos: int, steps: int) -> None:
    small = make_sections(Choices("small", photos=replace(PHOTOS, images=photos)))["train-ldm"]
    assert small["batch_size"] == 128 and small["steps"] == steps and small["minutes"] == 10
    assert small["autoencoder"] == "taesd3"


def test_the_identity_loss_is_that_of_the_packaged_recognizer_of_latents(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    base, taught = load_recipe("starter"), Network("onnx", 512, "sha256:7")
    write_json(tmp_path / "identity" / "config.json", {"teacher": "sha256:7"})
    for digests, has_loss in (({"identity": "sha256:1"}, True), ({}, False)):
        starter = Starter(tmp_path, {}, digests)
        monkeypatch.setattr("facesyn_cli.pipelines.init_recipe.find_starter", lambda _, starter=starter: starter)
        made = make_sections(Choices("small", photos=PHOTOS))
        assert made["train-ldm"].get("identity_recognizer") == ("starter-identity" if has_loss else None)
        assert made["train-ldm"].get("identity") == (base["train-ldm"]["identity"] if has_loss else None)
        assert made["sample"]["guidance"]["scale"] == (base["sample"]["guidance"]["scale"] if has_loss else 1.75)
        assert made["sample"].get("variation") == ({"name": "idperturb", "lowest": 0.6} if has_loss else None)
        assert made["sample"]["scheduler"] == {"name": "flow-euler", "steps": 12}
        other = make_sections(Choices("small", photos=PHOTOS, recognizer=FILE, embedding=ONNX))
        assert "identity_recognizer" not in other["train-ldm"] and "identity" not in other["train-ldm"]
        teacher = make_sections(Choices("small", photos=PHOTOS, recognizer=FILE, embedding=taught))
        assert ("identity_recognizer" in teacher["train-ldm"]) == has_loss, "its embeddings are those that it learned"


def test_a_small_training_goes_on_from_the_packaged_network() -> None:
    for embedding in (None, ONNX):
        small = make_sections(Choices("small", photos=PHOTOS, recognizer=embedding and FILE, embedding=embedding))
        assert small["train-ldm"]["initial_denoiser"] == "starter-ldm"
    short = Choices("small", photos=PHOTOS, recognizer=FILE, embedding=SHORT)
    for choices in (short, Choices("full", photos=PHOTOS)):
        assert "initial_denoiser" not in make_sections(choices)["train-ldm"]


@pytest.mark.parametrize(("bf16", "precision"), [(False, "fp32"), (True, "bf16")])
def test_a_small_training_computes_in_the_format_that_is_faster(bf16: bool, precision: str) -> None:
    small = make_sections(Choices("small", photos=PHOTOS, bf16=bf16))["train-ldm"]
    assert small["precision"] == small["latent_precision"] == precision


def test_a_gpu_and_photos_get_the_published_networks() -> None:
    none, gpu = Machine(2, None, 0, 0.0, 9.0), Machine(2, "H", 1, 80.0, 9.0)
    assert [proposed_size(none, PHOTOS), proposed_size(gpu, PHOTOS), proposed_size(gpu, None)] == [
        "small", "medium", "small"]
