"""Find and load the inputs of context sources and filters, and check that they belong to one recognizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from facesyn_cli.artifacts.digest import json_digest, path_digest
from facesyn_cli.artifacts.embedder_match import require_same_embedder
from facesyn_cli.artifacts.header import Parent, read_header
from facesyn_cli.artifacts.record_set_images import open_images
from facesyn_cli.artifacts.work import Work
from facesyn_cli.console import log
from facesyn_cli.contexts.diffusers_pipeline import find_pipeline, load_pipeline
from facesyn_cli.contexts.embedding_files import read_given_vectors
from facesyn_cli.contexts.endless import BLOCK
from facesyn_cli.contexts.source import NEEDS, ContextFilter, ContextSource, Resources
from facesyn_cli.data.alignment import DetectFaces, FaceAligner
from facesyn_cli.errors import UserError
from facesyn_cli.evaluation.embedding import FaceEmbedder
from facesyn_cli.models.loading import load_backbone
from facesyn_cli.models.yunet import Yunet
from facesyn_cli.plugins.settings import PluginConfig
from facesyn_cli.sampling.inputs import open_ldm

_HOW = {
    "images": "--images",
    "embeddings": "--embeddings",
    "known": "known=FOLDER, or run embed",
    "generator": "--generator",
    "ldm": "--ldm, or run train-ldm, or --starter packaged; the source sphere needs no network",
    "recognizer": "--weights, or run embed, or --starter packaged",
}
_NETWORKS = {"generator", "ldm", "recognizer"}
_SETTINGS = {"weights": "recognizer", "autoencoder": "ldm"}  # settings called otherwise than what they are needed for


@dataclass(frozen=True)
class ContextInputs:
    """The inputs that settings name; each is loaded only where a source or filter needs it.

    Args:
        given: Settings by name, as the user gave them; None: not given.
        seed: Seed of everything random.
        batch_size: Faces the networks see at once.
        device: Where networks run.
        backbone: Settings of the recognizer; None: as its file says.
        align: Finds and aligns the faces of given or drawn images; None: they are faces.
    """

    given: Mapping[str, Any]
    seed: int
    batch_size: int
    device: torch.device
    backbone: PluginConfig | None = None
    align: DetectFaces | None = None

    def open(
        self, source: ContextSource, source_name: str, filters: list[tuple[str, ContextFilter]], work: Work
    ) -> tuple[Resources, dict[str, Parent]]:
        """Load what is needed, from the settings or else from earlier stages, and open source and filters with it.

        Raises:
            UserError: An input is missing (all missing ones are named) or not what was expected.
        """
        names = [name for name, _ in filters]
        paths = self._paths(work)
        needs = set(source.needs).union(*(context_filter.needs for _, context_filter in filters))
        missing = sorted(need for need in needs if paths[need] is None)
        if missing:
            wanted = ", ".join(f"{NEEDS[need]} ({_HOW[need]})" for need in missing)
            with_filters = f" with the filters {', '.join(names)}" if names else ""
            raise UserError(f"source {source_name}{with_filters}: give {wanted}")
        self._warn_of_unused(source_name, needs | source.may_use)
        batch_size = self.batch_size if needs & _NETWORKS else BLOCK
        values: dict[str, Any] = {"seed": self.seed, "batch_size": batch_size, "device": self.device}
        parents: dict[str, Parent] = {}
        for need in sorted(needs | {need for need in source.may_use if paths[need] is not None}):
            values |= getattr(self, f"_open_{need}")(paths[need], parents)
        if self.align is not None and "recognizer" in needs:
            detector = Yunet(self.align.detector)
            values["align"] = FaceAligner(detector.find, self.align)
            parents["detector"] = Parent(str(self.align.detector), detector.digest)
        resources = Resources(**values)
        source.open(resources)
        for _, context_filter in filters:
            context_filter.open(resources)
        _check_embedders(source, resources, parents)
        return resources, parents

    def _paths(self, work: Work) -> dict[str, Any]:
        given = self.given
        own_file = getattr(self.backbone, "weights", None)  # of a backbone that names its file itself, such as onnx
        return {
            "images": given["images"],
            "embeddings": given["embeddings"],
            "known": given["known"] or _existing(work.folder("embeddings")),
            "generator": given["generator"],
            "ldm": given["ldm"] or _existing(work.folder("ldm")),
            "recognizer": given["weights"] or own_file or _recognizer_of(work.folder("embeddings")),
        }

    def _warn_of_unused(self, source_name: str, used: set[str]) -> None:
        for name in sorted({*(need for need in _HOW if need in self.given), *_SETTINGS}):
            if self.given[name] is not None and _SETTINGS.get(name, name) not in used:
                log.warning(f"{name} is given, but source {source_name} and its filters do not use it")
        if self.align is not None and "recognizer" not in used:
            log.warning(f"align is given, but source {source_name} embeds no faces")

    def _open_images(self, path: Path, parents: dict[str, Parent]) -> dict[str, Any]:
        images = open_images(path)
        parents["images"] = images.parent()
        return {"images": images}

    def _open_embeddings(self, path: Path, parents: dict[str, Parent]) -> dict[str, Any]:
        given = read_given_vectors(path, self.given["embedding_names"])
        parents["embeddings"] = given.parent
        return {"embeddings": given}

    def _open_known(self, path: Path, parents: dict[str, Parent]) -> dict[str, Any]:
        known = read_given_vectors(path)
        parents["known"] = known.parent
        return {"known": known.vectors, "known_people": known.people(), "known_embedder": known.embedder}

    def _open_generator(self, name: str, parents: dict[str, Parent]) -> dict[str, Any]:
        folder = find_pipeline(name)
        parents["generator"] = Parent(name, path_digest(folder))
        return {"generator": load_pipeline(folder, self.device)}

    def _open_ldm(self, path: Path, parents: dict[str, Parent]) -> dict[str, Any]:
        ldm, autoencoder, found = open_ldm(path, self.given["autoencoder"])
        section = autoencoder.section
        digest = section["digest"] or json_digest([section["name"], section["settings"]])
        parents |= {**found, "autoencoder": Parent(section["path"] or section["name"], digest)}
        return {"ldm": ldm, "autoencoder": autoencoder}

    def _open_recognizer(self, path: Path, parents: dict[str, Parent]) -> dict[str, Any]:
        backbone = load_backbone(path, self.backbone)
        parents["weights"] = Parent(str(path), backbone.digest)
        embedder = FaceEmbedder.of(backbone, self.device, self.batch_size)
        return {"embedder": backbone.digest, "features": embedder.features}


def _check_embedders(source: ContextSource, resources: Resources, parents: dict[str, Parent]) -> None:
    """Raise where candidates, recognizer, LDM or known people belong to different recognizers."""
    candidates = {"the candidates": source.embedder}
    if resources.embedder is not None:
        advice = "give --weights of the candidates' recognizer, and an LDM conditioned on it"
        require_same_embedder({**candidates, parents["weights"].path: resources.embedder}, advice)
        if resources.ldm is not None:
            conditioned = {parents["ldm"].path: resources.ldm.config.embedder_beside(resources.embedder)}
            require_same_embedder({**conditioned, parents["weights"].path: resources.embedder}, advice)
    if resources.known is not None:
        known = {parents["known"].path: resources.known_embedder}
        require_same_embedder({**candidates, **known}, "embed the known people with the candidates' recognizer")
        if None in (source.embedder, resources.known_embedder):
            log.warning(f"{parents['known'].path} and the candidates: unknown whether they belong to one recognizer")


def _existing(folder: Path) -> Path | None:
    return folder if folder.exists() else None


def _recognizer_of(embeddings: Path) -> Path | None:
    """Return the weights that made the embeddings of this run, where they still exist."""
    header = read_header(embeddings) if embeddings.is_dir() else None
    parent = header.parents.get("weights") if header else None
    return Path(parent.path) if parent and Path(parent.path).exists() else None
