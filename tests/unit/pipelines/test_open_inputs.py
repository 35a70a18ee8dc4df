"""Which inputs a recipe leaves open, and the names of the starter's parts in settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from facesyn_cli.artifacts.packaged_networks import autoencoder_folder
from facesyn_cli.artifacts.starter_files import packaged_folder
from facesyn_cli.artifacts.work import Work
from facesyn_cli.config.recipe import load_recipe
from facesyn_cli.pipelines.open_inputs import OpenInputs, require_inputs
from facesyn_cli.pipelines.run import resolve_recipe
from facesyn_cli.pipelines.stage import resolve_stage


def open_settings(recipe: str, work: Path, *words: str) -> set[str]:
    try:
        require_inputs(resolve_recipe(load_recipe(recipe), list(words), {}), Work(work))
    except OpenInputs as error:
        assert all(word in str(error) for word in error.words)
        return {word.partition("=")[0] for word in error.words}
    return set()


def test_every_open_input_is_named_at_once_and_the_proposal_closes_them(tmp_path: Path, said: list[str]) -> None:
    expected = {"embed.weights", "report.judges"}
    assert open_settings("starter", tmp_path) == expected
    assert not open_settings("starter", tmp_path, *(f"{name}=starter-embedder" for name in expected))
    assert len(said) == 1 and "eval has no benchmark" in said[0]
    assert open_settings("small", tmp_path, "embed.weights=x") == {"train-ldm.autoencoder"}
    (tmp_path / "2-autoencoder").mkdir()
    assert not open_settings("small", tmp_path, "embed.weights=x", "eval.pairs=p.txt") and len(said) == 1


def test_a_loss_of_an_autoencoder_that_needs_a_recognizer_names_it(tmp_path: Path) -> None:
    stated, plain = (resolve_stage("train-autoencoder", section, [], {}) for section in ({"feature_weight": 0.1}, {}))
    with pytest.raises(OpenInputs, match="train-autoencoder.features="):
        require_inputs({"train-autoencoder": stated}, Work(tmp_path))
    require_inputs({"train-autoencoder": plain}, Work(tmp_path))


@pytest.mark.parametrize(("stage", "key", "value"), [
    ("embed", "weights", "starter-embedder"), ("sample", "ldm", "starter-ldm"),
    ("sample", "contexts", "starter-contexts"),
])
def test_parts_of_the_starter_have_names(stage: str, key: str, value: str) -> None:
    given = resolve_stage(stage, {key: value}, [], {})
    assert Path(getattr(given, key)) == packaged_folder() / value.removeprefix("starter-")
    assert str(getattr(resolve_stage(stage, {key: "starter-other"}, [], {}), key)) == "starter-other"


@pytest.mark.parametrize("stage", ["train-ldm", "gen-contexts", "sample", "study"])
def test_packaged_autoencoders_have_names(stage: str) -> None:
    given = resolve_stage(stage, {"autoencoder": "taesd3"}, [], {})
    assert Path(given.autoencoder) == autoencoder_folder("taesd3")


def test_names_work_inside_lists_too() -> None:
    cfg = resolve_stage("report", {"judges": ["a.onnx", "starter-embedder"]}, [], {})
    assert cfg.judges == [Path("a.onnx"), packaged_folder() / "embedder"]
