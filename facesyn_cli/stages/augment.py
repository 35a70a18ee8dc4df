"""`facesyn augment`: adds images to every identity of a finished set; existing images are linked, never edited.

Of a set in tar shards, the shards are linked, and `augmented-*.tar` beside them hold the added images.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from pathlib import Path

from facesyn_cli import signals
from facesyn_cli.artifacts.atomic_files import write_bytes
from facesyn_cli.artifacts.context_set import ContextSet
from facesyn_cli.artifacts.header import Parent, read_header
from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.artifacts.links import copied_location, link_entry, link_file
from facesyn_cli.artifacts.names import check_file_names
from facesyn_cli.artifacts.origins import (
    ADDED_FACES,
    GENERATED,
    UNKNOWN,
    Origin,
    StatedOrigin,
    agreed_origin,
    origin_of,
)
from facesyn_cli.artifacts.outcome import Outcome
from facesyn_cli.artifacts.output import check_output, open_output
from facesyn_cli.artifacts.plan import Plan
from facesyn_cli.artifacts.record_set import RecordSet
from facesyn_cli.artifacts.unclear_identities import warn_of_unclear_identities
from facesyn_cli.artifacts.work import Work
from facesyn_cli.augmentations.addition import Addition, Augmentation
from facesyn_cli.config.fields import PluginConfig, PluginSection, StageConfig, input_path, runtime_only
from facesyn_cli.console import is_first_process, log
from facesyn_cli.data.tar_set import TarImage, TarSet, make_shard
from facesyn_cli.errors import UserError
from facesyn_cli.plugins import registry
from facesyn_cli.progress import progress
from facesyn_cli.untrusted.input_files import MAX_IMAGE, read_bytes

_IMAGES_PER_SHARD = 10_000  # of additions


class AugmentConfig(StageConfig):
    """Settings of `facesyn augment`."""

    images: Path | None = input_path(None, "images to add to; None: 4-samples of --work")
    contexts: Path | None = input_path(None, "contexts with their source faces; None: 3-contexts of --work")
    faces: Path | None = input_path(
        None, "source faces instead of contexts: identity i is the i-th file in string-sorted order, as published"
    )
    faces_origin: StatedOrigin | None = runtime_only(
        None, "photo (of real people) or generated: what the source faces are; None: as their headers say, else unknown"
    )
    augmentation: PluginConfig = PluginSection("augmentation", default="oversample")


def plan(cfg: AugmentConfig, work: Work) -> Plan:
    """Return what `run` would do."""
    folder, inputs = _folder(cfg, work), _open_inputs(cfg, work)
    linked, added = sum(inputs.counts.values()), inputs.num_additions
    shards = {"shards_linked": len(inputs.images.shards)} if isinstance(inputs.images, TarSet) else {}
    return Plan(
        folder, check_output(folder, inputs.kind, cfg, inputs.parents),
        {name: parent.path for name, parent in inputs.parents.items()},
        {"images": linked + added, "identities": len(inputs.counts), "linked": linked, "added": added, **shards},
    )


def run(cfg: AugmentConfig, work: Work) -> Outcome:
    """Link the images and add the new ones; only the first of several processes works."""
    folder = _folder(cfg, work)
    if not is_first_process():
        return Outcome(folder, {})
    inputs = _open_inputs(cfg, work)
    with open_output(folder, inputs.kind, "augment", cfg, inputs.parents) as out:
        if not out.finished:
            if isinstance(inputs.images, TarSet):
                added, extra = _augment_shards(cfg.seed, folder, inputs.images, inputs), dict(inputs.images.extra)
            else:
                added, extra = _augment(cfg.seed, folder, inputs.images, inputs), dict(inputs.images.extra())
            if inputs.augmentation.needs_faces:
                extra[ADDED_FACES] = inputs.origin
            total = sum(inputs.counts.values()) + added
            out.finish({"images": total, "identities": len(inputs.counts), "added": added}, extra)
    stated = out.header.extra.get(ADDED_FACES, UNKNOWN)
    if inputs.augmentation.needs_faces and stated != inputs.origin:
        log.warning(f"{folder} is finished and says that the faces in it are of origin {stated}; its header "
                    f"keeps that, {inputs.origin} is not stored")
    return Outcome(folder, {"augmentation": cfg.augmentation.name, **out.header.counts})


@dataclass(frozen=True)
class _Inputs:
    augmentation: Augmentation
    images: ImageSet | TarSet
    counts: dict[str, int]  # images of each identity
    faces: dict[str, Path | None]  # source face of each identity
    origin: Origin  # of these faces
    parents: dict[str, Parent]

    @property
    def kind(self) -> str:
        return "RecordSet" if isinstance(self.images, TarSet) else "ImageSet"

    @property
    def num_additions(self) -> int:
        return sum(map(self.augmentation.num_additions, self.counts.values()))


def _folder(cfg: AugmentConfig, work: Work) -> Path:
    return cfg.out or work.folder("augmented")


def _open_inputs(cfg: AugmentConfig, work: Work) -> _Inputs:
    augmentation: Augmentation = registry.build("augmentation", cfg.augmentation)
    path = cfg.images or work.folder("samples")
    if path.exists() and RecordSet.recognizes(path):
        images = TarSet.open(path)
        counts = images.counts()
    else:
        images = ImageSet.open(path)
        warn_of_unclear_identities(images)
        check_file_names(map(copied_location, images.entries), _folder(cfg, work))
        counts = {identity: len(group) for identity, group in images.by_identity().items()}
    parents = {"images": images.parent()}
    if not augmentation.needs_faces:
        return _Inputs(augmentation, images, counts, {}, UNKNOWN, parents)
    header = read_header(path)
    if header is not None and "partners" in header.parents:
        raise UserError(f"{path} was sampled with guidance scoremix: its people are not those of their contexts, whose "
                        f"faces {cfg.augmentation.name} would add; augmentation.name=photometric needs none")
    if cfg.faces is not None:
        given = ImageSet.open(cfg.faces)
        parents["faces"] = given.parent()
        faces, origin = _numbered_faces(given), origin_of(given.named_in or given.path, cfg.faces_origin)
    else:
        contexts = ContextSet.open(cfg.contexts or work.folder("contexts"))
        parents["contexts"] = contexts.parent()
        faces = dict(zip(contexts.identities, contexts.faces, strict=True))
        origin = agreed_origin(contexts.face_origin, cfg.faces_origin, str(contexts.path))
    _require_faces(list(counts), faces)
    _check_origin(origin, augmentation)
    return _Inputs(augmentation, images, counts, faces, origin, parents)


def _numbered_faces(faces: ImageSet) -> dict[str, Path | None]:
    """Return the face of each identity number: the published rows follow the string-sorted names of their files."""
    if not faces.path.is_dir():
        raise UserError(f"faces: {faces.path} is no folder; a folder of face images was expected")
    locations = sorted(entry.location for entry in faces.entries)
    return {str(number): faces.path / location for number, location in enumerate(locations)}


def _require_faces(identities: list[str], faces: dict[str, Path | None]) -> None:
    """Join images and contexts by identity; every identity needs a context with a face."""
    unknown = [identity for identity in identities if identity not in faces]
    if unknown:
        raise UserError(
            f"{len(unknown)} of {len(identities)} identities have no context, the first is {unknown[0]!r}; "
            "the contexts that the images were made from were expected (--contexts)"
        )
    faceless = [identity for identity in identities if faces[identity] is None]
    if faceless:
        raise UserError(
            f"{len(faceless)} of {len(identities)} contexts have no source face, the first is {faceless[0]!r}; this "
            "augmentation needs contexts made from face images (gen-contexts --source images, diffusers or two-stage)"
        )


def _check_origin(origin: Origin, augmentation: Augmentation) -> None:
    """Keep photos of real people out of a set of generated faces, unless `allow_real` is set.

    Raises:
        UserError: The source faces are photos.
    """
    if origin == UNKNOWN:
        log.warning("the source faces are of unknown origin, and so are the added images; faces_origin=generated "
                    "states that no photo of a real person is among them")
    elif origin != GENERATED and not augmentation.allow_real:
        raise UserError(
            "the source faces are photos of real people; adding them would put real people into the set "
            "(augmentation.allow_real=true allows it, and the set's header and card say so)"
        )
    elif origin != GENERATED:
        log.warning("photos of real people are added to the set; its header and card say so")


def _augment(seed: int, folder: Path, images: ImageSet, inputs: _Inputs) -> int:
    """Link the images and write the missing additions, each by rename; return the number of additions."""
    added = 0
    with progress("augment", len(images.entries) + inputs.num_additions) as bar:
        for identity, entries in images.by_identity().items():
            signals.check()
            for entry in entries:
                link_entry(images, entry, folder)
            face, before = inputs.faces.get(identity), added
            for addition in inputs.augmentation.additions(identity, entries, images.read, face, seed):
                _make(addition, folder / identity / f"{addition.sample}{addition.suffix}")
                added += 1
            bar.advance(len(entries) + added - before)
    return added


def _augment_shards(seed: int, folder: Path, images: TarSet, inputs: _Inputs) -> int:
    """Link the shards and write the missing shards of additions; return the number of additions."""
    for shard in images.shards:
        link_file(shard, folder / images.name / shard.name)
        signals.check()
    taken = {shard.name.rpartition("-")[0] for shard in images.shards}  # of an earlier augmentation
    prefixes = (f"augmented-{k}" if k > 1 else "augmented" for k in count(1))
    prefix = next(name for name in prefixes if name not in taken)
    additions = (
        TarImage(identity, addition.sample, addition.suffix, partial(_encoded, addition))
        for identity, entries in images.groups()
        for addition in inputs.augmentation.additions(
            identity, entries, images.read, inputs.faces.get(identity), seed
        )
    )
    added = 0
    with progress("augment", inputs.num_additions) as bar:
        for number in count():
            part = list(islice(additions, _IMAGES_PER_SHARD))
            if not part:
                return added
            make_shard(folder, images.name, f"{prefix}-{number:06d}.tar", part)
            added += len(part)
            bar.advance(len(part))
            signals.check()
    return added


def _encoded(addition: Addition) -> bytes:
    return addition.render() if addition.file is None else read_bytes(addition.file, MAX_IMAGE, "a face")


def _make(addition: Addition, target: Path) -> None:
    if target.exists():
        return
    if addition.file is not None:
        link_file(addition.file, target)
    else:
        write_bytes(target, _encoded(addition), durable=False)
