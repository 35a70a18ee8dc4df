"""What the README says can be typed: its commands exist, its settings resolve, its recipes load."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from command_lines import COMMANDS, check, in_markdown

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS_HERE = in_markdown(TEXT)


def test_there_are_commands() -> None:
    assert len(COMMANDS_HERE) > 15


@pytest.mark.parametrize("words", COMMANDS_HERE, ids=" ".join)
def test_command_is_as_the_readme_says(words: list[str]) -> None:
    check(words)


def test_every_command_is_in_the_readme() -> None:
    missing = set(COMMANDS) - {words[0] for words in COMMANDS_HERE}
    assert not missing - {"demo", "doctor", "init"} and "facesyn demo" in TEXT and "facesyn doctor" in TEXT


def test_length_and_no_leftovers() -> None:
    assert len(TEXT.splitlines()) <= 300
    assert "MEASURED" not in TEXT and "TODO" not in TEXT


def test_the_test_files_it_names_exist() -> None:
    missing = sorted(name for name in set(re.findall(r"tests/[\w/]+\.py", TEXT)) if not (ROOT / name).is_file())
    assert not missing
