"""Record format `lmdb`: an LMDB database of Caffe's `Datum` messages, the layout `convert_imageset` writes.

Layout of a set called N in an output folder R:

    R/N/data.mdb    key `%08d_identity/sample.jpg`, a running number first; value Datum with `data` (the
                    encoded image), `label` and `encoded` = true
    R/labels.txt    which label is which identity; written by `facesyn pack`

Keys are at most 511 bytes: of longer ones the end of the path is kept. Values that are pickles, as some
projects store, are refused: reading them could run code, and no description says what is in them.
"""

from __future__ import annotations

import mmap
import os
import threading
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from facesyn_cli.artifacts.atomic_files import write_atomically
from facesyn_cli.artifacts.header import Header
from facesyn_cli.artifacts.image_set import MAX_FILE_BYTES
from facesyn_cli.artifacts.names import escape_name, unescape_name
from facesyn_cli.artifacts.record_set import RecordSet
from facesyn_cli.data.append_files import Spool
from facesyn_cli.data.lmdb_file import HEAD_BYTES, OPEN, encode_datum, is_lmdb, read_datum, scan
from facesyn_cli.data.record_files import NameList, content_digest, first_bytes, formats_package, stem_of
from facesyn_cli.data.record_images import PassthroughConfig, PassthroughFormat, suffix_of
from facesyn_cli.data.record_labels import dense_labels, our_labels
from facesyn_cli.errors import UserError
from facesyn_cli.plugins.registry import Card, register

DATA = "data.mdb"
_MAX_KEY = 511
_PART_BYTES = 512 * 2**20
_PER_TRANSACTION = 1000
_MAX_OPEN = 8

Stamp = tuple[int, int]  # size and time of the last change of a file


@register("record_format", "lmdb", Card("LMDB of Caffe Datum messages (encoded image and label), by running number.",
                                        "Caffe convert_imageset"))
class LmdbFormat(PassthroughFormat):
    """Reads and writes LMDB sets; see the module docstring."""

    def __init__(self, cfg: PassthroughConfig) -> None:
        self.cfg = cfg

    def writer(self, folder: Path, name: str, scratch: Path, state: dict[str, Any]) -> LmdbWriter:
        """Open a set for writing at the state of its last commit.

        Raises:
            UserError: lmdb is not installed.
        """
        return LmdbWriter(folder / name, scratch, state)

    def recognizes(self, path: Path) -> bool:
        """True for an LMDB data file and the folder of one."""
        return is_lmdb(first_bytes(path / DATA if path.is_dir() else path, HEAD_BYTES))

    def open(self, path: Path, header: Header | None) -> RecordSet:
        """Open our own folder, an LMDB folder, or its data file.

        Raises:
            UserError: lmdb is missing, the file is damaged, or its values are no Datum messages of encoded images.
        """
        folder = path / str(header.extra.get("name")) if header else path
        file = folder / DATA if folder.is_dir() else folder
        if not is_lmdb(first_bytes(file, HEAD_BYTES)):
            raise UserError(f"{file} is no LMDB file of version 1")
        formats_package("lmdb")
        file, stamp = file.resolve(), _stamp(file)
        keys, labels = NameList(), array("q")
        for key, label in scan(file):
            keys.append(key.decode("latin-1"))
            labels.append(label)
        if not len(keys):
            raise UserError(f"{file} is empty")
        values = np.frombuffer(labels, np.int64)
        known, identities = our_labels(values, path) if header else dense_labels(values)
        digest = header.digest if header else content_digest([file], np.frombuffer(keys.text, np.uint8), known)
        return RecordSet(path, known, identities, digest, LmdbReader(file, stamp, keys, header is not None))


@dataclass(frozen=True)
class LmdbReader:
    """Random access to the images of a file that `scan` has checked.

    Args:
        path: The file, resolved.
        stamp: Its size and time when it was checked; after a change it is not read any more.
        keys: Key of every record; each byte as the character of that number.
        is_escaped: The names in the keys were written by `escape_name`.
    """

    path: Path
    stamp: Stamp
    keys: NameList
    is_escaped: bool

    @property
    def paths(self) -> list[Path]:
        """The file, in a list."""
        return [self.path]

    def read(self, index: int) -> bytes:
        """Return the encoded image of record `index`.

        Raises:
            UserError: The file is gone or has changed, or the image is larger than one may be.
        """
        lmdb = formats_package("lmdb")
        try:
            with _lock, _environment(self.path, self.stamp).begin() as transaction:
                value = transaction.get(self.keys[index].encode("latin-1")) or b""
            start, end = read_datum(value)[1]
        except (lmdb.Error, ValueError) as error:
            raise UserError(f"cannot read record {index} of {self.path}: {error}") from error
        if end - start > MAX_FILE_BYTES:
            raise UserError(f"{self.path}, record {index}: an image of {end - start} bytes; images of at most "
                            f"{MAX_FILE_BYTES} are read")
        return value[start:end]

    def samples(self) -> Iterator[str]:
        """Yield the sample name of every record: the image's name after the number of its key, or the whole key."""
        for key in self.keys:
            text = key.encode("latin-1").decode("utf-8", "replace")
            number, _, path = text.partition("_")
            name = stem_of(path)
            if not number.isdigit() or not name:
                yield escape_name(text)
            else:
                yield unescape_name(name) if self.is_escaped else name


_lock = threading.Lock()
_environments: dict[Path, tuple[Stamp, Any]] = {}  # open in this process; lmdb refuses to open a file twice


def _environment(path: Path, stamp: Stamp) -> Any:
    """Return the open environment of a file; call with `_lock` held.

    Raises:
        UserError: The file is gone or has changed.
    """
    if _stamp(path) != stamp:
        raise UserError(f"{path} has changed since it was opened")
    known = _environments.pop(path, None)
    if known is not None and known[0] != stamp:
        known[1].close()
        known = None
    while len(_environments) >= _MAX_OPEN:
        _environments.pop(next(iter(_environments)))[1].close()
    _environments[path] = known or (stamp, formats_package("lmdb").open(str(path), **OPEN))
    return _environments[path][1]


def _close_inherited() -> None:
    """Close the environments that a forked process inherits: they belong to the process that opened them."""
    global _lock
    _lock = threading.Lock()
    for _, environment in _environments.values():
        environment.close()
    _environments.clear()


os.register_at_fork(after_in_child=_close_inherited)


def _stamp(path: Path) -> Stamp:
    try:
        info = path.stat()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    return info.st_size, info.st_mtime_ns


class LmdbWriter:
    """Spools the images, and writes the database in one go when the labels are known."""

    def __init__(self, folder: Path, scratch: Path, state: dict[str, Any]) -> None:
        self._lmdb = formats_package("lmdb")
        self.folder = folder
        self._spool = Spool(scratch, _PART_BYTES, state)
        self.append, self.commit, self.close = self._spool.append, self._spool.commit, self._spool.close

    def finish(self, labels: np.ndarray, samples: Iterable[str]) -> None:
        """Write the database.

        Raises:
            UserError: No space left.
        """
        counts = self._spool.finish()
        # A value takes whole pages, and keys lie in leaves that are at least half full.
        room = self._spool.image_bytes + len(labels) * (2 * mmap.PAGESIZE + 4 * _MAX_KEY) + 2**26
        with write_atomically(self.folder / DATA) as temporary:
            try:
                self._write(temporary, room, len(counts), labels)
            except self._lmdb.Error as error:
                raise UserError(f"cannot write {self.folder / DATA}: {error}; is there space left?") from error

    def _write(self, path: Path, map_size: int, num_parts: int, labels: np.ndarray) -> None:
        environment = self._lmdb.open(str(path), map_size=map_size, subdir=False, lock=False, sync=False)
        transaction = environment.begin(write=True)
        row = 0
        try:
            for part in range(num_parts):
                for record in self._spool.read(part):
                    path_name = f"{record.identity}/{escape_name(record.sample)}{suffix_of(record.data)}"
                    key = b"%08d_" % row
                    key += path_name.encode()[len(key) - _MAX_KEY :]
                    transaction.put(key, encode_datum(record.data, int(labels[row])), append=True)
                    row += 1
                    if row % _PER_TRANSACTION == 0:
                        transaction.commit()
                        transaction = environment.begin(write=True)
            transaction.commit()
            environment.sync(True)
        finally:
            environment.close()
