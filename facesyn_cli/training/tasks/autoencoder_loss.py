"""The loss of an autoencoder: reconstruction in pixels and in features of a recognizer, and penalties of the latents.

Every term is one number per image; a batch's loss is the mean over its images of the weighted sum.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from facesyn_cli.training.tasks.feature_distance import FeatureDistance


@dataclass(frozen=True)
class LossWeights:
    """Weight of every term; a term whose weight is 0 is not computed.

    Args:
        l1: Mean absolute difference of pixels in [-1, 1].
        mse: Mean squared difference of pixels in [-1, 1].
        feature: Distance of the recognizer's feature maps.
        identity: 1 - cosine of its embeddings.
        kl: Divergence from the standard normal, mean over the elements of a latent.
        codebook: Squared distance that moves codes to latents.
        commitment: Squared distance that moves latents to their codes.
        drawn_identity: 1 - cosine of the recognizer's embedding of a face of a sampled latent, to its context.
    """

    l1: float
    mse: float
    feature: float
    identity: float
    kl: float
    codebook: float
    commitment: float
    drawn_identity: float = 0.0


@dataclass(frozen=True)
class LossTerms:
    """The loss of a batch, term by term.

    Args:
        reconstruction: (B,) weighted terms that depend on the reconstruction.
        drawn: (D,) weighted terms of the faces decoded from sampled latents.
        penalty: (B,) weighted penalties of the latents.
        each: Every term that was computed, by name, (B,) or (D,), not weighted, without gradient.
    """

    reconstruction: Tensor
    drawn: Tensor
    penalty: Tensor
    each: dict[str, Tensor]


class AutoencoderLoss:
    """The terms without weights of their own; the adversarial one is `discriminator.py`.

    Args:
        weights: Weight of each term.
        features: The recognizer that computes `feature` and `identity`; None without one.
    """

    def __init__(self, weights: LossWeights, features: FeatureDistance | None = None) -> None:
        self.weights, self.features = weights, features

    def __call__(
        self, made: Tensor, real: Tensor, penalties: dict[str, Tensor], contexts: Tensor | None = None,
        coarse: float = 1.0,
    ) -> LossTerms:
        """Return the terms of reconstructions of `real` pixels and of faces decoded from sampled latents.

        Args:
            made: (B + D, 3, S, S), not clamped: the reconstructions, then the faces of sampled latents.
            real: (B, 3, S, S), the images in [-1, 1].
            penalties: Of the autoencoder's training pass, by name.
            contexts: (D, E) contexts of the sampled latents; None: D is 0.
            coarse: Share of the side to which the recognizer's input is resized.
        """
        weights, count = self.weights, len(real)
        difference = made[:count].float() - real.float()
        rest: dict[str, Tensor] = {}
        terms: dict[str, Tensor] = {}
        drawn: dict[str, Tensor] = {}
        if weights.l1:
            terms["l1"] = difference.abs().mean(dim=(1, 2, 3))
        if weights.mse:
            terms["mse"] = (difference**2).mean(dim=(1, 2, 3))
        if self.features is not None:
            with torch.no_grad():
                real_features = self.features.extract(real, coarse)
            made_features = self.features.extract(made, coarse)
            terms.update(self.features.distances(made_features.first(count), real_features))
            terms = {name: term for name, term in terms.items() if getattr(weights, name)}
            if contexts is not None and weights.drawn_identity:
                vectors = made_features.embeddings[count:].float()
                drawn["drawn_identity"] = 1.0 - F.cosine_similarity(vectors, contexts.float())
        for name, penalty in penalties.items():
            if getattr(weights, name):
                rest[name] = penalty
        zero = torch.zeros(count, device=real.device)
        return LossTerms(
            sum((getattr(weights, name) * term for name, term in terms.items()), zero),
            weights.drawn_identity * drawn.get("drawn_identity", zero[:0]),
            sum((getattr(weights, name) * term for name, term in rest.items()), zero),
            {name: term.detach() for name, term in {**terms, **drawn, **rest}.items()},
        )
