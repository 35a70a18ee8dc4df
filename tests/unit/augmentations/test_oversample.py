"""`oversample`: numbers go on after the samples' own; the suffix is that of the content."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from facesyn_cli.artifacts.image_set import ImageEntry
from facesyn_cli.augmentations.addition import next_number
from facesyn_cli.data.pixels import encode_jpeg, encode_png
from facesyn_cli.errors import UserError
from facesyn_cli.plugins.registry import build, configure

GREY = np.full((8, 8, 3), 128, dtype=np.uint8)


def entries(*samples: str) -> list[ImageEntry]:
    return [ImageEntry(f"7/{s}", "7", s, f"7/{s}.png") for s in samples]


def additions(face: Path | None, samples: list[ImageEntry], **settings):
    augmentation = build("augmentation", configure("augmentation", {"name": "oversample", **settings}))
    return list(augmentation.additions("7", samples, lambda entry: b"", face, 0))


@pytest.mark.parametrize(
    ("samples", "number"),
    [(["0", "1", "2"], 3), ([], 0), (["a", "b"], 0), (["007", "x9"], 8), (["\u0663"], 0)],
)
def test_next_number(samples: list[str], number: int):
    assert next_number(entries(*samples)) == number


def test_published_names(tmp_path: Path):
    face = tmp_path / "face.png"
    face.write_bytes(encode_png(GREY))
    made = additions(face, entries(*map(str, range(50))))
    assert [a.sample + a.suffix for a in made] == [f"{n}.png" for n in range(50, 55)]
    assert all(a.file == face and a.render is None for a in made)


def test_suffix_is_that_of_the_content_not_of_the_name(tmp_path: Path):
    """Differs from the published script, which calls every copy `.png`."""
    face = tmp_path / "face.png"
    face.write_bytes(encode_jpeg(GREY))
    assert [a.suffix for a in additions(face, entries("0"), copies=2)] == [".jpg", ".jpg"]


def test_more_copies_keep_the_names_of_fewer(tmp_path: Path):
    face = tmp_path / "face.png"
    face.write_bytes(encode_png(GREY))
    few, many = (additions(face, entries("0", "1"), copies=n) for n in (2, 4))
    assert many[:2] == few and len(many) == 4


def test_a_missing_or_unreadable_face_is_named(tmp_path: Path):
    with pytest.raises(UserError, match="identity '7' has no source face"):
        additions(None, entries("0"))
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="bad.png of identity '7'"):
        additions(tmp_path / "bad.png", entries("0"))
    with pytest.raises(UserError, match="gone.png of identity '7'"):
        additions(tmp_path / "gone.png", entries("0"))
