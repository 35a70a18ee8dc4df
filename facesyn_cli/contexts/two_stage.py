"""The context source `two-stage`: faces drawn by the LDM under the empty context, then embedded.

The two-stage contexts of IDiff-Face (Boutros et al. 2023, arXiv:2308.04995): an LDM trained with whole-context dropout
also draws faces without a context. Their embeddings are distributed like real ones, but belong to nobody in the
training set.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import SerializeAsAny

from facesyn_cli.artifacts.origins import GENERATED
from facesyn_cli.contexts.endless import generated_candidates
from facesyn_cli.contexts.ldm_faces import LdmFaces
from facesyn_cli.contexts.source import CandidateBatch, ContextSource, Resources
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig, PluginSection

_NOISE = "context"  # candidate k starts from the noise of (seed, "context", k)


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
class TwoStage(ContextSource):
    """Endless faces of the LDM under the empty context."""

    needs = frozenset({"ldm", "recognizer"})
    face_origin = GENERATED

    def __init__(self, cfg: TwoStageConfig) -> None:
        self._scheduler = cfg.scheduler

    def open(self, resources: Resources) -> None:
        """Build the pipeline of the LDM; errors as of `LdmFaces`."""
        super().open(resources)
        self._faces = LdmFaces(resources, "source two-stage", _NOISE, self._scheduler)
        self.evaluations = self._faces.evaluations

    def candidates(self, start: int) -> Iterator[CandidateBatch]:
        """Yield one batch at a time."""
        return generated_candidates(self.resources, start, lambda numbers: self._faces.draw(None, numbers))
