"""Identities drawn by the own LDM: a face under the empty context, then its embedding.

The two-stage contexts of IDiff-Face (Boutros et al. 2023, arXiv:2308.04995): an LDM trained with
whole-context dropout also draws faces without a context; their embeddings are identities that its
training set did not hold, yet lie where real embeddings lie.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import SerializeAsAny

from facesyn_cli.artifacts.origins import GENERATED
from facesyn_cli.contexts.drawing import Drawing
from facesyn_cli.contexts.generated import generated_candidates
from facesyn_cli.contexts.source import CandidateBatch, Resources
from facesyn_cli.diffusion.guidance import NoGuidanceConfig, build_none
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig, PluginSection

_NOISE = "context"  # whose noise it is: candidate k starts from the noise of (seed, "context", k)


class TwoStageConfig(PluginConfig):
    """Settings of the source `two-stage`; the networks are `ldm`, `autoencoder` and `weights`."""

    scheduler: SerializeAsAny[PluginConfig] = PluginSection("scheduler", default="ddim")


class TwoStage:
    """Endless faces of the own LDM under the empty context.

    Args:
        scheduler: Settings of the scheduler.
    """

    needs: frozenset[str] = frozenset({"ldm", "recognizer"})
    may_use: frozenset[str] = frozenset()
    face_origin = GENERATED
    num_candidates = None

    def __init__(self, scheduler: PluginConfig) -> None:
        guidance = build_none(NoGuidanceConfig())
        self._drawing = Drawing("source two-stage", _NOISE, scheduler, guidance)
        self._resources = Resources()
        self.evaluations: dict[str, int] = {}

    def open(self, resources: Resources) -> None:
        """Take the networks; see `Drawing.open`."""
        self._resources = resources
        self._drawing.open(resources)
        self.evaluations = self._drawing.evaluations

    @property
    def embedder(self) -> str | None:
        """The recognizer."""
        return self._resources.embedder

    def candidates(self, start: int) -> Iterator[CandidateBatch]:
        """Yield one batch at a time."""
        return generated_candidates(self._resources, start, lambda numbers: self._drawing.draw(None, numbers))


@register(
    "contexts",
    "two-stage",
    Card(
        about="Faces the own LDM draws under the empty context, then embedded; wants one trained with context dropout.",
        paper="IDiff-Face, Boutros et al. 2023, arXiv:2308.04995",
    ),
)
def build_two_stage(cfg: TwoStageConfig) -> TwoStage:
    """Build the source."""
    return TwoStage(cfg.scheduler)
