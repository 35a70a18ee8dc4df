"""Tables of text cells: alignment, escaping, and numbers in full precision."""

from __future__ import annotations

from facesyn_cli.artifacts import text_tables

LINES = [["name", "n", "note"], ["a|b", "10", ""], ["c", "2", "x"]]


def test_columns_are_aligned_and_lines_end_without_spaces() -> None:
    assert text_tables.aligned(LINES, (0, 2)) == "name   n  note\na|b   10\nc      2  x"


def test_markdown_escapes_bars_and_says_the_alignment() -> None:
    assert text_tables.to_markdown(LINES, (0, 2)) == (
        "| name | n | note |\n| --- | ---: | --- |\n| a\\|b | 10 |  |\n| c | 2 | x |\n"
    )


def test_values_keep_their_precision() -> None:
    assert text_tables.to_csv([["a", "b"], [0.1 + 0.2, None]]) == "a,b\n0.30000000000000004,\n"
