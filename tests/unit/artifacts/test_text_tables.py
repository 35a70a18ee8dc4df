"""The plain forms of a table."""

from __future__ import annotations

from facesyn_cli.artifacts import text_tables
from facesyn_cli.artifacts.text_tables import Column, Table

TABLE = Table([Column("name", is_text=True), Column("n"), Column("note", is_text=True)], [["a|b", "10", ""],
                                                                                         ["c", "2", "x"]])


def test_columns_of_words_stand_left_and_others_right() -> None:
    assert TABLE.to_text() == "name   n  note\na|b   10\nc      2  x"


def test_markdown_escapes_bars() -> None:
    assert TABLE.to_markdown() == (
        "| name | n | note |\n| --- | ---: | --- |\n| a\\|b | 10 |  |\n| c | 2 | x |\n"
    )


def test_blocks_are_tables_and_text() -> None:
    assert text_tables.to_text([TABLE, "first: 1\nsecond"]) == f"{TABLE.to_text()}\n\nfirst: 1\nsecond"
    assert text_tables.to_markdown([TABLE, "first: 1\nsecond"]) == f"{TABLE.to_markdown()}\n- first: 1\n- second"


def test_csv_keeps_full_precision() -> None:
    assert text_tables.to_csv([["a", "b"], [0.1 + 0.2, None]]) == "a,b\n0.30000000000000004,\n"
    assert TABLE.to_csv().splitlines() == ["name,n,note", "a|b,10,", "c,2,x"]
