"""A growing file is cut back to what was synced, and says clearly when it cannot be."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from facesyn_cli.data import append_files
from facesyn_cli.data.append_files import AppendFile
from facesyn_cli.errors import UserError


def test_offsets_and_size(tmp_path: Path):
    file = AppendFile(tmp_path / "new" / "f")
    assert [file.write(b"abc"), file.write(b""), file.write(b"de")] == [0, 3, 3]
    assert file.sync() == 5
    file.close()
    assert (tmp_path / "new" / "f").read_bytes() == b"abcde"


def test_what_was_not_synced_is_cut_off(tmp_path: Path):
    path = tmp_path / "f"
    path.write_bytes(b"kept and torn")
    file = AppendFile(path, size=4)
    assert file.write(b"!") == 4
    file.close()
    assert path.read_bytes() == b"kept!"


def test_a_file_shorter_than_it_was_is_refused(tmp_path: Path):
    (tmp_path / "f").write_bytes(b"abc")
    with pytest.raises(UserError, match="has 3 bytes, 9 were written before"):
        AppendFile(tmp_path / "f", size=9)
    assert (tmp_path / "f").read_bytes() == b"abc"


def test_no_space_left_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    file = AppendFile(tmp_path / "f")
    file.write(b"abc")
    monkeypatch.setattr(append_files.os, "fsync", full)
    with pytest.raises(UserError, match="no space left while writing .*f; free some space"):
        file.sync()
    file.close()
