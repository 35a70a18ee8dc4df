"""`facesyn guide`: the list of topics, one topic with and without a terminal, and words found in all of them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from facesyn_cli.cli import guide

INDEX = """# Index

| topic | what it answers |
|---|---|
| [stages](stages.md) | What a `stage` is |
| [networks](networks.md) | Which networks there are |
"""
STAGES = """# Stages

A stage **resumes**. See [Networks](networks.md#small) and [the picture](../a.png).

## Commands

```bash
facesyn sample --work runs/a --ids 10000 --per-id 50 scheduler.name=unipc scheduler.steps=20 guidance.name=cfg
```

- `resume` is no setting

| setting | meaning |
|---|---|
| `name` | words |
| `other` | more words than fit beside `a_name_that_is_longer_than_a_column.png` |
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {"README": INDEX, "stages": STAGES, "networks": "# Networks\n\nIR-50.\n"}.items():
        (tmp_path / f"{name}.md").write_text(text)
    monkeypatch.setattr(guide, "FOLDER", tmp_path)


def test_topics_are_listed_in_the_order_of_the_index(run_cli) -> None:
    assert run_cli("guide").out.splitlines() == [
        "topic     what it answers", "stages    What a stage is", "networks  Which networks there are",
    ]


def test_without_a_terminal_a_topic_is_its_file(run_cli) -> None:
    assert run_cli("guide", "stages").out == STAGES


def test_a_word_is_found_once_in_each_section(run_cli) -> None:
    ran = run_cli("guide", "RESUME")
    assert ran.code == 0 and [line.split("  ")[0] for line in ran.out.splitlines()] == ["topic", "stages", "stages"]
    assert "Stages    A stage resumes. See Networks and the picture." in ran.out
    assert "Commands  resume is no setting" in ran.out


def test_of_a_long_line_the_part_around_the_word_is_shown(run_cli) -> None:
    line = run_cli("guide", "unipc").out.splitlines()[-1]
    assert line.startswith("stages  Commands  ...") and line.endswith("guidance.name=cfg") and "=unipc" in line


def test_what_is_nowhere_is_refused_with_the_nearest_topic(assert_refused) -> None:
    says = ("no guide is called 'stagse'", "did you mean 'stages'?", "topics are stages, networks")
    assert_refused("guide", "stagse", says=says)


def test_a_terminal_shows_code_that_can_be_copied_and_commands_for_links() -> None:
    plain = re.sub(r"\x1b\[[0-9;]*m", "", guide.formatted(STAGES, 40))
    lines = [line.rstrip() for line in plain.splitlines()]
    assert lines[0] == "Stages" and "\x1b[1" in guide.formatted(STAGES, 40)
    assert next(line for line in STAGES.splitlines() if line.startswith("facesyn")) in lines
    assert "Networks (facesyn guide networks)" in " ".join(lines) and "a.png" not in plain


def test_a_table_keeps_every_character_and_separates_rows_of_several_lines() -> None:
    for width, num_empty in ((100, 0), (30, 1)):
        lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in guide.formatted(STAGES, width).splitlines()]
        table = lines[next(k for k, line in enumerate(lines) if line.startswith("setting")) :]
        text = "".join(line[9:] for line in table).replace(" ", "")
        assert text == "meaningwordsmorewordsthanfitbesidea_name_that_is_longer_than_a_column.png"
        names = [line.partition(" ")[0] for line in table]
        assert names.index("other") - names.index("name") == 1 + num_empty


def test_only_what_is_longer_than_the_screen_goes_through_the_pager(monkeypatch, capsys) -> None:
    paged: list[str] = []
    monkeypatch.setattr("pydoc.pager", paged.append)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LESS", "")
    for lines, is_paged in (("50", False), ("5", True)):
        monkeypatch.setenv("LINES", lines)
        guide._show(STAGES)
        assert bool(paged) == is_paged and ("unipc" in capsys.readouterr().out) != is_paged


def test_the_shell_completes_topics() -> None:
    assert guide._complete("net") == [("networks", "Which networks there are")]
