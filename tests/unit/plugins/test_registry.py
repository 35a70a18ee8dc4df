"""Addresses, lazy imports, duplicates and broken third-party plugins."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from facesyn_cli.errors import UserError
from facesyn_cli.plugins import registry
from facesyn_cli.plugins.builtin import BUILTIN, KINDS, REMOVED
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig


class NoiseConfig(PluginConfig):
    level: float = 1.0


@pytest.fixture
def entry_points(monkeypatch: pytest.MonkeyPatch):
    """Return a function that pretends packages with these entry points are installed."""
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))

    def install(kind: str, *points: tuple[str, str]) -> None:
        found = [EntryPoint(name, value, f"facesyn.{kind}") for name, value in points]
        monkeypatch.setattr(registry, "_entry_points", lambda group: found if group == f"facesyn.{kind}" else [])

    return install


@pytest.mark.parametrize("kind, name", [(k, n) for k, names in BUILTIN.items() for n in names])
def test_every_address_registers_its_plugin_with_a_card(kind: str, name: str) -> None:
    plugin = registry.get(kind, name)
    assert plugin.card.about and (plugin.kind, plugin.name) == (kind, name)
    assert issubclass(plugin.config_class, PluginConfig)
    assert registry.get(kind, name) is plugin


def test_one_name_imports_one_module() -> None:
    code = (
        "import sys; from facesyn_cli.plugins import registry; registry.available('head'); "
        "assert not [m for m in sys.modules if m.startswith('facesyn_cli.models')]; "
        "registry.get('augmentation', 'oversample'); "
        "assert 'facesyn_cli.augmentations.photometric' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_third_party_plugins_are_found_by_entry_point(entry_points, tmp_path, monkeypatch) -> None:
    (tmp_path / "their_heads.py").write_text(
        "from facesyn_cli.plugins.registry import Card, register\n"
        "from facesyn_cli.plugins.settings import PluginConfig\n"
        "class TheirConfig(PluginConfig):\n    scale: float = 2.0\n"
        "@register('head', 'theirs', Card('x'))\n"
        "def build(cfg: TheirConfig):\n    return cfg.scale\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    entry_points("head", ("theirs", "their_heads"))
    assert "theirs" in registry.available("head")
    assert registry.build("head", registry.configure("head", {"name": "theirs", "scale": 3})) == 3


def test_duplicates_name_both_owners(entry_points) -> None:
    entry_points("head", ("arcface", "their_heads"))
    with pytest.raises(UserError, match="facesyn_cli.models.heads.fixed_margin and their_heads"):
        registry.get("head", "arcface")


def test_a_broken_plugin_breaks_only_itself(entry_points) -> None:
    entry_points("head", ("broken", "no_such_module"))
    with pytest.raises(UserError, match="'broken'.*cannot be imported"):
        registry.get("head", "broken")
    assert registry.get("head", "arcface")


def test_registering_twice_and_badly(entry_points) -> None:
    entry_points("head")

    def build(cfg: NoiseConfig) -> None: ...
    def other(cfg: NoiseConfig) -> None: ...
    def untyped(cfg): ...
    def wrong(cfg: int) -> None: ...
    def unknown_return(cfg: NoiseConfig) -> DefinedNowhere: ...  # noqa: F821

    register("head", "twice", Card("x"))(build)
    with pytest.raises(ValueError, match="two plugins are called"):
        register("head", "twice", Card("x"))(other)
    for bad in (untyped, wrong):
        with pytest.raises(ValueError, match="config|annotat"):
            register("head", "bad", Card("x"))(bad)
    with pytest.raises(ValueError, match="unknown plugin kind"):
        register("hat", "x", Card("x"))
    register("head", "fine", Card("x"))(unknown_return)


def test_unknown_names_get_the_nearest_one() -> None:
    with pytest.raises(UserError, match="did you mean 'arcface'"):
        registry.get("head", "arcfac")
    with pytest.raises(UserError, match="did you mean 'head'"):
        registry.available("heads")


def test_removed_plugins_say_what_to_do_instead() -> None:
    assert all(name not in BUILTIN[kind] for kind, name in REMOVED)
    with pytest.raises(UserError, match="^denoiser 'residual-mlp' was removed: train dit$"):
        registry.get("denoiser", "residual-mlp")


def test_every_kind_is_in_the_table() -> None:
    assert set(BUILTIN) == set(KINDS)


def test_card_accepts_the_former_spelling_of_license_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    card = Card("a network", licence="MIT")
    assert card.license == "MIT" and caplog.text.count("`licence` is now `license`") == 1
    caplog.clear()
    assert Card("a network", license="MIT") == card and not caplog.records
