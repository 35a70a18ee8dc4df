"""What the README says can be typed: its commands exist, its settings resolve, its recipes load."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from facesyn_cli.cli.main import app
from facesyn_cli.cli.stage_command import section_of
from facesyn_cli.config.recipe import STAGES
from facesyn_cli.pipelines.stage import resolve_stage

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def commands() -> list[list[str]]:
    """Return the words after `facesyn` of every command in a code block."""
    found = []
    for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            for start in ("facesyn", ".venv/bin/facesyn", "facesyn_cli"):
                if start in words and words[0] != "git":
                    found.append(words[words.index(start) + 1 :])
                    break
    return found


COMMANDS = typer.main.get_command(app).commands


def options_of(words: list[str]) -> set[str]:
    """Return the options of the command, or sub-command, that a command line calls."""
    command = COMMANDS[words[0]]
    for word in words[1:]:
        command = getattr(command, "commands", {}).get(word, command)
    return {option for parameter in command.params for option in parameter.opts}


def test_there_are_commands() -> None:
    assert len(commands()) > 15


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_command_is_as_the_readme_says(words: list[str]) -> None:
    name, *rest = words
    assert name in COMMANDS
    known = options_of(words)
    for word in rest:
        if word.startswith("--"):
            assert word in known, f"{name} has no option {word}"
    overrides = [word for word in rest if "=" in word and not word.startswith("-")]
    recipe = rest[rest.index("--config") + 1] if "--config" in rest else None
    if name in STAGES:
        resolve_stage(name, section_of(recipe, name), overrides, {})
    elif name == "run":
        for word in overrides:
            stage, _, setting = word.partition(".")
            resolve_stage(stage, section_of(recipe, stage), [setting], {})


def test_every_command_is_in_the_readme() -> None:
    missing = set(COMMANDS) - {words[0] for words in commands()}
    assert not missing - {"demo", "doctor"} and "facesyn demo" in TEXT and "facesyn doctor" in TEXT


def test_length_and_no_leftovers() -> None:
    assert len(TEXT.splitlines()) <= 300
    assert "MEASURED" not in TEXT and "TODO" not in TEXT


def test_the_test_files_it_names_exist() -> None:
    missing = sorted(name for name in set(re.findall(r"tests/[\w/]+\.py", TEXT)) if not (ROOT / name).is_file())
    assert not missing
