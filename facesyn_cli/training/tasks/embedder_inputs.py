"""What a student reads, photos or their latents, and the teacher's embeddings of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from facesyn_cli.artifacts.digest import json_digest
from facesyn_cli.artifacts.embedding_set import EmbeddingSet
from facesyn_cli.artifacts.header import Parent
from facesyn_cli.artifacts.image_set import ImageEntry, ImageSet
from facesyn_cli.data.datasets import TrainingFaces, WeightedSet
from facesyn_cli.data.decoded_cache import file_stamps
from facesyn_cli.data.face_images import FaceImages
from facesyn_cli.data.latent_cache import LatentCache
from facesyn_cli.data.sharding import fixed_batches, share
from facesyn_cli.data.squares import say_if_not_square
from facesyn_cli.data.transforms import compose
from facesyn_cli.diffusion.noise import keyed_random
from facesyn_cli.distributed import Processes
from facesyn_cli.errors import UserError
from facesyn_cli.evaluation.embedding import EmbedOptions, FaceEmbedder
from facesyn_cli.models.loading import load_autoencoder
from facesyn_cli.progress import progress
from facesyn_cli.training.batch_loading import load_groups
from facesyn_cli.training.data_order import is_held_out
from facesyn_cli.training.precision import autocast
from facesyn_cli.training.tasks.ldm_batches import CachedLatents, fill_cache, latent_statistics
from facesyn_cli.training.tasks.ldm_inputs import (
    autoencoder_parent,
    encoder,
    evenly,
    having_embeddings,
    latent_shape,
)

Rows = Iterable[list[tuple[int, int]]]  # (epoch, row) of the images of each group


class NumberedFaces:
    """Photos for training whose label is their own number, which is the row of their target.

    Args:
        images: The set they belong to.
        entries: The photos.
    """

    def __init__(self, images: ImageSet, entries: Sequence[ImageEntry]) -> None:
        self.images, self.entries = images, list(entries)
        self.labels, self.num_classes = np.arange(len(self.entries), dtype=np.int32), len(self.entries)

    def read(self, index: int) -> bytes:
        """Return one encoded image."""
        return self.images.read(self.entries[index])

    def name_of(self, index: int) -> str:
        """Return the location of an image, for messages."""
        return f"{self.entries[index].location} in {self.images.path}"

    def content(self) -> Any:
        """Return a JSON value that names the images; see `LabeledSet`."""
        images = self.images
        return [images.digest, file_stamps(images.files()), json_digest([entry.location for entry in self.entries])]


@dataclass(frozen=True)
class TaughtFaces:
    """Photos and the teacher's embeddings of them.

    Args:
        entries: All photos that have an embedding, used or not.
        train: Photos to train on.
        train_targets: (N, E) float32, their unit embeddings.
        held_out: Photos of other people, to validate with.
        held_out_targets: (M, E) float32, their unit embeddings.
        num_without: Photos that have no embedding and are left out.
    """

    entries: list[ImageEntry]
    train: NumberedFaces
    train_targets: Tensor
    held_out: NumberedFaces
    held_out_targets: Tensor
    num_without: int


def join_teacher(images: ImageSet, embeddings: EmbeddingSet, fraction: float, max_held_out: int) -> TaughtFaces:
    """Join photos and embeddings by key and hold some identities out.

    Args:
        images: The photos.
        embeddings: The teacher's, of these photos and possibly of others.
        fraction: About this share of the identities is held out; which ones depends on their names only.
        max_held_out: Most photos to validate with; photos of held-out identities beyond that are not used.

    Raises:
        UserError: No photo has an embedding, or fewer than two are left to train on.
    """
    entries = having_embeddings(images, embeddings)
    train = [entry for entry in entries if not is_held_out(entry.identity, fraction)]
    say_if_not_square(images.path, lambda row: images.read(entries[row]), len(entries))
    if len(train) < 2:
        raise UserError(
            f"{len(train)} of {len(entries)} images are left to train on, at least 2 are needed; lower "
            f"validation_fraction={fraction:g}"
        )
    held_out = evenly([entry for entry in entries if is_held_out(entry.identity, fraction)], max_held_out)
    targets = [torch.from_numpy(embeddings.join([entry.key for entry in part])) for part in (train, held_out)]
    return TaughtFaces(
        entries, NumberedFaces(images, train), targets[0], NumberedFaces(images, held_out), targets[1],
        len(images.entries) - len(entries),
    )


class StudentInputs(Protocol):
    """Where the groups of a training come from; built without reading an image.

    Attributes:
        parents: Inputs beside the photos and embeddings, for the header.
        section: What the student's config says of them.
    """

    parents: dict[str, Parent]
    section: dict[str, Any]

    def __len__(self) -> int:
        """Return the number of photos to train on."""

    @property
    def cache_bytes(self) -> int:
        """Size of the caches on disk."""

    def chosen(self) -> dict[str, Any]:
        """Return what a plan says about them."""

    def prepare(self, processes: Processes, student: nn.Module) -> None:
        """Fill caches, and set in the student what is measured of its inputs. A collective."""

    def groups(self, rows: Rows, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the inputs of each group and the (N, E) targets."""

    def embed_held_out(self, network: nn.Module, batch_size: int) -> Tensor:
        """Return (M, E) embeddings of the held-out photos, with zeros in the rows of other processes."""

    def finish(self) -> None:
        """Remove what only this training needed."""


class PhotoInputs:
    """Photos under random transforms.

    Args:
        cfg: Settings, a `TrainEmbedderConfig`.
        taught: Photos and targets.
        student: The student, of which settings are read; it may be on "meta".
        folder: Output folder.
    """

    parents, section = dict[str, Parent](), dict[str, Any]()

    def __init__(self, cfg: Any, taught: TaughtFaces, student: nn.Module, folder: Path) -> None:
        self.cfg, self.taught, self.input_size = cfg, taught, student.input_size
        self.faces = TrainingFaces([WeightedSet(taught.train)], compose(cfg.transforms), cfg.seed, self.input_size)
        num_reads = cfg.steps * cfg.batch_size / len(self.faces)
        self.cache_plan = self.faces.plan_caches(cfg.decoded, cfg.decoded_cache, folder, num_reads)

    def __len__(self) -> int:
        return len(self.faces)

    @property
    def cache_bytes(self) -> int:
        return self.cache_plan.num_bytes

    def chosen(self) -> dict[str, Any]:
        return self.cache_plan.chosen()

    def prepare(self, processes: Processes, student: nn.Module) -> None:
        self.processes = processes
        self.faces.use(self.cache_plan, processes)

    def groups(self, rows: Rows, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        targets = self.taught.train_targets
        with closing(load_groups(self.faces, [1.0], rows, self.cfg.workers, device)) as loaded:
            for pixels_u8, labels, _ in loaded:
                yield pixels_u8, targets[labels].to(device)

    def embed_held_out(self, network: nn.Module, batch_size: int) -> Tensor:
        processes, faces = self.processes, self.taught.held_out
        options = EmbedOptions(
            self.input_size, batch_size, processes.device, flip=False, fit="square", workers=max(1, self.cfg.workers)
        )
        embeddings, problem = torch.zeros_like(self.taught.held_out_targets), ""
        batches = share(fixed_batches(len(faces.entries), batch_size), processes.rank, processes.world_size)
        with progress("validate", sum(map(len, batches))) as bar:
            for batch in FaceEmbedder(network, options).files(faces.read, batches):
                embeddings[list(batch.indices)] = torch.from_numpy(batch.vectors).float()
                for index, reason in batch.problems.items():
                    problem = problem or f"{faces.name_of(index)} is unreadable: {reason}"
                bar.advance(len(batch.indices))
        processes.raise_in_all(problem)
        return embeddings

    def finish(self) -> None:
        self.cache_plan.remove_scratch()


class LatentInputs:
    """Latents of the photos and, half of the time, of their mirror images, with noise.

    The noise has a standard deviation that is drawn uniformly between 0 and `latent_noise` for each image, in units of
    that of the channel: an LDM's prediction of clean latents, which the student will read, is not clean either.

    Args:
        cfg: Settings, a `TrainIdentityConfig`.
        autoencoder: File, folder or hub id of the autoencoder, or the name of a packaged one.
        taught: Photos and targets.
        student: The student, of which settings are read; it may be on "meta".
        folder: Output folder.

    Raises:
        UserError: The student takes latents of another shape.
    """

    def __init__(self, cfg: Any, autoencoder: str, taught: TaughtFaces, student: nn.Module, folder: Path) -> None:
        self.cfg, self.taught, self.folder = cfg, taught, folder
        self.autoencoder = load_autoencoder(autoencoder, part="encoder")
        shape = latent_shape(self.autoencoder, cfg.image_size)
        if shape[0] != student.in_channels or shape[1] != student.input_size:
            raise UserError(
                f"latents of {autoencoder} have {shape[0]} channels and, with image_size={cfg.image_size}, a side "
                f"of {shape[1]}; the backbone takes {student.in_channels} channels and a side of {student.input_size}: "
                f"set backbone.in_channels={shape[0]} backbone.latent_size={shape[1]}"
            )
        section = self.autoencoder.section
        self.parents = {"autoencoder": autoencoder_parent(section)}
        self.section = {"autoencoder": section, "image_size": cfg.image_size}
        # the rows of all photos, as train-ldm has them, so that both can share a cache
        place = {entry.key: row for row, entry in enumerate(taught.entries)}
        self.train_rows = [place[entry.key] for entry in taught.train.entries]
        self.held_out_rows = [place[entry.key] for entry in taught.held_out.entries]
        faces = FaceImages(taught.train.images, taught.entries, cfg.image_size)
        self.cache = LatentCache(
            cfg.latent_cache or folder / "latents", faces, self.parents["autoencoder"].digest, shape,
            precision=cfg.latent_precision,
        )

    def __len__(self) -> int:
        return len(self.train_rows)

    @property
    def cache_bytes(self) -> int:
        return self.cache.num_bytes

    def chosen(self) -> dict[str, Any]:
        return {"latent_cache_mib": round(self.cache.num_bytes / 2**20, 1)}

    def prepare(self, processes: Processes, student: nn.Module) -> None:
        self.processes = processes
        encode = encoder(self.autoencoder.to(processes.device), processes.device, self.cfg.latent_precision)
        fill_cache(self.cache, encode, self.cfg.workers, processes)
        mean, std = latent_statistics(self.folder, CachedLatents(self.cache), self.train_rows, processes)
        self.std = torch.tensor(std).view(-1, 1, 1)
        student.normalize_by(torch.tensor(mean), torch.tensor(std))

    def groups(self, rows: Rows, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        for group in rows:
            numbers, draws = [row for _, row in group], [self._draw(*item) for item in group]
            rows_of_cache = [self.train_rows[number] for number in numbers]
            latents = self.cache.read(rows_of_cache, [is_mirrored for is_mirrored, _ in draws])
            noise = torch.from_numpy(np.stack([noise for _, noise in draws]))
            targets = self.taught.train_targets[numbers]
            yield (latents + self.std * noise).to(device), targets.to(device)

    def embed_held_out(self, network: nn.Module, batch_size: int) -> Tensor:
        processes = self.processes
        embeddings, count = torch.zeros_like(self.taught.held_out_targets), len(self.taught.held_out.entries)
        for batch in share(fixed_batches(count, batch_size), processes.rank, processes.world_size):
            latents = self.cache.read([self.held_out_rows[row] for row in batch], [False] * len(batch))
            with torch.no_grad(), autocast(self.cfg.precision, processes.device):
                embeddings[list(batch)] = network(latents.to(processes.device)).float().cpu()
        return embeddings

    def finish(self) -> None:
        """Keep the latents, as `train-ldm` does."""

    def _draw(self, epoch: int, row: int) -> tuple[bool, np.ndarray]:
        random = keyed_random("latents", self.cfg.seed, epoch, row)
        is_mirrored, level = bool(random.random_sample() < 0.5), self.cfg.latent_noise * random.random_sample()
        return is_mirrored, (level * random.standard_normal(self.cache.latent_shape)).astype(np.float32)
