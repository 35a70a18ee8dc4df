"""Optimizers and learning-rate schedules by settings, and norms of gradients.

Learning rates are pure functions of the step, so that resuming needs nothing but the step. Every function returns a
factor of the base learning rate for the optimizer step that is about to be taken (0-based). Cosine with warm restarts:
Loshchilov and Hutter 2017, arXiv:1608.03983, Eq. 5:

    factor(T_cur) = minimum + (1 - minimum) (1 + cos(pi T_cur / T_i)) / 2
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from facesyn_cli.distributed import Processes
from facesyn_cli.plugins.settings import Settings
from facesyn_cli.training.muon import Muon, hidden_matrices

_NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm)
_FUSED = ("cpu", "cuda")  # devices with fused optimizers


class OptimizerSettings(Settings):
    """The optimizer and its base learning rate."""

    name: Literal["adam", "adamw", "sgd", "muon"] = Field(
        "adam", description="adamw: with decoupled weight decay; muon: Muon for the matrices of hidden layers, "
        "AdamW for all other parameters"
    )
    lr: float = Field(1e-4, gt=0, description="base learning rate; muon: that of hidden layers, such as 0.02")
    momentum: float = Field(0.9, ge=0, lt=1, description="sgd, muon: momentum; for muon such as 0.95")
    betas: tuple[float, float] = Field(
        (0.9, 0.999), description="adam, adamw, muon (its AdamW): decay of the averages of gradient and square"
    )
    eps: float = Field(1e-8, gt=0, description="adam, adamw, muon (its AdamW): epsilon")
    weight_decay: float = Field(0.0, ge=0, description="weight decay; muon: decoupled in both parts")
    adamw_lr: float | None = Field(
        None, gt=0, validate_default=True,
        description="muon: base learning rate of the parameters that AdamW updates, such as 0.001",
    )

    @field_validator("betas")
    @classmethod
    def _betas_are_shares(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError("both must be at least 0 and below 1")
        return betas

    @field_validator("adamw_lr")
    @classmethod
    def _muon_has_two_rates(cls, rate: float | None, info: ValidationInfo) -> float | None:
        name = info.data.get("name")
        if name == "muon" and rate is None:
            raise ValueError("muon has two learning rates: set lr for hidden layers (such as 0.02) and adamw_lr for "
                             "all other parameters (such as 0.001)")
        if name in ("adam", "adamw", "sgd") and rate is not None:
            raise ValueError(f"adamw_lr belongs to muon; the learning rate of {name} is lr")
        return rate


class LrSchedule(Settings):
    """How the learning rate changes over training; `factor` returns it at one step."""

    name: Literal["constant", "cosine", "cosine-warm-restarts", "milestones"] = Field(
        "constant", description="shape of the schedule"
    )
    warmup_steps: int = Field(0, ge=0, description="linear rise before the schedule's own value is reached")
    minimum: float = Field(0.0, ge=0, le=1, description="lowest factor of a cosine")
    first_cycle: int = Field(10_000, ge=1, description="cosine-warm-restarts: steps of the first cycle (T_0)")
    cycle_factor: int = Field(
        2, ge=1, description="cosine-warm-restarts: length of a cycle over the one before (T_mult)"
    )
    milestones: tuple[int, ...] = Field(
        (), description="milestones: steps at which the learning rate drops, increasing; train-fr: epochs"
    )
    gamma: float = Field(0.1, gt=0, description="milestones: factor of the learning rate at each")

    @field_validator("milestones")
    @classmethod
    def _milestones_rise(cls, milestones: tuple[int, ...]) -> tuple[int, ...]:
        if list(milestones) != sorted(set(milestones)) or any(step < 1 for step in milestones):
            raise ValueError("must be numbers in rising order, from 1")
        return milestones

    def factor(self, step: int, total: int, milestone_steps: int = 1, position: float | None = None) -> float:
        """Return the factor of the base learning rate.

        Args:
            step: Optimizer step, 0-based.
            total: Steps of the whole training.
            milestone_steps: Optimizer steps of one unit of `milestones`.
            position: Share of the training that is done, in [0, 1]; None: `step` / `total`.
        """
        if self.name == "cosine":
            value = cosine(step if position is None else position * total, total, self.minimum)
        elif self.name == "cosine-warm-restarts":
            value = cosine_warm_restarts(step, self.first_cycle, self.cycle_factor, self.minimum)
        elif self.name == "milestones":
            value = drops(step // milestone_steps, self.milestones, self.gamma)
        else:
            value = 1.0
        return value * warmup(step, self.warmup_steps)


def depends_on_total(schedule: str) -> bool:
    """Return True for schedules that end with training, which therefore cannot be made longer afterwards."""
    return schedule == "cosine"


def warmup(step: int, steps: int) -> float:
    """Return a linear rise that reaches 1 at the last of `steps` steps; the very first one is not zero."""
    return min(1.0, (step + 1) / steps) if steps else 1.0


def cosine(step: float, total: int, minimum: float = 0.0) -> float:
    """Return half a cosine from 1 at step 0 to `minimum` at step `total` and after it."""
    return _half_cosine(min(1.0, step / total), minimum)


def cosine_warm_restarts(step: int, first_cycle: int, cycle_factor: int = 1, minimum: float = 0.0) -> float:
    """Return the cosine of Eq. 5: it starts again at 1 after every cycle, and cycles grow.

    Args:
        step: Optimizer step, 0-based.
        first_cycle: Steps T_0 of the first cycle.
        cycle_factor: T_mult; cycle i has T_0 T_mult^i steps.
        minimum: Lowest factor.
    """
    start, length = 0, first_cycle
    if cycle_factor == 1:
        start = step // first_cycle * first_cycle
    else:
        while step >= start + length:
            start += length
            length *= cycle_factor
    return _half_cosine((step - start) / length, minimum)


def drops(step: int, milestones: Sequence[int], gamma: float = 0.1) -> float:
    """Return `gamma` to the power of the number of milestones that `step` has reached."""
    return gamma ** bisect.bisect_right(milestones, step)


def build_optimizer(
    parameters: Iterable[Any], cfg: OptimizerSettings, network: nn.Module | None = None
) -> torch.optim.Optimizer:
    """Return the optimizer that `cfg` names over parameters, or over parameter groups of torch.

    On a CPU and on CUDA devices one fused kernel updates all parameters, except those of Muon; elsewhere torch chooses.

    Args:
        parameters: Parameters or groups.
        cfg: Settings.
        network: The network whose hidden layers Muon updates; may be None for another optimizer.

    Raises:
        UserError: See `hidden_matrices`.
    """
    groups = list(parameters)
    if groups and not isinstance(groups[0], dict):
        groups = [{"params": groups}]
    tensors = [p for group in groups for p in group["params"]]
    common: dict[str, Any] = {"lr": cfg.lr, "weight_decay": cfg.weight_decay}
    if all(p.device.type in _FUSED for p in tensors):
        common["fused"] = True
    optimizer: torch.optim.Optimizer
    if cfg.name == "sgd":
        optimizer = torch.optim.SGD(groups, momentum=cfg.momentum, **common)
    elif cfg.name == "muon":
        assert network is not None and cfg.adamw_lr is not None
        optimizer = Muon(
            groups, hidden_matrices(network), adamw_lr=cfg.adamw_lr, momentum=cfg.momentum, betas=cfg.betas,
            eps=cfg.eps, **common,
        )
    else:
        optimizer_class = torch.optim.AdamW if cfg.name == "adamw" else torch.optim.Adam
        optimizer = optimizer_class(groups, betas=cfg.betas, eps=cfg.eps, **common)
    optimizer.register_step_pre_hook(_lay_out_gradients)
    return optimizer


def _lay_out_gradients(optimizer: torch.optim.Optimizer, *arguments: Any) -> None:
    """Give gradients the memory layout of their parameters: fused kernels on a CPU pair elements by their address."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.grad is not None and p.grad.stride() != p.stride():
                p.grad = torch.empty_like(p).copy_(p.grad)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all parameter groups; that of AdamW beside Muon keeps its ratio to it."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_factor", 1.0)


def decay_groups(module: nn.Module, weight_decay: float, decay_norms: bool) -> list[dict[str, Any]]:
    """Return the parameter groups of an optimizer: all with weight decay, or all but those of norm layers."""
    free = set() if decay_norms else {
        id(p) for layer in module.modules() if isinstance(layer, _NORMS) for p in layer.parameters(recurse=False)
    }
    with_decay = [p for p in module.parameters() if id(p) not in free]
    without = [p for p in module.parameters() if id(p) in free]
    groups = [{"params": with_decay, "weight_decay": weight_decay}]
    return groups + ([{"params": without, "weight_decay": 0.0}] if without else [])


@torch.no_grad()
def gradient_norm(
    parameters: Sequence[nn.Parameter], sharded: Sequence[nn.Parameter], processes: Processes
) -> torch.Tensor:
    """Return the norm of the whole gradient, a scalar. A collective where there are sharded parameters.

    Args:
        parameters: Parameters with the same gradients in all processes.
        sharded: Parameters of which every process holds another part.
        processes: The processes.
    """
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if not sharded:
        return norm
    own = nn.utils.get_total_norm([p.grad for p in sharded if p.grad is not None])
    return torch.hypot(norm, processes.sum(own.square()).sqrt())


@torch.no_grad()
def share_overflow(
    parameters: Sequence[nn.Parameter], sharded: Sequence[nn.Parameter], processes: Processes
) -> None:
    """Make an overflow of sharded gradients in one process one in all, so that all leave out the step. A collective.

    Arguments as of `gradient_norm`; the gradients are those of the scaled loss (fp16).
    """
    own = nn.utils.get_total_norm([p.grad for p in sharded if p.grad is not None])
    total = processes.sum(own)
    gradient = next(p.grad for p in parameters if p.grad is not None)
    gradient.add_(torch.where(total.isfinite(), torch.zeros_like(total), total).to(gradient.dtype))


def _half_cosine(part: float, minimum: float) -> float:
    return minimum + (1.0 - minimum) * 0.5 * (1.0 + math.cos(math.pi * part))
