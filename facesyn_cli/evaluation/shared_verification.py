"""Verification figures of a network in training, with the images shared over processes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from facesyn_cli.data.sharding import fixed_batches, share
from facesyn_cli.evaluation.embedding import EmbedOptions, FaceEmbedder
from facesyn_cli.evaluation.pairs import PairSet
from facesyn_cli.evaluation.verification import roc_auc, squared_distances, unit_rows, verify_folds


def embed_share(
    network: nn.Module, pairs: PairSet, options: EmbedOptions, index: int, count: int, embedding_size: int
) -> tuple[Tensor, str]:
    """Embed this process's share of the images of a pair set.

    Args:
        network: In eval mode, on `options.device`.
        index: Number of this process.
        count: Number of processes.
        embedding_size: Width E of an embedding.

    Returns:
        (number of images, E) float32 on the device, zero for the images of other processes; and what is
        wrong with the first unreadable image, or nothing.
    """
    vectors = torch.zeros(len(pairs.images), embedding_size)
    problem = ""
    batches = share(fixed_batches(len(pairs.images), options.batch_size), index, count)
    for batch in FaceEmbedder(network, options).files(pairs.read, batches):
        vectors[list(batch.indices)] = torch.from_numpy(batch.vectors).float()
        if batch.problems:
            bad = min(batch.problems)
            problem = problem or f"{pairs.name}: {pairs.images[bad]} cannot be used: {batch.problems[bad]}"
    return vectors.to(options.device), problem


def judge(
    network: nn.Module,
    pairs: PairSet,
    options: EmbedOptions,
    embedding_size: int,
    index: int,
    count: int,
    all_reduce: Callable[[Tensor], Tensor],
    raise_in_all: Callable[[str], None],
) -> dict[str, float | None]:
    """Return k-fold accuracy and AUC of a network, the same in all processes, which call it together.

    Args:
        all_reduce: Returns the sum of a tensor over all processes.
        raise_in_all: Raises in every process when one of them passes a problem.

    Raises:
        UserError: An image cannot be read, or the network returns NaN.
    """
    vectors, problem = embed_share(network, pairs, options, index, count, embedding_size)
    raise_in_all(problem)
    unit = unit_rows(all_reduce(vectors).cpu().numpy())
    distance = squared_distances(unit[pairs.first], unit[pairs.second])
    accuracy = verify_folds(distance, pairs.is_same, pairs.folds).accuracy
    return {"accuracy": float(accuracy.mean()), "auc": roc_auc(distance, pairs.is_same)}
