"""The scheduler that an LDM gets where none is stated."""

from __future__ import annotations

from typing import Any

import pytest

from facesyn_cli.artifacts.work import Work
from facesyn_cli.cli.stage_command import merge_groups
from facesyn_cli.diffusion.scheduler_choice import default_scheduler, with_default_scheduler
from facesyn_cli.pipelines.picture import draw_recipe
from facesyn_cli.stages.gen_contexts import GenContextsConfig
from facesyn_cli.stages.sample import SampleConfig
from facesyn_cli.stages.train_ldm import TrainLdmConfig


@pytest.mark.parametrize(("stated", "name", "steps"), [
    ({}, "flow-euler", 20),
    ({"scheduler": {"steps": 7}}, "flow-euler", 7),
    ({"scheduler": "unipc"}, "unipc", 20),
    ({"scheduler": {"name": "unipc", "steps": 7}}, "unipc", 7),
    ({"scheduler": {"steps": 7, "spacing": "karras"}}, "unipc", 7),
    ({"scheduler": "flow-heun"}, "flow-heun", 10),
])
def test_a_scheduler_that_is_not_stated_gives_way(stated: dict[str, Any], name: str, steps: int, said: list[str]):
    cfg = SampleConfig(**stated)
    found = with_default_scheduler(cfg, "flow")
    assert (found.scheduler.name, found.scheduler.steps) == (name, steps)
    assert any("flow-euler" in text for text in said) == (name == "flow-euler")
    assert with_default_scheduler(cfg, "v") is cfg
    again = SampleConfig.model_validate(merge_groups(found.to_json()))  # a recipe of all settings
    assert with_default_scheduler(again, "flow") == again == found


def test_sections_of_plugins_are_looked_at():
    cfg = GenContextsConfig(filters=["unique", {"name": "quality", "scheduler": {"steps": 3}}])
    found = with_default_scheduler(cfg, "flow")
    assert found.source.scheduler == default_scheduler("flow", "ddim")
    assert found.filters[0] == cfg.filters[0]
    assert found.filters[1].scheduler == default_scheduler("flow", "ddim", steps=3)
    assert found.source.scheduler.name == "flow-euler" and cfg.source.scheduler.name == "ddim"


def test_the_picture_of_a_recipe_shows_the_scheduler_that_is_used(tmp_path):
    configs = {"train-ldm": TrainLdmConfig(prediction="flow"), "sample": SampleConfig(ids=3)}
    picture = draw_recipe("mine", configs, Work(tmp_path), "facesyn run")
    assert "flow-euler, 20 steps" in picture and "unipc" not in picture
