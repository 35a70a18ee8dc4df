"""Add images to every identity of a finished set; what is there is linked, never copied or edited."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from facesyn_cli import signals
from facesyn_cli.artifacts.contexts import ContextSet
from facesyn_cli.artifacts.files import write_bytes
from facesyn_cli.artifacts.images import ImageEntry, ImageSet
from facesyn_cli.artifacts.links import link_entry, link_file
from facesyn_cli.artifacts.outcome import Outcome
from facesyn_cli.artifacts.output import Parent, check_output, open_output
from facesyn_cli.artifacts.work import Work
from facesyn_cli.augmentations.addition import Addition, Augmentation
from facesyn_cli.config.fields import PluginConfig, PluginSection, StageConfig, source
from facesyn_cli.console import is_first_process, progress
from facesyn_cli.errors import UserError
from facesyn_cli.plugins import registry


class AugmentConfig(StageConfig):
    """Settings of `facesyn augment`."""

    images: Path | None = source(None, "images to add to; None: 4-samples of --work")
    contexts: Path | None = source(None, "contexts with their source faces; None: 3-contexts of --work")
    faces: Path | None = source(
        None, "source faces instead of contexts: identity i is the i-th file in string-sorted order, as published"
    )
    augmentation: PluginConfig = PluginSection("augmentation", default="oversample")


def plan(cfg: AugmentConfig, work: Work) -> dict[str, Any]:
    """Return what `run` would do: how many links and additions."""
    folder = cfg.out or work.folder("augmented")
    augmentation, images, faces, parents = _open_inputs(cfg, work)
    groups = images.by_identity()
    _require_faces(groups, faces, augmentation)
    return {
        "images": str(images.path),
        "identities": len(groups),
        "linked": len(images.entries),
        "added": sum(augmentation.num_additions(len(group)) for group in groups.values()),
        "folder": str(folder),
        "state": check_output(folder, "ImageSet", cfg, parents),
    }


def run(cfg: AugmentConfig, work: Work) -> Outcome:
    """Link the images and add the new ones; only the first of several processes works."""
    folder = cfg.out or work.folder("augmented")
    if not is_first_process():
        return Outcome(folder, {})
    augmentation, images, faces, parents = _open_inputs(cfg, work)
    groups = images.by_identity()
    _require_faces(groups, faces, augmentation)
    with open_output(folder, "ImageSet", "augment", cfg, parents) as out:
        if not out.finished:
            added = _augment(cfg.seed, folder, images, groups, faces, augmentation)
            out.finish({"images": len(images.entries) + added, "identities": len(groups), "added": added})
        return Outcome(folder, {"augmentation": cfg.augmentation.name, **out.header.counts})


def _open_inputs(
    cfg: AugmentConfig, work: Work
) -> tuple[Augmentation, ImageSet, dict[str, Path | None], dict[str, Parent]]:
    """Return the augmentation, the images, the source face of each identity, and the parents."""
    augmentation: Augmentation = registry.build("augmentation", cfg.augmentation)
    images = ImageSet.open(cfg.images or work.folder("samples"))
    parents = {"images": images.parent()}
    if not augmentation.needs_faces:
        return augmentation, images, {}, parents
    if cfg.faces is not None:
        faces = ImageSet.open(cfg.faces)
        return augmentation, images, _numbered_faces(faces), {**parents, "faces": faces.parent()}
    contexts = ContextSet.open(cfg.contexts or work.folder("contexts"))
    parents["contexts"] = contexts.parent()
    return augmentation, images, dict(zip(contexts.identities, contexts.faces, strict=True)), parents


def _numbered_faces(faces: ImageSet) -> dict[str, Path | None]:
    """Return the face of each identity number: the published rows follow the string-sorted names of their files."""
    if not faces.path.is_dir():
        raise UserError(f"faces: {faces.path} is no folder; a folder of face images was expected")
    locations = sorted(entry.location for entry in faces.entries)
    return {str(number): faces.path / location for number, location in enumerate(locations)}


def _require_faces(
    groups: dict[str, list[ImageEntry]], faces: dict[str, Path | None], augmentation: Augmentation
) -> None:
    """Join images and contexts by identity; every identity needs a context with a face where faces are used."""
    if not augmentation.needs_faces:
        return
    unknown = [identity for identity in groups if identity not in faces]
    if unknown:
        raise UserError(
            f"{len(unknown)} of {len(groups)} identities have no context, the first is {unknown[0]!r}; "
            "the contexts that the images were made from were expected (--contexts)"
        )
    faceless = [identity for identity in groups if faces[identity] is None]
    if faceless:
        raise UserError(
            f"{len(faceless)} of {len(groups)} contexts have no source face, the first is {faceless[0]!r}; this "
            "augmentation needs contexts made from face images (gen-contexts --source images, diffusers or two-stage)"
        )


def _augment(
    seed: int,
    folder: Path,
    images: ImageSet,
    groups: dict[str, list[ImageEntry]],
    faces: dict[str, Path | None],
    augmentation: Augmentation,
) -> int:
    """Make everything that is not there yet; return the number of additions. Files appear whole or not at all."""
    added = 0
    total = len(images.entries) + sum(augmentation.num_additions(len(group)) for group in groups.values())
    with progress("augment", total) as bar:
        for identity, entries in groups.items():
            signals.check()
            for entry in entries:
                link_entry(images, entry, folder)
            made = 0
            for addition in augmentation.additions(identity, entries, images.read, faces.get(identity), seed):
                _make(addition, folder / identity / f"{addition.sample}{addition.suffix}")
                made += 1
            added += made
            bar.advance(len(entries) + made)
    return added


def _make(addition: Addition, target: Path) -> None:
    if target.exists():
        return
    if addition.file is not None:
        link_file(addition.file, target)
    else:
        write_bytes(target, addition.render(), durable=False)
