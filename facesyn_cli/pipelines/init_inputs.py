"""What `facesyn init` finds: the photos, the networks and the machine."""

from __future__ import annotations

import io
import os
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from facesyn_cli.artifacts.record_set_images import open_images
from facesyn_cli.artifacts.starter_files import is_packaged
from facesyn_cli.data.ordered_pool import usable_cores
from facesyn_cli.data.pixels import FORMATS
from facesyn_cli.errors import UserError
from facesyn_cli.evaluation.pairs import is_bin
from facesyn_cli.models.loading import load_autoencoder, load_backbone
from facesyn_cli.models.precision import WORTH, computes, matrix_gain

SIDE = 112          # of faces aligned on the ArcFace template, in pixels
_LOOKED_AT = 200    # photos whose size is read, evenly spread over the set
_ALIGNED = 0.95     # share of them with that side, from which on the set counts as aligned


@dataclass(frozen=True)
class Photos:
    """A set of photos.

    Args:
        path: Folder or zip.
        images: Number of them.
        identities: Number of people, as folders or labels tell them apart.
        has_identities: Whether there are folders of people; otherwise every photo counts as a person of its own.
        is_aligned: They are 112 x 112 pixels, as aligned faces are.
        sizes: The most frequent sizes, `width x height`.
    """

    path: Path
    images: int
    identities: int
    has_identities: bool
    is_aligned: bool
    sizes: tuple[str, ...]

    def __str__(self) -> str:
        people = f"of {self.identities:,} people" if self.has_identities else "without folders for people"
        kind = f"aligned faces of {SIDE} x {SIDE} px" if self.is_aligned else f"photos of {', '.join(self.sizes)} px"
        return f"{self.images:,} images {people}; {kind}"


@dataclass(frozen=True)
class Network:
    """A network in a file or folder.

    Args:
        architecture: Its plugin name.
        size: Length of the embeddings of a recognizer, number of channels of the latents of an autoencoder.
        digest: Digest of the weights of a recognizer; None: not known.
    """

    architecture: str
    size: int
    digest: str | None = None


@dataclass(frozen=True)
class Machine:
    """What a run has at its disposal; GPU memory and disk in GiB.

    Args:
        cores: Usable processor cores.
        gpu: Name of the first GPU; None: there is none.
        num_gpus: Number of GPUs.
        gpu_memory: Of the first one.
        disk_free: On the disk of the current folder.
        bf16: The device on which a training runs computes faster in bf16 than in fp32.
    """

    cores: int
    gpu: str | None
    num_gpus: int
    gpu_memory: float
    disk_free: float
    bf16: bool = False

    def __str__(self) -> str:
        count = f"{self.num_gpus} x " if self.num_gpus > 1 else ""
        gpu = f"{count}{self.gpu}, {self.gpu_memory:.0f} GiB" if self.gpu else "no GPU"
        return f"{self.cores} processor cores, {gpu}, {self.disk_free:.0f} GiB free on the disk"


def look_at_machine() -> Machine:
    """Return cores, GPUs and free disk of this machine."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    about = torch.cuda.get_device_properties(0) if count else None
    device = torch.device("cuda" if count else "cpu")
    return Machine(
        usable_cores(), about.name if about else None, count, about.total_memory / 2**30 if about else 0.0,
        shutil.disk_usage(os.curdir).free / 2**30, computes("bf16", device) and matrix_gain("bf16", device) >= WORTH,
    )


def look_at_photos(path: Path) -> Photos:
    """Return number, people and sizes of a set of photos.

    Raises:
        UserError: There are no images, or none of those looked at can be read.
    """
    images = open_images(path)
    step = max(1, len(images.entries) // _LOOKED_AT)
    sizes: Counter[tuple[int, int]] = Counter()
    for entry in images.entries[::step]:
        try:
            with Image.open(io.BytesIO(images.read(entry)), formats=FORMATS) as image:
                sizes[image.size] += 1
        except Exception:  # a damaged header raises nearly anything; the stages list unreadable images
            continue
    if not sizes:
        raise UserError(f"{path}: none of the images looked at can be read")
    num_identities = len({entry.identity for entry in images.entries})
    return Photos(
        path, len(images.entries), num_identities, num_identities < len(images.entries),
        sizes[SIDE, SIDE] >= _ALIGNED * sizes.total(),
        tuple(f"{width} x {height}" for (width, height), _ in sizes.most_common(2)),
    )


def look_at_recognizer(path: Path) -> Network:
    """Return architecture and embedding length of a recognizer.

    Raises:
        UserError: It is not there, or no recognizer.
    """
    found = load_backbone(path)
    with torch.no_grad():
        embedding = found.module(torch.zeros(1, 3, found.input_size, found.input_size))
    return Network(found.name, embedding.shape[1], found.digest)


def look_at_autoencoder(path: Path) -> Network:
    """Return architecture and latent channels of an autoencoder.

    Raises:
        UserError: It is not there, or no autoencoder.
    """
    found = load_autoencoder(path)
    return Network(found.section["name"], found.latent_channels)


def check_pairs(pairs: Path, images: Path | None) -> None:
    """Refuse verification pairs that are not there, and a list of pairs without its images.

    Raises:
        UserError: With what is missing.
    """
    if not pairs.is_file():
        raise UserError(f"{pairs} does not exist; a list of verification pairs or a .bin file was expected")
    if images is not None:
        open_images(images)
    elif not is_bin(pairs):
        raise UserError(f"{pairs} lists pairs of images: name the folder or zip with these images (--pair-images)")


def require_starter() -> None:
    """Refuse where the package has no starter.

    Raises:
        UserError: There is none.
    """
    if not is_packaged():
        raise UserError("this facesyn comes without a starter: give --photos and --recognizer")
