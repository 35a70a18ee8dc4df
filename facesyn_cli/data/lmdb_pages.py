"""Keys and values of an LMDB file, read page by page with every bound checked.

The lmdb library maps the file into memory and trusts it: a damaged file ends the process. Files that
somebody else made are therefore read here, the way the library's `midl.h` and `mdb.c` (0.9) lay them out:

    meta page (0 and 1, the newer one counts)   u32 magic 0xbeefc0de | u32 version 1 | ... | main tree | last page
    tree       u16 flags | u16 depth | u64 branch, leaf, overflow pages | u64 entries | u64 root page
    page       u64 number | u16 | u16 flags | u16 lower | u16 upper | u16 places of the nodes ...
    node       u16 lo | u16 hi | u16 flags | u16 key size | key | value
               leaf: size of the value = hi << 16 | lo; flag 1: u64 first overflow page instead of the value
               branch: child page = flags << 32 | hi << 16 | lo
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from facesyn_cli.data.record_files import RecordFiles
from facesyn_cli.errors import UserError

MAGIC = 0xBEEFC0DE
META_BYTES = 152
_PAGE_HEADER = 16
_META = struct.Struct("<II8x8x")               # magic, version
_TREE = struct.Struct("<IHHQQQQQ")             # page size, flags, depth, pages of 3 kinds, entries, root
_TREES_PLACE, _LAST_PLACE = 16 + 24, 16 + 24 + 2 * _TREE.size
_NODE = struct.Struct("<HHHH")
_BRANCH, _LEAF, _OVERFLOW, _META_PAGE = 1, 2, 4, 8
_DUPSORT = 4
_EMPTY = 2**64 - 1
_MAX_DEPTH = 32


@dataclass(frozen=True, slots=True)
class Entry:
    """One key and where its value lies in the file."""

    key: bytes
    offset: int
    size: int


def is_lmdb(head: bytes) -> bool:
    """True when the first 152 bytes of a file are those of an LMDB file."""
    return len(head) == META_BYTES and _META.unpack_from(head, _PAGE_HEADER) == (MAGIC, 1)


def read_entries(path: Path) -> Iterator[Entry]:
    """Yield all entries of the main tree in order of their keys.

    Args:
        path: The data file.

    Raises:
        UserError: No LMDB file, damaged, truncated, or several values per key.
    """
    return _Tree(path).entries()


class _Tree:
    def __init__(self, path: Path) -> None:
        self.path, self.files = path, RecordFiles([path])
        self.size = self.files.size(0)
        self.page_size, flags, self.num_entries, self.root, self.num_pages = self._newest_meta()
        if flags & _DUPSORT:
            raise self._damaged("it holds several values per key, one was expected")
        self.visited = np.zeros(self.num_pages, dtype=bool)

    def entries(self) -> Iterator[Entry]:
        count = 0
        if self.root != _EMPTY:
            for entry in self._below(self.root, 0):
                count += 1
                yield entry
        if count != self.num_entries:
            raise self._damaged(f"{self.num_entries} entries are announced, {count} were found")

    def _below(self, number: int, depth: int) -> Iterator[Entry]:
        page, flags = self._page(number)
        if depth > _MAX_DEPTH or self.visited[number] or flags & (_BRANCH | _LEAF) not in (_BRANCH, _LEAF):
            raise self._damaged(f"page {number} is no part of a tree")
        self.visited[number] = True
        lower = struct.unpack_from("<H", page, 12)[0]
        if not _PAGE_HEADER <= lower <= self.page_size:
            raise self._damaged(f"page {number} announces more than it holds")
        for place in np.frombuffer(page, "<u2", (lower - _PAGE_HEADER) // 2, _PAGE_HEADER).tolist():
            if place < _PAGE_HEADER or place + _NODE.size > self.page_size:
                raise self._damaged(f"page {number} points outside itself")
            low, high, node_flags, key_size = _NODE.unpack_from(page, place)
            start = place + _NODE.size + key_size
            if start > self.page_size:
                raise self._damaged(f"a key reaches beyond page {number}")
            if flags & _BRANCH:
                yield from self._below(node_flags << 32 | high << 16 | low, depth + 1)
                continue
            offset = self._value(number, page, start, high << 16 | low, node_flags)
            yield Entry(page[place + _NODE.size : start], offset, high << 16 | low)

    def _value(self, number: int, page: bytes, start: int, size: int, flags: int) -> int:
        """Return the byte of the file at which a value of a leaf begins."""
        if flags == 0:
            if start + size > self.page_size:
                raise self._damaged(f"a value reaches beyond page {number}")
            return number * self.page_size + start
        if flags != 1 or start + 8 > self.page_size:
            raise self._damaged(f"page {number} holds something other than keys and values")
        first = struct.unpack_from("<Q", page, start)[0]
        if not 2 <= first < self.num_pages:
            raise self._damaged(f"a value at page {first} of {self.num_pages}")
        head = self.files.read(0, first * self.page_size, _PAGE_HEADER)
        found, flags, pages = struct.unpack("<Q2xHI", head) if len(head) == _PAGE_HEADER else (0, 0, 0)
        end = (first + pages) * self.page_size
        value = first * self.page_size + _PAGE_HEADER
        if found != first or not flags & _OVERFLOW or first + pages > self.num_pages or value + size > end:
            raise self._damaged(f"the value at page {first} is not whole")
        return value

    def _page(self, number: int) -> tuple[bytes, int]:
        if not 2 <= number < self.num_pages:
            raise self._damaged(f"page {number} of {self.num_pages}")
        page = self.files.read(0, number * self.page_size, self.page_size)
        if len(page) != self.page_size or struct.unpack_from("<Q", page)[0] != number:
            raise self._damaged(f"page {number} is another")
        return page, struct.unpack_from("<H", page, 10)[0]

    def _newest_meta(self) -> tuple[int, int, int, int, int]:
        """Return page size, flags, entries, root and number of pages of the newer meta page."""
        head = self.files.read(0, 0, META_BYTES)
        if not is_lmdb(head):
            raise UserError(f"{self.path} is no LMDB file of version 1")
        page_size = _TREE.unpack_from(head, _TREES_PLACE)[0]
        if page_size not in [2**n for n in range(9, 17)]:
            raise self._damaged(f"pages of {page_size} bytes")
        metas = [m for m in (head, self.files.read(0, page_size, META_BYTES)) if is_lmdb(m)]
        newest = max(metas, key=lambda m: struct.unpack_from("<QQ", m, _LAST_PLACE)[1])
        _, flags, _, _, _, _, entries, root = _TREE.unpack_from(newest, _TREES_PLACE + _TREE.size)
        num_pages = struct.unpack_from("<Q", newest, _LAST_PLACE)[0] + 1
        if num_pages * page_size > self.size:
            raise UserError(
                f"{self.path} has {self.size} bytes, {num_pages * page_size} are announced; is it truncated?"
            )
        return page_size, flags, entries, root, num_pages

    def _damaged(self, why: str) -> UserError:
        return UserError(f"{self.path} is no sound LMDB file: {why}")
