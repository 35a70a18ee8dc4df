"""Headers of others: another type in any field is one line that names the file and the field."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from facesyn_cli.artifacts.header import HEADER, Header, Parent, read_header, require_header
from facesyn_cli.errors import UserError

WHOLE = asdict(Header("ImageSet", "sample", {"identity": {"seed": 0}}, {"images": Parent("a", "b")}, {"images": 2},
                      {"embedder": None, "anything": [1, {"x": 2}]}, "sha256:1", "sha256:2"))
OTHER: list[Any] = [None, True, 7, 1.5, "text", [], [1], {}, {"a": None}, 10**400]


def written(folder: Path, value: Any) -> Path:
    (folder / HEADER).write_text(json.dumps(value) if not isinstance(value, str) else value)
    return folder


def test_whole_header_comes_back(tmp_path: Path) -> None:
    header = read_header(written(tmp_path, WHOLE))
    assert asdict(header) == WHOLE and header.parents == {"images": Parent("a", "b")}


@pytest.mark.parametrize("field", WHOLE)
def test_every_field_with_another_type(tmp_path: Path, field: str) -> None:
    refused = 0
    for other in OTHER:
        if type(other) is type(WHOLE[field]):
            continue
        try:
            header = read_header(written(tmp_path, {**WHOLE, field: other}))
            assert field in ("package_version", "digest", "lineage") or header is not None
        except UserError as error:
            refused += 1
            assert str(tmp_path / HEADER) in str(error) and "\n" not in str(error) and len(str(error)) < 600
    assert refused >= len(OTHER) - 2


@pytest.mark.parametrize(("change", "says"), [
    ({"parents": {"images": {"path": None, "digest": "x"}}}, "parents.images.path"),
    ({"parents": {"images": {"path": "x"}}}, "parents.images.digest"),
    ({"parents": {"images": []}}, "parents.images"),
    ({"extra": {"embedder": ["x"]}}, "extra.embedder"),
    ({"extra": {"name": "../other"}}, "extra.name"),
    ({"extra": {"name": ".."}}, "extra.name"),
    ({"config": {"identity": [1]}}, "config.identity"),
    ({"counts": {"images": "2"}}, "counts.images"),
    ({"config": {"growing": {"ids": [1]}}}, "growing.ids"),
    ({"config": {"growing": {"ids": {}}}}, "growing.ids"),
    ({"config": {"growing": {"a": {"b": "x"}}}}, "growing.b"),
    ({"unknown": 1}, "unknown"),
    ({"format_version": 99}, "format version 99"),
    ({"format_version": "99"}, "format_version"),
])
def test_message_names_the_field(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        require_header(written(tmp_path, {**WHOLE, **change}), "ImageSet")


@pytest.mark.parametrize("text", ["", "[" * 100_000, "[]", "7", "null", '"text"', '{"kind": "ImageSet"}'])
def test_no_header_at_all(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError):
        read_header(written(tmp_path, text))
