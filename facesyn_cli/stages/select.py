"""`facesyn select`: drop or merge identities that are the same person to a judge recognizer.

Contexts may be far apart and still give faces that a recognizer cannot distinguish. The center of an identity is the
unit mean of the unit embeddings of its images. In the order of the set, an identity is kept when its center has a
cosine below r to every center kept before (the unique set of DCFace, arXiv:2304.07060, on centers; Vec2Face,
arXiv:2409.02979, calls centers separate up to a cosine of 0.40). Other identities are dropped, or their images join
the nearest kept identity. With `largest_cluster`, images unlike most others of their identity are left out before
(`evaluation/largest_cluster.py`), and so are identities of which fewer than `min_images` remain. Images are linked,
never copied or edited; of a set in tar shards, shards with changes are written anew and all others linked.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from facesyn_cli import signals
from facesyn_cli.artifacts.atomic_files import write_text
from facesyn_cli.artifacts.embedding_set import EmbeddingSet
from facesyn_cli.artifacts.header import Parent
from facesyn_cli.artifacts.image_set import ImageEntry, ImageSet
from facesyn_cli.artifacts.links import link_file, link_image
from facesyn_cli.artifacts.names import check_file_names, split_suffix
from facesyn_cli.artifacts.outcome import Outcome
from facesyn_cli.artifacts.output import check_output, open_output
from facesyn_cli.artifacts.plan import Plan
from facesyn_cli.artifacts.record_set import RecordSet
from facesyn_cli.artifacts.record_set_images import RecordSetImages
from facesyn_cli.artifacts.text_tables import to_csv
from facesyn_cli.artifacts.unclear_identities import warn_of_unclear_identities
from facesyn_cli.artifacts.work import Work
from facesyn_cli.config.fields import StageConfig, affects_result, input_path
from facesyn_cli.console import is_first_process
from facesyn_cli.contexts.unique import Unique
from facesyn_cli.data.record_images import suffix_of
from facesyn_cli.data.tar_set import TarImage, TarSet, make_shard
from facesyn_cli.errors import UserError
from facesyn_cli.evaluation.labeled import LabeledEmbeddings
from facesyn_cli.evaluation.largest_cluster import ClusterSettings, largest_cluster
from facesyn_cli.progress import Progress, progress

# one line per identity: name, kept / dropped / merged / few images, identity it collides with, cosine, images left out
SELECTION = "selection.csv"
_BLOCK = 1024                # identities compared at once
_FATES = {"drop": "dropped", "merge": "merged"}
_FEW = "few images"


class SelectConfig(StageConfig):
    """Settings of `facesyn select`."""

    images: Path | None = input_path(None, "images to select from; None: 4-samples of --work")
    embeddings: Path | None = input_path(None, "EmbeddingSet of those images by a judge, made with facesyn embed")
    r: float = affects_result(0.4, "cosine of two centers from which they are the same person", gt=-1, le=1)
    collisions: Literal["drop", "merge"] = affects_result(
        "drop", "drop identities that collide with a kept one, or merge their images into it"
    )
    largest_cluster: bool = affects_result(
        False, "first leave out the images of each identity that are not in the largest cluster of its images"
    )
    cluster: ClusterSettings = affects_result(ClusterSettings(), "how that cluster is found (DBSCAN)")
    min_images: int = affects_result(1, "leave out identities that have fewer images then", ge=1)


@dataclass(frozen=True)
class _Selection:
    """The decision on each of C identities.

    Args:
        names: Their names, in the order of the set.
        into: (C,) number of the identity that each one collides with; its own where it is kept, -1 where it has too few
            images.
        cosines: (C,) cosine of the two centers; 1 where it is kept.
        outside: (C,) images that are not in the largest cluster.
        keys: Keys of the images that are in the cluster of an identity with enough of them.
    """

    names: list[str]
    into: np.ndarray
    cosines: np.ndarray
    outside: np.ndarray
    keys: frozenset[str]

    def fate(self, row: int, collisions: str) -> str:
        """Return what becomes of an identity."""
        if self.into[row] == row:
            return "kept"
        return _FEW if self.into[row] < 0 else _FATES[collisions]


@dataclass(frozen=True, slots=True)
class _Kept:
    """A kept image, `identity/sample` with a suffix; images of tar shards have the suffix of their content."""

    entry: ImageEntry
    identity: str
    sample: str
    suffix: str
    is_renamed: bool = False


def plan(cfg: SelectConfig, work: Work) -> Plan:
    """Return what `run` would do: identities and images that are kept."""
    images, tars, selection, parents, folder = _open_inputs(cfg, work)
    kept = len(_kept(images, selection, cfg.collisions, folder))
    return Plan(
        folder, check_output(folder, _kind(tars), cfg, parents),
        {name: parent.path for name, parent in parents.items()},
        {"images": kept, "images_left_out": len(images.entries) - kept, **_counts(selection, cfg.collisions)},
    )


def run(cfg: SelectConfig, work: Work) -> Outcome:
    """Link the images of kept identities; only the first of several processes works."""
    if not is_first_process():
        return Outcome(_folder(cfg, work), {})
    images, tars, selection, parents, folder = _open_inputs(cfg, work)
    with open_output(folder, _kind(tars), "select", cfg, parents) as out:
        if not out.finished:
            kept = _kept(images, selection, cfg.collisions, folder)
            with progress("select", len(kept)) as bar:
                if tars is not None:
                    _select_shards(tars, kept, folder, bar)
                else:
                    for one in kept:
                        link_image(images, one.entry, folder / one.identity / f"{one.sample}{one.suffix}")
                        bar.advance()
                        signals.check()
            write_text(folder / SELECTION, _table(selection, cfg.collisions))
            counts = {"images": len(kept), **_counts(selection, cfg.collisions)}
            out.finish(counts, tars.extra if tars is not None else images.extra())
        return Outcome(folder, out.header.counts)


def _kind(tars: TarSet | None) -> str:
    return "ImageSet" if tars is None else "RecordSet"


def _select_shards(tars: TarSet, kept: list[_Kept], folder: Path, bar: Progress) -> None:
    """Link the shards without changes and write the others anew; shards without images are left out."""
    kept_of = {int(one.entry.location.split()[-1]): one for one in kept}
    for number, shard in enumerate(tars.shards):
        signals.check()
        rows = tars.rows_of(number).tolist()
        stay = [(row, kept_of[row]) for row in rows if row in kept_of]
        if len(stay) == len(rows) and not any(one.is_renamed for _, one in stay):
            link_file(shard, folder / tars.name / shard.name)
        elif stay:
            make_shard(folder, tars.name, shard.name, [_tar_image(tars, row, one) for row, one in stay])
        bar.advance(len(stay))


def _tar_image(tars: TarSet, row: int, kept: _Kept) -> TarImage:
    data = partial(tars.records.read, row)
    return TarImage(kept.identity, kept.sample, suffix_of(data()), data)


def _folder(cfg: SelectConfig, work: Work) -> Path:
    return cfg.out or work.path / "selected"


def _open_inputs(
    cfg: SelectConfig, work: Work
) -> tuple[ImageSet, TarSet | None, _Selection, dict[str, Parent], Path]:
    path = cfg.images or work.folder("samples")
    tars = TarSet.open(path) if path.exists() and RecordSet.recognizes(path) else None
    images = ImageSet.open(path) if tars is None else RecordSetImages(tars.records)
    warn_of_unclear_identities(images)
    if cfg.embeddings is None:
        raise UserError(
            f"select needs embeddings of the images by a judge: facesyn embed --images {images.path} --weights JUDGE"
            " --out judged, then --embeddings judged"
        )
    embeddings = EmbeddingSet.open(cfg.embeddings)
    keys = [entry.key for entry in images.entries]
    vectors = embeddings.join(keys)
    rows = LabeledEmbeddings.of(keys, [entry.identity for entry in images.entries], vectors)
    parents = {"images": images.parent(), "embeddings": embeddings.parent()}
    return images, tars, _select(rows, cfg), parents, _folder(cfg, work)


def _select(rows: LabeledEmbeddings, cfg: SelectConfig) -> _Selection:
    is_inside = np.ones(len(rows.keys), dtype=bool)
    for number in range(len(rows.identities)) if cfg.largest_cluster else ():
        own = rows.rows_of(number)
        is_inside[own] = largest_cluster(rows.vectors[own], cfg.cluster)
    inside = np.bincount(rows.owner[is_inside], minlength=len(rows.identities))
    enough = np.flatnonzero(inside >= cfg.min_images)
    if not len(enough):
        what = "cluster" if cfg.largest_cluster else "identity"
        raise UserError(f"no identity has {cfg.min_images} images left; the largest {what} has {inside.max(initial=0)}")
    left = rows.part(is_inside & (inside >= cfg.min_images)[rows.owner])
    into, cosines = np.full(len(rows.identities), -1), np.zeros(len(rows.identities))
    among, cosines[enough] = _collisions(left.centers, cfg.r)
    into[enough] = enough[among]
    return _Selection(rows.identities, into, cosines, rows.sizes - inside, frozenset(left.keys))


def _collisions(centers: np.ndarray, r: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of the identity that each one collides with, its own where it is kept, and the cosines."""
    is_kept = Unique(r).select(centers)
    into, cosines = np.arange(len(centers)), np.ones(len(centers))
    kept, left_out = np.flatnonzero(is_kept), np.flatnonzero(~is_kept)
    for start in range(0, len(left_out), _BLOCK):
        block = left_out[start : start + _BLOCK]
        found = centers[block] @ centers[kept].T                               # (block, kept)
        found[kept[None] > block[:, None]] = -2                                # those before it only
        nearest = found.argmax(axis=1)
        into[block], cosines[block] = kept[nearest], found[np.arange(len(block)), nearest]
    return into, cosines


def _kept(images: ImageSet, selection: _Selection, collisions: str, folder: Path) -> list[_Kept]:
    """Return each kept image with its identity and name in the new set.

    Raises:
        UserError: Two images would have the same name, or one a name that is too long for a file.
    """
    into = {name: selection.names[k] for name, k in zip(selection.names, selection.into, strict=True) if k >= 0}
    kept = []
    for entry in images.entries:
        if entry.key not in selection.keys:
            continue
        suffix = split_suffix(entry.location)[1]
        sample = entry.sample.removesuffix(suffix)
        if into[entry.identity] == entry.identity:
            kept.append(_Kept(entry, entry.identity, sample, suffix))
        elif collisions == "merge":
            sample = f"{entry.identity.replace('/', '_')}-{sample}"
            kept.append(_Kept(entry, into[entry.identity], sample, suffix, is_renamed=True))
    if len({(one.identity, one.sample, one.suffix) for one in kept}) < len(kept):
        raise UserError(f"{images.path}: after merging, two images would have the same name")
    if not isinstance(images, RecordSetImages):
        check_file_names((f"{one.identity}/{one.sample}{one.suffix}" for one in kept), folder)
    return kept


def _counts(selection: _Selection, collisions: str) -> dict[str, int]:
    fates = [selection.fate(row, collisions) for row in range(len(selection.names))]
    few = {"few_images": fates.count(_FEW)} if _FEW in fates else {}
    outside = {"outside_cluster": int(selection.outside.sum())} if selection.outside.any() else {}
    return {"identities": fates.count("kept"), _FATES[collisions]: fates.count(_FATES[collisions]), **few, **outside}


def _table(selection: _Selection, collisions: str) -> str:
    lines = [("identity", "fate", "collides_with", "cosine", "images_outside")]
    for row, (name, into) in enumerate(zip(selection.names, selection.into, strict=True)):
        fate = selection.fate(row, collisions)
        other = (selection.names[into], f"{selection.cosines[row]:.6f}") if fate == _FATES[collisions] else ("", "")
        lines.append((name, fate, *other, str(selection.outside[row])))
    return to_csv(lines)
