"""Training checkpoints: folders that appear by rename, so an incomplete one is never taken for a complete one.

    checkpoints/step-00001000/<name>.safetensors   one file per group of tensors
    checkpoints/step-00001000/state.json           numbers: step, metrics not yet logged, loss scaler; and checksums

A tensor of which every process holds some columns is written whole, so that a training resumes on any number of
processes; each reads its own columns.

`state.json` lists the size and the CRC-32C of every tensor file, and holds a digest of itself. Both are verified before
a training resumes: a damaged checkpoint is skipped, with a warning, for the one before it.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import google_crc32c
import torch
from safetensors import SafetensorError, safe_open

from facesyn_cli.artifacts.atomic_files import TEMPORARY_PREFIX, as_user_error, read_json, write_json
from facesyn_cli.artifacts.digest import json_digest
from facesyn_cli.artifacts.header import BEGUN, HEADER, Header
from facesyn_cli.artifacts.weights import read_tensors, write_tensors
from facesyn_cli.console import log
from facesyn_cli.distributed import Processes
from facesyn_cli.errors import UserError
from facesyn_cli.training.optimization import depends_on_total
from facesyn_cli.training.sharded_tensors import Columns, read_columns
from facesyn_cli.training.shared_settings import StepsConfig

STATE = "state.json"
_OLD_NAMES = {"optimizer": "optimiser"}  # in checkpoints of train-fr
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Checkpoint:
    """A finished checkpoint on disk.

    Args:
        path: Its folder.
        step: Number of finished optimizer steps.
    """

    path: Path
    step: int

    def tensors(self, name: str, columns: Columns | None = None) -> dict[str, torch.Tensor]:
        """Read one group of tensors.

        Args:
            name: Its name.
            columns: Returns the columns to read of a tensor by the names of group and tensor, None: all of it.
        """
        path = self.path / f"{name}.safetensors"
        old = path.with_stem(_OLD_NAMES.get(name, name))  # of an earlier release
        path = old if old.is_file() and not path.exists() else path
        return read_tensors(path) if columns is None else read_columns(path, partial(columns, name))

    def state(self) -> dict[str, Any]:
        """Read the plain numbers."""
        return read_json(self.path / STATE)

    @contextmanager
    def fitting(self) -> Iterator[None]:
        """Turn errors of modules and optimizers that do not accept this state into a UserError."""
        try:
            yield
        except (RuntimeError, LookupError, ValueError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{self.path} does not fit this training; remove it: {reason}") from error

    def damage(self) -> str | None:
        """Return what is wrong with the files, or None when they match their checksums.

        Of checkpoints without checksums, written by early releases, only the format is verified.
        """
        try:
            state = self.state()
        except UserError:
            return f"{STATE} is {'damaged' if (self.path / STATE).is_file() else 'missing'}"
        if not isinstance(state, dict) or state.get("step") != self.step:
            return f"{STATE} is damaged"
        digest = state.pop("digest", None)
        if digest is not None and digest != json_digest(state):
            return f"{STATE} is damaged"
        files = state.get("files", dict.fromkeys(path.name for path in self.path.glob("*.safetensors")))
        if not isinstance(files, dict):
            return f"{STATE} is damaged"
        for name, written in files.items():
            if (problem := _damage(self.path / name, written)) is not None:
                return f"{name} is {problem}"
        return None


def save_checkpoint(
    folder: Path, step: int, tensors: dict[str, dict[str, torch.Tensor]], state: dict[str, Any], keep: int = 2
) -> Path:
    """Write a checkpoint and remove all but the `keep` newest.

    Args:
        folder: The `checkpoints` folder.
        step: Number of finished optimizer steps.
        tensors: Groups of tensors by name (`model`, `ema`, `optimizer`, ...); empty groups are fine.
        state: JSON-able values.
        keep: Number of checkpoints to keep, at least 1; 2 leave one to fall back on when the newest is damaged.
    """
    final = folder / f"step-{step:08d}"
    draft = folder / f"{TEMPORARY_PREFIX}{final.name}-{os.getpid()}"
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        for name, group in tensors.items():
            write_tensors(draft / f"{name}.safetensors", group)
        files = {path.name: _checksum(path) for path in sorted(draft.glob("*.safetensors"))}
        content = {**state, "step": step, "files": files}
        write_json(draft / STATE, {**content, "digest": json_digest(content)})
        if final.exists():
            _remove(final)
        os.replace(draft, final)
    except UserError:
        shutil.rmtree(draft, ignore_errors=True)  # a full disk needs the space
        raise
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise as_user_error(error, final) from error
    found = _found(folder)
    later = [other for other in found if other.step > step]  # damaged, and skipped when this training resumed
    for old in later + [other for other in found if other.step <= step][: -max(keep, 1)]:
        _remove(old.path)
    return final


def latest_checkpoint(folder: Path, processes: Processes) -> Checkpoint | None:
    """Return the newest undamaged checkpoint, the same in all processes; None when there is none. A collective.

    A damaged one is skipped with a warning that names it and the one that is used instead.

    Raises:
        UserError: There are checkpoints, and all are damaged.
    """
    step = processes.from_first(lambda: _newest_whole_step(folder))
    return next((found for found in _found(folder) if found.step == step), None)


def pack_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return the tensors of an optimizer's state under flat names `<parameter number>.<entry>`."""
    packed = {}
    for number, entries in optimizer.state_dict()["state"].items():
        for name, value in entries.items():
            if value is not None:
                packed[f"{number}.{name}"] = value if torch.is_tensor(value) else torch.tensor(value)
    return packed


def unpack_optimizer(optimizer: torch.optim.Optimizer, packed: dict[str, torch.Tensor]) -> None:
    """Load tensors of `pack_optimizer`; hyperparameters stay those that the optimizer was built with.

    Tensors of the shape of their parameter get its memory layout, as those of a new optimizer have.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in packed.items():
        number, _, name = key.partition(".")
        like = parameters[int(number)]
        if value.shape == like.shape and value.stride() != like.stride():
            value = torch.empty_like(like, dtype=value.dtype, device=value.device).copy_(value)
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def check_length(folder: Path, cfg: StepsConfig, other: str | None = None) -> None:
    """Refuse other `steps` or `minutes`; arguments and errors as of `check_total`."""
    for setting in ("steps", "minutes"):
        check_total(folder, getattr(cfg, setting), cfg.lr_schedule.name, setting, other)


def check_total(
    folder: Path, total: float | None, schedule: str, setting: str = "steps", other: str | None = None
) -> None:
    """Refuse another length of a training whose earlier steps would have been others.

    Args:
        folder: Output folder of the training; may be new.
        total: Length of the training now; None: no limit.
        schedule: Name of the learning-rate schedule.
        setting: Setting that holds the length.
        other: Another setting that depends on the length; None: there is none.

    Raises:
        UserError: The training was started with another length, and something in it depends on that.
    """
    for path in (folder / BEGUN, folder / HEADER):
        if path.is_file():
            before = Header.read(path).config.get("growing", {}).get(setting, total)
            if before != total and depends_on_total(schedule):
                raise UserError(
                    f"{folder} was started with {setting}={before}; lr_schedule {schedule} depends on it, so it cannot "
                    f"become {total}. Use constant, cosine-warm-restarts or milestones, or another --out"
                )
            if before != total and other is not None:
                raise UserError(f"{folder} was started with {setting}={before}; {other} depends on it, so it cannot "
                                f"become {total}; use another --out")
            return


def _found(folder: Path) -> list[Checkpoint]:
    if not folder.is_dir():
        return []
    found = [
        Checkpoint(path, int(match.group(1)))
        for path in folder.iterdir()
        if (match := re.fullmatch(r"step-(\d+)", path.name)) and path.is_dir()
    ]
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def _remove(path: Path) -> None:
    """Remove a checkpoint so that a kill leaves a temporary folder, not half a checkpoint."""
    gone = path.with_name(f"{TEMPORARY_PREFIX}{path.name}-removed-{os.getpid()}")
    try:
        os.replace(path, gone)
    except OSError as error:
        log.warning(f"the old checkpoint {path} cannot be removed: {error.strerror}")
    shutil.rmtree(gone, ignore_errors=True)


def _newest_whole_step(folder: Path) -> int | None:
    problems = []
    for checkpoint in reversed(_found(folder)):
        problem = checkpoint.damage()
        if problem is None:
            if problems:
                log.warning(f"{'; '.join(problems)}; training resumes from the older {checkpoint.path.name}")
            return checkpoint.step
        problems.append(f"checkpoint {checkpoint.path} is damaged ({problem})")
    if problems:
        raise UserError(f"{'; '.join(problems)}; no older one is intact: remove {folder} to train from the beginning")
    return None


def _damage(path: Path, written: dict[str, Any] | None) -> str | None:
    """Return what is wrong with a tensor file, or None; `written` is its recorded size and checksum, if known."""
    if not path.is_file():
        return "missing"
    try:
        if written is not None:
            return None if _checksum(path) == written else "damaged"
        with safe_open(path, "pt"):  # compares the size of the file with its header
            return None
    except (OSError, SafetensorError) as error:
        return f"damaged: {error}"


def _checksum(path: Path) -> dict[str, Any]:
    checksum, num_bytes = google_crc32c.Checksum(), 0
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            checksum.update(block)
            num_bytes += len(block)
    return {"bytes": num_bytes, "crc32c": checksum.hexdigest().decode()}
