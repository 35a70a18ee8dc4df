"""What autoencoder training carries from step to step, and the step itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from facesyn_cli.distributed import Processes
from facesyn_cli.errors import UserError
from facesyn_cli.training.autoencoder_batches import AutoencoderBatch
from facesyn_cli.training.autoencoder_loss import AutoencoderLoss
from facesyn_cli.training.bn_groups import sum_gradients
from facesyn_cli.training.checkpoint import latest_checkpoint, pack_optimizer, save_checkpoint, unpack_optimizer
from facesyn_cli.training.discriminator import (
    AdversarialSettings,
    PatchDiscriminator,
    adaptive_factor,
    discriminator_loss,
    generator_loss,
)
from facesyn_cli.training.ema import Ema
from facesyn_cli.training.optimizer import OptimizerSettings, build_optimizer
from facesyn_cli.training.precision import autocast


@dataclass
class Adversary:
    """The discriminator and its optimizer.

    Args:
        settings: How it takes part.
        network: The discriminator.
        optimizer: Over its parameters.
    """

    settings: AdversarialSettings
    network: PatchDiscriminator
    optimizer: torch.optim.Optimizer


def build_adversary(
    settings: AdversarialSettings, optimizer: OptimizerSettings, seed: int, device: torch.device
) -> Adversary | None:
    """Build the discriminator that `settings` ask for, None where their weight is 0; its weights follow from the seed.

    Args:
        settings: How it takes part.
        optimizer: Settings of its optimizer, those of the autoencoder's.
        seed: Seed of the training.
        device: Where it runs.
    """
    if not settings.weight:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        network = PatchDiscriminator(settings.channels, settings.layers)
    network = network.to(device, memory_format=torch.channels_last).train()
    return Adversary(settings, network, build_optimizer(network.parameters(), optimizer))


@dataclass
class AutoencoderState:
    """The moving parts of a training.

    Args:
        autoencoder: The network.
        ema: Its average.
        optimizer: Over the parameters that are trained.
        scaler: Loss scaler; does nothing outside fp16.
        adversary: The discriminator, or None.
        step: Finished optimizer steps.
        window: [sum, number of images] of every figure since the last report, of this process.
    """

    autoencoder: nn.Module
    ema: Ema
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    adversary: Adversary | None
    step: int = 0
    window: dict[str, list[float]] = field(default_factory=dict)

    def trained(self) -> list[nn.Parameter]:
        """Return the parameters of the autoencoder that are trained."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def fit(self, photos: Callable[[], Iterator[Tensor]]) -> None:
        """Set what the autoencoder takes from the photos before the first step; photos as in its `fit`."""
        self.autoencoder.fit(photos)
        self.ema.load_state_dict(self.autoencoder.state_dict())

    def save(self, folder: Path, keep: int) -> None:
        """Write a checkpoint; `window` must be that of all processes together."""
        groups = {
            "model": self.autoencoder.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": pack_optimizer(self.optimizer),
        }
        if self.adversary is not None:
            groups["discriminator"] = self.adversary.network.state_dict()
            groups["discriminator_optimizer"] = pack_optimizer(self.adversary.optimizer)
        save_checkpoint(folder, self.step, groups, {"window": self.window, "scaler": self.scaler.state_dict()}, keep)

    def restore(self, folder: Path, processes: Processes) -> None:
        """Resume from the newest whole checkpoint, if there is one; the first process takes the window.

        Raises:
            UserError: It is of another training, or all are damaged.
        """
        checkpoint = latest_checkpoint(folder, processes)
        if checkpoint is None:
            return
        with checkpoint.fitting():
            self.autoencoder.load_state_dict(checkpoint.tensors("model"), strict=True)
            self.ema.load_state_dict(checkpoint.tensors("ema"))
            unpack_optimizer(self.optimizer, checkpoint.tensors("optimizer"))
            if self.adversary is not None:
                self.adversary.network.load_state_dict(checkpoint.tensors("discriminator"), strict=True)
                unpack_optimizer(self.adversary.optimizer, checkpoint.tensors("discriminator_optimizer"))
            state = checkpoint.state()
            if self.scaler.is_enabled():
                self.scaler.load_state_dict(state["scaler"])
            if processes.is_first:
                self.window = dict(state["window"])
        self.step = checkpoint.step

    def take_window(self, processes: Processes) -> dict[str, float]:
        """Return the means since the last report over all processes and begin anew; all must call it together."""
        means = {name: total / count for name, (total, count) in self.summed_window(processes).items()}
        self.window = {}
        return means

    def summed_window(self, processes: Processes) -> dict[str, list[float]]:
        """Return the window of all processes together; all must call it together.

        Every process has the same figures, since which terms there are depends on settings and step alone.
        """
        if not self.window:
            return {}
        values = torch.tensor(list(self.window.values()), dtype=torch.float64, device=processes.device)
        return dict(zip(self.window, processes.sum(values).tolist(), strict=True))


@dataclass(frozen=True)
class StepSettings:
    """How a step is taken.

    Args:
        batch_size: Images of the global batch.
        precision: fp32, bf16 or fp16.
        clip: Largest norm of the autoencoder's gradient; None: no clipping.
    """

    batch_size: int
    precision: str
    clip: float | None


def take_step(
    state: AutoencoderState, batch: AutoencoderBatch, loss: AutoencoderLoss, settings: StepSettings,
    processes: Processes,
) -> float:
    """Take one optimizer step with the learning rate that is set, and move the average.

    Args:
        state: Changed in place.
        batch: This process's share; with a teacher's latents only the decoder runs. Drawn latents are decoded beside
            the photos, and judged by the discriminator as the reconstructions are.
        loss: The terms that do not learn.
        settings: How.
        processes: Those that share the batch; their gradients are added up.

    Returns:
        Norm of the gradient before clipping.

    Raises:
        UserError: The gradient is not finite; no weight was touched in this step.
    """
    adversary = state.adversary
    pixels = batch.pixels(processes.device)
    state.optimizer.zero_grad(set_to_none=True)
    with autocast(settings.precision, pixels.device):
        made, penalties = _reconstruct(state.autoencoder, batch, pixels)
        contexts = None
        if batch.drawn is not None:
            drawn, contexts = (part.to(pixels.device) for part in batch.drawn)
            made = torch.cat([made, state.autoencoder.decode(drawn)])
        terms = loss(made, pixels, penalties, contexts, batch.coarse)
        total = terms.reconstruction.sum() + terms.drawn.sum()
    figures = {"loss": terms.reconstruction + terms.penalty, **terms.each}
    # From the losses to the pixels first, and on from there: the recognizer is gone through backwards once, whatever
    # the adversarial loss wants to know of its gradient.
    gradient = torch.autograd.grad(state.scaler.scale(total), made)[0]
    if adversary is not None and state.step >= adversary.settings.start:
        adversary.network.requires_grad_(False)
        with autocast(settings.precision, pixels.device):
            figures["adversarial"] = generator_loss(adversary.network(made))
        adversarial_gradient = torch.autograd.grad(state.scaler.scale(figures["adversarial"].sum()), made)[0]
        factor = torch.full((), adversary.settings.weight, device=pixels.device)
        if adversary.settings.adaptive:
            gradients = gradient, adversarial_gradient  # their ratio does not see the scale
            largest = adversary.settings.largest_factor
            factor = factor * _adaptive(made, gradients, state.autoencoder.last_layer(), processes, largest)
        figures["adversarial_factor"] = factor.expand(len(made))
        gradient = gradient + factor.to(gradient.dtype) * adversarial_gradient
    ends: list[tuple[Tensor, Tensor | None]] = [(made, gradient / settings.batch_size)]
    if terms.penalty.requires_grad:
        ends.append((state.scaler.scale(terms.penalty.sum() / settings.batch_size), None))
    torch.autograd.backward(*zip(*ends, strict=True))
    parameters = [p for p in state.trained() if p.grad is not None]
    sum_gradients(parameters, processes.sum)
    state.scaler.unscale_(state.optimizer)
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
    is_finite = bool(torch.isfinite(norm))  # waits for the device: a broken step must not reach the weights
    if not is_finite and (not state.scaler.is_enabled() or state.scaler.get_scale() < 1):
        raise UserError(
            f"training stopped before step {state.step + 1}: the gradient is not finite (loss "
            f"{float(figures['loss'].detach().mean()):.4g}); checkpoints are untouched. A lower optimizer.lr, "
            "optimizer.clip=1 or precision=fp32 may help"
        )
    if settings.clip is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, settings.clip, norm)
    state.scaler.step(state.optimizer)  # fp16: left out where the scaled gradient overflowed
    if adversary is not None:
        figures["discriminator"] = _teach(adversary, state.scaler, pixels, made.detach(), settings, processes)
    state.scaler.update()
    state.step += 1
    if is_finite:
        state.ema.update(state.autoencoder, state.step)
    _count(state.window, figures)
    return float(norm)


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
    adversary: Adversary, scaler: torch.amp.GradScaler, pixels: Tensor, made: Tensor, settings: StepSettings,
    processes: Processes,
) -> Tensor:
    """Take a step of the discriminator and return its losses."""
    adversary.network.requires_grad_(True)
    adversary.optimizer.zero_grad(set_to_none=True)
    with autocast(settings.precision, pixels.device):
        losses = discriminator_loss(adversary.network(pixels), adversary.network(made))
    scaler.scale(losses.sum() / settings.batch_size).backward()
    sum_gradients(adversary.network.parameters(), processes.sum)
    scaler.unscale_(adversary.optimizer)
    scaler.step(adversary.optimizer)
    return losses


def _count(window: dict[str, list[float]], figures: dict[str, Tensor]) -> None:
    sums = torch.stack([values.detach().double().sum() for values in figures.values()]).tolist()  # waits for the device
    for (name, values), total in zip(figures.items(), sums, strict=True):
        before = window.get(name, [0.0, 0.0])
        window[name] = [before[0] + total, before[1] + len(values)]
