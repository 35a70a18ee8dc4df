"""Inputs of the analyses, computed once for each image set and cached: thumbnails, embeddings, features."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facesyn_cli.artifacts.digest import json_digest
from facesyn_cli.artifacts.image_set import ImageEntry
from facesyn_cli.data.squares import say_cut
from facesyn_cli.evaluation.cached_embeddings import LENGTHS, CachedArrays, embed_cached, thumbnails_cached
from facesyn_cli.evaluation.embedding import EmbedOptions, FaceEmbedder
from facesyn_cli.evaluation.labeled import LabeledEmbeddings
from facesyn_cli.evaluation.pixel_statistics import pixel_section, pose_section, sharpness_section
from facesyn_cli.evaluation.section import Section
from facesyn_cli.models.inception import LoadedFeatures
from facesyn_cli.models.loading import LoadedBackbone
from facesyn_cli.report.set_pictures import NamedSet

_FIT_KEYS = {"square": "crop", "refuse": "square"}  # in the names of cache folders, as in earlier releases


@dataclass(frozen=True)
class Small:
    """Thumbnails of a set, (N, 16, 16), and a mask of the images that can be read, (N,)."""

    thumbnails: NDArray[np.uint8]
    is_readable: NDArray[np.bool_]


@dataclass(frozen=True)
class Measurer:
    """What networks compute of image sets, in caches.

    Folders of the cache are named after the content of a set, so that a set and a reference share them.
    """

    cache: Path               # folder of the cache
    options: EmbedOptions     # preprocessing; the size is that of each network

    def thumbnails(self, held: NamedSet) -> CachedArrays:
        """Return the cache of the thumbnails of a set."""
        folder = self.cache / f"{_short([held.images.digest, held.keys_digest])}-thumbnails"
        return thumbnails_cached(held.images, held.entries, folder, self.options.workers, f"{held.name}: pixels")

    def small(self, held: NamedSet) -> Small:
        """Return the thumbnails of a set."""
        small, is_readable, is_cut = self.thumbnails(held).read()
        if self.options.fit == "square":
            say_cut(held.name, int(is_cut.sum()), len(is_cut))
        return Small(small, is_readable)

    def embeddings(self, held: NamedSet, name: str, judge: LoadedBackbone) -> CachedArrays:
        """Return the cache of the embeddings of a set.

        Args:
            held: The set.
            name: Name of the judge.
            judge: The judge, on the device already.
        """
        options = replace(self.options, size=judge.input_size)
        fit = _FIT_KEYS[options.fit]
        content = [held.images.digest, held.keys_digest, judge.digest, options.flip, fit, options.precision]
        folder, title = self.cache / f"{_short(content)}-{name}", f"{held.name}: embed with {name}"
        return embed_cached(held.images, held.entries, FaceEmbedder(judge.module, options), folder, title)

    def embedding_lengths(self, held: NamedSet, name: str, judge: LoadedBackbone) -> dict[str, float]:
        """Return the length of the embedding of each image, by key, as the judge gives it; empty where the cache of an
        earlier version does not hold them. Arguments as of `embeddings`.
        """
        lengths = self.embeddings(held, name, judge).if_kept(LENGTHS)
        if lengths is None:
            return {}
        return {entry.key: float(length) for entry, length in zip(held.entries, lengths, strict=True)}

    def faces(self, held: NamedSet, name: str, judge: LoadedBackbone, small: Small) -> LabeledEmbeddings:
        """Return the embeddings and thumbnails of the images of a set that a judge can embed; `small` are all
        thumbnails of the set, other arguments as of `embeddings`.
        """
        vectors, good = self.embeddings(held, name, judge).read()
        keep = np.flatnonzero(good & small.is_readable)
        return labeled(held.name, held.entries, keep, vectors, small.thumbnails)

    def features(
        self, held: NamedSet, network: LoadedFeatures, max_images: int, seed: int
    ) -> tuple[CachedArrays, list[ImageEntry]]:
        """Return the cache of the unscaled features of a set, and its images: at most `max_images` drawn at random.

        Computed in fp32 and without flip, as for published distances.

        Args:
            held: The set.
            network: The network, on the device already.
            max_images: See above.
            seed: Seed of the draw.
        """
        entries = held.entries
        if len(entries) > max_images:
            drawn = np.random.default_rng(seed).choice(len(entries), max_images, replace=False)
            entries = [entries[row] for row in np.sort(drawn)]
        options = replace(self.options, size=network.input_size, flip=False, precision="fp32")
        keys = json_digest([entry.key for entry in entries])
        content = [held.images.digest, keys, network.digest, _FIT_KEYS[options.fit]]
        folder = self.cache / f"{_short(content)}-{network.name}"
        title = f"{held.name}: features of {network.name}"
        return embed_cached(held.images, entries, FaceEmbedder(network.module, options), folder, title, False), entries

    def feature_rows(self, held: NamedSet, network: LoadedFeatures, max_images: int, seed: int) -> LabeledEmbeddings:
        """Return the unscaled features of a set; arguments as of `features`."""
        cache, entries = self.features(held, network, max_images, seed)
        vectors, good = cache.read()
        return labeled(held.name, entries, np.flatnonzero(good), vectors)


def pixels_of(
    held: NamedSet, small: Small, measured: NDArray[np.float64], has_detector: bool, seed: int
) -> Section:
    """Return the figures of a set that need no judge: brightness, contrast, sharpness and, with a detector, pose.

    Args:
        held: The set.
        small: Its thumbnails.
        measured: What `measure_sample` returned.
        has_detector: Whether that was with a detector.
        seed: Seed of the sample.
    """
    owner = owners(held)
    section = pixel_section(small.thumbnails[small.is_readable], owner[small.is_readable])
    section.merge(sharpness_section(measured, owner))
    if not has_detector:
        section.notes.append("The spread of poses needs a face detector (detector=FILE, YuNet).")
        return section
    return section.merge(pose_section(measured, owner, seed))


def owners(held: NamedSet) -> NDArray[np.int64]:
    """Return the number of the identity of each image of a set, (N,)."""
    names = {name: number for number, name in enumerate(dict.fromkeys(entry.identity for entry in held.entries))}
    return np.array([names[entry.identity] for entry in held.entries])


def labeled(
    name: str, entries: list[ImageEntry], keep: NDArray[np.int64], vectors: NDArray,
    thumbnails: NDArray[np.uint8] | None = None,
) -> LabeledEmbeddings:
    """Return the rows `keep` of a set, from its entries and the vectors and thumbnails of all of them."""
    some = [entries[row] for row in keep]
    if len(keep) < len(entries):
        vectors, thumbnails = vectors[keep], None if thumbnails is None else thumbnails[keep]
    return LabeledEmbeddings.of(
        [entry.key for entry in some], [entry.identity for entry in some], vectors, name, thumbnails
    )


def _short(values: list[Any]) -> str:
    return json_digest(values).removeprefix("sha256:")[:16]
