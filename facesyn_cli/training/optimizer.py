"""Adam and AdamW by settings. Their state goes into checkpoints through `training/checkpoint.py`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import nn


class OptimizerSettings(BaseModel):
    """Which optimizer moves the weights, and at which base learning rate. The defaults are the published ones."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["adam", "adamw"] = "adam"               # adamw: with decoupled weight decay
    lr: float = Field(1e-4, gt=0)                         # base learning rate
    betas: tuple[float, float] = (0.9, 0.999)             # decay of the averages of gradient and its square
    eps: float = Field(1e-8, gt=0)                        # Adam's epsilon
    weight_decay: float = Field(0.0, ge=0)                # weight decay
    clip: float | None = Field(None, gt=0)                # largest norm of the whole gradient; None: no clipping

    @field_validator("betas")
    @classmethod
    def _betas_are_shares(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError("both must be at least 0 and below 1")
        return betas


def build_optimizer(parameters: Iterable[nn.Parameter], cfg: OptimizerSettings) -> torch.optim.Optimizer:
    """Return the optimizer that `cfg` names over `parameters`."""
    optimizer_class = torch.optim.AdamW if cfg.name == "adamw" else torch.optim.Adam
    return optimizer_class(parameters, lr=cfg.lr, betas=cfg.betas, eps=cfg.eps, weight_decay=cfg.weight_decay)
