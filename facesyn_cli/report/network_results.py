"""What networks that are no judges find: distances in Inception's features, and distances of pairs by LPIPS."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from facesyn_cli.console import log
from facesyn_cli.evaluation.labeled import LabeledEmbeddings
from facesyn_cli.evaluation.perceptual import PerceptualSpace, perceptual_section
from facesyn_cli.evaluation.set_quality import features_section
from facesyn_cli.models.inception import LoadedFeatures
from facesyn_cli.models.lpips import LoadedLpips
from facesyn_cli.report.cached_results import CachedResults
from facesyn_cli.report.measured_sets import Measurer, Small
from facesyn_cli.report.set_pictures import NamedSet


@dataclass(frozen=True)
class NetworkResults:
    """What one network found in every set.

    Args:
        name: Of the network.
        digest: Of its weights.
        section: Of the report, to which its figures belong.
        about: What it is and how images reach it, in a sentence.
        results: As `CachedResults.of` gives them, one a set.
    """

    name: str
    digest: str
    section: str
    about: str
    results: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """Return what `report.json` says of it: `sets` maps the name of each set to the section."""
        sets = {found["set"]: found["sections"][self.section] for found in self.results}
        return {"name": self.name, "digest": self.digest, "section": self.section, "about": self.about, "sets": sets}


def by_features(
    network: LoadedFeatures, sets: list[NamedSet], reference: NamedSet, measurer: Measurer, kept: CachedResults,
    max_images: int, seed: int,
) -> NetworkResults:
    """Return the distances of sets to the reference in the features of a network.

    Args:
        network: The network.
        sets: The sets.
        reference: The real set.
        measurer: Runs the network.
        kept: What is finished already.
        max_images: Images of a set to look at. The reference needs twice as many as the largest set has: its halves
            are compared as well.
        seed: Seed of all samples.
    """
    network.module.to(measurer.options.device)
    most = min(max_images, 2 * max(len(held.entries) for held in sets))
    real = measurer.features(reference, network, most, seed)
    results = []
    for held in sets:
        rows = measurer.features(held, network, max_images, seed)
        log.info(f"{held.name}: distances in the features of {network.name}")
        is_whole, is_reference_whole = len(held.entries) <= max_images, len(reference.entries) <= most
        compute = partial(features_section, rows, real, seed, is_whole, is_reference_whole)
        results.append(kept.of(held.name, network.name, lambda compute=compute: {"quality": compute()}))
    network.module.to("cpu")
    about = f"The pooled 2048 features of {network.name}: {network.resize}; pixels in [-1, 1]."
    return NetworkResults(network.name, network.digest, "quality", about, results)


def by_lpips(
    network: LoadedLpips, sets: list[NamedSet], reference: NamedSet | None, small: dict[str, Small],
    space: PerceptualSpace, kept: CachedResults,
) -> NetworkResults:
    """Return the distances inside identities by LPIPS.

    Args:
        network: The network.
        sets: The sets.
        reference: The real set, or None.
        small: Thumbnails of all of them: which images can be read.
        space: The network, on its device, and what it has seen already.
        kept: What is finished already.
    """
    real = (reference.name, _readable(reference, small[reference.name])) if reference else None
    results = []
    for held in sets:
        log.info(f"{held.name}: distances by {network.name}")
        compute = partial(perceptual_section, _readable(held, small[held.name]), held.name, real, space)
        results.append(kept.of(held.name, network.name, lambda compute=compute: {"diversity": compute()}))
    about = f"{network.name} (version 0.1): images at {network.input_size} px, pixels in [-1, 1]."
    return NetworkResults(network.name, network.digest, "diversity", about, results)


def _readable(held: NamedSet, small: Small) -> LabeledEmbeddings:
    """The images of a set that can be read, by identity; without embeddings, which no one asks for."""
    some = [entry for entry, good in zip(held.entries, small.is_readable, strict=True) if good]
    nothing = np.empty((len(some), 0), dtype=np.float32)
    return LabeledEmbeddings.of([entry.key for entry in some], [entry.identity for entry in some], nothing)
