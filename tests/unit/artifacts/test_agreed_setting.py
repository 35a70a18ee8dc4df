"""Settings that all runs which write one folder share."""

from __future__ import annotations

import os
import threading

import pytest

from facesyn_cli.artifacts.agreed_setting import agree, started_with
from facesyn_cli.artifacts.output import FixedConfig, open_output
from facesyn_cli.errors import UserError


def test_of_runs_that_start_together_all_take_the_choice_of_one(tmp_path):
    at_once, found = threading.Barrier(8), [""] * 8

    def run(number: int) -> None:
        def choose() -> str:
            at_once.wait(timeout=30)  # all have looked before any has chosen
            return f"choice {number}"

        found[number] = agree(tmp_path / "out", "ImageSet", "format", choose)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1 and found[0].startswith("choice ")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".agreed-format.json"]


def test_the_folder_decides_once_it_is_started_and_the_choice_is_removed_when_it_is_finished(tmp_path):
    folder = tmp_path / "out"
    assert agree(folder, "ImageSet", "format", lambda: "a") == "a"
    assert agree(folder, "ImageSet", "format", lambda: pytest.fail("chosen before")) == "a"
    with open_output(folder, "ImageSet", "sample", FixedConfig({"format": "b"}), {}) as out:
        assert started_with(folder, "format") == agree(folder, "ImageSet", "format", lambda: "c") == "b"
        out.finish({"images": 0})
    assert [path.name for path in folder.iterdir()] == ["facesyn.json"]
    assert agree(folder, "ImageSet", "format", lambda: "c") == "b"
    assert started_with(folder, "other") is None and started_with(tmp_path / "new", "format") is None


def test_without_hard_links_the_file_is_renamed(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert agree(tmp_path / "out", "ImageSet", "format", lambda: "a") == "a"
    assert agree(tmp_path / "out", "ImageSet", "format", lambda: "b") == "a"
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_a_folder_of_others_is_refused_and_left_as_it_is(tmp_path):
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(UserError, match="not made by facesyn"):
        agree(tmp_path, "ImageSet", "format", lambda: "a")
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]
