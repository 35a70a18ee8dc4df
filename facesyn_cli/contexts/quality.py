"""The context filter `quality`: accept identities of which the LDM draws good faces.

Not every direction is a person that an LDM can draw: of some its faces look unlike photos, or like somebody else. A few
faces are drawn of every candidate, and it is accepted when

    mean_j |g(x_j)| >= lowest_length       and       mean_j cos(g(x_j), c) >= lowest_cosine

with g the embedding before it is normalized. The length of that vector follows the quality of a face image: Kim et al.
2022, AdaFace, arXiv:2204.00964, section 3.2, where it stands in for quality in training; Meng et al. 2021, MagFace,
arXiv:2103.06627. Typical lengths depend on the recognizer, so the filter logs those of the first candidates.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import SerializeAsAny, field_validator

from facesyn_cli import signals
from facesyn_cli.artifacts.vector_files import EMBEDDING_SIZE
from facesyn_cli.config.fields import affects_result
from facesyn_cli.console import log
from facesyn_cli.contexts.faces import to_face
from facesyn_cli.contexts.ldm_faces import LdmFaces
from facesyn_cli.contexts.source import ContextFilter, Resources
from facesyn_cli.diffusion.guidance import CfgConfig
from facesyn_cli.errors import UserError
from facesyn_cli.plugins import registry
from facesyn_cli.plugins.registry import Card, register
from facesyn_cli.plugins.settings import PluginConfig, PluginSection, configured

_NOISE = "quality"  # image j of every candidate starts from the noise of (seed, "quality", j)


class QualityConfig(PluginConfig):
    """Settings of the filter `quality`; the networks are `ldm`, `autoencoder` and `weights`."""

    images: int = affects_result(4, "faces drawn of each candidate", ge=1)
    lowest_length: float = affects_result(0.0, "mean length of their embeddings below which it is dropped", ge=0)
    lowest_cosine: float = affects_result(0.2, "mean cosine to the candidate below which it is dropped", ge=-1, le=1)
    scheduler: SerializeAsAny[PluginConfig] = PluginSection("scheduler", default="ddim")
    guidance: float | SerializeAsAny[PluginConfig] = affects_result(
        1.5, "guidance, as in sample; a number: classifier-free guidance of this scale, 1 for none"
    )

    @field_validator("guidance", mode="before")
    @classmethod
    def _is_scale_or_plugin(cls, value: Any) -> Any:
        try:
            scale = float(value)
        except (TypeError, ValueError):
            return configured("guidance", value)
        return CfgConfig(name="cfg", scale=scale).scale


@register(
    "context_filter",
    "quality",
    Card(
        about="Keep a candidate only if the LDM draws good faces of it: long embeddings, close to the candidate.",
        paper="length as quality: AdaFace, Kim et al. 2022, arXiv:2204.00964, section 3.2",
    ),
)
class Quality(ContextFilter):
    """Drop candidates of which the LDM draws poor or other faces."""

    needs = frozenset({"ldm", "recognizer"})

    def __init__(self, cfg: QualityConfig) -> None:
        self._cfg, self._has_logged = cfg, False

    def open(self, resources: Resources) -> None:
        """Build the pipeline of the LDM.

        Raises:
            UserError: The LDM is unconditional or takes contexts of another length, or the guidance needs contexts of
                others; or as `LdmFaces`.
        """
        super().open(resources)
        size = resources.ldm.config.embedding_size
        if not getattr(resources.ldm.module, "is_conditional", True):
            raise UserError("filter quality: the LDM is unconditional, its faces show no candidate")
        if size != EMBEDDING_SIZE:
            raise UserError(f"filter quality: the LDM takes contexts of {size} numbers, candidates have "
                            f"{EMBEDDING_SIZE}")
        given = self._cfg.guidance
        cfg = given if isinstance(given, PluginConfig) else CfgConfig(name="cfg", scale=given)
        guidance = registry.build("guidance", cfg)
        if guidance.negatives is not None:
            raise UserError(f"filter quality: guidance {cfg.name} mixes with contexts of others, which there are none "
                            "of yet; take none, cfg or internal")
        self._faces = LdmFaces(resources, "filter quality", _NOISE, self._cfg.scheduler, guidance)
        self.evaluations = {name: number * self._cfg.images for name, number in self._faces.evaluations.items()}

    def select(self, vectors: np.ndarray) -> np.ndarray:
        """Keep candidates whose faces are good enough; see `ContextFilter.select`."""
        keep = np.zeros(len(vectors), dtype=bool)
        group = max(1, self.resources.batch_size // self._cfg.images)
        for start in range(0, len(vectors), group):
            signals.check()
            some = vectors[start : start + group]
            lengths, cosines = self._judge(np.resize(some, (group, some.shape[1])))  # always full batches
            if not self._has_logged:
                self._log(lengths[: len(some)], cosines[: len(some)])
            good = (lengths >= self._cfg.lowest_length) & (cosines >= self._cfg.lowest_cosine)
            keep[start : start + group] = good[: len(some)]
        return keep

    def _log(self, lengths: np.ndarray, cosines: np.ndarray) -> None:
        self._has_logged = True
        found = {"lengths": lengths, "cosines": cosines}
        ranges = [f"{name} {v.min():.3g} to {v.max():.3g}, median {np.median(v):.3g}" for name, v in found.items()]
        log.info(f"quality: the first {len(lengths)} candidates have {'; '.join(ranges)}")

    def _judge(self, contexts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return mean length and mean cosine of the faces of each context, both (N,)."""
        count, images = len(contexts), self._cfg.images
        drawn = self._faces.draw(contexts.repeat(images, axis=0), list(range(images)) * count)
        features = self.resources.features(np.stack([to_face(image_u8) for image_u8 in drawn]))
        lengths = np.linalg.norm(features, axis=1).reshape(count, images)
        dots = np.einsum("nje,ne->nj", features.reshape(count, images, -1), contexts)
        return lengths.mean(axis=1), (dots / np.maximum(lengths, 1e-12)).mean(axis=1)
