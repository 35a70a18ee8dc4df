"""Trainings resume from the older checkpoint when the newest is damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_embedder
import tiny_fr
import tiny_ldm
from damage import check_fallback

# each: what is made once, and the arguments of a training of four steps with a checkpoint after each of them
TRAININGS: dict[str, tuple[Callable[[Path], object], Callable[[Path, Path], list[str]]]] = {
    "train-ldm": (
        tiny_ldm.write_faces,
        lambda folder, out: tiny_ldm.train_arguments(folder, out, "checkpoint_every=1", steps=4),
    ),
    "train-fr": (
        tiny_fr.write_faces,
        lambda folder, out: tiny_fr.train_arguments(folder, out, "checkpoint_every=1", "batch_size=12", epochs=2),
    ),
    "train-embedder": (
        tiny_embedder.write_taught_faces,
        lambda folder, out: tiny_embedder.train_arguments(folder, out, "checkpoint_every=1", steps=4),
    ),
    "train-autoencoder": (
        tiny_ldm.write_faces,
        lambda folder, out: [
            "train-autoencoder", "--images", str(folder / "faces"), "--out", str(out), "--steps", "4",
            "--batch-size", "8", "device=cpu", f"image_size={tiny_ldm.SIZE}", "autoencoder.patch=2",
            "autoencoder.channels=[8]", "autoencoder.num_groups=4", "autoencoder.latent_channels=4",
            "preview_every=0", "checkpoint_every=1", "log_every=1",
        ],
    ),
}


@pytest.mark.parametrize("name", TRAININGS)
def test_the_older_checkpoint_is_taken(name: str, tmp_path: Path, run_cli, assert_refused) -> None:
    prepare, arguments = TRAININGS[name]
    (tmp_path / "inputs").mkdir()
    prepare(tmp_path / "inputs")
    check_fallback(run_cli, assert_refused, arguments(tmp_path / "inputs", tmp_path / "out"), tmp_path / "out")
