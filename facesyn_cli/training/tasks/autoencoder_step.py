"""Loss and gradients of autoencoder training, and the step of its discriminator.

The loss is reconstruction in pixels and in features of a recognizer, and penalties of the latents. Every term is one
number per image; a batch's loss is the mean over its images of the weighted sum.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from facesyn_cli.distributed import Processes
from facesyn_cli.training.gradient_sums import GradientSums
from facesyn_cli.training.optimization import OptimizerSettings, build_optimizer
from facesyn_cli.training.precision import autocast
from facesyn_cli.training.tasks.autoencoder_batches import AutoencoderBatch
from facesyn_cli.training.tasks.discriminator import (
    AdversarialSettings,
    PatchDiscriminator,
    adaptive_factor,
    discriminator_loss,
    generator_loss,
)
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
    """

    l1: float
    mse: float
    feature: float
    identity: float
    kl: float
    codebook: float
    commitment: float


@dataclass(frozen=True)
class LossTerms:
    """The loss of a batch, term by term.

    Args:
        reconstruction: (B,) weighted terms that depend on the reconstruction.
        penalty: (B,) weighted penalties of the latents.
        each: Every term that was computed, by name, (B,), not weighted, without gradient.
    """

    reconstruction: Tensor
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

    def __call__(self, made: Tensor, real: Tensor, penalties: dict[str, Tensor]) -> LossTerms:
        """Return the terms of reconstructions.

        Args:
            made: (B, 3, S, S) reconstructions, not clamped.
            real: (B, 3, S, S), the images in [-1, 1].
            penalties: Of the autoencoder's training pass, by name.
        """
        weights, difference = self.weights, made.float() - real.float()
        terms: dict[str, Tensor] = {}
        if weights.l1:
            terms["l1"] = difference.abs().mean(dim=(1, 2, 3))
        if weights.mse:
            terms["mse"] = (difference**2).mean(dim=(1, 2, 3))
        if self.features is not None:
            terms.update(self.features(made, real))
        penalties = {name: penalty for name, penalty in penalties.items() if getattr(weights, name)}
        zero = torch.zeros(len(real), device=real.device)
        return LossTerms(
            sum((getattr(weights, name) * term for name, term in terms.items()), zero),
            sum((getattr(weights, name) * penalty for name, penalty in penalties.items()), zero),
            {name: term.detach() for name, term in {**terms, **penalties}.items()},
        )


@dataclass
class Adversary:
    """The discriminator and its optimizer.

    Args:
        settings: Its settings.
        network: The discriminator.
        optimizer: Over its parameters.
        gradients: Their sums over processes.
    """

    settings: AdversarialSettings
    network: PatchDiscriminator
    optimizer: torch.optim.Optimizer
    gradients: GradientSums


def build_adversary(
    settings: AdversarialSettings, optimizer: OptimizerSettings, seed: int, processes: Processes
) -> Adversary | None:
    """Build the discriminator, or return None where its weight is 0; its weights depend on the seed alone."""
    if not settings.weight:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        network = PatchDiscriminator(settings.channels, settings.layers)
    network = network.to(processes.device, memory_format=torch.channels_last).train()
    parameters = list(network.parameters())
    built = build_optimizer(parameters, optimizer, network)
    return Adversary(settings, network, built, GradientSums(parameters, processes))


def accumulate_gradients(
    autoencoder: nn.Module, adversary: Adversary | None, batch: AutoencoderBatch, loss: AutoencoderLoss, step: int,
    batch_size: int, precision: str, scaler: torch.amp.GradScaler, processes: Processes,
    last_pass: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> dict[str, Tensor]:
    """Add the gradient of a process's part of the global batch's mean loss, and take a step of the discriminator.

    Args:
        autoencoder: The network in training.
        adversary: The discriminator; None: there is none.
        batch: This process's share; with a teacher's latents only the decoder runs.
        loss: The terms that do not learn.
        step: Number of the step, 0-based.
        batch_size: Images of the global batch.
        precision: fp32, bf16 or fp16.
        scaler: Scales the losses.
        processes: Those that share the batch.
        last_pass: Context of the backward pass to the weights of the autoencoder.

    Returns:
        This process's part of the mean of `loss` and of every term.
    """
    pixels = batch.pixels(processes.device)
    with autocast(precision, pixels.device):
        if batch.latents is not None:
            made, penalties = autoencoder.decode(batch.latents.to(pixels.device)), {}
        else:
            made, penalties = autoencoder.training_pass(pixels, batch.noise.to(pixels.device))
        terms = loss(made, pixels, penalties)
    figures = {"loss": terms.reconstruction + terms.penalty, **terms.each}
    # From the losses to the pixels first, and from there to the weights: one backward pass through the recognizer,
    # also where the adaptive weight of the adversarial loss needs its gradient.
    gradient = torch.autograd.grad(scaler.scale(terms.reconstruction.sum()), made)[0]
    if adversary is not None and step >= adversary.settings.start:
        adversary.network.requires_grad_(False)
        with autocast(precision, pixels.device):
            figures["adversarial"] = generator_loss(adversary.network(made))
        adversarial_gradient = torch.autograd.grad(scaler.scale(figures["adversarial"].sum()), made)[0]
        factor = torch.full((), adversary.settings.weight, device=pixels.device)
        if adversary.settings.adaptive:
            at_weight = [
                torch.autograd.grad(made, autoencoder.last_layer(), part, retain_graph=True)[0]
                for part in (gradient, adversarial_gradient)
            ]
            sums = [processes.sum(part.float()) for part in at_weight]  # the scale of fp16 cancels in their ratio
            factor = factor * adaptive_factor(*sums)
        figures["adversarial_factor"] = factor.expand(len(made))
        gradient = gradient + factor.to(gradient.dtype) * adversarial_gradient
    ends: list[tuple[Tensor, Tensor | None]] = [(made, gradient / batch_size)]
    if terms.penalty.requires_grad:
        ends.append((scaler.scale(terms.penalty.sum() / batch_size), None))
    with last_pass():
        torch.autograd.backward(*zip(*ends, strict=True))
    if adversary is not None:
        figures["discriminator"] = _teach(adversary, scaler, pixels, made.detach(), batch_size, precision)
    return {name: values.detach().double().sum() / batch_size for name, values in figures.items()}


def _teach(
    adversary: Adversary, scaler: torch.amp.GradScaler, pixels: Tensor, made: Tensor, batch_size: int, precision: str,
) -> Tensor:
    """Take a step of the discriminator and return its losses."""
    adversary.network.requires_grad_(True)
    adversary.optimizer.zero_grad(set_to_none=True)
    with autocast(precision, pixels.device):
        losses = discriminator_loss(adversary.network(pixels), adversary.network(made))
    with adversary.gradients.last_pass():
        scaler.scale(losses.sum() / batch_size).backward()
    adversary.gradients.finish()
    scaler.unscale_(adversary.optimizer)
    scaler.step(adversary.optimizer)
    return losses
