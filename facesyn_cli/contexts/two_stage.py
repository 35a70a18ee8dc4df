"""The context source `two-stage`: faces drawn by the LDM under the empty context, then embedded.

The two-stage contexts of IDiff-Face (Boutros et al. 2023, arXiv:2308.04995): an LDM trained with whole-context dropout
also draws faces without a context. Their embeddings are distributed like real ones, but belong to nobody in the
training set.
"""

from __future__ import annotations

import numpy as np
from pydantic import SerializeAsAny

from facesyn_cli.contexts.endless import GeneratedFaces
from facesyn_cli.contexts.ldm_faces import LdmFaces
from facesyn_cli.contexts.source import Resources
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig, PluginSection


class TwoStageConfig(PluginConfig):
    """Settings of the source `two-stage`; the networks are `ldm`, `autoencoder` and `weights`."""

    scheduler: SerializeAsAny[PluginConfig] = PluginSection("scheduler", default="ddim")


@register(
    "contexts",
    "two-stage",
    Card(
        about="Faces the LDM draws under the empty context, then embedded; for LDMs trained with context dropout.",
        paper="IDiff-Face, Boutros et al. 2023, arXiv:2308.04995",
    ),
)
class TwoStage(GeneratedFaces):
    """Endless faces of the LDM under the empty context."""

    needs = frozenset({"ldm", "recognizer"})

    def __init__(self, cfg: TwoStageConfig) -> None:
        self._scheduler = cfg.scheduler

    def open(self, resources: Resources) -> None:
        """Build the pipeline of the LDM; errors as of `LdmFaces`."""
        super().open(resources)
        self._faces = LdmFaces(resources, "source two-stage", "context", self._scheduler)
        self.evaluations = self._faces.evaluations

    def draw(self, numbers: list[int]) -> np.ndarray:
        """Return a face of each candidate number; see `GeneratedFaces.draw`."""
        return self._faces.draw(None, numbers)
