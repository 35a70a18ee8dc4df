"""Help, the options of every command, and output that cannot be written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer
from command_lines import COMMANDS, check, in_lines

from facesyn_cli.artifacts.header import BEGUN, HEADER
from facesyn_cli.cli.stage_command import OPTIONS
from facesyn_cli.config import recipe
from facesyn_cli.config.recipe import STAGES
from facesyn_cli.pipelines.inputs import USERS
from facesyn_cli.pipelines.published_tree import INPUTS
from facesyn_cli.pipelines.stage import config_class_of

needs_full_disk = pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")


def _all_commands() -> dict[str, typer.core.TyperCommand]:
    """Return every command and sub-command by the words that call it."""
    found = {}
    for name, command in COMMANDS.items():
        found[name] = command
        found |= {f"{name} {inner}": sub for inner, sub in getattr(command, "commands", {}).items()}
    return found


def test_the_help_lists_every_command_once_with_its_whole_summary_in_80_columns(run_cli, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = run_cli("--help").out.splitlines()
    assert [line for line in lines if line.endswith(":") and line[0] != " "] == [
        "Pipeline:", "Train parts:", "Judge:", "Tools:", "Options:"
    ]
    listed = lines[lines.index("Pipeline:"):lines.index("Options:")]
    rows = [line.split(maxsplit=1) for line in listed if line.startswith("  ")]
    assert sorted(row[0] for row in rows) == sorted(COMMANDS)
    for name, summary in rows:
        assert summary == COMMANDS[name].help.strip().splitlines()[0] and summary.endswith("."), name
    assert max(map(len, lines)) <= 80
    assert "facesyn demo" in lines[-2] and "facesyn guide" in lines[-1]


def test_without_arguments_the_first_steps_are_shown(run_cli, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    bare = run_cli()
    assert bare.code == 0 and len(bare.out.splitlines()) < 10 and max(map(len, bare.out.splitlines())) <= 80
    for line in ("facesyn demo", "facesyn init", "facesyn --help", "facesyn guide"):
        assert f"  {line} " in bare.out
    for name, files in (("1-embeddings", (BEGUN, HEADER)), ("4-samples", (BEGUN,))):
        for file in files:
            path = tmp_path / "work" / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    assert run_cli().out.splitlines()[-1].startswith("Not finished: work/4-samples. ")


@pytest.mark.parametrize("name", _all_commands())
def test_the_help_of_a_command_fits_80_columns_and_ends_with_real_examples(name: str, run_cli, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = run_cli(*name.split(), "--help").out.splitlines()
    assert max(map(len, lines)) <= 80 and not [line for line in lines if "<" in line]
    examples = [line.strip() for line in lines[lines.index("Examples:") + 1:]]
    called = in_lines(examples)
    assert len(called) == len(examples) == len(set(examples)) >= (1 if " " in name else 3)
    for words in called:
        assert " ".join(words).startswith(name)
        check(words)


def test_the_own_options_of_a_command_are_before_those_of_all_commands(run_cli) -> None:
    text = run_cli("sample", "--help").out
    own, common = text.index("\nOptions:\n"), text.index("\nCommon options:\n")
    assert own < text.index("--per-id N") < common < text.index("--work DIR") < text.index("-h, --help")


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_has_the_options_that_it_can_use(stage: str, run_cli) -> None:
    options = OPTIONS[stage].split()
    for name in ("batch_size", "shard"):
        assert (name in options) == (name in config_class_of(stage).model_fields), name
    assert ("tree" in options) == (stage in INPUTS) and ("starter" in options) == (stage in USERS)
    text = run_cli(stage, "--help").out
    text = text[:text.index("Examples:")]
    for name in ("tree", "starter", "seed", "batch_size", "shard", "device", "markdown"):
        assert (f"--{name.replace('_', '-')} " in text) == (name in options), name


@pytest.mark.parametrize(("arguments", "usage", "error"), [
    (["smaple"], "Usage: facesyn [OPTIONS] COMMAND", "No such command 'smaple'. Did you mean 'sample'?"),
    (["sample", "--step", "3"], "Usage: facesyn sample [OPTIONS] [KEY=VALUE]...",
     "No such option: --step, did you mean '--steps'? (facesyn sample --help)"),
    (["train-fr", "--lr", "0.1"], "Usage: facesyn train-fr",
     "No such option: --lr; it is a setting: optimizer.lr=VALUE (facesyn train-fr --help)"),
    (["models", "convrt"], "Usage: facesyn models", "No such command 'convrt'. Did you mean 'convert'?"),
    (["sample", "--ids", "many"], "Usage: facesyn sample", "'--ids'"),
])
def test_a_typo_shows_the_usage_line_and_the_nearest_name(arguments, usage, error, run_cli) -> None:
    ran = run_cli(*arguments)
    assert ran.code == 2 and ran.out == ""
    lines = ran.err.splitlines()
    assert len(lines) == 2 and lines[0].startswith(usage)
    assert lines[1].startswith("error: ") and error in lines[1] and lines[1].endswith("--help)")


@pytest.mark.parametrize(("arguments", "error"), [
    (["sample", "idss=3"], "unknown setting 'idss', did you mean 'ids'? (facesyn config --stage sample lists all)"),
    (["sample", "scheduler.step=3"], "unknown setting 'scheduler.step', did you mean 'steps'?"),
    (["train-fr", "--head", "arcfac"], "unknown head 'arcfac', did you mean 'arcface'? (facesyn plugins head"),
    (["eval", "--benchmarks", "lwf"], "did you mean 'lfw'? (facesyn plugins benchmark lists all)"),
    (["run", "--config", "smal"], "did you mean 'small'? (facesyn config lists all)"),
    (["run", "--config", "small", "--from", "sampel"], "unknown stage 'sampel', did you mean 'sample'?"),
    (["run", "--config", "small", "sampel.ids=3"], "unknown stage 'sampel', did you mean 'sample'?"),
    (["config", "--stage", "zzz"], "unknown stage 'zzz'; known are align, embed,"),
    (["plugins", "schedulr"], "did you mean 'scheduler'?"), (["bench", "smple"], "did you mean 'sample'?"),
])
def test_an_unknown_name_shows_the_nearest_one(arguments, error, assert_refused) -> None:
    assert_refused(*arguments, says=error)


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
    for name, command in _all_commands().items():
        options = {option for parameter in command.params for option in parameter.opts}
        assert hasattr(command, "commands") or {"-q", "--quiet", "-v", "--verbose"} <= options, name


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
