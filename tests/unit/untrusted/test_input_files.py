"""Input files: what is no regular file is refused at once, sizes and lines have limits."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from facesyn_cli.errors import UserError
from facesyn_cli.untrusted import input_files


def special(kind: str, folder: Path) -> Path:
    path = folder / "in"
    if kind == "device":
        return Path("/dev/zero")
    if kind == "folder":
        path.mkdir()
    elif kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            os.chdir(folder)  # the name of a socket is at most 108 bytes
            server.bind("in")
    return path


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs on this system")
@pytest.mark.parametrize("kind", ["FIFO", "socket", "device", "folder"])
def test_only_regular_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.chdir(tmp_path)  # goes back after the test
    path = special(kind, tmp_path)
    for read in (input_files.input_size, input_files.open_input, lambda p: input_files.read_bytes(p, 10),
                 input_files.read_text, lambda p: list(input_files.read_lines(p))):
        with pytest.raises(UserError, match=f"{path} is a .*{kind}.*was expected"):
            read(path)
    if kind == "folder":
        input_files.check_input(path)
    else:
        with pytest.raises(UserError, match=kind):
            input_files.check_input(path)


def test_links_to_regular_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "b").symlink_to("a")
    with input_files.open_input(tmp_path / "b") as file:
        assert file.read() == b"abc"
    assert input_files.input_size(tmp_path / "b", 3) == 3


@pytest.mark.parametrize("name", ["gone", "a\0b", "x" * 300, "file/inside"])
def test_names_that_cannot_be_opened(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="a text file was expected"):
        input_files.read_text(tmp_path / name)


def test_size_limit(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(11))
    assert input_files.read_bytes(path, 11) == bytes(11)
    with pytest.raises(UserError, match="11 bytes or more; a file of at most 10 bytes"):
        input_files.read_bytes(path, 10)
    with open(path, "wb") as file:
        file.truncate(2**40)  # sparse
    with pytest.raises(UserError, match=f"at most {64 * 2**20} bytes"):
        input_files.read_text(path)


def test_lines(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes("\ufeffa\r\n\r\nä b\n  c".encode())
    assert list(input_files.read_lines(path)) == ["a", "", "ä b", "  c"]
    for content, says in {
        b"a\nb\0\n": "line 2: a NUL byte", b"a\n\xff\n": "line 2: not UTF-8", "a\n".encode("utf-16"): "as UTF-16 does",
        b"a\n" + b"x" * 101: "line 2: a line of more than 100 bytes",
    }.items():
        path.write_bytes(content)
        with pytest.raises(UserError, match=says):
            list(input_files.read_lines(path, max_line=100))
    path.write_bytes(b"x" * 100 + b"\r\n")
    assert list(input_files.read_lines(path, max_line=100)) == ["x" * 100]


def test_text_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"a\nb\n\xff")
    with pytest.raises(UserError, match="line 3: not UTF-8 text"):
        input_files.read_text(path)


@pytest.mark.parametrize("name", ["", "..", "../x", "a/../../x", "/etc/passwd", "a\0b", "a\\..\\..\\b", "a//b"])
def test_names_in_files_stay_inside(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="index.json names the file"):
        input_files.inside(tmp_path, name, "index.json")
    assert input_files.inside(tmp_path, "a/b.npy", "index.json") == tmp_path / "a/b.npy"
