"""`facesyn bench reading`: decode, change and join the faces of recognition training, without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from facesyn_cli.artifacts.image_set import ImageSet
from facesyn_cli.bench import plain_loops, random_inputs
from facesyn_cli.bench.machine import Machine, four_digits, torch_threads
from facesyn_cli.bench.settings import BenchConfig
from facesyn_cli.data.datasets import LabeledImages, TrainingFaces, WeightedSet
from facesyn_cli.data.pixels import to_pixels
from facesyn_cli.data.transforms import compose
from facesyn_cli.distributed import processes
from facesyn_cli.plugins import registry
from facesyn_cli.training.batch_loading import load_groups


def bench_reading(cfg: BenchConfig, machine: Machine, folder: Path) -> dict[str, Any]:
    """Read an epoch with torchvision, then two with facesyn: one that decodes, one from the cache of decoded faces.

    The transforms are the published ones: flip, and with probability 0.2 a random resized crop. Both end with a batch
    of float32 pixels on the device.
    """
    paths, _ = random_inputs.faces_for(cfg, folder / "faces", cfg.batch_size or 64)
    batch_size, count, workers = min(cfg.batch_size or 64, len(paths)), len(paths), machine.workers(cfg)
    transforms = compose([registry.configure("transform", {"name": name}) for name in ("flip", "random-resized-crop")])
    examples = LabeledImages(ImageSet.open(folder / "faces"))

    def plain() -> None:
        for pixels, _ in plain_loops.face_loader(folder / "faces", batch_size, workers, machine.device):
            pixels.to(machine.device, non_blocking=True)

    def ours(faces: TrainingFaces, epoch: int) -> None:
        order = np.random.default_rng(epoch).permutation(count).reshape(-1, batch_size)
        groups = ([(epoch, int(row)) for row in rows] for rows in order)
        for pixels_u8, *_ in load_groups(faces, [1.0], groups, workers, machine.device):
            to_pixels(pixels_u8)

    rounds: list[list[dict[str, Any]]] = []
    with torch_threads(1):  # the workers use the cores
        for number in range(cfg.rounds):
            faces = TrainingFaces([WeightedSet(examples)], transforms, 0, plain_loops.SIDE)
            plan = faces.plan_caches("cache", folder / f"decoded-{number}", folder, 2)
            faces.use(plan, processes(str(machine.device)))
            rounds.append([
                machine.timed("ImageFolder, DataLoader", count, plain),
                machine.timed("facesyn, first epoch", count, lambda faces=faces: ours(faces, 0)),
                machine.timed("facesyn, later epochs", count, lambda faces=faces: ours(faces, 1)),
            ])
    best = [min(rows, key=lambda row: row["seconds"]) for rows in zip(*rounds, strict=True)]
    runs = [{**row, "images/s per core": four_digits(row["images/s"] / machine.cores)} for row in best]
    speeds = [row["images/s"] for row in runs]
    return {
        "subject": "reading",
        "machine": machine.to_json(),
        "network": {"batch": batch_size, "workers": workers},
        "runs": runs,
        "speedup": four_digits(speeds[2] / speeds[0]),
        "speedup of the first epoch": four_digits(speeds[1] / speeds[0]),
    }
