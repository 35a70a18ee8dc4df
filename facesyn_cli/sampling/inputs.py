"""What sampling starts from: contexts, an LDM and its decoder, checked against each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor, nn

from facesyn_cli.artifacts.context_set import ContextSet
from facesyn_cli.artifacts.digest import json_digest
from facesyn_cli.artifacts.header import BEGUN, HEADER, Parent, require_header
from facesyn_cli.artifacts.ldm_settings import LdmSettings
from facesyn_cli.console import is_first_process, log
from facesyn_cli.errors import UserError
from facesyn_cli.models.loading import LoadedLdm, load_autoencoder, load_denoiser, open_decoder


@dataclass(frozen=True)
class SampleInputs:
    """Everything that is read from files.

    Args:
        identities: Names of the identities to sample.
        vectors: (N, E) float32 contexts, row by row.
        contexts: The whole set they are from.
        ldm: Denoiser and its settings; on the CPU, in eval mode.
        autoencoder: Its decoder; on the CPU, in eval mode.
        embedder: Digest of the recognizer behind contexts and LDM; None where nobody says.
        parents: The inputs for the header.
    """

    identities: list[str]
    vectors: Tensor
    contexts: ContextSet
    ldm: LoadedLdm
    autoencoder: nn.Module
    embedder: str | None
    parents: dict[str, Parent]


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
        assumed_embedder: Name or digest of the recognizer behind files that do not say.

    Raises:
        UserError: One of them is not what it should be, or they do not belong together.
    """
    contexts = ContextSet.open(contexts_path)
    identities = choose_identities(contexts, ids)
    vectors = torch.from_numpy(np.asarray(contexts.vectors[: len(identities)], dtype=np.float32))
    ldm = _load_ldm(ldm_path)
    if vectors.shape[1] != ldm.config.embedding_size:
        raise UserError(
            f"{contexts.path} holds contexts of {vectors.shape[1]} numbers, but {ldm_path} takes"
            f" {ldm.config.embedding_size}"
        )
    embedder = _agreed_embedder(assumed_embedder, ldm.config, ldm_path, contexts)
    autoencoder = _load_decoder(autoencoder_path, ldm.config, ldm_path)
    section = autoencoder.section
    parents = {
        "ldm": Parent(str(ldm_path), _ldm_digest(ldm)),
        "contexts": contexts.parent(),
        "autoencoder": Parent(
            str(section["path"] or section["name"]), json_digest([section["settings"], section["digest"]])
        ),
    }
    return SampleInputs(identities, vectors, contexts, ldm, autoencoder, embedder, parents)


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


def _load_ldm(path: Path) -> LoadedLdm:
    if path.is_dir() and ((path / HEADER).exists() or (path / BEGUN).exists()):
        require_header(path, "Weights")
    ldm = load_denoiser(path)
    if not getattr(ldm.module, "is_conditional", True):
        raise UserError(f"{path} is an unconditional LDM: it takes no contexts, so its images have no identity")
    return ldm


def _ldm_digest(ldm: LoadedLdm) -> str:
    settings = ldm.config.model_dump(mode="json", exclude={"autoencoder", "embedder"})
    return json_digest([ldm.digest, settings])


def _load_decoder(path: Path | None, settings: LdmSettings, ldm_path: Path) -> nn.Module:
    """Load the decoder: the one recorded with the LDM, from `path` where it is given."""
    section = settings.autoencoder
    if section is None and path is None:
        raise UserError(f"{ldm_path} does not say which autoencoder it was trained with; name it with --autoencoder")
    if section is None:
        module = load_autoencoder(path, part="decoder")
    else:
        module = open_decoder(section, path)
    if module.latent_channels != settings.latent_channels:
        raise UserError(
            f"autoencoder {path or section['path']} has latents of {module.latent_channels} channels, but {ldm_path}"
            f" makes {settings.latent_channels}"
        )
    return module


def _agreed_embedder(
    assumed: str | None, settings: LdmSettings, ldm_path: Path, contexts: ContextSet
) -> str | None:
    """Return the recognizer behind LDM and contexts; embeddings of different ones must not mix."""
    of_ldm, of_contexts = settings.embedder or assumed, contexts.embedder or assumed
    known = [e for e in (settings.embedder, contexts.embedder) if e is not None]
    is_digest = assumed is not None and assumed.startswith("sha256:")
    if of_ldm and of_contexts and of_ldm != of_contexts and (len(known) == 2 or is_digest):
        raise UserError(
            f"{ldm_path} was conditioned on recognizer {of_ldm[:19]}, but {contexts.path} comes from"
            f" {of_contexts[:19]}; make the contexts with the LDM's recognizer"
        )
    silent = [str(ldm_path)] * (settings.embedder is None)
    silent += [str(contexts.path)] * (contexts.embedder is None and contexts.path.is_file())
    if silent and assumed is None and is_first_process():
        log.warning(
            f"{' and '.join(silent)} do not say which recognizer they belong to; LDM and contexts must come from the"
            " same one (--assume-embedder NAME says which, and silences this)"
        )
    return known[0] if known else assumed
