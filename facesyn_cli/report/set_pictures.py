"""The image sets of a report, and their images by name of the set and key."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from facesyn_cli.artifacts.context_set import ContextSet
from facesyn_cli.artifacts.digest import json_digest
from facesyn_cli.artifacts.header import read_header
from facesyn_cli.artifacts.image_set import ImageEntry, ImageSet
from facesyn_cli.artifacts.record_set_images import open_images
from facesyn_cli.artifacts.unclear_identities import warn_of_unclear_identities
from facesyn_cli.data.pixels import UnreadableImage, decode_image
from facesyn_cli.errors import UserError
from facesyn_cli.evaluation.cached_embeddings import choose_identities
from facesyn_cli.evaluation.leakage import REFERENCE
from facesyn_cli.untrusted.input_files import MAX_IMAGE, read_bytes


@dataclass(frozen=True)
class NamedSet:
    """An image set under its name in the report."""

    name: str                                                 # unique short name
    path: Path                                                # its folder or file
    images: ImageSet                                          # the set
    entries: list[ImageEntry]                                 # its images in the report
    embedder: str | None = None                               # digest of the recognizer whose embeddings conditioned
                                                              # it, when known
    faces: dict[str, Path | None] = field(default_factory=dict)  # identity -> source face of its context, where there
                                                                 # is one
    photos: dict[str, str] = field(default_factory=dict)      # identity -> name of the embedding that is its context

    @staticmethod
    def open(
        name: str, path: Path, max_images: int | None, seed: int, contexts: ContextSet | None = None
    ) -> NamedSet:
        """Open an image set.

        Args:
            name: Its name; `REFERENCE` for the real set.
            path: Its folder or file.
            max_images: Images to measure at most, whole identities; None: all.
            seed: Seed of that choice.
            contexts: The contexts that it was made from, where known.
        """
        images = open_images(path)
        if name != REFERENCE:
            warn_of_unclear_identities(images)
        header = read_header(path) if path.is_dir() else None
        embedder = (header.extra.get("embedder") if header else None) or (contexts.embedder if contexts else None)
        faces = dict(zip(contexts.identities, contexts.faces, strict=True)) if contexts else {}
        photos = {
            identity: origin["name"] for identity, origin in zip(contexts.identities, contexts.origins, strict=True)
            if isinstance(origin.get("name"), str)
        } if contexts else {}
        return NamedSet(name, path, images, choose_identities(images, max_images, seed), embedder, faces, photos)

    @cached_property
    def by_key(self) -> dict[str, ImageEntry]:
        """Entry of each key."""
        return {entry.key: entry for entry in self.entries}

    @cached_property
    def keys_digest(self) -> str:
        """Digest of the keys of the images in the report."""
        return json_digest([entry.key for entry in self.entries])


def short_names(paths: list[Path]) -> dict[str, Path]:
    """Return each path under a short name: its last part without suffix, with a number where two are alike."""
    names: dict[str, Path] = {}
    for path in paths:
        stem = (path.resolve().name if path.is_dir() else path.stem) or "set"
        name, number = stem, 1
        while name in (*names, REFERENCE):
            number += 1
            name = f"{stem}-{number}"
        names[name] = path
    return names


class SetPictures:
    """Reads the images of several sets.

    Args:
        sets: The sets, with different names.
    """

    def __init__(self, sets: list[NamedSet]) -> None:
        self._sets = {held.name: held for held in sets}

    def encoded(self, set_name: str, key: str) -> bytes | None:
        """Return an encoded image; None when it cannot be read."""
        held = self._sets[set_name]
        try:
            return held.images.read(held.by_key[key])
        except (UserError, UnreadableImage, KeyError):
            return None

    def pixels(self, set_name: str, key: str) -> NDArray[np.uint8] | None:
        """Return a decoded image, (H, W, 3) RGB; None when it cannot be read."""
        data = self.encoded(set_name, key)
        try:
            return None if data is None else decode_image(data)
        except UnreadableImage:
            return None

    def context_face(self, set_name: str, identity: str) -> bytes | None:
        """Return the encoded source face of the context of an identity; None when there is none."""
        path = self._sets[set_name].faces.get(identity)
        try:
            return read_bytes(path, MAX_IMAGE, "a face") if path else None
        except UserError:
            return None
