"""Interface of augmentations: images to add to an identity, each under a new sample name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from facesyn_cli.artifacts.image_set import ImageEntry


@dataclass(frozen=True)
class Addition:
    """One image to add; exactly one of `file` and `render` is given.

    Args:
        sample: Its sample name, new within the identity.
        suffix: Suffix of the file to make, with its dot.
        file: An existing image to link.
        render: Returns the encoded image; called only when the file does not exist yet.
    """

    sample: str
    suffix: str
    file: Path | None = None
    render: Callable[[], bytes] | None = None


class Augmentation(Protocol):
    """Adds images to identities; what an `augmentation` plugin builds.

    Attributes:
        needs_faces: The contexts' source faces are needed.
        allow_real: Faces that are photos of real people may be added; matters with `needs_faces` only.
    """

    needs_faces: bool
    allow_real: bool

    def additions(
        self,
        identity: str,
        samples: Sequence[ImageEntry],
        read: Callable[[ImageEntry], bytes],
        face: Path | None,
        seed: int,
    ) -> Iterator[Addition]:
        """Yield the images to add to one identity.

        Args:
            identity: Its name.
            samples: Its images, in natural order.
            read: Returns the encoded bytes of one of them.
            face: Source face of its context, where faces are needed.
            seed: Seed of the stage; together with identity, sample and copy it decides everything random.
        """

    def num_additions(self, num_samples: int) -> int:
        """Return how many images are added to an identity of `num_samples` images."""


def next_number(samples: Sequence[ImageEntry]) -> int:
    """Return the number after the largest sample name that is a number; 0 when there is none."""
    numbers = [int(entry.sample) for entry in samples if entry.sample.isascii() and entry.sample.isdecimal()]
    return max(numbers, default=-1) + 1
