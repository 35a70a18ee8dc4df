"""The context source `images`: every image of a folder or zip is one candidate."""

from __future__ import annotations

from collections.abc import Iterator

from facesyn_cli.artifacts.origins import origin_of
from facesyn_cli.contexts.faces import GivenFacesConfig, read_face
from facesyn_cli.contexts.source import CandidateBatch, ContextSource, Resources
from facesyn_cli.data.pixels import UnreadableImage
from facesyn_cli.data.squares import say_if_not_square
from facesyn_cli.plugins.registry import Card, register


class ImagesConfig(GivenFacesConfig):
    """Settings of the source `images`; the faces are `images`, the recognizer is `weights`."""


@register("contexts", "images", Card(about="Faces of a folder or zip, embedded; one candidate per image."))
class Images(ContextSource):
    """Faces of a set in the order of its keys, embedded by the recognizer."""

    needs = frozenset({"images", "recognizer"})
    evaluations = {"recognizer": 1}

    def __init__(self, cfg: ImagesConfig) -> None:
        self._stated = cfg.origin

    def open(self, resources: Resources) -> None:
        """Take the set and the recognizer from the resources.

        Raises:
            UserError: The headers of the faces contradict `origin`.
        """
        super().open(resources)
        images = resources.images
        self.face_origin = origin_of(images.named_in or images.path, self._stated)
        if resources.align is None:
            say_if_not_square(images.path, lambda row: images.read(images.entries[row]), len(images.entries))

    @property
    def num_candidates(self) -> int:
        """Number of images."""
        return len(self.resources.images.entries)

    def candidates(self, start: int) -> Iterator[CandidateBatch]:
        """Yield one batch of the recognizer at a time; unreadable images are skipped and reported."""
        images, size = self.resources.images, self.resources.batch_size
        for first in range(start, len(images.entries), size):
            stop = min(first + size, len(images.entries))
            pixels, origins, faces, failed = [], [], [], []
            for k in range(first, stop):
                entry = images.entries[k]
                try:
                    face_u8, face = read_face(images.read(entry), self.resources.align)
                except UnreadableImage as error:
                    failed.append((k, f"{entry.location}: {error}"))
                    continue
                pixels.append(face_u8)
                faces.append(face)
                origins.append({"candidate": k, "name": entry.key})
            yield CandidateBatch(first, stop, self.resources.embed(pixels), origins, faces, failed)
