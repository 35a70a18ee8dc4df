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
from facesyn_cli.evaluation.all_pairs import FolderPairs
from facesyn_cli.evaluation.embedding import FaceEmbedder
from facesyn_cli.evaluation.pairs import PairSet
from facesyn_cli.evaluation.verification import roc_auc, squared_distances, unit_rows, verify_folds
from facesyn_cli.progress import progress

_GATHERED_ROWS = 65536


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
    embedder: FaceEmbedder, images: EvaluationSet, processes: Processes,
    advance: Callable[[int], None] = lambda count: None,
) -> NDArray[np.float64] | None:
    """Return in the first process the (images, D) embeddings of a benchmark, not normalized, elsewhere None.

    A collective: each process embeds a share of the batches.

    Args:
        embedder: The recognizer; its option `flip` is the published flip test.
        images: The benchmark.
        processes: Those of the run.
        advance: Called with the number of images of this process finished since the last call.

    Raises:
        UserError: An image cannot be read or has another size; the same for any number of processes.
    """
    batches = share(
        fixed_batches(len(images.images), embedder.options.batch_size), processes.rank, processes.world_size
    )
    rows = np.array([index for batch in batches for index in batch], dtype=np.int64)
    vectors: NDArray[np.float64] | None = None
    done, num_cut, problem, place = 0, 0, "", 0
    try:
        for batch in embedder.files(images.read, batches):
            if batch.problems:
                first, place = min(batch.problems), batch.indices[0]
                problem = (f"{images.name}: {len(batch.problems)} of the first {batch.indices[-1] + 1} images cannot "
                           f"be used, {images.images[first]}: {batch.problems[first]}")
                break
            if vectors is None:  # in one piece: IJB-C's are 1.9 GB
                vectors = np.empty((len(rows), batch.vectors.shape[1]))
            vectors[done : done + len(batch.indices)] = batch.vectors
            done, num_cut = done + len(batch.indices), num_cut + batch.num_cut
            advance(len(batch.indices))
    except UserError as error:
        problem = str(error)
    processes.raise_in_all(problem, place)
    say_cut(images.name, int(processes.sum(torch.tensor([num_cut], device=processes.device)).item()),
            len(images.images))
    return vectors if processes.world_size == 1 else _gathered(rows, vectors, len(images.images), processes)


def _gathered(
    rows: NDArray[np.int64], vectors: NDArray[np.float64] | None, num_rows: int, processes: Processes
) -> NDArray[np.float64] | None:
    """Return in the first process the rows of all processes, (num_rows, D), elsewhere None. A collective.

    Args:
        rows: (n,) numbers of the rows of this process, rising.
        vectors: (n, D); None: it has none. The first process has some.
        num_rows: Rows of all processes.
        processes: See above.
    """
    width = processes.broadcast(None if vectors is None else vectors.shape[1])
    whole = np.empty((num_rows, width)) if processes.is_first else None
    for part in fixed_batches(num_rows, _GATHERED_ROWS):
        block = torch.zeros(len(part), width, dtype=torch.float64)
        here = slice(*np.searchsorted(rows, (part.start, part.stop)))
        if vectors is not None:
            block[rows[here] - part.start] = torch.from_numpy(vectors[here])
        total = processes.sum(block.to(processes.device))  # of one row and zeros
        if whole is not None:
            whole[part.start : part.stop] = total.cpu().numpy()
    return whole


def verify_in_training(
    embedder: FaceEmbedder, pairs: PairSet | FolderPairs, embedding_size: int, processes: Processes
) -> dict[str, float | None]:
    """Return figures of a network in training. A collective: each process embeds a share.

    Args:
        embedder: The network, in eval mode.
        pairs: Pairs, with k-fold accuracy and AUC; or a folder, with those of `FolderPairs.figures`.
        embedding_size: Width of an embedding.
        processes: All of them return the same.

    Raises:
        UserError: An image cannot be read, or the network returns NaN.
    """
    vectors, problem, place = torch.zeros(len(pairs.images), embedding_size), "", 0
    batches = fixed_batches(len(pairs.images), embedder.options.batch_size)
    mine = share(batches, processes.rank, processes.world_size)
    with progress(f"verify {pairs.name}", sum(map(len, mine))) as bar:
        for batch in embedder.files(pairs.read, mine):
            vectors[list(batch.indices)] = torch.from_numpy(batch.vectors).float()
            if batch.problems and not problem:
                place = min(batch.problems)
                problem = f"{pairs.name}: {pairs.images[place]} cannot be used: {batch.problems[place]}"
            bar.advance(len(batch.indices))
    processes.raise_in_all(problem, place)
    unit = unit_rows(processes.sum(vectors.to(embedder.options.device)).cpu().numpy())
    if isinstance(pairs, FolderPairs):
        return pairs.figures(unit)
    distance = squared_distances(unit[pairs.first], unit[pairs.second])
    accuracy = verify_folds(distance, pairs.is_same, pairs.folds).accuracy
    return {"accuracy": float(accuracy.mean()), "auc": roc_auc(distance, pairs.is_same)}
