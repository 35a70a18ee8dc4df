"""Writes that the system refuses, at several sizes of file: one line, exit code 2; the same command completes later."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_again import COMMANDS, _content, world  # noqa: F401  the fixture

from facesyn_cli.plugins.builtin import BUILTIN

PACKS = {
    f"pack {name}": ["pack", "--in", "{}/faces", "--to", name, "name=tiny", "size=112"]
    for name in BUILTIN["record_format"]
}
DATA = ("align", "embed", "gen-contexts", "sample", "augment", "eval", "report")
PAIRS = ["pairs", "{}/pairs.txt", "--images", "{}/faces"]
TABLE = {**{name: [*COMMANDS[name][0], "--device", "cpu"] for name in DATA}, **PACKS, "pairs": PAIRS}


@pytest.mark.parametrize("name", TABLE)
def test_refused_writes(name: str, world: Path, tmp_path: Path, run_cli, limited_files) -> None:  # noqa: F811
    command = [*(str(word).replace("{}", str(world)) for word in TABLE[name]), "--out"]
    assert run_cli(*command, tmp_path / "whole").code == 0
    whole = _content(tmp_path / "whole")
    seen = ("facesyn.json", "strip.png", "contact_sheet.png")  # paths; and what a run shows of itself
    largest = max(len(data) for key, data in whole.items() if key not in seen)
    refused = 0
    for share in (0.3, 0.97):
        out = tmp_path / f"out-{share}"
        limited_files(max(int(share * largest), 2000))  # what the test itself prints has to fit
        ran = run_cli(*command, out)
        limited_files(2**40)
        lines = [line for line in ran.err.splitlines() if line.startswith("error: ")]
        assert ran.code == (2 if lines else 0) and len(lines) <= 1, ran.err
        assert not lines or "larger than the file system" in lines[0] or "space left" in lines[0], lines
        assert not lines or not (out / "facesyn.json").exists()
        refused += ran.code == 2
        assert run_cli(*command, out).code == 0
        content = _content(out)
        assert content.keys() - set(seen) == whole.keys() - set(seen)
        assert [key for key in whole if key not in seen and content[key] != whole[key]] == []
    assert refused or largest < 2000  # of a table
