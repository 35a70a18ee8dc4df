"""Loss and gradients of autoencoder training, and the step of its discriminator."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from facesyn_cli.distributed import Processes
from facesyn_cli.training.optimization import OptimizerSettings, build_optimizer, reduce_gradients
from facesyn_cli.training.precision import autocast
from facesyn_cli.training.tasks.autoencoder_batches import AutoencoderBatch
from facesyn_cli.training.tasks.autoencoder_loss import AutoencoderLoss
from facesyn_cli.training.tasks.discriminator import (
    AdversarialSettings,
    PatchDiscriminator,
    adaptive_factor,
    discriminator_loss,
    generator_loss,
)


@dataclass
class Adversary:
    """The discriminator and its optimizer.

    Args:
        settings: Its settings.
        network: The discriminator.
        optimizer: Over its parameters.
    """

    settings: AdversarialSettings
    network: PatchDiscriminator
    optimizer: torch.optim.Optimizer


def build_adversary(
    settings: AdversarialSettings, optimizer: OptimizerSettings, seed: int, device: torch.device
) -> Adversary | None:
    """Build the discriminator, or return None where its weight is 0; its weights depend on the seed alone.

    Args:
        settings: Its settings.
        optimizer: Settings of its optimizer, those of the autoencoder's.
        seed: Seed of the training.
        device: Its device.
    """
    if not settings.weight:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        network = PatchDiscriminator(settings.channels, settings.layers)
    network = network.to(device, memory_format=torch.channels_last).train()
    return Adversary(settings, network, build_optimizer(network.parameters(), optimizer))


def accumulate_gradients(
    autoencoder: nn.Module, adversary: Adversary | None, batch: AutoencoderBatch, loss: AutoencoderLoss, step: int,
    batch_size: int, precision: str, scaler: torch.amp.GradScaler, processes: Processes,
) -> dict[str, Tensor]:
    """Add the gradient of a process's part of the global batch's mean loss, and take a step of the discriminator.

    Args:
        autoencoder: The network in training.
        adversary: The discriminator; None: there is none.
        batch: This process's share; with a teacher's latents only the decoder runs. Sampled latents are decoded beside
            the photos, and the discriminator sees both.
        loss: The terms that do not learn.
        step: Number of the step, 0-based.
        batch_size: Images of the global batch.
        precision: fp32, bf16 or fp16.
        scaler: Scales the losses.
        processes: Those that share the batch.

    Returns:
        This process's part of the mean of `loss` and of every term.
    """
    pixels = batch.pixels(processes.device)
    with autocast(precision, pixels.device):
        made, penalties = _reconstruct(autoencoder, batch, pixels)
        contexts = None
        if batch.drawn is not None:
            drawn, contexts = (part.to(pixels.device) for part in batch.drawn)
            made = torch.cat([made, autoencoder.decode(drawn)])
        terms = loss(made, pixels, penalties, contexts, batch.coarse)
        total = terms.reconstruction.sum() + terms.drawn.sum()
    figures = {"loss": terms.reconstruction + terms.penalty, **terms.each}
    # From the losses to the pixels first, and from there to the weights: one backward pass through the recognizer,
    # also where the adaptive weight of the adversarial loss needs its gradient.
    gradient = torch.autograd.grad(scaler.scale(total), made)[0]
    if adversary is not None and step >= adversary.settings.start:
        adversary.network.requires_grad_(False)
        with autocast(precision, pixels.device):
            figures["adversarial"] = generator_loss(adversary.network(made))
        adversarial_gradient = torch.autograd.grad(scaler.scale(figures["adversarial"].sum()), made)[0]
        factor = torch.full((), adversary.settings.weight, device=pixels.device)
        if adversary.settings.adaptive:
            gradients = gradient, adversarial_gradient  # the scale cancels in their ratio
            largest = adversary.settings.largest_factor
            factor = factor * _adaptive(made, gradients, autoencoder.last_layer(), processes, largest)
        figures["adversarial_factor"] = factor.expand(len(made))
        gradient = gradient + factor.to(gradient.dtype) * adversarial_gradient
    ends: list[tuple[Tensor, Tensor | None]] = [(made, gradient / batch_size)]
    if terms.penalty.requires_grad:
        ends.append((scaler.scale(terms.penalty.sum() / batch_size), None))
    torch.autograd.backward(*zip(*ends, strict=True))
    if adversary is not None:
        figures["discriminator"] = _teach(adversary, scaler, pixels, made.detach(), batch_size, precision, processes)
    return {
        name: values.detach().double().sum() / (len(values) // len(pixels) * batch_size)
        for name, values in figures.items()
    }


def _reconstruct(autoencoder: nn.Module, batch: AutoencoderBatch, pixels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    if batch.latents is not None:
        return autoencoder.decode(batch.latents.to(pixels.device)), {}
    return autoencoder.training_pass(pixels, batch.noise.to(pixels.device))


def _adaptive(
    made: Tensor, gradients: tuple[Tensor, Tensor], weight: nn.Parameter, processes: Processes, largest: float
) -> Tensor:
    """Return Eq. 7 of the global batch from the gradients that both losses of this process's share have at `made`."""
    at_weight = [torch.autograd.grad(made, weight, part, retain_graph=True)[0] for part in gradients]
    return adaptive_factor(*(processes.sum(part.float()) for part in at_weight), largest)


def _teach(
    adversary: Adversary, scaler: torch.amp.GradScaler, pixels: Tensor, made: Tensor, batch_size: int, precision: str,
    processes: Processes,
) -> Tensor:
    """Take a step of the discriminator and return its losses."""
    adversary.network.requires_grad_(True)
    adversary.optimizer.zero_grad(set_to_none=True)
    with autocast(precision, pixels.device):
        losses = discriminator_loss(adversary.network(pixels), adversary.network(made))
    scaler.scale(losses.sum() / batch_size).backward()
    reduce_gradients(list(adversary.network.parameters()), processes)
    scaler.unscale_(adversary.optimizer)
    scaler.step(adversary.optimizer)
    return losses
