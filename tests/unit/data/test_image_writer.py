from __future__ import annotations

import errno
import threading
import time

import numpy as np
import pytest

from facesyn_cli.artifacts import atomic_files
from facesyn_cli.data.image_writer import ImageWriter
from facesyn_cli.data.pixels import decode_image, encode_png
from facesyn_cli.errors import UserError

PIXELS = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3)


def test_images_lie_on_disk_when_the_block_ends(tmp_path):
    with ImageWriter(encode_png, 3, 4) as writer:
        for i in range(20):
            writer.put(tmp_path / str(i % 3) / f"{i}.png", lambda i=i: PIXELS + i)
    assert writer.written == 20
    for i in range(20):
        np.testing.assert_array_equal(decode_image((tmp_path / str(i % 3) / f"{i}.png").read_bytes()), PIXELS + i)
    assert len([p for p in tmp_path.rglob("*") if p.is_file()]) == 20  # and no temporary files


def test_the_backlog_is_bounded(tmp_path):
    release, taken = threading.Event(), []

    def slow():
        release.wait(120)
        return PIXELS

    def fill():
        with ImageWriter(encode_png, 2, 5) as writer:
            for i in range(12):
                writer.put(tmp_path / f"{i}.png", slow)
                taken.append(i)

    thread = threading.Thread(target=fill)
    thread.start()
    deadline = time.monotonic() + 60
    while len(taken) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(taken) == 5
    release.set()
    thread.join(120)
    assert len(list(tmp_path.glob("*.png"))) == 12


def test_a_full_disk_is_one_line_in_the_callers_thread(tmp_path, monkeypatch):
    replace, calls = atomic_files.os.replace, []

    def full(source, target):
        calls.append(target)
        if len(calls) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(atomic_files.os, "replace", full)
    with pytest.raises(UserError, match="no space left while writing .*png; free some space"):
        with ImageWriter(encode_png, 1, 2) as writer:
            for i in range(100):
                writer.put(tmp_path / f"{i}.png", lambda: PIXELS)
    assert len(calls) == 4  # nothing was tried after the first failure
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0.png", "1.png", "2.png"]


def test_an_error_of_the_last_image_is_not_lost(tmp_path):
    def broken():
        raise RuntimeError("the device is gone")

    with pytest.raises(RuntimeError, match="the device is gone"):
        with ImageWriter(encode_png, 1, 2) as writer:
            writer.put(tmp_path / "0.png", broken)
    assert not list(tmp_path.iterdir())


def test_finished_images_are_written_when_the_block_fails(tmp_path):
    def slow():
        time.sleep(0.05)
        return PIXELS

    with pytest.raises(ZeroDivisionError):
        with ImageWriter(encode_png, 1, 9) as writer:
            for i in range(5):
                writer.put(tmp_path / f"{i}.png", slow)
            raise ZeroDivisionError
    assert len(list(tmp_path.glob("*.png"))) == 5
