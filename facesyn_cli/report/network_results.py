"""Results by set and network, kept on disk; and those of networks that are no judges: Inception's features, LPIPS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from facesyn_cli.artifacts.atomic_files import write_json
from facesyn_cli.console import log
from facesyn_cli.errors import UserError
from facesyn_cli.evaluation.labeled import LabeledEmbeddings
from facesyn_cli.evaluation.perceptual import PerceptualSpace, perceptual_section
from facesyn_cli.evaluation.section import Section
from facesyn_cli.evaluation.set_quality import features_section
from facesyn_cli.models.inception import LoadedFeatures
from facesyn_cli.models.lpips import LoadedLpips
from facesyn_cli.report.contents import read_results
from facesyn_cli.report.measured_sets import Measurer, Small, labeled
from facesyn_cli.report.set_pictures import NamedSet


@dataclass(frozen=True)
class CachedResults:
    """The sections of each set by each network, one JSON file each, so that a killed run resumes."""

    folder: Path              # where the files are

    def of(self, set_name: str, network: str, compute: Callable[[], dict[str, Section]]) -> dict[str, Any]:
        """Return the result of one network on one set: `set`, `judge`, `sections` and `findings` as JSON values.

        Args:
            set_name: Name of the set.
            network: Name of the judge or other network.
            compute: Returns the sections; called when they are not on disk.
        """
        if (kept := self.read(set_name, network)) is not None:
            return kept
        sections = compute()
        findings = [
            {**vars(finding), "set": set_name, "judge": network, "section": name}
            for name, section in sections.items() for finding in section.findings
        ]
        contents = {name: section.to_json() for name, section in sections.items()}
        found = {"set": set_name, "judge": network, "sections": contents, "findings": findings}
        write_json(self._path(set_name, network), found)
        return found

    def read(self, set_name: str, network: str) -> dict[str, Any] | None:
        """Return the result of one network on one set; None where it is not on disk, or damaged."""
        path = self._path(set_name, network)
        try:
            return read_results(path) if path.is_file() else None
        except UserError:
            log.warning(f"{path} is damaged; computing it again")
            return None

    def _path(self, set_name: str, network: str) -> Path:
        return self.folder / set_name / f"{network}.json"


@dataclass(frozen=True)
class NetworkResults:
    """The results of one network that is no judge, on every set."""

    name: str
    digest: str                    # of its weights
    section: str                   # of the report, to which its figures belong
    about: str                     # how images reach the network, in a sentence
    results: list[dict[str, Any]]  # of `CachedResults.of`, one a set

    def to_json(self) -> dict[str, Any]:
        """Return its entry of `report.json`: `sets` maps the name of each set to the section."""
        sets = {found["set"]: found["sections"][self.section] for found in self.results}
        return {"name": self.name, "digest": self.digest, "section": self.section, "about": self.about, "sets": sets}


def by_features(
    network: LoadedFeatures, sets: list[NamedSet], reference: NamedSet, measurer: Measurer, kept: CachedResults,
    max_images: int, seed: int,
) -> NetworkResults:
    """Return the distances of sets to the reference in the features of a network.

    Args:
        max_images: Images of a set to use.
        seed: Seed of all samples.
    """
    network.module.to(measurer.options.device)
    most = reference_size(sets, max_images)
    real = measurer.feature_rows(reference, network, most, seed)

    def compute(held: NamedSet) -> dict[str, Section]:
        rows = measurer.feature_rows(held, network, max_images, seed)
        log.info(f"{held.name}: distances in the features of {network.name}")
        is_whole, is_reference_whole = len(held.entries) <= max_images, len(reference.entries) <= most
        return {"quality": features_section(rows, real, seed, is_whole, is_reference_whole)}

    results = [kept.of(held.name, network.name, partial(compute, held)) for held in sets]
    network.module.to("cpu")
    about = f"The pooled 2048 features of {network.name}: {network.resize}; pixels in [-1, 1]."
    return NetworkResults(network.name, network.digest, "quality", about, results)


def reference_size(sets: list[NamedSet], max_images: int) -> int:
    """Return the images of the reference to use: twice as many as the largest set has, as its halves are compared."""
    return min(max_images, 2 * max(len(held.entries) for held in sets))


def by_lpips(
    network: LoadedLpips, sets: list[NamedSet], reference: NamedSet | None, small: dict[str, Small],
    space: PerceptualSpace, kept: CachedResults,
) -> NetworkResults:
    """Return the distances inside identities by LPIPS.

    Args:
        small: Thumbnails of all sets, with which images can be read.
        space: The network, with which all sets are measured.
    """
    real = readable(reference, small[reference.name]) if reference else None

    def compute(held: NamedSet) -> dict[str, Section]:
        log.info(f"{held.name}: distances by {network.name}")
        return {"diversity": perceptual_section(readable(held, small[held.name]), real, space)}

    results = [kept.of(held.name, network.name, partial(compute, held)) for held in sets]
    about = f"{network.name} (version 0.1): images at {network.input_size} px, pixels in [-1, 1]."
    return NetworkResults(network.name, network.digest, "diversity", about, results)


def readable(held: NamedSet, small: Small) -> LabeledEmbeddings:
    """Return the keys and identities of the images that can be read, with empty embeddings."""
    return labeled(held.name, held.entries, np.flatnonzero(small.is_readable), np.empty((len(held.entries), 0)))
