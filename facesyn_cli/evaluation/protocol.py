"""The interface of all benchmarks: images that a network embeds, and a row of figures from their embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from facesyn_cli.artifacts.benchmark_table import BenchmarkRow
from facesyn_cli.data.sharding import fixed_batches, share
from facesyn_cli.data.squares import say_cut
from facesyn_cli.distributed import Processes
from facesyn_cli.errors import UserError
from facesyn_cli.evaluation.embedding import FaceEmbedder
from facesyn_cli.evaluation.pairs import PairSet
from facesyn_cli.evaluation.verification import roc_auc, squared_distances, unit_rows, verify_folds


class EvaluationSet(Protocol):
    """The images of one row of the table, and how to score them; its length is the number of comparisons.

    Attributes:
        name: In the table.
        images: Name of each image, for messages.
        read: From an index to the encoded bytes; safe to call from several threads.
        flip: Use the flip test; None: the setting of the command.
        unit: Name of the comparisons: `pairs` or `probes`.
    """

    name: str
    images: list[str]
    read: Callable[[int], bytes]
    flip: bool | None
    unit: ClassVar[str]

    def __len__(self) -> int: ...

    def evaluate(self, vectors: NDArray[np.float64]) -> tuple[BenchmarkRow, dict[str, NDArray]]:
        """Return the figures, and the arrays that they were computed from.

        Args:
            vectors: (images, D) embeddings, not normalized.

        Raises:
            UserError: They are not finite.
        """


def embed_images(
    embedder: FaceEmbedder, images: EvaluationSet, advance: Callable[[int], None] = lambda count: None
) -> NDArray[np.float64]:
    """Return the (images, D) embeddings of a benchmark, not normalized.

    Args:
        embedder: The recognizer; its option `flip` is the published flip test.
        images: The benchmark.
        advance: Called with the number of images finished since the last call.

    Raises:
        UserError: An image cannot be read or has another size.
    """
    batches = fixed_batches(len(images.images), embedder.options.batch_size)
    vectors: NDArray[np.float64] | None = None
    num_cut = 0
    for batch in embedder.files(images.read, batches):
        if batch.problems:
            first = min(batch.problems)
            raise UserError(
                f"{images.name}: {len(batch.problems)} of the first {batch.indices[-1] + 1} images cannot be used, "
                f"{images.images[first]}: {batch.problems[first]}"
            )
        if vectors is None:  # in one piece: IJB-C's are 1.9 GB
            vectors = np.empty((len(images.images), batch.vectors.shape[1]))
        vectors[list(batch.indices)] = batch.vectors
        num_cut += batch.num_cut
        advance(len(batch.indices))
    say_cut(images.name, num_cut, len(images.images))
    return vectors


def verify_in_training(
    embedder: FaceEmbedder, pairs: PairSet, embedding_size: int, processes: Processes
) -> dict[str, float | None]:
    """Return k-fold accuracy and AUC of a network in training. A collective: each process embeds a share.

    Args:
        embedder: The network, in eval mode.
        pairs: The pairs.
        embedding_size: Width of an embedding.
        processes: All of them return the same.

    Raises:
        UserError: An image cannot be read, or the network returns NaN.
    """
    vectors, problem = torch.zeros(len(pairs.images), embedding_size), ""
    batches = fixed_batches(len(pairs.images), embedder.options.batch_size)
    for batch in embedder.files(pairs.read, share(batches, processes.rank, processes.world_size)):
        vectors[list(batch.indices)] = torch.from_numpy(batch.vectors).float()
        if batch.problems:
            bad = min(batch.problems)
            problem = problem or f"{pairs.name}: {pairs.images[bad]} cannot be used: {batch.problems[bad]}"
    processes.raise_in_all(problem)
    unit = unit_rows(processes.sum(vectors.to(embedder.options.device)).cpu().numpy())
    distance = squared_distances(unit[pairs.first], unit[pairs.second])
    accuracy = verify_folds(distance, pairs.is_same, pairs.folds).accuracy
    return {"accuracy": float(accuracy.mean()), "auc": roc_auc(distance, pairs.is_same)}
