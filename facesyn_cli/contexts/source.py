"""The interfaces of context sources and context filters, and the `Resources` they work with.

A plugin's builder takes only its settings. Files of the user and networks come in one `Resources` object, which holds
what the plugin names in `needs`:

    source = build("contexts", cfg.source)        # settings only, nothing is read
    source.open(resources)                        # files are checked
    for batch in source.candidates(start): ...    # candidate `start`, `start` + 1, ...

Candidate k depends on (settings, inputs, seed, k) alone: not on the batch size, nor on where an
earlier run stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from facesyn_cli.artifacts.origins import UNKNOWN, Origin
from facesyn_cli.artifacts.vector_files import EMBEDDING_SIZE, normalize

if TYPE_CHECKING:
    import torch
    from torch import nn

    from facesyn_cli.artifacts.image_set import ImageSet
    from facesyn_cli.contexts.embedding_files import GivenVectors
    from facesyn_cli.models.loading import LoadedLdm

FACE_SIZE = 112  # pixels a side of the faces that come with contexts, as every recognizer here reads them

NEEDS = {
    "images": "a folder or zip of faces",
    "embeddings": "embeddings: an EmbeddingSet, an (N, 512) .npy or a torch-saved dict",
    "known": "the EmbeddingSet of known people",
    "generator": "a diffusers pipeline or a guided-diffusion checkpoint",
    "ldm": "a trained LDM with its autoencoder",
    "recognizer": "a face recognizer",
}


@dataclass(frozen=True)
class Resources:
    """Inputs and networks of sources and filters; None where none needs them.

    Args:
        seed: Seed of everything random.
        batch_size: Candidates in a batch: as many faces as the networks see at once, 1024 where there are none.
        images: Faces of the user.
        embeddings: Given embeddings.
        known: (M, 512) float32 unit embeddings of known people.
        known_people: Identity of each of them; None: they have no names.
        known_embedder: Digest of the recognizer they come from; None unknown.
        embedder: Digest of the recognizer.
        features: The recognizer: (N, 112, 112, 3) uint8 faces -> (N, 512) float64 rows, not normalized, any N.
        align: Cuts the face out of a photo, (H, W, 3) -> (112, 112, 3) uint8; None: images are faces already.
        generator: Unconditional diffusers pipeline, on `device`.
        ldm: An LDM of ours, in eval mode.
        autoencoder: Its decoder, in eval mode.
        device: Where networks run; None: the CPU.
    """

    seed: int = 0
    batch_size: int = 32
    images: ImageSet | None = None
    embeddings: GivenVectors | None = None
    known: np.ndarray | None = None
    known_people: list[str] | None = None
    known_embedder: str | None = None
    embedder: str | None = None
    features: Callable[[np.ndarray], np.ndarray] | None = None
    align: Callable[[np.ndarray], np.ndarray] | None = None
    generator: Any = None
    ldm: LoadedLdm | None = None
    autoencoder: nn.Module | None = None
    device: torch.device | None = None

    def embed(self, faces_u8: list[np.ndarray]) -> np.ndarray:
        """Return (N, 512) float32 unit rows of N faces, (112, 112, 3) each; N may be 0."""
        if not faces_u8:
            return np.empty((0, EMBEDDING_SIZE), dtype=np.float32)
        return normalize(self.features(np.stack(faces_u8)))


@dataclass(frozen=True)
class CandidateBatch:
    """Candidates number `start` up to, not including, `stop`.

    Args:
        start: Number of the first candidate.
        stop: Number after the last one.
        vectors: (N, 512) float32 unit rows; N may be less than stop - start where candidates failed.
        origins: N records of where each comes from; `candidate` is its number.
        faces: N encoded 112 x 112 images, or None for a candidate without a face.
        failed: Number and reason of what could not be read.
    """

    start: int
    stop: int
    vectors: np.ndarray
    origins: list[dict[str, Any]]
    faces: list[bytes | None]
    failed: list[tuple[int, str]] = field(default_factory=list)


class ContextSource:
    """Base class of context sources: yields candidate identities in an order that never changes.

    Attributes:
        needs: Names from `NEEDS` that must be in the resources.
        may_use: Names from `NEEDS` that it uses when they are given.
        evaluations: Network evaluations per candidate, by network; known after `open`.
        face_origin: photo, generated or unknown, where candidates have faces; known after `open`.
        num_candidates: None: endless. Known after `open`.
    """

    needs: frozenset[str] = frozenset()
    may_use: frozenset[str] = frozenset()
    evaluations: dict[str, int] = {}
    face_origin: Origin = UNKNOWN
    num_candidates: int | None = None
    resources = Resources()

    def open(self, resources: Resources) -> None:
        """Take the resources and check them.

        Raises:
            UserError: An input is not what was expected.
        """
        self.resources = resources

    @property
    def embedder(self) -> str | None:
        """Digest of the recognizer in whose space the vectors lie; None unknown. Known after `open`."""
        return self.resources.embedder

    def candidates(self, start: int) -> Iterator[CandidateBatch]:
        """Yield all candidates from number `start` on, without gaps.

        Processes and runs that divide the work take single batches from any `start`; batches of
        `resources.batch_size` candidates are taken as they are, others are cut and joined. On a CPU several
        threads take batches at once.
        """
        raise NotImplementedError


class ContextFilter:
    """Base class of context filters: selects candidates.

    Attributes:
        needs: Names from `NEEDS` that must be in the resources.
        evaluations: Network evaluations per candidate it sees, by network; known after `open`.
        remembers: Decisions depend on earlier accepted candidates; such a filter acts last, in one process. That of
            any other filter depends on the candidate alone, and is made in the process that made the candidate.
    """

    needs: frozenset[str] = frozenset()
    evaluations: dict[str, int] = {}
    remembers = False
    resources = Resources()

    def open(self, resources: Resources) -> None:
        """Take the resources and check them.

        Raises:
            UserError: An input is not what was expected.
        """
        self.resources = resources

    def restore(self, vectors: np.ndarray) -> None:
        """Restore the state after (N, 512) candidates that an earlier run accepted, in order."""

    def select(self, vectors: np.ndarray) -> np.ndarray:
        """Return (N,) bool, which of the (N, 512) float32 unit candidates to accept.

        The result over a sequence of candidates does not depend on how it is cut into calls.
        """
        raise NotImplementedError
