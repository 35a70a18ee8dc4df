"""Results of the functions of `facesyn_cli.api`: a folder, its counts, and lazy access to what it holds.

A result reads nothing before a property needs it: one of a million images costs nothing to hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from facesyn_cli.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from facesyn_cli.artifacts.benchmark_table import BenchmarkTable
    from facesyn_cli.artifacts.context_set import ContextSet
    from facesyn_cli.artifacts.embedding_set import EmbeddingSet
    from facesyn_cli.artifacts.header import Header
    from facesyn_cli.artifacts.image_set import ImageEntry, ImageSet
    from facesyn_cli.artifacts.record_set import RecordSet


@dataclass
class Result:
    """A folder that a stage wrote, or a published file or folder of the same kind.

    Args:
        folder: Its path.
        summary: JSON values that the command prints with `--json`; empty for a result of `open`.
        text: The text that it prints otherwise.
    """

    folder: Path
    summary: dict[str, Any] = field(default_factory=dict)
    text: str = ""

    @cached_property
    def header(self) -> Header | None:
        """The header `facesyn.json`; None for a folder or file that facesyn did not write."""
        from facesyn_cli.artifacts.header import read_header

        return read_header(self.folder) if self.folder.is_dir() else None

    @property
    def counts(self) -> dict[str, int]:
        """How many of what the folder holds, as its header says."""
        return dict(self.header.counts) if self.header is not None else {}

    def __str__(self) -> str:
        return f"{self.text}\nfolder: {self.folder}" if self.text else f"folder: {self.folder}"


class Images(Result):
    """Images by identity: of `align`, `sample`, `select` and `augment`, and any folder, zip or packed set of faces."""

    @cached_property
    def images(self) -> ImageSet:
        """The set, with the encoded bytes of every image."""
        from facesyn_cli.artifacts.record_set_images import open_images

        return open_images(self.folder)

    def __len__(self) -> int:
        return len(self.images.entries)

    def __iter__(self) -> Iterator[tuple[str, Image.Image]]:
        """Yield (key, RGB image) in natural order of the keys `identity/sample`."""
        for entry in self.images.entries:
            yield entry.key, self._decoded(entry)

    def __getitem__(self, key: str) -> Image.Image:
        """Return one image as RGB by its key `identity/sample`."""
        return self._decoded(self._entry_of[key])

    @cached_property
    def identities(self) -> list[str]:
        """Names of the identities in natural order."""
        return list(self.images.by_identity())

    @cached_property
    def keys(self) -> list[str]:
        """`identity/sample` of every image, in natural order."""
        return [entry.key for entry in self.images.entries]

    def contact_sheet(self, identities: int = 8, per_id: int = 8, size: int = 112) -> Image.Image:
        """Return a picture with one row per identity.

        Args:
            identities: Rows at most, spread evenly over the set.
            per_id: Columns at most.
            size: Side of one image on the sheet, in pixels.
        """
        from facesyn_cli.data.picture_grid import contact_sheet

        return Image.fromarray(contact_sheet(self.images, identities, per_id, size))

    @cached_property
    def _entry_of(self) -> dict[str, ImageEntry]:
        return {entry.key: entry for entry in self.images.entries}

    def _decoded(self, entry: ImageEntry) -> Image.Image:
        from facesyn_cli.data.pixels import decode_image

        try:
            return Image.fromarray(decode_image(self.images.read(entry)))
        except ValueError as error:
            raise UserError(f"{self.folder}: {entry.location} is unreadable: {error}") from error


class Embeddings(Result):
    """Unit embeddings by image key: of `embed`, and any published embeddings with names."""

    @cached_property
    def embeddings(self) -> EmbeddingSet:
        """The set, with the digest of its recognizer."""
        from facesyn_cli.artifacts.embedding_set import EmbeddingSet

        return EmbeddingSet.open(self.folder)

    @property
    def keys(self) -> list[str]:
        """`identity/sample` of every row."""
        return self.embeddings.keys

    @property
    def vectors(self) -> NDArray[np.float32]:
        """(N, D) float32, rows of length 1."""
        return self.embeddings.vectors

    def __len__(self) -> int:
        return len(self.keys)


class Contexts(Result):
    """Embeddings of new identities: of `gen-contexts`, and published context files."""

    @cached_property
    def contexts(self) -> ContextSet:
        """The set, with the origin of every context."""
        from facesyn_cli.artifacts.context_set import ContextSet

        return ContextSet.open(self.folder)

    @property
    def identities(self) -> list[str]:
        """Names of the identities."""
        return self.contexts.identities

    @property
    def vectors(self) -> NDArray[np.float32]:
        """(N, D) float32, rows of length 1."""
        return self.contexts.vectors

    def face(self, identity: str) -> Image.Image | None:
        """Return the face that a context is the embedding of, as RGB; None where there is none."""
        path = self.contexts.faces[self.identities.index(identity)]
        if path is None:
            return None
        with Image.open(path) as image:
            return image.convert("RGB")

    def __len__(self) -> int:
        return len(self.identities)


class Records(Images):
    """Packed images with integer labels: of `pack`, and published record files."""

    @cached_property
    def records(self) -> RecordSet:
        """The set in the order of its records."""
        from facesyn_cli.artifacts.record_set import RecordSet

        return RecordSet.open(self.folder)

    @property
    def labels(self) -> NDArray[np.int32]:
        """(N,) label of every record; `records.identities[label]` is its name."""
        return self.records.labels


class Network(Result):
    """Weights of a network: of the commands that train, and any published checkpoint."""

    @cached_property
    def config(self) -> dict[str, Any]:
        """The settings that were stored beside the weights."""
        from facesyn_cli.artifacts.weights import read_config

        return read_config(self.folder)

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`; empty without that file."""
        from facesyn_cli.training.metrics_log import read_lines

        return read_lines(self.folder / "metrics.jsonl")

    def load(self) -> nn.Module:
        """Return the network in eval mode on the CPU: a recognizer, a denoiser, or an autoencoder.

        Raises:
            UserError: The weights are damaged, or of a network that facesyn does not know.
        """
        from facesyn_cli.models.inspection import inspect
        from facesyn_cli.models.loading import load_autoencoder, load_backbone, load_denoiser

        kind = inspect(self.folder)["kind"]
        if kind == "denoiser":
            return load_denoiser(self.folder).module
        if kind == "autoencoder":
            return load_autoencoder(self.folder)
        return load_backbone(self.folder, reads=None).module  # which refuses what is no recognizer


class Benchmarks(Result):
    """Verification figures by benchmark: of `eval`."""

    @cached_property
    def table(self) -> BenchmarkTable:
        """The table; shares are fractions in [0, 1]."""
        from facesyn_cli.artifacts.benchmark_table import BenchmarkTable

        return BenchmarkTable.read(self.folder)

    @property
    def average_accuracy(self) -> float | None:
        """Mean accuracy of the benchmarks in [0, 1]; None where one has no figures."""
        return self.table.average_accuracy

    def _repr_markdown_(self) -> str:
        return self.table.to_markdown()


class Report(Result):
    """Quality, diversity and privacy of image sets: of `report`."""

    @property
    def page(self) -> Path:
        """The HTML page."""
        return self.folder / "report.html"

    @cached_property
    def figures(self) -> dict[str, Any]:
        """The content of `report.json`."""
        from facesyn_cli.artifacts.atomic_files import read_json

        found = read_json(self.folder / "report.json")
        return found if isinstance(found, dict) else {}
