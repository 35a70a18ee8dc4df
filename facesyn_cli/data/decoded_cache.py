"""Cache of decoded faces on disk: an image is decoded once, however many epochs and runs read it.

    <folder>/<key>/content.json   what the rows show
    <folder>/<key>/faces.u8       N rows: a face, (side, side, 3) uint8 RGB, and the CRC-32C of its bytes

The key is a digest of the content: the images with sizes and times of their files, the side and the decoder.

A row is written in place when its face is first decoded, by whichever thread, process or run decodes it, so no
separate pass over the images is needed. Only a row that fits its checksum is used; whatever else is there (a hole, a
row torn by a kill or a power cut, a damaged disk) is decoded and written again. Rows are read and written with pread
and pwrite, not through a memory map: memory stays flat, and a failing disk is an error that can be handled, not SIGBUS.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import google_crc32c
import numpy as np
import PIL

from facesyn_cli.artifacts.atomic_files import update_json, writing
from facesyn_cli.artifacts.digest import json_digest
from facesyn_cli.console import log
from facesyn_cli.data.latent_cache import free_bytes
from facesyn_cli.errors import UserError

CacheChoice = Literal["auto", "cache", "fly"]
AUTO_LIMIT = 64 * 2**30   # bytes that `auto` takes at most
_CHECKSUM = 4             # bytes
_GIB = 2**30


class DecodedCache:
    """The decoded faces of a list of images; rows are those of the list.

    Args:
        folder: Where caches lie; this one takes a sub-folder of its own.
        content: JSON value that names the images, in order; another value for other images.
        count: Number N of images.
        side: Side of the faces in pixels.
    """

    def __init__(self, folder: Path, content: Any, count: int, side: int) -> None:
        self.content = {
            "images": content, "count": count, "side": side, "fit": "central square, bilinear, antialiased",
            "decoder": f"Pillow {PIL.__version__}",
        }
        self.folder = folder / json_digest(self.content).removeprefix("sha256:")[:16]
        self.path = self.folder / "faces.u8"
        self.count, self.side = count, side
        self._row_bytes = side * side * 3 + _CHECKSUM
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        self._is_full = False

    @property
    def num_bytes(self) -> int:
        """Size of the whole cache on disk."""
        return self.count * self._row_bytes

    def num_missing(self) -> int:
        """Return about how many bytes are not on disk yet; files have holes where no row was written."""
        try:
            info = self.path.stat()
        except OSError:
            return self.num_bytes
        return max(0, self.num_bytes - getattr(info, "st_blocks", 0) * 512)

    def open(self) -> DecodedCache:
        """Create or open the file; returns the cache itself.

        Raises:
            UserError: The folder cannot be written.
        """
        update_json(self.folder / "content.json", self.content)
        with writing(self.path):
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
            os.ftruncate(self._descriptor, self.num_bytes)
        return self

    def read(self, row: int) -> np.ndarray | None:
        """Return one face, (side, side, 3) uint8; None when it is not in the cache, or damaged there."""
        if self._descriptor is None:
            return None
        try:
            data = os.pread(self._descriptor, self._row_bytes, row * self._row_bytes)
        except OSError:
            return None
        face = data[:-_CHECKSUM]
        if len(data) != self._row_bytes or _checksum(face) != data[-_CHECKSUM:]:
            return None
        return np.frombuffer(face, np.uint8).reshape(self.side, self.side, 3).copy()  # transforms may write to it

    def write(self, row: int, pixels_u8: np.ndarray) -> None:
        """Keep one decoded face. When the disk is full, a warning is logged once and nothing more is written."""
        if self._descriptor is None or self._is_full:
            return
        face = pixels_u8.tobytes()
        data = face + _checksum(face)
        try:
            if os.pwrite(self._descriptor, data, row * self._row_bytes) == len(data):
                return
            reason = "no space left"  # a row that is torn here is decoded again
        except OSError as error:
            reason = error.strerror
        with self._lock:
            if not self._is_full:
                self._is_full = True
                log.warning(f"{self.path} cannot be written ({reason}); images that are not in this cache of decoded "
                            "faces are decoded at every epoch")

    def __del__(self) -> None:
        if self.__dict__.get("_descriptor") is not None:
            os.close(self._descriptor)


@dataclass(frozen=True)
class CachePlan:
    """Whether decoded faces are cached, and why.

    Args:
        caches: The caches of all sets, none of them open; empty where the settings alone rule them out.
        is_used: Whether they are used.
        reason: A line for the log.
        scratch: Folder that is removed when the training has ended; None: the caches stay.
    """

    caches: Sequence[DecodedCache]
    is_used: bool
    reason: str
    scratch: Path | None = None

    @property
    def num_bytes(self) -> int:
        """Size of the caches on disk when they are complete; 0 when they are not used."""
        return sum(cache.num_bytes for cache in self.caches) if self.is_used else 0

    def chosen(self) -> dict[str, Any]:
        """Return what a plan says about the choice."""
        return {"decoded": "cache" if self.is_used else "fly", "decoded_cache_mib": round(self.num_bytes / 2**20, 1)}

    def remove_scratch(self) -> None:
        """Remove caches that no other run can use. A training that is resumed later makes them again."""
        if self.scratch is not None:
            shutil.rmtree(self.scratch, ignore_errors=True)  # NFS keeps a file that another process has open


def plan_caches(build: Callable[[], Sequence[DecodedCache]], choice: CacheChoice, num_reads: float) -> CachePlan:
    """Decide whether decoded faces are cached.

    Args:
        build: Returns a cache for every set that is read, all on one disk; called where the answer depends on them.
        choice: cache: always; fly: never; auto: where an image is read more than once, and all of them take at most
            `AUTO_LIMIT` bytes and half of the free space.
        num_reads: Number of times that an image is read in this training.

    Raises:
        UserError: `cache` was asked for and the disk lacks the space.
    """
    if choice == "fly" or (choice == "auto" and num_reads <= 1):
        return CachePlan([], False, "images are decoded whenever they are read")
    caches = build()
    total, missing = sum(cache.num_bytes for cache in caches), sum(cache.num_missing() for cache in caches)
    folder = caches[0].folder.parent
    free, size = free_bytes(folder.absolute()), f"{total / _GIB:.2f} GiB in {folder}"
    if choice == "cache" and missing > free:
        raise UserError(
            f"decoded=cache takes {size}, {missing / _GIB:.2f} GiB more than is there now; {free / _GIB:.2f} GiB are "
            "free. Set decoded_cache to a folder on another disk, or decoded=fly"
        )
    if choice == "auto" and (total > AUTO_LIMIT or missing > free / 2):
        return CachePlan(caches, False, (
            f"images are decoded at every epoch: a cache would take {size}, and decoded=auto takes at most "
            f"{AUTO_LIMIT // _GIB} GiB and half of the {free / _GIB:.2f} GiB that are free"
        ))
    return CachePlan(caches, True, f"images are decoded once, into a cache of {size}")


def file_stamps(paths: Iterable[Path]) -> str:
    """Return a digest of the sizes and times of some files; it changes when one of them is written again."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            info = os.stat(path)
            digest.update(f"{info.st_size} {info.st_mtime_ns}\n".encode())
        except OSError:
            digest.update(b"missing\n")
    return digest.hexdigest()


def _checksum(face: bytes) -> bytes:
    return google_crc32c.value(face).to_bytes(_CHECKSUM, "little")
