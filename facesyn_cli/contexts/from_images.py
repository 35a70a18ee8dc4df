"""The context source `images`: every image of a folder or zip is one candidate."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.artifacts.origins import UNKNOWN, Origin, StatedOrigin, origin_of
from facesyn_cli.config.fields import runtime_only
from facesyn_cli.contexts.faces import read_face
from facesyn_cli.contexts.source import EMBEDDING_SIZE, CandidateBatch, Resources
from facesyn_cli.data.pixels import UnreadableImage
from facesyn_cli.data.squares import say_if_not_square
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig


class ImagesConfig(PluginConfig):
    """Settings of the source `images`; the faces are `images`, the recognizer is `weights`."""

    origin: StatedOrigin | None = runtime_only(
        None, "origin of the faces, photo (of real people) or generated; None: as in their headers, else unknown"
    )


class Images:
    """Faces of a set in the order of its keys, embedded by the recognizer."""

    needs: frozenset[str] = frozenset({"images", "recognizer"})
    may_use: frozenset[str] = frozenset()
    evaluations = {"recognizer": 1}

    def __init__(self, origin: StatedOrigin | None = None) -> None:
        self._resources, self._stated = Resources(), origin
        self.face_origin: Origin = UNKNOWN

    def open(self, resources: Resources) -> None:
        """Take the set and the recognizer from the resources.

        Raises:
            UserError: The headers of the faces contradict `origin`.
        """
        self._resources = resources
        self.face_origin = origin_of(self._set.named_in or self._set.path, self._stated)
        if resources.align is None:
            entries = self._set.entries
            say_if_not_square(self._set.path, lambda row: self._set.read(entries[row]), len(entries))

    @property
    def num_candidates(self) -> int:
        """Number of images."""
        return len(self._set.entries)

    @property
    def embedder(self) -> str | None:
        """The recognizer."""
        return self._resources.embedder

    def candidates(self, start: int) -> Iterator[CandidateBatch]:
        """Yield one batch of the recognizer at a time; unreadable images are skipped and reported."""
        size = self._resources.batch_size
        for first in range(start, len(self._set.entries), size):
            stop = min(first + size, len(self._set.entries))
            pixels, origins, faces, failed = [], [], [], []
            for k in range(first, stop):
                entry = self._set.entries[k]
                try:
                    face_u8, face = read_face(self._set.read(entry), self._resources.align)
                except UnreadableImage as error:
                    failed.append((k, f"{entry.location}: {error}"))
                    continue
                pixels.append(face_u8)
                faces.append(face)
                origins.append({"candidate": k, "name": entry.key})
            vectors = np.empty((0, EMBEDDING_SIZE), dtype=np.float32)
            if pixels:
                vectors = self._resources.embed(np.stack(pixels))
            yield CandidateBatch(first, stop, vectors, origins, faces, failed)

    @property
    def _set(self) -> ImageSet:
        return self._resources.images


@register("contexts", "images", Card(about="Faces of a folder or zip, embedded; one candidate per image."))
def build_images(cfg: ImagesConfig) -> Images:
    """Build the source."""
    return Images(cfg.origin)
