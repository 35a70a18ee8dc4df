"""Reduce a set to a given number of images; `facesyn ablate` gives every row the same number.

Images are linked, never copied or edited.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from facesyn_cli import signals
from facesyn_cli.artifacts.header import Parent, read_header
from facesyn_cli.artifacts.image_set import ImageEntry, ImageSet
from facesyn_cli.artifacts.links import copied_location, link_entry
from facesyn_cli.artifacts.names import check_file_names
from facesyn_cli.artifacts.outcome import Outcome
from facesyn_cli.artifacts.output import check_output, open_output
from facesyn_cli.artifacts.plan import Plan
from facesyn_cli.artifacts.unclear_identities import warn_of_unclear_identities
from facesyn_cli.artifacts.work import Work
from facesyn_cli.config.fields import StageConfig, affects_result, input_path
from facesyn_cli.console import is_first_process
from facesyn_cli.data.image_cut import first_images, random_images
from facesyn_cli.errors import UserError


class CutConfig(StageConfig):
    """Settings of the reduction."""

    images: Path | None = input_path(None, "images to choose from; None: 4-samples of --work")
    identities: int | None = affects_result(None, "identities to keep; None: all", ge=1)
    count: int = affects_result(1, "images to keep", ge=1)
    choose: Literal["first", "random"] = affects_result(
        "first", "first: the first images of each identity; random: identities and images drawn by the seed"
    )


def plan(cfg: CutConfig, work: Work) -> Plan:
    """Return what `run` would do."""
    folder, (images, chosen, parents) = _folder(cfg, work), _open(cfg, work)
    return Plan(folder, check_output(folder, "ImageSet", cfg, parents), {"images": str(images.path)}, _counts(chosen))


def run(cfg: CutConfig, work: Work) -> Outcome:
    """Link the chosen images; only the first of several processes works.

    Raises:
        UserError: The set has too few images or identities.
    """
    folder = _folder(cfg, work)
    if not is_first_process():
        return Outcome(folder, {})
    images, chosen, parents = _open(cfg, work)
    with open_output(folder, "ImageSet", "cut", cfg, parents) as out:
        if not out.finished:
            for entries in chosen.values():
                for entry in entries:
                    link_entry(images, entry, folder)
                signals.check()
            out.finish(_counts(chosen), images.extra())
        return Outcome(folder, out.header.counts)


def _counts(chosen: dict[str, list[ImageEntry]]) -> dict[str, int]:
    return {"images": sum(map(len, chosen.values())), "identities": len(chosen)}


def _folder(cfg: CutConfig, work: Work) -> Path:
    return cfg.out or work.path / "cut"


def _open(cfg: CutConfig, work: Work) -> tuple[ImageSet, dict[str, list[ImageEntry]], dict[str, Parent]]:
    images = ImageSet.open(cfg.images or work.folder("samples"))
    groups = images.by_identity()
    try:
        if cfg.choose == "first":
            chosen = first_images(groups, cfg.identities or len(groups), cfg.count)
        else:
            chosen = random_images(groups, cfg.identities, cfg.count, cfg.seed)
    except ValueError as error:
        raise UserError(f"{images.path}: {error}") from error
    warn_of_unclear_identities(images)
    check_file_names((copied_location(entry) for group in chosen.values() for entry in group), _folder(cfg, work))
    parent = images.parent()
    header = read_header(images.path) if cfg.choose == "first" and images.path.is_dir() else None
    if header is not None:  # a set that has grown since has the same first images
        parent = Parent(parent.path, header.lineage)
    return images, chosen, {"images": parent}
