"""Images and labels of a tar shard, grouped into samples as webdataset groups them.

The key of a file is its path up to the first dot of its name, the rest its field: `p/1.jpg` has the key `p/1` and the
field `jpg`, `p/1.2.jpg` the same key and the field `2.jpg`. Files with one key that follow each other are one sample;
the same field twice in a sample is an error, as in webdataset.

    several images in a sample     all of them are images of the set; their names are then `1.2`, `1.3`
    label of an image              `1.2.cls`, else that of the sample, `1.cls`: a whole number
                                   without a `.cls`: a `.txt` that holds a whole number, or a `.json` that holds one or
                                   has it as `label` or `cls`, where a text is the name of an identity
    no label                       the folder of the key is the identity

Everything else in the archive is counted and reported.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from facesyn_cli.artifacts.image_formats import HEAD_BYTES, suffix_of_content
from facesyn_cli.artifacts.names import SUFFIXES
from facesyn_cli.data.record_files import LeftOut
from facesyn_cli.data.record_labels import MAX_LABEL
from facesyn_cli.data.tar_archive import TarMember, read_members
from facesyn_cli.errors import UserError
from facesyn_cli.untrusted.parsing import parse_json

LATE_LABELS = "labels of no image beside them"

_META = re.compile(r"__[^/]*__($|/)")                    # webdataset's own entries
_KEY = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)
_WEAK_LABELS = ("json", "txt")                           # may hold a label or something else
_LABEL_KEYS = ("label", "cls")
_MAX_LABEL_FILE = {"cls": 40, "txt": 40, "json": 1 << 20}  # bytes

Label = int | str


@dataclass(frozen=True, slots=True)
class TarSample:
    """One image of a shard.

    Args:
        folder: Folder of its key, without `./` in front; may be empty.
        name: Its name within the folder.
        image: Where its bytes lie.
        label: Its label, or None when its folder is the identity.
        label_field: Source of the label: `cls`, `json`, `txt`, or empty.
    """

    folder: str
    name: str
    image: TarMember
    label: Label | None
    label_field: str


def read_samples(path: Path, file: BinaryIO, left_out: LeftOut) -> Iterator[TarSample]:
    """Yield every image of an open shard with its label; everything that is not used is counted in `left_out`.

    Raises:
        UserError: The archive is damaged, a sample has one field twice, or a label is none.
    """
    for key, fields in _groups(path, file, left_out):
        images, strong, weak = {}, {}, {}
        for field, member in fields.items():
            stem, _, suffix = field.rpartition(".")
            if f".{suffix}" in SUFFIXES:
                images[field] = member
            elif suffix == "cls":
                strong[stem] = member
            elif suffix in _WEAK_LABELS:
                weak[field] = member
            elif suffix_of_content(_head(file, member)):
                images[field] = member
            else:
                left_out.add(f".{suffix} files", member.name)
        yield from _label_images(path, file, key, images, strong, weak, left_out)


def _label_images(
    path: Path, file: BinaryIO, key: str, images: dict[str, TarMember], strong: dict[str, TarMember],
    weak: dict[str, TarMember], left_out: LeftOut,
) -> list[TarSample]:
    """Return the images of one sample; labels and fields that none of them uses are counted."""
    folder, _, stem = key.rpartition("/")
    if folder.startswith((".", "/")) or "//" in folder or "/./" in folder or folder.endswith("/."):
        folder = "/".join(part for part in folder.split("/") if part not in ("", "."))
    found: list[TarSample] = []
    used: set[str] = set()
    values: dict[str, Label | None] = {}
    for field, member in (weak.items() if not strong else ()):
        values[field] = _weak_label(path, member, file, field.rpartition(".")[2])
    for field, image in images.items():
        own = field.rpartition(".")[0]
        place = own if own in strong else ""
        if place in strong:
            label, label_field = _number(path, strong[place], file), "cls"
            used.add(f"{place}.cls")
        else:
            label, label_field, fields = _agreed(path, key, own, values)
            used.update(fields)
        name = stem if len(images) == 1 or not own else f"{stem}.{own}"
        found.append(TarSample(folder, name, image, label, label_field))
    for place, member in strong.items():
        if f"{place}.cls" not in used:
            left_out.add(LATE_LABELS, member.name)
    for field, member in weak.items():
        if field not in used:
            is_late = not images and not strong and values[field] is not None
            left_out.add(LATE_LABELS if is_late else f".{field.rpartition('.')[2]} files", member.name)
    return found


def _agreed(path: Path, key: str, own: str, values: dict[str, Label | None]) -> tuple[Label | None, str, list[str]]:
    """Return the label that the .json and .txt files of an image hold, the field it came from, and all that hold it."""
    for place in dict.fromkeys((own, "")):
        fields = [f"{place}.{suffix}".lstrip(".") for suffix in _WEAK_LABELS]
        held = {field: values[field] for field in fields if values.get(field) is not None}
        if len(set(held.values())) > 1:
            raise UserError(f"{path}: the files of {key} disagree about its label: {held}; put it into a .cls")
        if held:
            field = next(iter(held))
            return held[field], field.rpartition(".")[2], list(held)
    return None, "", []


def _groups(path: Path, file: BinaryIO, left_out: LeftOut) -> Iterator[tuple[str, dict[str, TarMember]]]:
    """Yield (key, field -> file) of every sample."""
    current, fields = None, {}
    for member in read_members(path, file):
        parts = _KEY.fullmatch(member.name)
        basename = member.name.rpartition("/")[2]
        if member.kind == "folder":
            continue
        if member.kind != "file":
            left_out.add("links" if member.kind == "link" else "entries that are no files", member.name)
        elif basename.startswith("."):
            left_out.add("hidden files", member.name)
        elif _META.match(member.name):
            left_out.add("entries of webdataset itself", member.name)
        elif parts is None:
            left_out.add("files without an ending", member.name)
        else:
            key, field = parts[1], parts[2].lower()
            if key != current:
                if fields:
                    yield current, fields
                current, fields = key, {}
            if field in fields:
                raise UserError(f"{path}: the sample {key!r} has two files .{field}; the key of a sample is the path "
                                "up to the first dot of the name, and each of its files needs another ending")
            fields[field] = member
    if fields:
        yield current, fields


def _head(file: BinaryIO, member: TarMember) -> bytes:
    file.seek(member.offset)
    return file.read(min(member.size, HEAD_BYTES))


def _content(member: TarMember, file: BinaryIO, suffix: str) -> bytes | None:
    if member.size > _MAX_LABEL_FILE[suffix]:
        return None
    file.seek(member.offset)
    return file.read(member.size)


def _number(path: Path, member: TarMember, file: BinaryIO) -> int:
    """Return the label of a .cls."""
    text = (_content(member, file, "cls") or b"").strip()
    if not _is_label(text):
        raise UserError(f"{path}: {member.name} holds {text!r}; a whole number from 0 to {MAX_LABEL} was expected")
    return int(text)


def _weak_label(path: Path, member: TarMember, file: BinaryIO, suffix: str) -> Label | None:
    """Return the label that a .json or .txt holds, None where it holds something else."""
    content = _content(member, file, suffix)
    if content is None:
        return None
    if suffix == "txt":
        return int(content) if _is_label(content.strip()) else None
    try:
        value = parse_json(content)
    except UserError:
        return None
    if isinstance(value, dict):
        held = [value[name] for name in _LABEL_KEYS if name in value]
        if len(held) == 2 and held[0] != held[1]:
            raise UserError(f"{path}: {member.name} holds the label {held[0]!r} and the class {held[1]!r}")
        value = held[0] if held else None
    elif not isinstance(value, int):
        value = None
    is_label = (type(value) is int and 0 <= value <= MAX_LABEL) or (isinstance(value, str) and value.strip())
    if value is not None and not is_label:
        raise UserError(f"{path}: {member.name} holds the label {value!r}; a whole number from 0 to {MAX_LABEL}, or a "
                        "name, was expected")
    return value


def _is_label(text: bytes) -> bool:
    return text.isdigit() and len(text) <= len(str(MAX_LABEL)) and int(text) <= MAX_LABEL
