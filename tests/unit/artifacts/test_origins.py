"""Photos, generated faces and unknown ones, as the headers of the stages tell."""

from __future__ import annotations

from pathlib import Path

import pytest

from facesyn_cli.artifacts.header import Parent
from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.artifacts.origins import ADDED_FACES, FACE_ORIGIN, origin_of, origins_of
from facesyn_cli.artifacts.output import open_output
from facesyn_cli.config.fields import (
    StageConfig,
)
from facesyn_cli.errors import UserError


def _set(folder: Path, command: str, count: int, extra: dict | None = None, added: int = 0, **inputs: Path) -> Path:
    """Write the header of a finished image set, and one image."""
    parents = {role: ImageSet.open(path).parent() for role, path in inputs.items()}
    with open_output(folder, "ImageSet", command, StageConfig(), parents) as out:
        (folder / "p").mkdir()
        (folder / "p" / "0.png").write_bytes(b"")
        out.finish({"images": count, **({"added": added} if added else {})}, extra)
    return folder


@pytest.fixture
def given(tmp_path: Path) -> Path:
    (tmp_path / "given" / "p").mkdir(parents=True)
    (tmp_path / "given" / "p" / "0.png").write_bytes(b"")
    return tmp_path / "given"


def test_what_no_header_describes_is_unknown_unless_it_is_stated(given):
    assert origins_of(given, 7) == {"unknown": 7}
    assert origin_of(given) == "unknown" and origin_of(given, "generated") == "generated"
    assert origin_of(given.with_suffix(".zip")) == "unknown"


def test_sample_generates_and_align_cuts_photos(given, tmp_path):
    samples = _set(tmp_path / "samples", "sample", 9)
    assert origins_of(samples) == {"generated": 9}
    assert origins_of(_set(tmp_path / "crops", "align", 5, images=given)) == {"photo": 5}
    stated = _set(tmp_path / "stated", "align", 5, {FACE_ORIGIN: "generated"}, images=given)
    assert origins_of(stated) == {"generated": 5}
    assert origins_of(_set(tmp_path / "recut", "align", 8, images=samples)) == {"generated": 8}


def test_a_statement_against_the_headers_is_refused(given, tmp_path):
    crops = _set(tmp_path / "crops", "align", 5, images=given)
    with pytest.raises(UserError, match=r"crops holds photo faces according to the headers .* setting says generated"):
        origin_of(crops, "generated")


def test_origins_follow_the_way_of_the_images(given, tmp_path):
    samples = _set(tmp_path / "samples", "sample", 9)
    crops = _set(tmp_path / "crops", "align", 5, images=given)
    augmented = _set(tmp_path / "augmented", "augment", 15, {ADDED_FACES: "photo"}, added=6, images=samples)
    assert origins_of(augmented) == {"generated": 9, "photo": 6} and origin_of(augmented) == "photo"
    variants = _set(tmp_path / "variants", "augment", 18, added=9, images=samples)
    assert origins_of(variants) == {"generated": 18}
    assert origins_of(_set(tmp_path / "real-variants", "augment", 10, added=5, images=crops)) == {"photo": 10}
    packed = _set(tmp_path / "packed", "pack", 14, **{"input-1": samples, "input-2": crops})
    assert origins_of(packed) == {"generated": 9, "photo": 5}
    assert origins_of(packed, 3) == {"generated": None, "photo": None}  # of a part nobody knows how many
    mixed = _set(tmp_path / "mixed", "pack", 10, **{"input-1": samples, "input-2": given})
    assert origins_of(mixed) == {"generated": None, "unknown": None} and origin_of(mixed) == "unknown"
    assert origins_of(_set(tmp_path / "selected", "select", 4, images=augmented)) == {"generated": None, "photo": None}


def test_a_set_that_was_replaced_or_is_gone_says_nothing(tmp_path):
    samples = _set(tmp_path / "samples", "sample", 9)
    packed = _set(tmp_path / "packed", "pack", 9, input=samples)
    assert origins_of(packed) == {"generated": 9}
    samples.rename(tmp_path / "elsewhere")
    assert origins_of(packed) == {"unknown": 9}
    _set(tmp_path / "samples", "sample", 8)
    assert origins_of(packed) == {"unknown": 9}


def test_odd_words_in_a_header_are_unknown(tmp_path, given):
    samples = _set(tmp_path / "samples", "sample", 9)
    for number, odd in enumerate((["photo"], 7, None, "Photo")):
        folder = _set(tmp_path / f"odd{number}", "augment", 15, {ADDED_FACES: odd}, added=6, images=samples)
        assert origins_of(folder) == {"generated": 9, "unknown": 6}


def test_headers_that_name_each_other_end(tmp_path):
    folder = tmp_path / "loop"
    with open_output(folder, "ImageSet", "select", StageConfig(), {"images": Parent(str(folder), "x")}) as out:
        out.finish({"images": 1}, digest="x")
    assert origins_of(folder) == {"unknown": 1}
