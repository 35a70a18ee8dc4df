"""Record format `lmdb`: an LMDB database of Caffe's `Datum` messages, the layout `convert_imageset` writes.

Layout of a set called N in an output folder R:

    R/N/data.mdb    key `%08d_identity/sample.jpg`, a running number first; value Datum with `data` (the
                    encoded image), `label` and `encoded` = true
    R/labels.txt    which label is which identity; written by `facesyn pack`

Keys are at most 511 bytes: of longer ones the end of the path is kept. Values that are pickles, as some
projects store, are refused: reading them could run code, and no description says what is in them.

Written by the lmdb library, read without it (see lmdb_pages.py).
"""

from __future__ import annotations

import mmap
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from facesyn_cli.artifacts.atomic_files import write_atomically
from facesyn_cli.artifacts.header import Header
from facesyn_cli.artifacts.record_set import RecordFormat, RecordSet
from facesyn_cli.data.caffe_datum import encode_datum, find_in_datum
from facesyn_cli.data.formats_extra import formats_package
from facesyn_cli.data.lmdb_pages import META_BYTES, is_lmdb, read_entries
from facesyn_cli.data.passthrough import PassthroughConfig, fit_passthrough
from facesyn_cli.data.record_files import RecordFiles, SliceReader, content_digest, first_bytes
from facesyn_cli.data.record_images import suffix_of
from facesyn_cli.data.record_index import escape_name, stem_of
from facesyn_cli.data.record_names import NameList, dense_labels, our_labels, unescape_name
from facesyn_cli.data.spool import Spool
from facesyn_cli.errors import UserError
from facesyn_cli.plugins.registry import Card, register

DATA = "data.mdb"
_MAX_KEY = 511
_PART_BYTES = 512 * 2**20
_PER_TRANSACTION = 1000


class LmdbConfig(PassthroughConfig):
    """Settings of `lmdb`."""


@register("record_format", "lmdb", Card("LMDB of Caffe Datum messages (encoded image and label), by running number.",
                                        "Caffe convert_imageset"))
def build_lmdb(cfg: LmdbConfig) -> RecordFormat:
    """Build the format."""
    return LmdbFormat(cfg)


class LmdbFormat:
    """Reads and writes LMDB sets; see the module docstring."""

    kind = "RecordSet"

    def __init__(self, cfg: LmdbConfig) -> None:
        self.cfg = cfg

    def fit(self, data: bytes, size: int | None) -> bytes:
        """Return the image untouched when it has the right size, else resized."""
        return fit_passthrough(data, size, self.cfg.quality)

    def writer(self, folder: Path, name: str, scratch: Path, state: dict[str, Any]) -> LmdbWriter:
        """Open a set for writing at the state of its last commit.

        Raises:
            UserError: lmdb is not installed.
        """
        return LmdbWriter(folder / name, scratch, state)

    def recognizes(self, path: Path) -> bool:
        """True for an LMDB data file and the folder of one."""
        return is_lmdb(first_bytes(path / DATA if path.is_dir() else path, META_BYTES))

    def open(self, path: Path, header: Header | None) -> RecordSet:
        """Open our own folder, an LMDB folder, or its data file.

        Raises:
            UserError: The file is damaged, or its values are no Datum messages of encoded images.
        """
        folder = path / str(header.extra.get("name")) if header else path
        file = folder / DATA if folder.is_dir() else folder
        files, names = RecordFiles([file]), NameList()
        offsets, sizes, labels = array("q"), array("q"), array("q")
        for entry in read_entries(file):
            start = entry.offset
            try:
                places = find_in_datum(lambda at, size, start=start: files.read(0, start + at, size), entry.size)
            except ValueError as error:
                raise UserError(
                    f"{file}, key {entry.key[:80].decode('utf-8', 'replace')!r}: no Datum of an encoded image: {error}"
                ) from error
            offsets.append(start + places.offset)
            sizes.append(places.size)
            labels.append(places.label)
            names.append(_sample(entry.key, header is not None))
        if not len(names):
            raise UserError(f"{file} is empty")
        values, starts = np.frombuffer(labels, np.int64), np.frombuffer(offsets, np.int64)
        known, identities = our_labels(values, path) if header else dense_labels(values)
        digest = header.digest if header else content_digest([file], starts, known)
        file_of = np.zeros(len(starts), np.int32)
        return RecordSet(path, known, identities, digest,
                         SliceReader(files, file_of, starts, np.frombuffer(sizes, np.int64), names))


class LmdbWriter:
    """Spools the images, and writes the database in one go when the labels are known."""

    def __init__(self, folder: Path, scratch: Path, state: dict[str, Any]) -> None:
        self._lmdb = formats_package("lmdb")
        self.folder = folder
        self._spool = Spool(scratch, _PART_BYTES, state)
        self.append, self.commit, self.close = self._spool.append, self._spool.commit, self._spool.close

    def finish(self, labels: np.ndarray, samples: Iterable[str]) -> None:
        """Write the database.

        Args:
            labels: (N,) label of every record.
            samples: Not needed: the spool holds the names.
        """
        self._spool.close()
        spool = self._spool
        # A value takes whole pages, and keys take their place in leaves that are at least half full.
        room = spool.num_bytes + len(labels) * (2 * mmap.PAGESIZE + 4 * _MAX_KEY) + 2**26
        with write_atomically(self.folder / DATA) as temporary:
            try:
                self._write(temporary, room, labels)
            except self._lmdb.Error as error:
                raise UserError(f"cannot write {self.folder / DATA}: {error}; is there space left?") from error

    def _write(self, path: Path, map_size: int, labels: np.ndarray) -> None:
        environment = self._lmdb.open(str(path), map_size=map_size, subdir=False, lock=False, sync=False)
        transaction = environment.begin(write=True)
        row = 0
        try:
            for part in range(len(self._spool.counts)):
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


def _sample(key: bytes, is_ours: bool) -> str:
    """Return the image's name without suffix after the number of a key, or the whole key."""
    number, _, path = key.decode("utf-8", "replace").partition("_")
    name = stem_of(path)
    if not number.isdigit() or not name:
        return escape_name(key.decode("utf-8", "replace"))
    return unescape_name(name) if is_ours else name
