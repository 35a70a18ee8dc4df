"""One benchmark with one network: embed its images with the flip test, compare its pairs, sum up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import nn

from facesyn_cli.artifacts.benchmark_table import BenchmarkRow
from facesyn_cli.data.sharding import fixed_batches
from facesyn_cli.data.squares import say_cut
from facesyn_cli.errors import UserError
from facesyn_cli.evaluation.embedding import EmbedOptions, embed_batches
from facesyn_cli.evaluation.pairs import PairSet
from facesyn_cli.evaluation.verification import (
    FALSE_ACCEPT_RATES,
    cosine_threshold,
    equal_error_rate,
    roc_auc,
    squared_distances,
    tar_at_far,
    unit_rows,
    verify_folds,
)


class Embeddable(Protocol):
    """What a benchmark offers to a network."""

    name: str
    images: list[str]
    read: Callable[[int], bytes]


def pair_distances(
    network: nn.Module, pairs: PairSet, options: EmbedOptions, advance: Callable[[int], None] = lambda count: None
) -> NDArray[np.float64]:
    """Return the (N,) squared distances of the pairs, from unit embeddings in float64.

    Args:
        network: As for `embedding.embed_batches`.
        pairs: The benchmark.
        options: `flip` is the published flip test; `fit` says what happens to images of another size.
        advance: Called with the number of images finished since the last call.

    Raises:
        UserError: An image cannot be read or has another size.
    """
    unit = unit_rows(embed_images(network, pairs, options, advance))
    return squared_distances(unit[pairs.first], unit[pairs.second])


def embed_images(
    network: nn.Module,
    benchmark: Embeddable,
    options: EmbedOptions,
    advance: Callable[[int], None] = lambda count: None,
) -> NDArray[np.float64]:
    """Return the (images, D) embeddings of a benchmark, not normalized; arguments and errors as `pair_distances`."""
    batches = fixed_batches(len(benchmark.images), options.batch_size)
    vectors: NDArray[np.float64] | None = None
    num_cut = 0
    for batch in embed_batches(network, benchmark.read, batches, options):
        if batch.problems:
            first = min(batch.problems)
            raise UserError(
                f"{benchmark.name}: {len(batch.problems)} of the first {batch.indices[-1] + 1} images cannot be used, "
                f"{benchmark.images[first]}: {batch.problems[first]}"
            )
        if vectors is None:  # in one piece: IJB-C's are 1.9 GB
            vectors = np.empty((len(benchmark.images), batch.vectors.shape[1]))
        vectors[list(batch.indices)] = batch.vectors
        num_cut += batch.num_cut
        advance(len(batch.indices))
    say_cut(benchmark.name, num_cut, len(benchmark.images))
    return vectors


def sum_up(pairs: PairSet, distance: NDArray[np.float64]) -> BenchmarkRow:
    """Return all figures of one benchmark.

    Args:
        pairs: The benchmark.
        distance: (N,) squared distances of its pairs.

    Raises:
        UserError: A distance is not finite.
    """
    try:
        result = verify_folds(distance, pairs.is_same, pairs.folds)
    except UserError as error:
        raise UserError(f"{pairs.name}: {error}") from error
    threshold = float(result.threshold.mean())
    return BenchmarkRow(
        benchmark=pairs.name,
        pairs=len(pairs),
        genuine=int(pairs.is_same.sum()),
        folds=pairs.folds,
        accuracy=float(result.accuracy.mean()),
        accuracy_std=float(result.accuracy.std()),
        threshold=threshold,
        threshold_cosine=cosine_threshold(threshold),
        tar={f"{far:.0e}": tar_at_far(distance, pairs.is_same, far) for far in FALSE_ACCEPT_RATES},
        auc=roc_auc(distance, pairs.is_same),
        eer=equal_error_rate(distance, pairs.is_same),
    )
