"""The same names in all trainings, and names of earlier releases: as settings, as overrides and in headers."""

from __future__ import annotations

import logging

import pytest

from facesyn_cli.artifacts.config_changes import Change, compare_configs
from facesyn_cli.errors import UserError
from facesyn_cli.pipelines.stage import config_class_of, resolve_stage
from facesyn_cli.training.shared_settings import TrainingConfig

COMMANDS = ("train-fr", "train-ldm", "train-embedder", "train-identity", "train-autoencoder")
SHARED = {
    "batch_size", "optimizer", "lr_schedule", "clip", "ema", "precision", "validation_fraction", "validate_every",
    "log_every", "checkpoint_every", "keep_checkpoints", "workers", "tracking",
}

# command -> (settings of the release before, the same as overrides, settings now)
OLD = {
    "train-fr": (
        {
            "lr": 0.2, "momentum": 0.8, "weight_decay": 0.01, "stages": [3, 5], "gamma": 0.5, "warmup_steps": 7,
            "keep": 3, "validation": {"fraction": 0.1, "num_pairs": 20, "bins": ["a.bin"], "every": 2},
            "tracking": {"name": "tensorboard"},
        },
        [
            "lr=0.2", "momentum=0.8", "weight_decay=0.01", "stages=[3,5]", "gamma=0.5", "warmup_steps=7", "keep=3",
            "validation.fraction=0.1", "validation.num_pairs=20", "validation.bins=[a.bin]", "validation.every=2",
            "tracking.name=tensorboard",
        ],
        {
            "optimizer": {"lr": 0.2, "momentum": 0.8, "weight_decay": 0.01},
            "lr_schedule": {"milestones": [3, 5], "gamma": 0.5, "warmup_steps": 7}, "keep_checkpoints": 3,
            "validation_fraction": 0.1, "validation_pairs": 20, "validation_bins": ["a.bin"], "validate_every": 2,
            "tracking": ["tensorboard"],
        },
    ),
    "train-ldm": (
        {
            "optimiser": {"lr": 0.2, "clip": 2.0}, "batch_size": 10, "micro_batch": 4,
            "lr_schedule": {"name": "piecewise", "milestones": [3, 5], "drop": 0.5}, "tracking": {"name": "none"},
        },
        [
            "optimiser.lr=0.2", "optimiser.clip=2.0", "batch_size=10", "micro_batch=4", "lr_schedule.name=piecewise",
            "lr_schedule.milestones=[3,5]", "lr_schedule.drop=0.5", "tracking.name=none",
        ],
        {
            "optimizer": {"lr": 0.2}, "clip": 2.0, "batch_size": 10, "accumulate": 3,
            "lr_schedule": {"name": "milestones", "milestones": [3, 5], "gamma": 0.5}, "tracking": [],
        },
    ),
    "train-embedder": (
        {"optimizer": {"clip": None}, "validation": {"fraction": 0.1, "images": 9, "every": 5}},
        ["optimizer.clip=null", "validation.fraction=0.1", "validation.images=9", "validation.every=5"],
        {"clip": None, "validation_fraction": 0.1, "validation_images": 9, "validate_every": 5},
    ),
    "train-autoencoder": (
        {"optimiser": {"clip": 0.5, "lr": 0.1}, "tracking": {"name": "tensorboard"}},
        ["optimiser.clip=0.5", "optimiser.lr=0.1", "tracking.name=tensorboard"],
        {"clip": 0.5, "optimizer": {"lr": 0.1}, "tracking": "tensorboard"},
    ),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_all_trainings_have_the_shared_settings(command: str) -> None:
    config_class = config_class_of(command)
    assert issubclass(config_class, TrainingConfig) and config_class.model_fields.keys() >= SHARED
    assert ("epochs" if command == "train-fr" else "steps") in config_class.model_fields


@pytest.mark.parametrize("command", OLD)
def test_old_names_work_with_a_warning(command: str, caplog: pytest.LogCaptureFixture, monkeypatch) -> None:
    monkeypatch.setattr(logging.getLogger("facesyn"), "propagate", True)
    section, overrides, now = OLD[command]
    expected = resolve_stage(command, now, [], {})
    assert not caplog.text
    assert resolve_stage(command, section, [], {}) == expected
    assert "the old name will be refused in the next release" in caplog.text or "is now" in caplog.text
    assert resolve_stage(command, {}, overrides, {}) == expected
    assert config_class_of(command)(**section) == expected


def test_a_header_of_the_release_before_equals_one_of_today(caplog: pytest.LogCaptureFixture, monkeypatch) -> None:
    monkeypatch.setattr(logging.getLogger("facesyn"), "propagate", True)
    cfg = resolve_stage("train-fr", {"lr_schedule": {"milestones": [2]}, "validation_fraction": 0.1}, [], {})
    header = cfg.to_json()
    identity = {name: header["identity"].pop(name) for name in ("optimizer", "lr_schedule", "clip", "ema")}
    header["identity"].pop("validation_fraction"), header["identity"].pop("validation_pairs")
    header["identity"] |= {
        **{name: identity["optimizer"][name] for name in ("lr", "momentum", "weight_decay")},
        "stages": [2], "gamma": 0.1, "warmup_steps": 0, "validation": {"fraction": 0.1, "num_pairs": 3000},
    }
    header["runtime"] = {"keep": 2, "validation": {"bins": [], "every": 1}, "tracking": {"name": "none"}}
    found = compare_configs(cfg.upgraded(header), cfg.to_json())
    assert (found.problems, found.warnings, found.grown) == ([], [], False) and not caplog.text
    header["identity"]["stages"] = [3]
    assert compare_configs(cfg.upgraded(header), cfg.to_json()).problems == [
        Change("lr_schedule.milestones", "[3]", "[2]")
    ]


def test_settings_that_were_removed_matter_only_in_headers_of_what_they_affected() -> None:
    cfg = resolve_stage("train-autoencoder", {"adversarial": {"weight": 0.5}}, [], {})
    header = cfg.to_json()
    header["identity"] |= {
        "features_coarsest": 1.0, "interpolation": 1.0,
        "drawn": {"count": 8192, "scheduler": "unipc", "steps": 20, "guidance": 1.5, "identity_weight": 0.3},
        "adversarial": {**header["identity"]["adversarial"], "largest_factor": 10000.0, "lr_factor": 1.0},
    }
    header["runtime"] |= {"ldm": None, "embeddings": None}
    assert compare_configs(cfg.upgraded(header), cfg.to_json()).problems == []
    header["identity"]["adversarial"]["lr_factor"] = 0.5
    problems = compare_configs(cfg.upgraded(header), cfg.to_json()).problems
    assert Change("adversarial.lr_factor", "0.5", "absent") in problems


@pytest.mark.parametrize(
    ("words", "message"),
    [(["tracking=[wandbb]"], "unknown tracker 'wandbb'; known are"), (["micro_batch=x"], "micro_batch"),
     (["lr_schedule.name=linear"], "lr_schedule.name"), (["optimizer.name=rmsprop"], "optimizer.name"),
     (["clip=0"], "clip"), (["accumulate=0"], "accumulate")],
)
def test_wrong_settings_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve_stage("train-ldm", {}, words, {})
