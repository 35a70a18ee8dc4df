"""Help, the options of every command, and output that cannot be written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer

from facesyn_cli.cli.main import app
from facesyn_cli.cli.stage_command import OPTIONS
from facesyn_cli.config import recipe
from facesyn_cli.config.recipe import STAGES
from facesyn_cli.pipelines.inputs import USERS
from facesyn_cli.pipelines.published_tree import INPUTS
from facesyn_cli.pipelines.stage import config_class_of

needs_full_disk = pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")


def test_every_command_is_once_in_the_help_under_four_headings_or_in_that_of_another_one(run_cli) -> None:
    lines = run_cli("--help").out.splitlines()
    assert [line for line in lines if line.endswith(":") and line[0] != " "] == [
        "Options:", "Pipeline:", "Train parts:", "Judge:", "Tools:"
    ]
    start = lines.index("Pipeline:")
    listed = [line.split()[0] for line in lines[start:] if line.startswith("  ")]
    related = [line.split()[3].rstrip(".") for name in listed for line in run_cli(name, "--help").out.splitlines()
               if line.startswith("  See also: facesyn ")]
    assert sorted([*listed, *related]) == sorted(typer.main.get_command(app).commands) and len(listed) <= 21
    assert not [line for line in lines[start:] if len(line) > 80 or line.endswith("...")], "a summary is cut"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_has_the_options_that_it_can_use(stage: str, run_cli) -> None:
    options = OPTIONS[stage].split()
    for name in ("batch_size", "shard"):
        assert (name in options) == (name in config_class_of(stage).model_fields), name
    assert ("tree" in options) == (stage in INPUTS) and ("starter" in options) == (stage in USERS)
    text = run_cli(stage, "--help").out
    for name in ("tree", "starter", "seed", "batch_size", "shard", "device"):
        assert (f"--{name.replace('_', '-')} " in text) == (name in options), name


@pytest.mark.parametrize("words", [("-q", "config", "admis"), ("config", "admis", "--quiet")])
def test_quiet_works_on_both_sides_of_the_command(words: tuple[str, ...], run_cli, monkeypatch) -> None:
    monkeypatch.setattr(recipe.log, "debug", recipe.log.info)
    assert run_cli("config", "admis").err and run_cli(*words).err == ""


@pytest.mark.parametrize("words", [("-v", "config", "admis"), ("config", "--verbose", "admis")])
def test_verbose_works_on_both_sides_of_the_command(words: tuple[str, ...], run_cli) -> None:
    assert run_cli("config", "admis").err == ""
    assert run_cli(*words).err.splitlines() == [f"debug: recipe: {recipe.find_recipe('admis')}"]


@pytest.mark.parametrize("words", [("-q", "config", "-v"), ("-v", "config", "-q"), ("config", "-q", "-v")])
def test_quiet_and_verbose_are_refused_together(words: tuple[str, ...], assert_refused) -> None:
    assert_refused(*words, says="--quiet and --verbose exclude each other")


def test_every_command_can_be_quiet(run_cli) -> None:
    def leaves(group, words: tuple[str, ...]):
        for name, command in group.commands.items():
            yield from leaves(command, (*words, name)) if hasattr(command, "commands") else [((*words, name), command)]

    for words, command in leaves(typer.main.get_command(app), ()):
        options = {option for parameter in command.params for option in parameter.opts}
        assert {"-q", "--quiet", "-v", "--verbose"} <= options, words


@needs_full_disk
def test_stdout_on_a_full_disk_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        ran = subprocess.run(
            [sys.executable, "-m", "facesyn_cli", "config"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert ran.returncode == 2
    assert ran.stderr.splitlines() == ["error: a file or the standard output: No space left on device"]


@needs_full_disk
def test_a_log_file_on_a_full_disk_is_given_up_with_one_line(run_cli, tmp_path) -> None:
    ran = run_cli("pack", "--in", tmp_path / "none", "--log-file", "/dev/full")
    assert ran.code == 2
    assert ran.err.splitlines() == [
        f"error: {tmp_path / 'none'} does not exist; a folder or zip of images was expected",
        "warning: the log file /dev/full is closed: No space left on device",
    ]
