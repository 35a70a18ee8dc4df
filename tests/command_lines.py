"""Commands in Markdown files and in help texts: they exist, their options exist, their settings resolve."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

import typer

from facesyn_cli.cli.main import app
from facesyn_cli.cli.stage_command import section_of
from facesyn_cli.config.recipe import STAGES
from facesyn_cli.pipelines.stage import resolve_stage

COMMANDS = typer.main.get_command(app).commands
_STARTS = ("facesyn", ".venv/bin/facesyn", "facesyn_cli")


def in_markdown(text: str) -> list[list[str]]:
    """Return the words after `facesyn` of every command in the blocks of shell code of a Markdown text."""
    blocks = re.findall(r"^```(?:bash|sh|shell)\b[^\n]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return in_lines(line for block in blocks for line in block.replace("\\\n", " ").splitlines())


def in_lines(lines: Iterable[str]) -> list[list[str]]:
    """Return the words after `facesyn` of every command line that calls it, also through `accelerate launch`."""
    found = []
    for line in lines:
        words = shlex.split(line, comments=True)
        start = next((word for word in _STARTS if word in words), None)
        if start and words[0] != "git":
            found.append(words[words.index(start) + 1 :])
    return found


def check(words: list[str]) -> None:
    """Fail where a command, an option, a recipe or a setting of one command line does not exist."""
    name, *rest = words
    assert name in COMMANDS or name.startswith("-"), f"there is no command {name}"
    if name.startswith("-"):
        return
    known = _options_of(words)
    for word in rest:
        if word.startswith("-"):
            assert word.partition("=")[0] in known, f"{name} has no option {word}"
    overrides = [word for word in rest if "=" in word and not word.startswith("-")]
    recipe = rest[rest.index("--config") + 1] if "--config" in rest else None
    if recipe is not None and recipe.endswith((".yaml", ".yml")):
        recipe = None  # a file of the reader's own
    if name in STAGES:
        resolve_stage(name, section_of(recipe, name), overrides, {})
    elif name == "run":
        for word in overrides:
            stage, _, setting = word.partition(".")
            resolve_stage(stage, section_of(recipe, stage), [setting], {})


def _options_of(words: list[str]) -> set[str]:
    """Return the options of the command, or sub-command, that a command line calls."""
    command = COMMANDS[words[0]]
    for word in words[1:]:
        command = getattr(command, "commands", {}).get(word, command)
    names = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    return names | {"--help", "-h"}
