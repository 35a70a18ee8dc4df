"""What a set of images may have besides contexts: variations of them, and identities to guide away from.

Both may depend on contexts of identities that are not sampled (who is the nearest?). Then the whole set of
contexts is an input, compared by its content: where it grows, images made before would not be made again.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from facesyn_cli.artifacts.context_set import ContextSet
from facesyn_cli.artifacts.embedding_set import normalize
from facesyn_cli.artifacts.header import Parent
from facesyn_cli.diffusion.guidance import Guidance
from facesyn_cli.diffusion.guidance_negative import NegativeContexts
from facesyn_cli.errors import UserError
from facesyn_cli.plugins import registry
from facesyn_cli.plugins.settings import PluginConfig


def open_variation(cfg: PluginConfig | None, contexts: ContextSet, seed: int) -> tuple[Any, dict[str, Parent]]:
    """Build the variation of contexts, if any.

    Args:
        cfg: A `context_variation` plugin.
        contexts: The whole set.
        seed: Seed of everything random.

    Returns:
        The plugin (`contexts/variation.py`) or None, and what it read for the header.

    Raises:
        UserError: One of its inputs is not what was expected.
    """
    if cfg is None:
        return None, {}
    variation = registry.build("context_variation", cfg)
    parents = variation.open(np.asarray(contexts.vectors, dtype=np.float32), contexts.identities, seed)
    if variation.embedder and contexts.embedder and variation.embedder != contexts.embedder:
        raise UserError(
            f"variation {cfg.name} brings contexts of recognizer {variation.embedder[:19]}, {contexts.path} comes from"
            f" {contexts.embedder[:19]}; they must come from the same one"
        )
    if variation.needs_all_contexts:
        parents = {**parents, "all_contexts": Parent(str(contexts.path), contexts.digest)}
    return variation, parents


def open_negatives(
    guidance: Guidance, cfg: PluginConfig, contexts: ContextSet, seed: int
) -> tuple[NegativeContexts | None, dict[str, Parent]]:
    """Find the contexts that images are guided away from, if the guidance wants any.

    Args:
        guidance: Built from `cfg`.
        cfg: Its settings; `contexts` is the path of a set, None for the set that is sampled.
        contexts: The set that is sampled.
        seed: Seed of everything random.

    Raises:
        UserError: They belong to another recognizer, have another size, or are too few.
    """
    if guidance.negatives is None:
        return None, {}
    path = getattr(cfg, "contexts", None)
    pool = contexts if path is None else ContextSet.open(path)
    if pool.vectors.shape[1] != contexts.vectors.shape[1]:
        raise UserError(
            f"guidance.contexts {pool.path} holds contexts of {pool.vectors.shape[1]} numbers, {contexts.path} of"
            f" {contexts.vectors.shape[1]}"
        )
    if pool.embedder and contexts.embedder and pool.embedder != contexts.embedder:
        raise UserError(
            f"guidance.contexts {pool.path} comes from recognizer {pool.embedder[:19]}, {contexts.path} from"
            f" {contexts.embedder[:19]}; they must come from the same one"
        )
    negatives = NegativeContexts(normalize(pool.vectors), guidance.negatives, seed)
    return negatives, {"negatives": Parent(str(pool.path), pool.digest)}
