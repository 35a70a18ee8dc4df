"""The inputs of sampling: contexts, an LDM and its decoder, checked against each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor, nn

from facesyn_cli.artifacts.context_set import ContextSet
from facesyn_cli.artifacts.digest import json_digest
from facesyn_cli.artifacts.embedder_match import require_same_embedder
from facesyn_cli.artifacts.header import BEGUN, HEADER, Parent, require_header
from facesyn_cli.artifacts.missing_input import missing_input
from facesyn_cli.artifacts.work import Work
from facesyn_cli.console import is_first_process, log
from facesyn_cli.errors import UserError
from facesyn_cli.models.loading import LoadedLdm, load_autoencoder, load_denoiser, open_decoder


@dataclass(frozen=True)
class SampleInputs:
    """Contexts, LDM and decoder, read from files.

    Args:
        identities: Names of the identities to sample.
        vectors: (N, E) float32 contexts, row by row.
        contexts: The whole set they are from.
        ldm: Denoiser and its settings; on the CPU, in eval mode.
        autoencoder: Its decoder; on the CPU, in eval mode.
        embedder: Digest of the recognizer behind contexts and LDM; None unknown.
        parents: The inputs for the header.
    """

    identities: list[str]
    vectors: Tensor
    contexts: ContextSet
    ldm: LoadedLdm
    autoencoder: nn.Module
    embedder: str | None
    parents: dict[str, Parent]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the LDM's latents."""
        facts = self.ldm.config
        return facts.latent_channels, facts.latent_size, facts.latent_size


def open_inputs(
    contexts_path: Path,
    ldm_path: Path,
    autoencoder_path: Path | None,
    ids: int | None,
    assumed_embedder: str | None,
) -> SampleInputs:
    """Read contexts, LDM and decoder.

    Args:
        contexts_path: Folder written by gen-contexts, or a published `.npy`.
        ldm_path: Folder written by train-ldm, or a published checkpoint.
        autoencoder_path: Autoencoder weights; None: those the LDM was trained with.
        ids: How many identities, the first of the contexts; None: all.
        assumed_embedder: Name or digest of the recognizer behind files that do not carry one.

    Raises:
        UserError: A file is not what was expected, or they do not fit together.
    """
    contexts = ContextSet.open(contexts_path)
    identities = choose_identities(contexts, ids)
    vectors = torch.from_numpy(np.asarray(contexts.vectors[: len(identities)], dtype=np.float32))
    ldm, autoencoder, parents = open_ldm(ldm_path, autoencoder_path)
    if not getattr(ldm.module, "is_conditional", True):
        raise UserError(f"{ldm_path} is an unconditional LDM: it takes no contexts, so its images have no identity")
    if vectors.shape[1] != ldm.config.embedding_size:
        raise UserError(
            f"{contexts.path} holds contexts of {vectors.shape[1]} numbers, but {ldm_path} takes"
            f" {ldm.config.embedding_size}"
        )
    beside = ldm.config.embedder_beside(contexts.embedder)
    embedders = {str(ldm_path): beside, str(contexts.path): contexts.embedder}
    embedder = require_same_embedder(embedders, "make the contexts with the LDM's recognizer", assumed_embedder)
    silent = [name for name, digest in embedders.items() if digest is None]
    if contexts.path.is_dir() and contexts.embedder is None:
        silent.remove(str(contexts.path))  # random directions of ours, which belong to no recognizer
    if silent and assumed_embedder is None and is_first_process():
        log.warning(
            f"{' and '.join(silent)} do not say which recognizer they belong to; LDM and contexts must come from the"
            " same one (--assume-embedder NAME says which, and silences this)"
        )
    parents["contexts"] = contexts.parent()
    return SampleInputs(identities, vectors, contexts, ldm, autoencoder, embedder, parents)


def existing_input(path: Path | None, work: Work, name: str, made_by: str) -> Path:
    """Return a path of the settings, or else the folder `name` of the run, which the stage `made_by` writes.

    Raises:
        UserError: It does not exist.
    """
    path = path or work.folder(name)
    if not path.exists():
        raise missing_input(path, f"the output of `facesyn {made_by}`", f"--{name} PATH or --starter packaged")
    return path


def choose_identities(contexts: ContextSet, ids: int | None) -> list[str]:
    """Return the names of the first `ids` identities, or of all; they become folders.

    Raises:
        UserError: There are fewer, one cannot be a folder name, or two have the same.
    """
    have = len(contexts.identities)
    if ids is not None and ids > have:
        raise UserError(f"ids is {ids}, but {contexts.path} holds {have} contexts")
    if not have:
        raise UserError(f"{contexts.path} holds no contexts")
    chosen = contexts.identities[:ids]
    for name in chosen:
        path = PurePosixPath(name)
        if path.is_absolute() or not path.parts or any(part.startswith(".") for part in path.parts) or "\0" in name:
            raise UserError(f"{contexts.path}: identity {name!r} cannot be a folder name")
    if len(set(chosen)) < len(chosen):
        raise UserError(f"{contexts.path} names {len(chosen) - len(set(chosen))} identities twice")
    return chosen


def open_ldm(path: Path, autoencoder_path: Path | str | None) -> tuple[LoadedLdm, nn.Module, dict[str, Parent]]:
    """Load a denoiser and what decodes its latents, on the CPU in eval mode; return them with entries for the header.

    Args:
        path: Folder written by train-ldm, or a published checkpoint.
        autoencoder_path: Autoencoder or decoder weights; None: those the LDM was trained with.

    Raises:
        UserError: One of them is not what was expected, or they do not fit together.
    """
    if path.is_dir() and ((path / HEADER).exists() or (path / BEGUN).exists()):
        require_header(path, "Weights")
    ldm = load_denoiser(path)
    section = ldm.config.autoencoder
    if section is None and autoencoder_path is None:
        raise UserError(f"{path} does not say which autoencoder it was trained with; name it with --autoencoder")
    if section is None:
        autoencoder = load_autoencoder(autoencoder_path, part="decoder")
    else:
        autoencoder = open_decoder(section, autoencoder_path)
    section = autoencoder.section
    if autoencoder.latent_channels != ldm.config.latent_channels:
        raise UserError(
            f"autoencoder {section['path'] or section['name']} has latents of {autoencoder.latent_channels} channels,"
            f" but {path} makes {ldm.config.latent_channels}"
        )
    facts = ldm.config.model_dump(mode="json", exclude={"autoencoder", "embedder"})
    parents = {
        "ldm": Parent(str(path), json_digest([ldm.digest, facts])),
        "autoencoder": Parent(
            str(section["path"] or section["name"]), json_digest([section["settings"], section["digest"]])
        ),
    }
    return ldm, autoencoder, parents
