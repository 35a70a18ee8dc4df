"""What a message quotes of a file neither floods nor steers a terminal."""

from __future__ import annotations

from facesyn_cli.errors import UserError


def test_long_words_are_cut_in_the_middle() -> None:
    text = str(UserError(f"/a/b.yaml: {'x' * 5000}end is no number"))
    assert text.startswith("/a/b.yaml: xxx") and text.endswith("xend is no number") and "[...]" in text
    assert len(text) < 300
    assert str(UserError("y" * 400)) == "y" * 400, "paths of some hundred characters stay whole"


def test_control_characters_are_escaped() -> None:
    assert str(UserError("a\x1b[31m\x07b\u202ec\0")) == "a\\x1b[31m\\x07b\\u202ec\\x00"
    assert str(UserError("é 名\tb \udcff")) == "é 名\tb \udcff"
    assert str(UserError("a\r\nb\u2028c")) == "a\\r\\nb\\u2028c", "one line, whatever a name holds"
