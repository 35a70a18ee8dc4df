"""Perceptual diversity within identities: the mean perceptual distance of pairs of images.

The distance is that of Zhang et al. 2018, arXiv:1801.03924, Eq. 1, in the feature maps of a given network: LPIPS
where they are AlexNet's or VGG's with the learned weights, the same form without learned weights in the maps of a judge
(see `models/feature_maps.py`). Per identity it is what IDPERTURB and UIFace report as diversity; near 0 the images of
an identity are near-duplicates. It is compared with two baselines: pairs of images of different identities, and
pairs of real photos of one person.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from facesyn_cli import signals
from facesyn_cli.data.pixels import fit_square, resize_pixels, to_pixels
from facesyn_cli.data.sharding import share
from facesyn_cli.distributed import Processes
from facesyn_cli.evaluation.labeled import LabeledEmbeddings
from facesyn_cli.evaluation.metrics import ZHANG, Metric, declare
from facesyn_cli.evaluation.section import Figure, Finding, Histogram, Row, Section, mean_over_identities
from facesyn_cli.models.feature_maps import perceptual_distance

PER_IDENTITY = 4        # images of an identity that are compared, 6 pairs
_BATCH = 32             # images a batch, of two identities at least
_PAIRS = 16             # pairs whose maps are compared at once
_LISTED, _SHOWN = 12, 8
_FEW = 0.5              # of the real distance: less is a finding
_CLEAR = 3              # standard errors

_FORMULA = "sum over maps of the mean over places of |w (a - b)|^2, a and b of unit length over channels"

declare(
    Metric("diversity.perceptual", "Perceptual distance within an identity", "How different two images of one "
        "identity look, in the feature maps of the judge; near 0 they are near-duplicates. It is LPIPS's form "
        "without its learned weights, so compare it only within one judge.", formula=_FORMULA + ", w = 1",
        source=ZHANG, better="higher", headline=70),
    Metric("diversity.lpips", "LPIPS within an identity", "How different two images of one identity look, by a "
        "distance learned from people's judgments; near 0 they are near-duplicates.",
        formula=_FORMULA + ", w learned", source=ZHANG, better="higher", headline=80),
)
for _prefix, _name, _by, _weights in (
    ("perceptual", "Perceptual distance", "perceptual distance", "w = 1"), ("lpips", "LPIPS", "LPIPS", "w learned"),
):
    declare(
        Metric(f"diversity.{_prefix}_between", f"{_name} between identities", "The same for images of two different "
            "identities, to compare.", formula=f"{_FORMULA}, {_weights}", source=ZHANG),
        Metric(f"diversity.{_prefix}_real", f"{_name} of real photos", "The same for real photos of one person, to "
            "compare.", formula=f"{_FORMULA}, {_weights}", source=ZHANG),
        Metric(f"diversity.{_prefix}_per_identity", f"{_name} per identity", "Mean distance of the images of every "
            "identity in the sample."),
        Metric(f"diversity.{_prefix}_least", f"Least varied identities by {_by}", "Identities whose images look most "
            "alike."),
    )

Read = Callable[[str, str], NDArray[np.uint8] | None]
Sample = list[tuple[int, list[str]]]  # number of an identity, keys of its images


@dataclass(frozen=True)
class Spread:
    """Perceptual distances inside a set."""

    identities: NDArray[np.int64]  # numbers of the C identities in the sample
    within: NDArray[np.float64]    # (C,) mean distance of the pairs of images of each
    between: NDArray[np.float64]   # (P,) distances of pairs of images of two identities
    num_pairs: int                 # pairs within identities
    exact: bool                    # all pairs within all identities


@dataclass
class _Distances:
    """Those inside one batch; as of `Spread`."""

    identities: list[int] = field(default_factory=list)
    within: list[float] = field(default_factory=list)
    between: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    num_pairs: int = 0


@dataclass
class PerceptualSpace:
    """The perceptual distance in the feature maps of a network, with the distances inside each set computed so far."""

    prefix: str                             # of the ids of its figures
    maps: Callable[[Tensor], list[Tensor]]  # pixels (B, 3, size, size) in [-1, 1] on `device` -> maps (B, C_l, H_l,
                                            # W_l)
    weights: list[Tensor] | None            # (C_l,) of each map; None: 1
    size: int                               # side of its images in pixels
    device: torch.device                    # where it is
    read: Read                              # (name of the set, key) -> pixels (H, W, 3) uint8, or None
    max_images: int                         # images of a set in the sample at most
    seed: int                               # seed of the sample
    _seen: dict[str, Spread] = field(default_factory=dict)

    def spread(self, name: str) -> Spread:
        """Return the distances inside a set that `measure` has computed."""
        return self._seen[name]

    def measure(self, name: str, rows_of: Callable[[], LabeledEmbeddings], processes: Processes) -> None:
        """Compute the distances inside a set, divided over processes. A collective.

        Args:
            name: Name of the set.
            rows_of: Returns the set; called in the first process only.
            processes: Those of the run.
        """
        if name in self._seen:
            return

        def choose() -> tuple[list[Sample], bool]:
            rows = rows_of()
            chosen = _choose(rows, self.max_images, self.seed)
            is_whole = sum(len(part) for _, part in chosen) == rows.sizes[rows.sizes > 1].sum()
            named = [(identity, [rows.keys[row] for row in part]) for identity, part in chosen]
            return list(_batches(named)), bool(is_whole)

        batches, is_whole = processes.from_first(choose)
        mine = share(range(len(batches)), processes.rank, processes.world_size)
        found: dict[int, _Distances] = {}
        for part in processes.gather_objects({number: self._inside(name, batches[number]) for number in mine}):
            found |= part
        each = [found[number] for number in range(len(batches))]
        self._seen[name] = Spread(
            np.array([identity for one in each for identity in one.identities], dtype=np.int64),
            np.array([mean for one in each for mean in one.within], dtype=np.float64),
            np.concatenate([one.between for one in each]) if each else np.empty(0),
            sum(one.num_pairs for one in each), is_whole,
        )

    def _inside(self, name: str, batch: Sample) -> _Distances:
        """Return the distances inside one batch."""
        signals.check()
        maps, owner = self._maps(name, batch)
        found = _Distances()
        places = [np.flatnonzero(owner == identity) for identity in dict.fromkeys(owner.tolist())]
        for place in places:
            if len(place) > 1:
                a, b = np.triu_indices(len(place), 1)
                distances = self._distances(maps, place[a], place[b])
                found.identities.append(int(owner[place[0]]))
                found.within.append(float(distances.mean()))
                found.num_pairs += len(distances)
        if len(places) > 1:
            first = np.array([place[0] for place in places])
            found.between = self._distances(maps, first[:-1], first[1:])
        return found

    @torch.inference_mode()
    def _maps(self, name: str, batch: Sample) -> tuple[list[Tensor], NDArray[np.int64]]:
        """Return the maps of a full batch, and the identity of each of its images that can be read."""
        pixels = torch.full((_BATCH, 3, self.size, self.size), -1.0)
        owner = []
        for identity, part in batch:
            for key in part:
                pixels_u8 = self.read(name, key)
                if pixels_u8 is not None:
                    face = to_pixels(torch.tensor(fit_square(pixels_u8)))[None]  # a copy: some arrays are read-only
                    pixels[len(owner)] = resize_pixels(face, self.size, antialias=True)[0]
                    owner.append(identity)
        return self.maps(pixels.to(self.device)), np.array(owner, dtype=np.int64)

    @torch.inference_mode()
    def _distances(self, maps: list[Tensor], a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.float64]:
        parts = []
        for start in range(0, len(a), _PAIRS):
            first, second = (rows[start : start + _PAIRS] for rows in (a, b))
            parts.append(perceptual_distance([x[first] for x in maps], [x[second] for x in maps], self.weights))
        return torch.cat(parts).cpu().double().numpy()


def perceptual_section(
    rows: LabeledEmbeddings, reference: LabeledEmbeddings | None, space: PerceptualSpace
) -> Section:
    """Return the perceptual distances within and between identities.

    Args:
        rows: The set.
        reference: The real set, or None.
        space: The network, with which both are measured.
    """
    own = space.spread(rows.name)
    if not len(own.within):
        return Section(notes=["A perceptual distance needs identities with 2 images."])
    pairs = f"identities, {own.num_pairs:,} pairs"
    section = Section([mean_over_identities(space.prefix, own.within, pairs, exact=own.exact)])
    if len(own.between):
        error = own.between.std(ddof=1) / np.sqrt(len(own.between)) if len(own.between) > 1 else None
        section.figures.append(Figure(
            f"{space.prefix}_between", float(own.between.mean()), len(own.between), "pairs of two identities",
            exact=False, error=error, error_from="spread over pairs",
        ))
    series = {"identities": own.within}
    if reference is not None:
        real = space.spread(reference.name)
        if len(real.within):
            figure = mean_over_identities(
                f"{space.prefix}_real", real.within, f"real people, {real.num_pairs:,} pairs", exact=real.exact)
            section.figures.append(figure)
            section.findings += _little(section.figures[0], figure)
            series["real people"] = real.within
    edges = np.linspace(0, max(float(max(values.max() for values in series.values())), 1e-6), 41)
    section.histograms.append(Histogram(
        f"{space.prefix}_per_identity", "mean perceptual distance of an identity", edges,
        {name: np.histogram(values, edges)[0] for name, values in series.items()}, exact=own.exact,
    ))
    least = np.argsort(own.within, kind="stable")[:_LISTED]
    section.lists[f"{space.prefix}_least"] = [
        Row(rows.images_of(c, _SHOWN), [rows.identities[c]], label=f"mean distance {own.within[k]:.3f}")
        for k, c in zip(least, own.identities[least], strict=True)
    ]
    return section


def _little(own: Figure, real: Figure) -> list[Finding]:
    """Return a finding where images of an identity clearly differ less than half as much as real photos of a person."""
    limit = _FEW * real.value
    error = np.hypot(own.error or 0.0, _FEW * (real.error or 0.0))
    if own.value + _CLEAR * error >= limit:
        return []
    return [Finding(
        "warning", "The images of an identity look alike: their perceptual distance is "
        f"{own.value / real.value:.0%} of that between real photos of one person.", [own.id], [f"{own.id}_least"],
    )]


def _choose(rows: LabeledEmbeddings, max_images: int, seed: int) -> list[tuple[int, NDArray[np.int64]]]:
    """Return (identity, rows of its images) of randomly drawn identities with several images.

    All images of all of them where these are no more than `max_images` and two identities fit into a batch, else
    `PER_IDENTITY` of each.
    """
    several = np.flatnonzero(rows.sizes > 1)
    generator = np.random.default_rng(seed)
    sizes = rows.sizes[several]
    take_all = sizes.sum() <= max_images and sizes.max(initial=0) <= _BATCH // 2
    chosen, left = [], max_images
    for identity in generator.permutation(several):
        part = np.arange(rows.starts[identity], rows.starts[identity + 1])
        if not take_all and len(part) > PER_IDENTITY:
            part = np.sort(generator.choice(part, PER_IDENTITY, replace=False))
        if len(part) > left:
            break
        left -= len(part)
        chosen.append((int(identity), part))
    return chosen


def _batches(chosen: Sample) -> Iterator[Sample]:
    """Yield batches of whole identities."""
    batch, size = [], 0
    for identity, part in chosen:
        if size + len(part) > _BATCH:
            yield batch
            batch, size = [], 0
        batch.append((identity, part))
        size += len(part)
    if batch:
        yield batch
