"""Which images a set has, where they lie, and which batches still have to be made.

Images are numbered: number i is sample i % per_id of identity i // per_id.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

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
