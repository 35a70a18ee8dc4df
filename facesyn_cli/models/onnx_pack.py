"""InsightFace model packs: a folder or zip with several ONNX networks, one of which recognizes faces.

A pack holds a detector, landmark and attribute networks beside the recognizer (`buffalo_l`, `antelopev2`, ...). The
recognizer is told by what it takes and gives: images of 112 x 112, 512 numbers.
"""

from __future__ import annotations

import lzma
import zipfile
import zlib
from pathlib import Path
from typing import Any

from facesyn_cli.console import log
from facesyn_cli.errors import UserError
from facesyn_cli.models.onnx_graph import OnnxFile, read_graph
from facesyn_cli.untrusted.input_files import check_input

_SIDE, _EMBEDDING_SIZE = 112, 512
_SUFFIX = ".onnx"
_MAX_BYTES = 2**30       # of a network in a zip
_MAX_RATIO, _SMALL = 100, 2**24  # weights hardly shrink: what grows a hundredfold to more than that is a trap
_MAX_NETWORKS = 64
_BROKEN = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError, EOFError, OSError, ValueError)


def is_pack(path: Path) -> bool:
    """True for a folder or zip with ONNX networks in it, or one folder down."""
    if path.is_dir():
        return bool(_in_folder(path))
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    try:
        return bool(_in_zip(path))
    except UserError:
        return False


def find_recognizer(path: Path) -> OnnxFile:
    """Return the recognizer at a path: the file itself, or the one in a pack.

    Raises:
        UserError: The pack is damaged, or holds no recognizer or several.
    """
    check_input(path, "a .onnx file, or a folder or zip of several")
    if not path.is_dir() and not zipfile.is_zipfile(path):
        return OnnxFile(str(path), path)
    files = _in_folder(path) if path.is_dir() else _in_zip(path)
    if not files:
        raise UserError(f"{path}: no {_SUFFIX} file in it")
    if len(files) > _MAX_NETWORKS:
        raise UserError(f"{path}: holds {len(files)} {_SUFFIX} files; a pack of at most {_MAX_NETWORKS} was expected")
    found, seen = [], []
    for file in files:
        opened = _read_member(path, file) if isinstance(file, zipfile.ZipInfo) else OnnxFile(str(file), file)
        shapes = _shapes(opened)
        if _is_recognizer(*shapes):
            found.append(opened)
        seen.append(f"{Path(opened.name).name} ({_text(shapes[0])} -> {_text(shapes[1])})")
    if len(found) != 1:
        which = "none" if not found else "several"
        names = ", ".join(seen if not found else (Path(file.name).name for file in found))
        raise UserError(f"{path}: {which} of its networks takes {_SIDE} x {_SIDE} and gives {_EMBEDDING_SIZE} numbers: "
                        f"{names}" + ("; give one of them" if found else ""))
    if len(files) > 1:
        log.info(f"{path}: {len(files)} networks; {Path(found[0].name).name} is the recognizer "
                 f"({_SIDE} x {_SIDE} -> {_EMBEDDING_SIZE})")
    return found[0]


def _in_folder(folder: Path) -> list[Path]:
    return sorted(p for p in (*folder.glob(f"*{_SUFFIX}"), *folder.glob(f"*/*{_SUFFIX}")) if p.is_file())


def _in_zip(path: Path) -> list[zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist() if m.filename.lower().endswith(_SUFFIX) and not m.is_dir()]
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise UserError(f"{path} is a damaged zip file: {error}") from error
    return sorted(members, key=lambda member: member.filename)


def _read_member(path: Path, member: zipfile.ZipInfo) -> OnnxFile:
    """Read one network out of a zip, into memory; nothing is unpacked to disk."""
    where = f"{path}/{member.filename}"
    is_trap = member.file_size > max(_SMALL, _MAX_RATIO * member.compress_size)
    if member.file_size > _MAX_BYTES or is_trap:
        raise UserError(f"{where}: grows from {member.compress_size} to {member.file_size} bytes; refused (give the "
                        f"{_SUFFIX} file itself)")
    try:
        with zipfile.ZipFile(path) as archive:
            return OnnxFile(where, content=archive.read(member))
    except _BROKEN as error:
        raise UserError(f"{where}: cannot be read from the archive: {error}") from error


def _shapes(file: OnnxFile) -> tuple[list[int | str], list[int | str]]:
    """Return the shapes of the first input that is no stored tensor, and of the first output."""
    graph = read_graph(file).graph
    stored = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in stored] or list(graph.input)
    return _shape(inputs[0]), _shape(graph.output[0])


def _shape(value: Any) -> list[int | str]:
    return [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in value.type.tensor_type.shape.dim]


def _is_recognizer(taken: list[int | str], given: list[int | str]) -> bool:
    is_face = len(taken) == 4 and list(taken).count(_SIDE) == 2 and 3 in (taken[1], taken[3])
    return is_face and len(given) >= 2 and given[1] == _EMBEDDING_SIZE and all(side == 1 for side in given[2:])


def _text(shape: list[int | str]) -> str:
    return "x".join(map(str, shape)) or "no shape"
