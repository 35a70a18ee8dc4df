"""Class centers: their cosines with embeddings at little memory, and their initial values."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from facesyn_cli.models.heads.class_range import ClassRange

_MIN_NORM = 1e-12  # of a center, as of F.normalize
_ROWS = 16         # rows of a kernel that are drawn together


def center_cosines(embeddings: Tensor, kernel: Tensor) -> Tensor:
    """Return the (B, K) cosines between embeddings (B, E) and class centers, the columns of a kernel (E, K)."""
    return _Cosines.apply(F.normalize(embeddings, dim=1), kernel).clamp(-1, 1)


class _Cosines(torch.autograd.Function):
    """f . w_j / |w_j| for directions f (B, E) and centers w_j, with one (E, K) tensor in the backward pass.

    With h = g / |w_j| for the gradient g of a cosine c, the gradients are h w_j for f, and for w_j

        h f - w_j g c / |w_j|^2,  summed over the batch.

    Written out, normalized centers, their gradient and its parts would each be another tensor of that size, which with
    many classes is most of the memory and the time of a step.
    """

    @staticmethod
    def forward(ctx, directions: Tensor, kernel: Tensor) -> Tensor:
        norms = kernel.norm(dim=0).clamp(min=_MIN_NORM)                      # (K,)
        cosines = (directions @ kernel).div_(norms)                          # (B, K)
        ctx.save_for_backward(directions, kernel, norms, cosines)
        return cosines

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        directions, kernel, norms, cosines = ctx.saved_tensors
        scaled = gradient / norms                                            # (B, K)
        of_directions = scaled @ kernel.t() if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return of_directions, None
        along = (gradient * cosines).sum(0) / norms.square()                 # (K,)
        along = torch.where(norms > _MIN_NORM, along, 0.0)
        of_kernel = torch.empty_like(kernel)                                 # in the kernel's memory layout
        torch.mm(directions.t(), scaled, out=of_kernel)
        return of_directions, of_kernel.addcmul_(kernel, along, value=-1)


def paired_cosines(embeddings: Tensor, centers: Tensor) -> Tensor:
    """Return the (B,) cosines between embeddings (B, E) and class centers (B, E), row by row."""
    embeddings = embeddings.to(centers.dtype)
    return (F.normalize(embeddings, dim=1) * F.normalize(centers, dim=1)).sum(1).clamp(-1, 1)


def draw_centers(kernel: Tensor, seed: int, classes: ClassRange | None = None) -> None:
    """Fill class centers with N(0, 0.01), as published.

    Args:
        kernel: (E, K), or the (E, `classes.width`) columns of some of the classes; they get the numbers that they have
            in the whole kernel.
        seed: Seed of the numbers.
        classes: These classes; None: all.
    """
    classes = classes or ClassRange(0, kernel.shape[1], kernel.shape[1])
    generator, size = torch.Generator().manual_seed(seed), kernel.shape[0]
    # torch.randn fills 16 numbers at a time, so blocks of 16 rows hold the numbers of one call for all rows
    starts = list(range(0, max(size - _ROWS + 1, 1), _ROWS))
    for start, stop in pairwise([*starts, size]):
        rows = torch.randn(stop - start, classes.total, generator=generator)
        kernel[start:stop] = rows[:, classes.columns] * 0.01
