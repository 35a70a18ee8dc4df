"""Which images a set has, where they lie, and which batches or shards still have to be made.

Images are numbered: number i is sample i % per_id of identity i // per_id.

As tar shards, image i lies in shard i // images_per_shard, in order, under the key `identity/sample` as the record
format `webdataset` has it. A shard appears whole, by rename; then a note beside it says what it holds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from facesyn_cli.artifacts.atomic_files import read_json, write_json
from facesyn_cli.artifacts.names import escape_folder, escape_stem
from facesyn_cli.data.sharding import fixed_batches, share


@dataclass(frozen=True)
class ImageFolder:
    """Images as files `<identity>/<sample><suffix>`.

    Args:
        folder: Where the set lies.
        identities: Their names, in order.
        per_id: Images of each.
        suffix: Of the files, with its dot.
    """

    folder: Path
    identities: list[str]
    per_id: int
    suffix: str

    @property
    def num_images(self) -> int:
        """Images of the whole set."""
        return len(self.identities) * self.per_id

    def path(self, index: int) -> Path:
        """Return where image number `index` lies."""
        row, sample = divmod(index, self.per_id)
        return self.folder / self.identities[row] / f"{sample}{self.suffix}"

    def finished(self) -> set[int]:
        """Return the numbers of all images that lie finished in the folder."""
        done = set()
        for row, name in enumerate(self.identities):
            try:
                with os.scandir(self.folder / name) as found:
                    files = {item.name for item in found if item.stat().st_size}
            except (FileNotFoundError, NotADirectoryError):
                continue
            first = row * self.per_id
            done.update(first + k for k in range(self.per_id) if f"{k}{self.suffix}" in files)
        return done


@dataclass(frozen=True)
class TarShards:
    """Images in tar files `images/images-000000.tar`, ...; the other arguments as of `ImageFolder`.

    Args:
        images_per_shard: Images of a shard; the last has what is left.
    """

    folder: Path
    identities: list[str]
    per_id: int
    suffix: str
    images_per_shard: int

    NAME = "images"
    _NOTES = ".shards"

    @property
    def num_images(self) -> int:
        """Images of the whole set."""
        return len(self.identities) * self.per_id

    @property
    def shards(self) -> list[range]:
        """Numbers of the images of each shard."""
        return fixed_batches(self.num_images, self.images_per_shard)

    def path(self, index: int) -> Path:
        """Return the shard of image number `index`."""
        return self.folder / self.NAME / f"{self.NAME}-{index // self.images_per_shard:06d}.tar"

    def member(self, index: int) -> str:
        """Return the name of image number `index` in its shard."""
        row, sample = divmod(index, self.per_id)
        return f"{escape_folder(self.identities[row])}/{escape_stem(str(sample))}{self.suffix}"

    def is_finished(self, shard: range) -> bool:
        """True when the shard lies on disk as its note says."""
        note, path = self._note(shard), self.path(shard[0])
        if not (note.is_file() and path.is_file()):
            return False
        return read_json(note) == {**self._content(shard), "bytes": path.stat().st_size}

    def finished(self) -> set[int]:
        """Return the numbers of all images that lie in finished shards."""
        return {index for shard in self.shards if self.is_finished(shard) for index in shard}

    def note_finished(self, shard: range) -> None:
        """Remember that a shard is complete; called after it got its name."""
        write_json(self._note(shard), {**self._content(shard), "bytes": self.path(shard[0]).stat().st_size})

    def _note(self, shard: range) -> Path:
        return self.folder / self._NOTES / f"{shard[0] // self.images_per_shard:06d}.json"

    def _content(self, shard: range) -> dict[str, Any]:
        return {"first": self.member(shard[0]), "last": self.member(shard[-1]), "images": len(shard)}


def unfinished_shards(
    layout: TarShards, part: tuple[int, int] | None = None, is_known: Callable[[range], bool] | None = None
) -> list[range]:
    """Return the shards that have to be made.

    Args:
        layout: Where they lie.
        part: As in `unfinished_batches`.
        is_known: Tells whether everything that is kept besides the images of a shard is there; None: nothing is kept.
    """
    index, count = part or (1, 1)
    shards = neighboring_share(layout.shards, index - 1, count)
    return [shard for shard in shards if not layout.is_finished(shard) or (is_known and not is_known(shard))]


def neighboring_share(items: Sequence[range], index: int, count: int) -> list[range]:
    """Return the share of process `index` (0-based) as neighbors: batches that lie in two shards are few then."""
    return list(items[index * len(items) // count : (index + 1) * len(items) // count])


def unfinished_batches(
    num_images: int, batch_size: int, done: set[int], part: tuple[int, int] | None = None
) -> list[range]:
    """Return the batches that have an image to make.

    Args:
        num_images: Images of the whole set.
        batch_size: Images a batch.
        done: Numbers of the images that are finished.
        part: (i, n), i from 1: only the batches of part i of n.
    """
    index, count = part or (1, 1)
    batches = share(fixed_batches(num_images, batch_size), index - 1, count)
    return [batch for batch in batches if not done.issuperset(batch)]
