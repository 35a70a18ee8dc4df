"""Settings of `facesyn bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from facesyn_cli.config.fields import StageConfig, runtime_only
from facesyn_cli.plugins.settings import PluginConfig, PluginSection

SUBJECTS = ("sample", "embed", "train-ldm", "train-fr", "pack", "eval", "reading")  # each beside a plain loop
ALONE = ("classifier", "scale")                                                     # without one
SAMPLE_RATE = 0.1                                                                   # of Partial FC
SMALL: dict[str, Any] = {
    "denoiser": {"channels": 32, "multipliers": [1, 2], "attention": [False, True], "num_blocks": 1},
    "autoencoder": {"channels": 32, "multipliers": [1, 2, 2], "num_blocks": 1},
    "backbone": {"name": "ir-tiny"},
    "image_size": 64, "images": 64, "steps": 4, "batch_size": 8, "per_id": 8,
}  # settings of --small


class BenchConfig(StageConfig):
    """Settings of `facesyn bench`. The default networks are the published ones."""

    renamed = {"levers": "each_option"}

    denoiser: PluginConfig = PluginSection("denoiser", default="idiff-unet")
    autoencoder: PluginConfig = PluginSection("autoencoder", default="vq-f4")
    backbone: PluginConfig = PluginSection("backbone", default="ir-50")
    image_size: int = runtime_only(128, "side of the images the autoencoder makes, in pixels", ge=8)
    images: int | None = runtime_only(
        None, "images of a timed run; None: for sample a batch per core, 20 on a GPU; 256 for the others, or all of "
        "`faces`", ge=1
    )
    faces: Path | None = runtime_only(
        None, "folder or zip of faces by identity, for all subjects but sample; None: random images"
    )
    workers: int | None = runtime_only(
        None, "train-fr, reading: workers that read, processes of the plain loop and threads of facesyn; None: one per "
        "core", ge=0
    )
    epochs: int = runtime_only(1, "train-fr: passes over the images", ge=1)
    per_id: int = runtime_only(
        50, "images of an identity; the plain loop draws one identity per batch, as published", ge=1
    )
    batch_size: int | None = runtime_only(None, "images a batch; None: 8 on a CPU, 256 on a GPU", ge=1)
    steps: int | None = runtime_only(
        None, "steps of the scheduler, 50 on a GPU and 5 on a CPU; of training, 10", ge=1
    )
    precision: Literal["fp32", "bf16", "fp16"] | None = runtime_only(
        None, "number format of facesyn's run; None: the one that pays here"
    )
    classes: tuple[int, ...] = runtime_only((10_000, 100_000), "classifier: numbers of identities")
    classifiers: tuple[Literal["whole", "sharded", "sampled"], ...] = runtime_only(
        ("whole", "sharded", "sampled"), "classifier: what is measured; sampled: sharded, with sample_rate=0.1"
    )
    sizes: tuple[int, ...] = runtime_only((500, 5_000, 50_000), "scale: images of each set, in increasing order")
    folder: Path | None = runtime_only(
        None, "scale: where sets and results lie, which the same command continues; None: a temporary folder"
    )
    rounds: int = runtime_only(3, "timed rounds, of which the fastest is reported", ge=1)
    cores: int | None = runtime_only(None, "cores of a CPU; None: all this process may use", ge=1)
    clock: Literal["wall", "cpu"] = runtime_only(
        "wall", "cpu: processor time divided by cores, for a machine that others use too"
    )
    compile: bool | None = runtime_only(None, "torch.compile in facesyn's run of sample; None: on CUDA")
    each_option: bool = runtime_only(True, "sample: measure each inference option alone")
    few_steps: int = runtime_only(
        12, "sample: steps of a second run, with unipc, where `steps` is 4 times as many or more", ge=1
    )
