"""Number formats of inference: which are faster than fp32 on a device, and the choice behind `precision=auto`.

On a processor without instructions for bf16 a product in bf16 takes longer than in fp32. Where it is faster, small
networks gain less, since they spend little of their time in products. So `auto` measures the network itself, in some
seconds at most, while a warning and `facesyn doctor` rely on the product of two matrices, which takes milliseconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from facesyn_cli.artifacts.agreed_setting import agree, started_with
from facesyn_cli.config.fields import StageConfig
from facesyn_cli.console import is_first_process, log
from facesyn_cli.distributed import Processes
from facesyn_cli.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Precision = Literal["fp32", "bf16", "fp16"]
PrecisionOrAuto = Literal["fp32", "bf16", "fp16", "auto"]
Config = TypeVar("Config", bound=StageConfig)
Evaluate = Callable[[str], Any]  # computes once in a number format and waits for the device

WORTH = 1.1                            # speed of bf16 against fp32 from which `auto` takes it
_SIDES = {"cpu": 256}                  # of the matrices
_GPU_SIDE = 4096
_LEAST, _MOST, _SECONDS = 2, 20, 0.1   # rounds of a measurement, and the time after which no more are started


def with_precision(
    cfg: Config, folder: Path, kind: str, device: torch.device, evaluate: Evaluate, processes: Processes | None = None
) -> Config:
    """Return the settings of a stage with a number format in place of `precision=auto`; else warn of a slow one.

    `auto` follows a folder that was started before, on any machine, and the parts of a set agree on the choice of the
    first; fp16 is never chosen, since its numbers may overflow.

    Args:
        cfg: Settings with the field `precision`.
        folder: The folder that the stage writes.
        kind: Kind of artifact that it is.
        device: Where the network runs.
        evaluate: Evaluates the network once in a number format, on a batch of the usual size.
        processes: Of the run, which all call this function; None: it is only planned, and nothing is written.

    Raises:
        UserError: The device cannot compute in the format that the folder was started with.
    """
    wanted = cfg.precision
    if wanted != "auto":
        warn_if_slow(wanted, device)
        return cfg
    choose = partial(_choose, evaluate, device)
    if processes is None:
        found = started_with(folder, "precision") or choose()
    else:
        found = processes.from_first(lambda: agree(folder, kind, "precision", choose))
    if not computes(found, device):
        raise UserError(f"{folder} was started with precision={found}, which {device} cannot compute; resume it on "
                        "another device, or choose another --out")
    return cfg.model_copy(update={"precision": found})


def gain(evaluate: Evaluate, precision: str, device: torch.device) -> float:
    """Return how many times as fast as in fp32 something is computed in another number format.

    On a CPU one core computes, and its processor time counts, so that other programs do not disturb the measurement.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        clock = time.process_time if device.type == "cpu" else time.perf_counter
        return _fastest(partial(evaluate, "fp32"), clock) / _fastest(partial(evaluate, precision), clock)
    finally:
        torch.set_num_threads(threads)


@lru_cache
def matrix_gain(precision: str, device: torch.device) -> float:
    """Return how many times as fast as in fp32 a product of square matrices is.

    Measured once in a process, in some tens of milliseconds; float32 is not rounded to TF32.
    """
    side = _SIDES.get(device.type, _GPU_SIDE)
    numbers = torch.randn(side, side, device=device)
    matrices = {name: numbers.to(dtype) for name, dtype in DTYPES.items() if name in ("fp32", precision)}
    return gain(lambda name: (matrices[name] @ matrices[name])[0, 0].item(), precision, device)


def products_that_pay(device: torch.device) -> tuple[str, dict[str, float]]:
    """Return the number format whose matrix products are fastest on a device, fp32 where none is clearly faster.

    And, of each other format that it computes, how many times as fast as in fp32 they are.
    """
    gains = {name: matrix_gain(name, device) for name in DTYPES if name != "fp32" and computes(name, device)}
    fastest = max(gains, key=lambda name: gains[name], default="fp32")
    return fastest if gains.get(fastest, 0) >= WORTH else "fp32", gains


def computes(precision: str, device: torch.device) -> bool:
    """Return whether a device has products in a number format at all."""
    try:
        ones = torch.ones(8, 8, device=device, dtype=DTYPES[precision])
        return bool(((ones @ ones) == 8).all())
    except (RuntimeError, TypeError, NotImplementedError):
        return False


@lru_cache
def warn_if_slow(precision: str, device: torch.device) -> None:
    """Warn, once in a process, of a number format whose products are slower than those of fp32 on this device."""
    if precision == "fp32" or not is_first_process() or not computes(precision, device):
        return
    speed = matrix_gain(precision, device)
    if speed < 1:
        log.warning(f"precision={precision} does not pay here: on this {device.type} a matrix product in it is "
                    f"{speed:.2g} times as fast as in fp32; precision=fp32 is faster, and precision=auto chooses")


def _choose(evaluate: Evaluate, device: torch.device) -> str:
    if not computes("bf16", device):
        return "fp32"
    speed = gain(evaluate, "bf16", device)
    chosen = "bf16" if speed >= WORTH else "fp32"
    log.info(f"precision=auto: {chosen}; the network is {speed:.2f} times as fast in bf16 as in fp32 on this "
             f"{device.type}")
    return chosen


def _fastest(work: Callable[[], Any], clock: Callable[[], float]) -> float:
    """Return the seconds of the fastest of some rounds, of which the first may load kernels."""
    times: list[float] = []
    while len(times) < _LEAST or (len(times) < _MOST and sum(times) < _SECONDS):
        start = clock()
        work()
        times.append(max(clock() - start, 1e-9))
    return min(times)
