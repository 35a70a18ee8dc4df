"""Find unit vectors with a cosine of at least r: fast in blocks, yet exact to the last bit.

A float32 matrix product is fast, but its rounding depends on the shape of the matrices, so a cosine
close to r could fall on either side of it depending on the block size. Here the product only decides
clear cases: its error for unit vectors of length E is below

    |fl(u . v) - u . v| <= gamma_E |u| |v|,   gamma_E = E e / (1 - E e),   e = 2^-24

(Higham 2002, Accuracy and Stability of Numerical Algorithms, Eq. 3.5). A cosine within that margin of
r is computed again: the products of float32 numbers are exact in float64, and `math.fsum` rounds
their sum once. The answer is therefore a property of the two vectors alone.
"""

from __future__ import annotations

import math

import numpy as np

BANK_ROWS = 4096  # rows of the bank in one matrix product


def reaches(vectors: np.ndarray, bank: np.ndarray, r: float) -> np.ndarray:
    """Return for each vector whether its cosine to any row of the bank is at least r.

    Args:
        vectors: (N, E) float32 unit rows.
        bank: (M, E) float32 unit rows; M may be 0.
        r: Threshold in [-1, 1].

    Returns:
        (N,) bool.
    """
    found = np.zeros(len(vectors), dtype=bool)
    margin = _margin(vectors.shape[1])
    left = np.arange(len(vectors))                       # rows without a match so far
    for start in range(0, len(bank), BANK_ROWS):
        chunk = bank[start : start + BANK_ROWS]
        cosines = vectors[left] @ chunk.T                # (L, C)
        highest = cosines.max(axis=1)
        hit = highest >= r + margin
        for row in np.flatnonzero(~hit & (highest >= r - margin)):
            near = np.flatnonzero(cosines[row] >= r - margin)
            hit[row] = any(exact_cosine(vectors[left[row]], chunk[j]) >= r for j in near)
        found[left[hit]] = True
        left = left[~hit]
        if not len(left):
            break
    return found


def matches_within(vectors: np.ndarray, r: float) -> np.ndarray:
    """Return for each pair of vectors whether their cosine is at least r.

    Args:
        vectors: (N, E) float32 unit rows.
        r: Threshold in [-1, 1].

    Returns:
        (N, N) bool, only meaningful (and only true) above the diagonal.
    """
    margin = _margin(vectors.shape[1])
    cosines = vectors @ vectors.T                        # (N, N)
    match = np.triu(cosines >= r + margin, k=1)
    near = np.triu((cosines >= r - margin) & (cosines < r + margin), k=1)
    for i, j in zip(*np.nonzero(near), strict=True):
        match[i, j] = exact_cosine(vectors[i], vectors[j]) >= r
    return match


def exact_cosine(u: np.ndarray, v: np.ndarray) -> float:
    """Return the dot product of two float32 vectors, correctly rounded to float64."""
    return math.fsum(u.astype(np.float64) * v.astype(np.float64))


def _margin(size: int) -> float:
    """Return the bound of the float32 product's error, for rows up to 1e-3 longer than 1."""
    e = size * 2.0**-24
    return 1.002 * e / (1 - e)
