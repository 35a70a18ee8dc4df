"""gen-contexts: from a source of candidate identities to the ones worth drawing.

Candidates come in an order that never changes; filters keep some; the first `count` of them become the
identities `0`, `1`, ... Every batch is stored when it is finished, so a killed run goes on where it was
and a larger `count` extends what is there.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from facesyn_cli import signals
from facesyn_cli.artifacts.atomic_files import write_bytes, write_json, write_text
from facesyn_cli.artifacts.context_set import FACES, ROWS, VECTORS, write_contexts
from facesyn_cli.artifacts.digest import file_digest, json_digest, path_digest
from facesyn_cli.artifacts.header import BEGUN, HEADER, Header, Parent, read_header, require_header
from facesyn_cli.artifacts.origins import FACE_ORIGIN, PHOTO, UNKNOWN, Origin
from facesyn_cli.artifacts.outcome import Outcome
from facesyn_cli.artifacts.output import Output, check_output, open_output
from facesyn_cli.artifacts.record_set_images import open_images
from facesyn_cli.artifacts.work import Work
from facesyn_cli.config import fields
from facesyn_cli.config.fields import (
    PluginConfig,
    PluginList,
    PluginSection,
    StageConfig,
)
from facesyn_cli.console import is_first_process, log, progress
from facesyn_cli.contexts.diffusers_pipeline import find_pipeline, load_pipeline
from facesyn_cli.contexts.embedding_files import read_given_vectors
from facesyn_cli.contexts.faces import face_suffix
from facesyn_cli.contexts.selection import FOLDER, Progress, in_order, judge
from facesyn_cli.contexts.source import NEEDS, ContextFilter, ContextSource, Ldm, Resources
from facesyn_cli.data.alignment import DetectFaces, FaceAligner
from facesyn_cli.data.pixels import resize_pixels, to_pixels
from facesyn_cli.data.sharding import fixed_batches
from facesyn_cli.distributed import check_device
from facesyn_cli.errors import UserError
from facesyn_cli.evaluation.embedding import EmbedOptions, embed_faces
from facesyn_cli.models.loading import LoadedBackbone, load_autoencoder, load_backbone, load_denoiser, open_decoder
from facesyn_cli.models.yunet import Yunet
from facesyn_cli.plugins import registry

FAILED = "failed.txt"  # what could not be read, one line each


class GenContextsConfig(StageConfig):
    """Settings of `facesyn gen-contexts`."""

    source: PluginConfig = PluginSection("contexts", default="two-stage")
    count: int | None = fields.growable(None, "contexts to keep; None: all that a source with an end yields", ge=1)
    filters: list[PluginConfig] = PluginList("context_filter", default=["unique"])
    images: Path | None = fields.input_path(None, "folder or zip of faces, for the sources images and embeddings")
    embeddings: Path | None = fields.input_path(None, "given vectors, for the source embeddings")
    embedding_names: Path | None = fields.input_path(None, "their row-order list; None: image_names.* beside an array")
    known: Path | None = fields.input_path(None, "EmbeddingSet of real people for the filter novel; None: 1-embeddings")
    generator: str | None = fields.input_path(None, "diffusers pipeline: a folder, or a hub id, which is downloaded")
    ldm: Path | None = fields.input_path(None, "LDM for the source two-stage; None: 2-ldm")
    autoencoder: str | None = fields.input_path(None, "its autoencoder or decoder; None: 2-decoder or that of training")
    weights: Path | None = fields.input_path(None, "recognizer; None: the one that made 1-embeddings")
    backbone: PluginConfig | None = PluginSection("backbone", default=None)
    align: DetectFaces | None = fields.affects_result(
        None, "align.detector=FILE: given or drawn images are photos, find and align their faces"
    )
    batch_size: int = fields.batch_setting(32, "faces the networks see at once", ge=1)
    patience: int = fields.runtime_only(
        5000, "candidates in a row without a kept one, after which an endless source is given up", ge=1
    )


def plan(cfg: GenContextsConfig, work: Work) -> dict[str, Any]:
    """Return what `run` would do: counts, network evaluations at the least, disk."""
    folder = cfg.out or work.folder("contexts")
    source, filters, parents = _prepare(cfg, work)
    candidates = source.num_candidates
    least = min(n for n in (cfg.count, candidates) if n is not None)
    faces = "images" in source.needs | source.may_use and cfg.images or "recognizer" in source.needs
    return {
        "source": cfg.source.name,
        "filters": [name for name, _ in filters],
        "contexts": cfg.count if cfg.count is not None else f"at most {candidates}",
        "candidates": "without end" if candidates is None else candidates,
        "evaluations_at_least": _evaluations(source, filters, least),
        "disk_mb_about": round(least * (2 * 2048 + (25_000 if faces else 0)) / 1e6, 1),
        "inputs": {name: parent.path for name, parent in parents.items()},
        "folder": str(folder),
        "state": check_output(folder, "ContextSet", cfg, parents),
    }


def run(cfg: GenContextsConfig, work: Work) -> Outcome:
    """Collect contexts until there are `count`; only the first of several processes works.

    Raises:
        UserError: An input is missing or wrong, or the source ran dry before there were enough.
    """
    folder = cfg.out or work.folder("contexts")
    if not is_first_process():
        return Outcome(folder, {})
    source, filters, parents = _prepare(cfg, work)
    with open_output(folder, "ContextSet", "gen-contexts", cfg, parents) as out:
        if not out.finished:
            found = Progress.open(folder / FOLDER, cfg.count)
            _collect(cfg, source, filters, found, out)
            if not found.num_kept or (cfg.count is not None and not found.has(cfg.count)):
                raise _ran_dry(cfg, source, found, out, parents)
            _finish(cfg, source, found, out)
        header = out.header
    _tell_origin(cfg, source, header, folder)
    if failed := header.count("failed"):
        log.warning(f"{failed} faces could not be read; they are listed in {folder / FAILED}")
    return Outcome(folder, {"source": cfg.source.name, **header.counts, "dropped": header.extra.get("dropped")})


def _prepare(
    cfg: GenContextsConfig, work: Work
) -> tuple[ContextSource, list[tuple[str, ContextFilter]], dict[str, Parent]]:
    """Build source and filters, find and check their inputs."""
    source: ContextSource = registry.build("contexts", cfg.source)
    try:
        filters = in_order([(f.name, registry.build("context_filter", f)) for f in cfg.filters])
    except ValueError as error:
        raise UserError(f"filters: {error}") from error
    resources, parents = _Inputs(cfg, work).gather(source, [f for _, f in filters])
    source.open(resources)
    for _, context_filter in filters:
        context_filter.open(resources)
    if cfg.count is None and source.num_candidates is None:
        raise UserError(f"source {cfg.source.name} has no end; say how many contexts with --count")
    if None not in (source.embedder, resources.embedder) and source.embedder != resources.embedder:
        raise UserError(
            f"the candidates come from another recognizer ({source.embedder[:19]}) than the one that is to judge their "
            f"faces ({resources.embedder[:19]}); give --weights of theirs, and an LDM conditioned on it"
        )
    if resources.known is not None:
        _check_same_space(source, resources, parents["known"])
    return source, filters, parents


def _evaluations(source: ContextSource, filters: list[tuple[str, ContextFilter]], candidates: int) -> dict[str, int]:
    """Return how often each network is evaluated if every candidate is kept."""
    totals: Counter[str] = Counter()
    for part in (source, *(context_filter for _, context_filter in filters)):
        totals.update({network: number * candidates for network, number in part.evaluations.items()})
    return dict(totals)


def _check_same_space(source: ContextSource, resources: Resources, known: Parent) -> None:
    """Cosines between embeddings of different recognizers mean nothing."""
    if None in (source.embedder, resources.known_embedder):
        log.warning(f"{known.path} and the candidates: no telling whether they come from the same recognizer")
    elif resources.known_embedder != source.embedder:
        raise UserError(
            f"{known.path} was made by another recognizer ({resources.known_embedder[:19]}) than the candidates "
            f"({source.embedder[:19]}); embed it again with the same one"
        )


def _collect(
    cfg: GenContextsConfig,
    source: ContextSource,
    filters: list[tuple[str, ContextFilter]],
    found: Progress,
    out: Output,
) -> None:
    """Judge candidates until there are enough, the source has no more, or patience ends."""
    if found.has(cfg.count):
        return
    for _, context_filter in filters:
        context_filter.restore(found.vectors)
    total = cfg.count if cfg.count is not None else source.num_candidates
    with progress("gen-contexts", total, unit="contexts", done=found.num_kept) as bar:
        for batch in source.candidates(found.next_candidate):
            block, faces = judge(batch, filters)
            room = found.room(cfg.count)
            if room is not None and len(block.origins) >= room:
                block = block.cut(room)
            names = [
                face and _write_face(out.folder, found.num_kept + row, face)
                for row, face in enumerate(faces[: len(block.origins)])
            ]
            found.add(dataclasses.replace(block, faces=names))
            bar.advance(len(block.origins), candidates=found.next_candidate)
            if found.has(cfg.count) or _is_hopeless(cfg, source, found):
                return
            signals.check()


def _write_face(folder: Path, row: int, face: bytes) -> str:
    """Store the face of a context. Padded names: as strings they sort like the rows, as published tools expect."""
    name = f"{row:07d}{face_suffix(face)}"
    write_bytes(folder / FACES / name, face, durable=False)
    return name


def _is_hopeless(cfg: GenContextsConfig, source: ContextSource, found: Progress) -> bool:
    return source.num_candidates is None and found.next_candidate - 1 - found.last_kept() >= cfg.patience


def _finish(cfg: GenContextsConfig, source: ContextSource, found: Progress, out: Output) -> None:
    blocks = found.blocks
    origins = [{"source": cfg.source.name, **origin} for block in blocks for origin in block.origins]
    faces = [face for block in blocks for face in block.faces]
    write_contexts(out.folder, [str(row) for row in range(len(origins))], found.vectors, origins, faces)
    failed = [text for block in blocks for _, text in block.failed]
    if failed:
        write_text(out.folder / FAILED, "".join(f"{text}\n" for text in failed))
    counts = {
        "contexts": len(origins),
        "faces": sum(face is not None for face in faces),
        "candidates": found.next_candidate,
        "failed": len(failed),
    }
    digest = json_digest([source.embedder, *(file_digest(out.folder / name) for name in (VECTORS, ROWS))])
    extra = {"embedder": source.embedder, "dropped": found.dropped()}
    if counts["faces"]:
        extra[FACE_ORIGIN] = _face_origin(source)
    out.finish(counts, extra=extra, digest=digest)


def _tell_origin(cfg: GenContextsConfig, source: ContextSource, header: Header, folder: Path) -> None:
    """Say what the faces are where that is not clear, or where a finished folder says something else."""
    if not header.count("faces"):
        return
    kept = header.extra.get(FACE_ORIGIN, UNKNOWN)
    if kept != _face_origin(source):
        log.warning(f"{folder} is finished and says of its faces: {kept}; that they are {_face_origin(source)} is not "
                    "noted there (augment takes faces_origin)")
    elif kept == UNKNOWN:
        log.warning(f"{header.counts['faces']} context faces are of unknown origin; {cfg.source.name} takes "
                    "source.origin=generated or source.origin=photo")
    elif kept == PHOTO:
        log.warning(f"{header.counts['faces']} context faces are photos of real people; augment will not add them to a "
                    "set unless told to")


def _face_origin(source: ContextSource) -> Origin:
    return getattr(source, "face_origin", UNKNOWN)  # plugins of others may be older than the attribute


def _ran_dry(
    cfg: GenContextsConfig, source: ContextSource, found: Progress, out: Output, parents: dict[str, Parent]
) -> UserError:
    """Say what there is, and note it as the wanted number, so that asking for it finishes the folder at once."""
    dropped = ", ".join(f"{name} dropped {number}" for name, number in found.dropped().items())
    failed = sum(len(block.failed) for block in found.blocks)
    why = f"source {cfg.source.name} ran dry" if source.num_candidates is not None else (
        f"source {cfg.source.name} yields nothing new any more (the last {cfg.patience} candidates were all dropped)"
    )
    kept = found.num_kept
    seen = f"kept {kept} of {found.next_candidate} candidates ({dropped or 'no filter'}; {failed} unreadable)"
    if not kept:
        return UserError(f"{why}: {seen}")
    lowered = cfg.model_copy(update={"count": kept})
    begun = Header("ContextSet", "gen-contexts", lowered.to_json(), parents)
    write_json(out.folder / BEGUN, dataclasses.asdict(begun))
    return UserError(
        f"{why}: {seen}, {cfg.count} are wanted; --count {kept} finishes with these, "
        "more need another source or a filter with a higher r (and another --out)"
    )


class _Inputs:
    """Finds and loads what a source and its filters need; one method for each of `NEEDS`.

    Args:
        cfg: Settings.
        work: Where earlier stages left theirs.
    """

    def __init__(self, cfg: GenContextsConfig, work: Work) -> None:
        self._cfg = cfg
        self._device = _device(cfg.device)
        self._decoder = work.decoder_for(cfg.ldm)
        self._paths: dict[str, Any] = {
            "images": cfg.images,
            "embeddings": cfg.embeddings,
            "known": cfg.known or _existing(work.folder("embeddings")),
            "generator": cfg.generator,
            "ldm": cfg.ldm or _existing(work.folder("ldm")),
            "recognizer": cfg.weights or _backbone_file(cfg.backbone) or _recognizer_of(work.folder("embeddings")),
        }

    def gather(self, source: ContextSource, filters: list[ContextFilter]) -> tuple[Resources, dict[str, Parent]]:
        """Load what is needed.

        Raises:
            UserError: Something is missing (all of it is named) or not what was expected.
        """
        cfg, paths = self._cfg, self._paths
        needs = set(source.needs).union(*(f.needs for f in filters))
        missing = sorted(need for need in needs if paths[need] is None)
        if missing:
            wants = ", ".join(f"{NEEDS[need]} ({_HOW[need]})" for need in missing)
            raise UserError(f"source {cfg.source.name} with {[f.name for f in cfg.filters]}: give {wants}")
        values: dict[str, Any] = {"seed": cfg.seed, "batch_size": cfg.batch_size}
        parents: dict[str, Parent] = {}
        for need in sorted(needs | {need for need in source.may_use if paths[need] is not None}):
            getattr(self, f"_load_{need}")(paths[need], values, parents)
        if "ldm" in needs and values["ldm"].settings.embedder not in (None, values["embedder"]):
            raise UserError(
                f"{paths['ldm']} was conditioned on another recognizer ({values['ldm'].settings.embedder[:19]}) than "
                f"{paths['recognizer']} ({values['embedder'][:19]}); its contexts must come from the same one"
            )
        if cfg.align is not None and "recognizer" in needs:
            detector = Yunet(cfg.align.detector)
            values["align"] = FaceAligner(detector.find, cfg.align)
            parents["detector"] = Parent(str(cfg.align.detector), detector.digest)
        elif cfg.align is not None:
            log.warning(f"align is given, but source {cfg.source.name} embeds no faces")
        self._warn_of_unused(needs | source.may_use)
        return Resources(**values), parents

    def _warn_of_unused(self, used: set[str]) -> None:
        for need, key in {"recognizer": "weights", "autoencoder": "autoencoder", **{n: n for n in _HOW}}.items():
            if key in GenContextsConfig.model_fields and getattr(self._cfg, key) is not None:
                if {"autoencoder": "ldm"}.get(need, need) not in used:
                    log.warning(f"{key} is given, but source {self._cfg.source.name} and its filters do not use it")

    def _load_images(self, path: Path, values: dict[str, Any], parents: dict[str, Parent]) -> None:
        values["images"] = open_images(path)
        parents["images"] = values["images"].parent()

    def _load_embeddings(self, path: Path, values: dict[str, Any], parents: dict[str, Parent]) -> None:
        values["embeddings"] = read_given_vectors(path, self._cfg.embedding_names)
        parents["embeddings"] = values["embeddings"].parent

    def _load_known(self, path: Path, values: dict[str, Any], parents: dict[str, Parent]) -> None:
        known = read_given_vectors(path)
        values.update(known=known.vectors, known_embedder=known.embedder)
        parents["known"] = known.parent

    def _load_generator(self, name: str, values: dict[str, Any], parents: dict[str, Parent]) -> None:
        folder = find_pipeline(name)
        values["pipeline"] = load_pipeline(folder, self._device)
        parents["generator"] = Parent(name, path_digest(folder))

    def _load_ldm(self, path: Path, values: dict[str, Any], parents: dict[str, Parent]) -> None:
        if path.is_dir() and ((path / HEADER).exists() or (path / BEGUN).exists()):
            require_header(path, "Weights")
        loaded = load_denoiser(path)
        settings = loaded.config
        facts = settings.model_dump(mode="json", exclude={"autoencoder", "embedder"})
        parents["ldm"] = Parent(str(path), json_digest([loaded.digest, facts]))
        autoencoder = self._open_decoder(path, settings.autoencoder)
        section = autoencoder.section
        if autoencoder.latent_channels != settings.latent_channels:
            raise UserError(
                f"{path} makes latents of {settings.latent_channels} channels; the autoencoder "
                f"{section['path'] or section['name']} takes {autoencoder.latent_channels}"
            )
        digest = section["digest"] or json_digest([section["name"], section["settings"]])
        parents["autoencoder"] = Parent(section["path"] or section["name"], digest)
        values["ldm"] = Ldm(loaded.module.to(self._device), autoencoder.to(self._device), settings, self._device)

    def _open_decoder(self, ldm: Path, section: dict[str, Any] | None) -> torch.nn.Module:
        """Load the autoencoder the LDM was trained with, or the one given instead."""
        given = self._cfg.autoencoder or self._decoder
        if section is None:
            if given is None:
                raise UserError(f"{ldm} does not say which autoencoder it was trained with; give --autoencoder")
            return load_autoencoder(given, part="decoder")
        return open_decoder(section, given)

    def _load_recognizer(self, path: Path, values: dict[str, Any], parents: dict[str, Parent]) -> None:
        backbone = load_backbone(path, self._cfg.backbone)
        values.update(embedder=backbone.digest, features=_features(backbone, self._cfg.batch_size, self._device))
        parents["weights"] = Parent(str(path), backbone.digest)


_HOW = {
    "images": "--images",
    "embeddings": "--embeddings",
    "known": "known=FOLDER, or run embed",
    "generator": "--generator",
    "ldm": "--ldm, or run train-ldm, or --starter packaged; the source sphere needs no network",
    "recognizer": "--weights, or run embed, or --starter packaged",
}


def _existing(folder: Path) -> Path | None:
    return folder if folder.exists() else None


def _backbone_file(backbone: PluginConfig | None) -> Path | None:
    """Some backbones (`onnx`) name their file themselves."""
    return getattr(backbone, "weights", None)


def _recognizer_of(embeddings: Path) -> Path | None:
    """Return the weights that made the embeddings of this run, if they still lie where they did."""
    header = read_header(embeddings) if embeddings.is_dir() else None
    parent = header.parents.get("weights") if header else None
    return Path(parent.path) if parent and Path(parent.path).exists() else None


def _features(backbone: LoadedBackbone, batch_size: int, device: torch.device) -> Callable[[np.ndarray], np.ndarray]:
    """Return (N, 112, 112, 3) uint8 -> (N, 512) float64 rows; the network always sees full batches."""
    network = backbone.module.to(device)
    options = EmbedOptions(backbone.input_size, batch_size, device, flip=False, fit="exact")

    def features(faces_u8: np.ndarray) -> np.ndarray:
        pixels = resize_pixels(to_pixels(faces_u8), backbone.input_size, antialias=True)
        batches = fixed_batches(len(pixels), batch_size)
        rows = [embed_faces(network, list(pixels[batch.start : batch.stop]), options) for batch in batches]
        return np.concatenate(rows)

    return features


def _device(name: str) -> torch.device:
    if name != "auto":
        return torch.device(check_device(name))
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
