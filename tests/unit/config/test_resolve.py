"""From recipe, overrides and flags to one config; all problems at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from facesyn_cli.artifacts.config_changes import compare_configs
from facesyn_cli.config.fields import (
    PluginConfig,
    PluginList,
    PluginSection,
    StageConfig,
    affects_result,
    batch_setting,
    growable,
    input_path,
    runtime_only,
)
from facesyn_cli.config.resolve import resolve
from facesyn_cli.errors import UserError


class Inner(BaseModel):
    depth: int = 1
    width: int = 8


class ThingConfig(StageConfig):
    ids: int | None = growable(5, "how many")
    workers: int = runtime_only(1, "threads")
    batch_size: int = batch_setting(4, "batch")
    lr: float = affects_result(0.1, "rate", gt=0)
    images: Path | None = input_path(None, "input")
    inner: Inner = affects_result(Inner(width=16), "nested")
    head: PluginConfig = PluginSection("head", default="arcface")
    transforms: list[PluginConfig] = PluginList("transform", default=["flip"])


def config(*overrides: str, section: dict | None = None, **flags: object) -> ThingConfig:
    return resolve(ThingConfig, "thing", section or {}, list(overrides), flags)


def test_later_sources_win() -> None:
    section = {"lr": 0.2, "ids": 7, "workers": 3}
    cfg = config("lr=0.3", "ids=8", section=section, ids=9)
    assert (cfg.workers, cfg.lr, cfg.ids) == (3, 0.3, 9)
    assert config(section=section, ids=None).ids == 7


def test_plugin_settings_and_change_of_plugin() -> None:
    assert config().head.margin == 0.5
    assert config("head.margin=0.3").head.margin == 0.3
    changed = config("head.name=cosface", section={"head": {"name": "arcface", "margin": 0.1}})
    assert (changed.head.name, changed.head.margin) == ("cosface", 0.4)
    assert config("head=cosface").head.name == "cosface"
    assert config(section={"head": "cosface"}).head.name == "cosface"


def test_lists_of_plugins() -> None:
    cfg = config("transforms=[flip, {name: random-resized-crop, p: 0.5}]")
    assert [t.name for t in cfg.transforms] == ["flip", "random-resized-crop"]
    assert config("transforms=[]").transforms == []


def test_nested_settings() -> None:
    assert config("inner.depth=4").inner.depth == 4


def test_all_problems_at_once_with_nearest_names() -> None:
    with pytest.raises(UserError) as caught:
        config("lrr=1", "lr=-1", "head.marginn=2", "ids=x", "oops")
    message = str(caught.value)
    known = ("'lrr', did you mean 'lr'", "lr: Input should be greater", "did you mean 'margin'", "ids:", "'oops'")
    for part in known:
        assert part in message, part
    assert "\n" not in message


@pytest.mark.parametrize(
    "word", ["head=nope", "head=[1]", "seed.x=1", "lr.x=2", "transforms.0=3", "head.name=nope", "seed=-1"]
)
def test_wrong_words_are_refused(word: str) -> None:
    with pytest.raises(UserError):
        config(word)


def test_one_key_of_a_nested_section_keeps_the_stages_other_defaults() -> None:
    for cfg in (config("inner.depth=3"), config(section={"inner": {"depth": 3}})):
        assert cfg.inner == Inner(depth=3, width=16)


def test_roles_group_the_header() -> None:
    groups = config().to_json()
    assert groups["identity"]["head"] == {"name": "arcface", "scale": 64.0, "margin": 0.5}
    assert set(groups["growing"]) == {"ids"} and set(groups["recorded"]) == {"batch_size"}
    assert {"workers", "images", "out", "device"} <= set(groups["runtime"])


@pytest.mark.parametrize("where", [
    {"images": "a\0b"}, {"inner": {"name": "x\0"}}, {"transforms": [{"name": "fl\0ip"}]}, {"device": "cpu\0"},
])
def test_a_nul_character_is_named(where: dict) -> None:
    with pytest.raises(UserError, match="holds a NUL character"):
        config(section=where)
    with pytest.raises(UserError, match=r"images: 'a\\x00b' holds a NUL character"):
        config(images=Path("a\0b"))


class RenamedConfig(StageConfig):
    renamed = {"optimiser": "optimizer", "rate": "optimizer.lr", "drops": "schedule.milestones"}

    optimizer: Inner = affects_result(Inner(width=16), "nested")
    schedule: dict = affects_result({}, "open")
    head: PluginConfig = PluginSection("head", default="arcface")


def test_an_old_name_works_with_a_warning(said):
    cfg = resolve(RenamedConfig, "thing", {"optimiser": {"width": 3}}, ["drops=[1, 2]"], {})
    assert cfg.optimizer.width == 3 and cfg.schedule == {"milestones": [1, 2]}
    assert [line.split(";")[0] for line in said] == [
        "setting optimiser is now optimizer", "setting drops is now schedule.milestones"
    ]


def test_overrides_inside_a_renamed_section_reach_it_with_one_warning(said):
    words = ["optimiser.width=4", "optimiser.depth=2"]
    cfg = resolve(RenamedConfig, "thing", {"optimizer": {"width": 3}}, words, {})
    assert (cfg.optimizer.width, cfg.optimizer.depth) == (4, 2) and len(said) == 1


def test_a_header_of_an_earlier_release_equals_the_same_settings_now():
    now = RenamedConfig(optimizer={"width": 3})
    before = {**now.to_json(), "identity": {**now.to_json()["identity"]}}
    before["identity"]["optimiser"] = before["identity"].pop("optimizer")
    assert now.upgraded(before) == now.to_json()
    assert now.upgraded(now.to_json()) == now.to_json()


def test_a_setting_that_a_header_lacks_has_its_default():
    """Folders of an earlier release can be continued, unless the new setting is used."""
    plain, used = RenamedConfig(), RenamedConfig(head={"scale": 32}, optimizer={"width": 3})
    before = plain.to_json()
    before["identity"] = {**before["identity"], "optimizer": {"depth": 1}, "head": {"name": "arcface", "margin": 0.5}}
    assert plain.upgraded(before) == plain.to_json()
    assert compare_configs(plain.upgraded(before), plain.to_json()).problems == []
    problems = compare_configs(used.upgraded(before), used.to_json()).problems
    assert [change.setting for change in problems] == ["head.scale", "optimizer.width"]
    before["identity"]["head"] = {"name": "a plugin that is gone"}
    assert plain.upgraded(before) == before


def test_plugins_are_configured_wherever_a_config_is_made():
    cfg = RenamedConfig(head={"name": "cosface", "scale": 24})
    assert type(cfg.head).__name__ != "PluginConfig" and cfg.head.scale == 24
    assert RenamedConfig(head="cosface").head.name == "cosface" and RenamedConfig().head.name == "arcface"
    assert RenamedConfig(head={"scale": 32}).head.name == "arcface"
