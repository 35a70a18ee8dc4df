"""A user's package with plugins, installed as pip would: a dist-info folder with entry points on the path."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_ldm
from tiny_fr import train_arguments, write_faces
from tiny_recognizer import write_recognizer

from facesyn_cli.plugins import registry
from facesyn_cli.plugins.builtin import INTERFACES, KINDS

_MODULES = ("my_faces.heads", "their_module", "their_package")
README = Path(__file__).parents[2] / "README.md"


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that installs one module with entry points {kind: {plugin: module}}."""
    site = tmp_path / "site-packages"

    def put(module: str, code: str, points: dict[str, dict[str, str]]) -> None:
        path = site.joinpath(*module.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True)
        path.write_text(code)
        info = site / "their_package-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
        sections = [f"[facesyn.{kind}]\n" + "".join(f"{n} = {m}\n" for n, m in names.items())
                    for kind, names in points.items()]
        (info / "entry_points.txt").write_text("\n".join(sections))
        monkeypatch.syspath_prepend(site)
        registry._entry_points.cache_clear()

    yield put
    monkeypatch.undo()
    registry._entry_points.cache_clear()
    for key in [key for key, plugin in registry._registered.items() if plugin.build.__module__ in _MODULES]:
        del registry._registered[key]
    for name in [name for name in sys.modules if name in _MODULES or name == "my_faces"]:
        del sys.modules[name]


def test_a_head_that_is_none_is_refused_before_training(tmp_path, install, run_cli):
    code = (
        "from torch import nn\n"
        "from facesyn_cli.plugins.registry import Card, register\n"
        "from facesyn_cli.plugins.settings import PluginConfig\n"
        "class Config(PluginConfig):\n    pass\n"
        "@register('head', 'odd', Card('x'))\n"
        "def build(cfg: Config) -> nn.Module:\n    return nn.Identity()\n"
    )
    install("their_module", code, {"head": {"odd": "their_module"}})
    ran = run_cli(*train_arguments(write_faces(tmp_path / "faces"), tmp_path / "fr", "--head", "odd", "--dry-run"))
    assert ran.code == 2
    assert "head plugin 'odd' built a Identity; a subclass of facesyn_cli.models.heads.margin.Head was" in ran.err


@pytest.fixture
def theirs(install) -> None:
    """A package with the least plugin of every kind."""
    code = (Path(__file__).parents[1] / "their_plugins.py").read_text()
    install("their_package", code, {kind: {"theirs": "their_package"} for kind in KINDS})


@pytest.fixture
def done(run_cli):
    """Return a function that runs a command, which must succeed."""
    def run(*arguments: object):
        ran = run_cli(*arguments, "device=cpu")
        assert ran.code == 0, ran.err
        return ran
    return run


def test_every_kind_names_an_interface_that_is_there(run_cli):
    assert set(INTERFACES) == set(KINDS)
    for kind, address in INTERFACES.items():
        module, _, name = address.rpartition(".")
        assert getattr(importlib.import_module(module), name) is not None
        assert f"a builder of a {kind} returns {address}" in run_cli("plugins", kind).err


def test_their_denoiser_autoencoder_scheduler_guidance_variation_and_filter_draw(theirs, done, tmp_path):
    tiny_ldm.write_faces(tmp_path)
    settings = [word for word in tiny_ldm.SETTINGS if not word.startswith(("denoiser.", "autoencoder_model"))]
    done("train-ldm", "--images", tmp_path / "faces", "--embeddings", tmp_path / "embeddings",
         "--out", tmp_path / "ldm", "--steps", 2, "--batch-size", 4, *settings, "denoiser={name: theirs}",
         "autoencoder_model={name: theirs}")
    np.save(tmp_path / "contexts.npy", np.random.RandomState(0).standard_normal((2, 32)).astype(np.float32))
    judge = write_recognizer(tmp_path / "judge")
    ran = done("sample", "--ldm", tmp_path / "ldm", "--contexts", tmp_path / "contexts.npy", "--per-id", 2,
               "--out", tmp_path / "samples", "--assume-embedder", tiny_ldm.EMBEDDER, "scheduler={name: theirs}",
               "guidance={name: theirs}", "variation={name: theirs}", f"filter={{name: theirs, judge: {judge}}}",
               "--json")
    assert ran.json()["images"] == 4


def test_their_source_and_filter_find_contexts(theirs, done, tmp_path):
    done("gen-contexts", "source={name: theirs}", "filters=[theirs]", "--out", tmp_path / "contexts")
    assert np.load(tmp_path / "contexts" / "contexts.npy").shape == (5, 512)


def test_their_backbone_head_transform_augmentation_format_and_benchmark_train(theirs, done, tmp_path):
    faces = write_faces(tmp_path / "faces")
    done("augment", "--in", faces, "--out", tmp_path / "more", "augmentation={name: theirs}")
    ran = done("pack", "--in", tmp_path / "more", "--out", tmp_path / "packed", "format={name: theirs}", "--json")
    assert ran.json()["images"] == 30 == len(list((tmp_path / "packed").glob("*.bytes")))
    done("train-fr", "--in", tmp_path / "more", "--out", tmp_path / "fr", "backbone={name: theirs}",
         "head={name: theirs}", "transforms=[theirs]", "batch_size=8", "norm_batch_size=4", "--epochs", 1)
    ran = done("eval", "--weights", tmp_path / "fr", "benchmarks=[theirs]", "--data", tmp_path, "--images", faces,
               "--out", tmp_path / "table", "--json")
    assert "theirs" in ran.out
