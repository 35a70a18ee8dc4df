"""Command x-y = cli/x_y.py = stages/x_y.py = recipe section x-y = test_x_y.py; and no dumping grounds."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from facesyn_cli.artifacts.plan import Plan
from facesyn_cli.config.fields import StageConfig
from facesyn_cli.config.recipe import STAGES
from facesyn_cli.pipelines.stage import config_class_of, stage_module

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "facesyn_cli"


@pytest.mark.parametrize("stage", STAGES)
def test_stage_has_its_files(stage: str) -> None:
    file = stage.replace("-", "_")
    for path in (PACKAGE / f"cli/{file}.py", PACKAGE / f"stages/{file}.py", ROOT / f"tests/cli/test_{file}.py"):
        assert path.is_file(), path


@pytest.mark.parametrize("stage", STAGES)
def test_stage_has_its_entries(stage: str) -> None:
    assert issubclass(config_class_of(stage), StageConfig)
    for name in ("run", "plan"):
        assert list(inspect.signature(getattr(stage_module(stage), name)).parameters) == ["cfg", "work"]


@pytest.mark.parametrize("stage", [*STAGES, "cut"])
def test_plan_of_every_stage_is_a_plan(stage: str) -> None:
    assert inspect.signature(stage_module(stage).plan).return_annotation in (Plan, "Plan")


@pytest.mark.parametrize("stage", STAGES)
def test_every_setting_says_what_it_is(stage: str) -> None:
    silent = [name for name, info in config_class_of(stage).model_fields.items() if not info.description]
    assert not silent, f"{stage}: settings without a description: {silent}"


def test_no_dumping_grounds() -> None:
    forbidden = {"utils", "util", "helpers", "common", "misc"}
    assert not [p for p in PACKAGE.rglob("*") if p.stem in forbidden]


def test_package_files_are_empty() -> None:
    filled = [p for p in PACKAGE.rglob("__init__.py") if p.parent != PACKAGE and p.read_text().strip()]
    assert not filled


def test_test_files_have_unique_names() -> None:
    names = [p.name for p in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names)), "two test files share a name"


def test_nothing_is_printed_past_the_command_line() -> None:
    loud = [
        p for p in PACKAGE.rglob("*.py")
        if p.parent.name != "cli" and any(line.lstrip().startswith("print(") for line in p.read_text().splitlines())
    ]
    assert not loud
