"""Settings of `train-embedder` that come in groups, with the defaults that suit a student."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from facesyn_cli.config.fields import affects_result, runtime_only
from facesyn_cli.training.lr import LrSettings
from facesyn_cli.training.optimizer import OptimizerSettings


class StudentOptimizer(OptimizerSettings):
    """Which optimizer moves the student's weights; norms are free of weight decay."""

    name: Literal["adam", "adamw"] = "adamw"              # adamw: with decoupled weight decay
    lr: float = Field(1e-3, gt=0)                         # base learning rate
    weight_decay: float = Field(0.05, ge=0)               # weight decay
    clip: float | None = Field(5.0, gt=0)                 # largest norm of the whole gradient; None: no clipping


class StudentSchedule(LrSettings):
    """How the learning rate moves."""

    name: Literal["constant", "cosine", "cosine-warm-restarts", "piecewise"] = "cosine"
    warmup_steps: int = Field(200, ge=0)                  # linear rise before the schedule's own value is reached


class StudentValidation(BaseModel):
    """How the student is compared with the teacher while it trains."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fraction: float = affects_result(0.01, "share of the identities whose photos are held out", ge=0, lt=1)
    images: int = runtime_only(2048, "at most so many held-out photos are looked at", ge=1)
    every: int = runtime_only(1000, "steps between validations; 0: only at the end", ge=0)
