"""The context source `embeddings`: given embeddings, with their faces where those are given too."""

from __future__ import annotations

import os
from collections.abc import Iterator

from facesyn_cli.artifacts.image_set import ImageEntry, ImageSet
from facesyn_cli.artifacts.names import nfc
from facesyn_cli.artifacts.origins import agreed_origin, origin_of
from facesyn_cli.contexts.embedding_files import GivenVectors
from facesyn_cli.contexts.faces import GivenFacesConfig, read_face
from facesyn_cli.contexts.source import CandidateBatch, ContextSource, Resources
from facesyn_cli.data.pixels import UnreadableImage
from facesyn_cli.errors import UserError
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.untrusted.input_files import MAX_IMAGE, read_bytes


class EmbeddingsConfig(GivenFacesConfig):
    """Settings of the source `embeddings`; the file is `embeddings`, the faces are `images`."""


@register(
    "contexts",
    "embeddings",
    Card(about="Given embeddings: an EmbeddingSet, a published .npy, IDiff-Face's dict or one file per image."),
)
class Embeddings(ContextSource):
    """The rows of a file of embeddings, in its order.

    Faces join an EmbeddingSet by key and named rows by name (the file's path or name, with or without its ending).
    Rows of an array without a row-order list have no names: row i belongs to the i-th file in string-sorted order,
    as published, so there must be exactly as many. A ContextSet brings its own faces.
    """

    needs = frozenset({"embeddings"})
    may_use = frozenset({"images"})

    def __init__(self, cfg: EmbeddingsConfig) -> None:
        self._stated = cfg.origin

    def open(self, resources: Resources) -> None:
        """Take the embeddings from the resources and find their faces.

        Raises:
            UserError: The faces do not fit, or their headers contradict `origin`.
        """
        super().open(resources)
        given, images = resources.embeddings, resources.images
        self._entries: list[ImageEntry | None] = [None] * len(given.names)
        if images is not None:
            self._entries = _join(given, images)
            self.face_origin = origin_of(images.named_in or images.path, self._stated)
        else:
            self.face_origin = agreed_origin(given.face_origin, self._stated, given.parent.path)

    @property
    def num_candidates(self) -> int:
        """Number of rows."""
        return len(self.resources.embeddings.names)

    @property
    def embedder(self) -> str | None:
        """The recognizer named by the file; published files name none."""
        return self.resources.embeddings.embedder

    def candidates(self, start: int) -> Iterator[CandidateBatch]:
        """Yield the rows; a row whose face cannot be read keeps its vector without a face."""
        given, size = self.resources.embeddings, self.resources.batch_size
        for first in range(start, len(given.names), size):
            stop = min(first + size, len(given.names))
            origins, faces, failed = [], [], []
            for k in range(first, stop):
                origins.append({"candidate": k, "name": given.names[k]})
                try:
                    faces.append(self._face(k))
                except UnreadableImage as error:
                    faces.append(None)
                    failed.append((k, f"face of {given.names[k]}: {error}"))
            yield CandidateBatch(first, stop, given.vectors[first:stop], origins, faces, failed)

    def _face(self, k: int) -> bytes | None:
        entry, own = self._entries[k], self.resources.embeddings.faces[k]
        if entry is not None:
            return read_face(self.resources.images.read(entry))[1]
        return None if own is None else read_face(read_bytes(own, MAX_IMAGE, "a face"))[1]


def _join(given: GivenVectors, images: ImageSet) -> list[ImageEntry]:
    """Return the face of each row."""
    if given.form == "numbered":
        entries = sorted(images.entries, key=lambda e: e.location)
        if len(entries) != len(given.names):
            raise UserError(
                f"{images.path} holds {len(entries)} images for the {len(given.names)} rows of {given.parent.path}; "
                "rows without names belong to the files in string-sorted order, so there must be as many"
            )
        return entries
    by_name = {entry.key: entry for entry in images.entries}
    if given.form == "named":
        by_name = _by_file_name(images.entries)
    names = [nfc(name) for name in given.names]
    missing = [name for name in names if name not in by_name]
    if missing:
        raise UserError(
            f"{images.path} has no face for {len(missing)} of the {len(given.names)} rows of {given.parent.path}, "
            f"first {missing[0]!r}"
        )
    return [by_name[name] for name in names]


def _by_file_name(entries: list[ImageEntry]) -> dict[str, ImageEntry]:
    """Return the files by path and by name, with and without ending, where that is unique."""
    owners: dict[str, set[ImageEntry]] = {}
    for entry in entries:
        location = nfc(entry.location)
        for path in (location, os.path.basename(location)):
            for name in (path, os.path.splitext(path)[0]):
                owners.setdefault(name, set()).add(entry)
    return {name: found.pop() for name, found in owners.items() if len(found) == 1}
