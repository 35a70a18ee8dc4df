"""What networks compute of the sets of a report, divided over processes; all of it comes before the analyses.

Embeddings, features and thumbnails go to caches on disk, by parts of the set. Perceptual distances, sharpness and
poses are of small samples and stay in memory. Analyses follow in the first process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from facesyn_cli.artifacts.header import Parent
from facesyn_cli.console import log
from facesyn_cli.distributed import Processes
from facesyn_cli.evaluation.fairness import Groups
from facesyn_cli.evaluation.labeled import LabeledEmbeddings
from facesyn_cli.evaluation.perceptual import PerceptualSpace
from facesyn_cli.evaluation.pixel_statistics import measure_sample
from facesyn_cli.models.feature_maps import feature_maps, has_feature_maps
from facesyn_cli.models.inception import LoadedFeatures
from facesyn_cli.models.loading import LoadedBackbone
from facesyn_cli.models.lpips import LoadedLpips
from facesyn_cli.models.yunet import Yunet
from facesyn_cli.report.measured_sets import Measurer, Small, labeled, owners
from facesyn_cli.report.network_results import CachedResults, readable, reference_size
from facesyn_cli.report.set_pictures import NamedSet, SetPictures


@dataclass(frozen=True)
class ReportInputs:
    """The inputs of a report; networks are on the CPU."""

    sets: list[NamedSet]
    reference: NamedSet | None
    judges: dict[str, LoadedBackbone]
    groups: tuple[str, Groups] | None
    detector: Yunet | None
    features: LoadedFeatures | None
    lpips: LoadedLpips | None
    parents: dict[str, Parent]
    folder: Path

    @property
    def first_judge(self) -> LoadedBackbone:
        """The judge with which `precision=auto` is measured."""
        return next(iter(self.judges.values()))

    @property
    def all_sets(self) -> list[NamedSet]:
        """The sets and the reference."""
        return [*self.sets, *([self.reference] if self.reference else [])]


@dataclass(frozen=True)
class Samples:
    """How many images of a set networks see that do not see all of them.

    Args:
        features: Images for Inception at most.
        perceptual: Images for perceptual distances at most; 0: none.
        seed: Seed of the draws.
    """

    features: int
    perceptual: int
    seed: int


@dataclass
class Passes:
    """What networks computed, beside the caches; only the first process has the thumbnails."""

    small: dict[str, Small] = field(default_factory=dict)              # by set
    spaces: dict[str, PerceptualSpace] = field(default_factory=dict)   # by name of a judge, and of LPIPS
    measured: dict[str, NDArray[np.float64]] = field(default_factory=dict)  # of samples, by set


def run_networks(
    inputs: ReportInputs, measurer: Measurer, kept: CachedResults, pictures: SetPictures, samples: Samples,
    processes: Processes,
) -> Passes:
    """Compute everything that takes a pass of a network over images. A collective.

    Args:
        inputs: Sets and networks.
        measurer: The caches.
        kept: Results of an earlier run; perceptual distances behind them are not computed again.
        pictures: Reads images.
        samples: Sizes of samples.
        processes: Those that divide the images.
    """
    found, device = Passes(), processes.device

    def measure(space: PerceptualSpace, network: str, rows_of: Callable[[NamedSet], LabeledEmbeddings]) -> None:
        left = processes.from_first(lambda: [kept.read(held.name, network) is None for held in inputs.sets])
        held_left = [held for held, is_left in zip(inputs.sets, left, strict=True) if is_left]
        for held in held_left + ([inputs.reference] if held_left and inputs.reference else []):
            space.measure(held.name, partial(rows_of, held), processes)
        found.spaces[network] = space

    for held in inputs.all_sets:
        measurer.thumbnails(held).fill(processes)
        if processes.is_first:
            found.small[held.name] = measurer.small(held)
    space_of = partial(
        PerceptualSpace, device=device, read=pictures.pixels, max_images=samples.perceptual, seed=samples.seed
    )
    for name, judge in inputs.judges.items():
        judge.module.to(device)
        for held in inputs.all_sets:
            measurer.embeddings(held, name, judge).fill(processes)
        if samples.perceptual and has_feature_maps(judge.module):
            space = space_of("diversity.perceptual", partial(feature_maps, judge.module), None, judge.input_size)
            measure(space, name, partial(_embeddable, measurer, name, judge, found.small))
        judge.module.to("cpu")
    if inputs.features and inputs.reference:
        inputs.features.module.to(device)
        most = reference_size(inputs.sets, samples.features)
        for held, count in [(inputs.reference, most), *((held, samples.features) for held in inputs.sets)]:
            measurer.features(held, inputs.features, count, samples.seed)[0].fill(processes)
        inputs.features.module.to("cpu")
    if inputs.lpips and samples.perceptual:
        weights = [weight.to(device) for weight in inputs.lpips.weights]
        space = space_of("diversity.lpips", inputs.lpips.module.to(device), weights, inputs.lpips.input_size)
        measure(space, inputs.lpips.name, lambda held: readable(held, found.small[held.name]))
    for held in inputs.all_sets:
        if inputs.detector:
            log.info(f"{held.name}: poses")
        found.measured[held.name] = measure_sample(
            [entry.key for entry in held.entries], owners(held), partial(pictures.pixels, held.name),
            inputs.detector.find if inputs.detector else None, samples.seed, processes,
        )
    return found


def _embeddable(
    measurer: Measurer, name: str, judge: LoadedBackbone, small: dict[str, Small], held: NamedSet
) -> LabeledEmbeddings:
    """Return the keys and identities of the images that a judge can embed, with empty embeddings."""
    is_good = measurer.embeddings(held, name, judge).last() & small[held.name].is_readable
    return labeled(held.name, held.entries, np.flatnonzero(is_good), np.empty((len(held.entries), 0)))
