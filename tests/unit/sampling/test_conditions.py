"""Contexts of different recognizers look alike and must not mix, whatever brings them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_ldm import EMBEDDER, write_embedding_set

from facesyn_cli.artifacts.context_set import ContextSet
from facesyn_cli.artifacts.output import open_output
from facesyn_cli.artifacts.vector_files import normalize
from facesyn_cli.config.fields import (
    StageConfig,
)
from facesyn_cli.errors import UserError
from facesyn_cli.plugins import registry
from facesyn_cli.sampling.conditions import open_negatives, open_variation

OTHER = "sha256:" + "7" * 64
VECTORS = normalize(np.random.default_rng(0).standard_normal((3, 8)))
CONTEXTS = ContextSet(list("abc"), VECTORS, [{}] * 3, [None] * 3, EMBEDDER, Path("contexts"), "sha256:1", "sha256:2")


def configure(kind: str, **settings):
    return registry.configure(kind, settings)


def test_no_variation_reads_nothing():
    assert open_variation(None, CONTEXTS, 0) == (None, {})


def test_a_variation_that_looks_at_all_contexts_names_them_by_content():
    """The lineage of a set stays when it grows; its digest does not."""
    _, parents = open_variation(configure("context_variation", name="idperturb"), CONTEXTS, 0)
    assert parents["all_contexts"].digest == "sha256:1"
    _, parents = open_variation(configure("context_variation", name="gaussian"), CONTEXTS, 0)
    assert parents == {}


def test_given_contexts_of_another_recognizer_are_refused(tmp_path):
    folder = write_embedding_set(tmp_path / "given", ["a/0"], VECTORS[:1])  # of EMBEDDER
    cfg = configure("context_variation", name="given", path=folder)
    assert open_variation(cfg, CONTEXTS, 0)[1]["variation"].path == str(folder)
    open_variation(cfg, replace(CONTEXTS, embedder=None), 0)
    with pytest.raises(UserError, match=r"variation given come from different recognizers \(sha256:7"):
        open_variation(cfg, replace(CONTEXTS, embedder=OTHER), 0)


def test_negatives_of_another_recognizer_are_refused(tmp_path):
    from facesyn_cli.artifacts.context_set import write_contexts

    with open_output(tmp_path / "others", "ContextSet", "gen-contexts", StageConfig(), {}) as out:
        write_contexts(tmp_path / "others", ["x", "y"], VECTORS[:2], [{}] * 2, [None] * 2)
        out.finish({"contexts": 2}, extra={"embedder": OTHER})
    cfg = configure("guidance", name="negfacediff", contexts=tmp_path / "others")
    guidance = registry.build("guidance", cfg)
    with pytest.raises(UserError, match=r"guidance.contexts .* come from different recognizers \(sha256:7"):
        open_negatives(guidance, cfg, CONTEXTS, 0)
    negatives, parents = open_negatives(guidance, cfg, replace(CONTEXTS, embedder=None), 0)
    assert negatives is not None and parents["negatives"].path == str(tmp_path / "others")


@pytest.mark.parametrize("settings", [{"name": "none"}, {"name": "cfg"}, {"name": "negfacediff", "negative": "empty"}])
def test_guidance_without_other_identities_reads_none(settings):
    cfg = configure("guidance", **settings)
    assert open_negatives(registry.build("guidance", cfg), cfg, CONTEXTS, 0) == (None, {})
