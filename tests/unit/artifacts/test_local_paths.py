"""Absolute paths in JSON that is published."""

from __future__ import annotations

import json

import pytest

from facesyn_cli.artifacts.local_paths import without_local_paths


@pytest.mark.parametrize(("value", "expected"), [
    ("/home/me/runs/a/2-ldm", "2-ldm"), ("/home/me/ü 1/net.pt", "net.pt"), ("~/runs/a", "a"), ("~me/x.npy", "x.npy"),
    (r"C:\Users\me\net.pt", "net.pt"), ("D:/data/faces", "faces"), (r"\\server\share\a.zip", "a.zip"), ("/", ""),
])
def test_absolute_paths_become_names(value: str, expected: str) -> None:
    text = json.dumps({"path": value, value: [1, {"also": value}]}, indent=2)
    assert json.loads(without_local_paths(text)) == {"path": expected, expected: [1, {"also": expected}]}


@pytest.mark.parametrize("value", [
    "../autoencoder", "runs/a/2-ldm", "sha256:1/2", "a / b", "~", "~ 3 images", r"\d+", "c:", "https://hub/a",
    'he said "/home/me"', "two\nlines", "\\", "",
])
def test_everything_else_stays_to_the_byte(value: str) -> None:
    for text in (json.dumps({"value": value}), json.dumps([value, 1.0, None], ensure_ascii=False) + "\n"):
        assert without_local_paths(text * 2) == text * 2
