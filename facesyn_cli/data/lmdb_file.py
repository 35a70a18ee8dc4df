"""LMDB files of `Datum` messages: the bytes of a value, and the check of a whole file.

`Datum` is the protocol-buffer message of Caffe's `convert_imageset --encoded`:

    bytes data = 4;  int32 label = 5;  bool encoded = 7        (channels, height and width are 1 to 3)

The lmdb library maps a file into memory and trusts its content, so a damaged file can end the process with a signal.
`scan` therefore goes through every entry in a child process before a file is used in this one. Nothing heavy is
imported here, so that the child starts quickly.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NoReturn

from facesyn_cli.data.protobuf import Place, length_delimited, read_fields, varint
from facesyn_cli.errors import UserError

OPEN = {"subdir": False, "readonly": True, "lock": False, "readahead": False}  # how files are opened for reading
_MAGIC = struct.pack("<II", 0xBEEFC0DE, 1)
_MAGIC_PLACE = 16
HEAD_BYTES = _MAGIC_PLACE + len(_MAGIC)
_ROW = struct.Struct("<II")  # of the child's output: bytes of the key, label; the key follows
_CHILD = f"import sys; sys.path[:] = sys.argv[2:]; from {__name__} import main; main(sys.argv[1])"
_MIN_ENTRY = 10              # bytes that an entry takes in its page, at least
_MAX_FIELDS = 64             # of a message
_REFUSED = 3                 # exit code


def is_lmdb(head: bytes) -> bool:
    """True when the first `HEAD_BYTES` bytes of a file are those of an LMDB file."""
    return head[_MAGIC_PLACE:] == _MAGIC


def encode_datum(image: bytes, label: int) -> bytes:
    """Return the message of an encoded image."""
    return b"".join((length_delimited(4, len(image)), image, b"\x28", varint(label), b"\x38\x01"))


def read_datum(value: bytes | memoryview) -> tuple[int, Place]:
    """Return the label of a message, and where its encoded image lies.

    Raises:
        ValueError: Not a message of this kind, without label or image, or of raw pixels.
    """
    fields = dict(islice(read_fields(value, (0, len(value))), _MAX_FIELDS))
    image, label = fields.get(4), fields.get(5)
    if not isinstance(image, tuple) or not isinstance(label, int):
        raise ValueError("it has no image or no label")
    if fields.get(7) != 1:
        raise ValueError("it holds raw pixels, an encoded image was expected")
    if label >= 2**31:
        raise ValueError("its label is negative")
    return label, image


def scan(path: Path) -> Iterator[tuple[bytes, int]]:
    """Yield (key, label) of every entry of a file, in order; afterwards each key can be read safely.

    Raises:
        UserError: The file is damaged, or its values are no Datum messages of encoded images.
    """
    command = [sys.executable, "-c", _CHILD, str(path), *sys.path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL) as child:
        try:
            while len(head := child.stdout.read(_ROW.size)) == _ROW.size:
                length, label = _ROW.unpack(head)
                yield child.stdout.read(length), label
            said = child.stderr.read(4096).decode("utf-8", "replace").strip()
            child.wait()
        finally:
            child.kill()
    if child.returncode == _REFUSED:
        raise UserError(f"{path} {said}")
    if child.returncode != 0:
        raise UserError(f"{path} is no sound LMDB file: the lmdb library fails to read it"
                        + (f" ({said.splitlines()[-1][:200]})" if said else ""))


def main(path: str) -> None:
    """Go through a file and write its keys and labels to stdout; the child process of `scan`."""
    import lmdb

    try:
        with lmdb.open(path, **OPEN) as environment, environment.begin(buffers=True) as transaction:
            size, stat = os.path.getsize(path), environment.stat()
            announced = (environment.info()["last_pgno"] + 1) * stat["psize"]
            if announced > size:
                _refuse(f"has {size} bytes, {announced} are announced; is it truncated?")
            flags = environment.open_db().flags(transaction)
            if flags["dupsort"] or stat["entries"] > size // _MIN_ENTRY:
                _refuse("is no sound LMDB file, or holds several values per key")
            _write_entries(transaction, stat["entries"], not (flags["reverse_key"] or flags["integerkey"]))
    except lmdb.Error as error:
        _refuse(f"is no sound LMDB file: {' '.join(str(error).split())[:200]}")


def _write_entries(transaction: object, count: int, is_sorted: bool) -> None:
    last, found = None, 0
    for key, value in transaction.cursor():
        key = bytes(key)
        again = transaction.get(key)  # the way by which the image will be read
        if (is_sorted and last is not None and key <= last) or again is None or len(again) != len(value):
            _refuse("is no sound LMDB file: its keys are out of order")
        try:
            label, _ = read_datum(value)
        except ValueError as error:
            name = key[:80].decode("utf-8", "replace")
            _refuse(f"holds no Datum of an encoded image under the key {name!r}: {error}")
        sys.stdout.buffer.write(_ROW.pack(len(key), label) + key)
        last, found = key, found + 1
    if found != count:
        _refuse(f"is no sound LMDB file: {count} entries are announced, {found} were found")
    sys.stdout.buffer.flush()


def _refuse(why: str) -> NoReturn:
    sys.stderr.write(why)
    sys.exit(_REFUSED)
