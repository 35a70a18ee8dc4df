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
    assert len(COMMANDS_HERE) > 10


@pytest.mark.parametrize("words", COMMANDS_HERE, ids=" ".join)
def test_command_is_as_the_readme_says(words: list[str]) -> None:
    check(words)


def test_every_command_is_in_the_readme_or_in_a_guide() -> None:
    guides = (path.read_text(encoding="utf-8") for path in (ROOT / "facesyn_cli/guide").glob("*.md"))
    shown = {words[0] for text in (TEXT, *guides) for words in in_markdown(text)}
    assert set(COMMANDS) <= shown


def test_length_and_no_leftovers() -> None:
    assert len(TEXT.splitlines()) <= 150
    assert "MEASURED" not in TEXT and "TODO" not in TEXT


def test_the_files_it_links_exist() -> None:
    links = re.findall(r"\]\(((?!https?:)[^)#]+)", TEXT)
    assert len(links) > 10 and not [link for link in links if not (ROOT / link).is_file()]
