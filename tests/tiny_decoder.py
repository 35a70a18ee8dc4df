"""A run up to its LDM with the smallest `face-pca`, from which `train-decoder` goes on."""

from __future__ import annotations

from pathlib import Path

from conftest import finish, spawn
from tiny_ldm import EMBEDDING_SIZE, SIZE, write_faces
from tiny_recognizer import write_recognizer

AUTOENCODER = (
    "autoencoder={name: face-pca, image_size: 16, patch: 4, patch_components: 12, latent_channels: 6, "
    "refine_patch: 4, refine_channels: 8, refine_blocks: 1, smooth: 4, refine_fine: 8, refine_latent: true}"
)
TRAINING = (
    "device=cpu", f"image_size={SIZE}", "ema.maximum=0.5", "lr_schedule.warmup_steps=0", "validation_fraction=0.2",
    "validate_every=5", "preview_every=0", "log_every=1", "checkpoint_every=3",
)
ADVERSARY = ("adversarial.weight=0.5", "adversarial.channels=8", "adversarial.layers=1")
LDM = (
    "device=cpu", f"image_size={SIZE}", f"output_size={SIZE}", "denoiser={name: residual-mlp, in_channels: 6, width: "
    f"16, blocks: 1, context_size: {EMBEDDING_SIZE}, context_width: 8}}", "prediction=v", "beta_schedule=cosine",
    "zero_terminal_snr=true", "preview_every=0", "validate_every=0", "latent_statistics=identity",
)


def write_run(work: Path) -> Path:
    """Make `0-images` to `2-ldm`, and `recognizer`, which has embedded the photos; return the work folder."""
    write_faces(work)
    (work / "faces").rename(work / "0-images")
    recognizer = write_recognizer(work / "recognizer", embedding_size=EMBEDDING_SIZE)
    for words in (
        ("embed", "--images", work / "0-images", "--weights", recognizer),
        ("train-autoencoder", *TRAINING, AUTOENCODER, "--steps", 3, "--batch-size", 8),
        ("train-ldm", *LDM, "--steps", 3, "--batch-size", 8),
    ):
        ran = finish(spawn(*words, "--work", work))
        assert ran.code == 0, ran.err
    return work


def train_arguments(work: Path, out: Path, *more: object, steps: int = 7) -> list[str]:
    """Return the command line of a training of a few steps; without `more` a discriminator alone says what is good."""
    words = ["train-decoder", "--work", work, "--out", out, "--steps", steps, "--batch-size", 4, *TRAINING,
             "drawn.count=9", "drawn.steps=2", *(more or ADVERSARY)]
    return [str(word) for word in words]


def all_losses(work: Path) -> list[object]:
    """Return the settings of a training in which the recognizer has its say too."""
    return ["--features", work / "recognizer", *ADVERSARY]
