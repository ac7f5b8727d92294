"""Correlation of two lists of numbers: Pearson's, and Spearman's with mean ranks among equals.

Shapes: N numbers, U different ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def pearson(said: Sequence[float], right: Sequence[float]) -> float:
    """Pearson's r, -1 to 1; 0 where one side is the same everywhere, which orders nothing."""
    return _correlation(*(torch.tensor(side, dtype=torch.float64) for side in (said, right)))


def spearman(said: Sequence[float], right: Sequence[float]) -> float:
    """Spearman's rho: Pearson's r of the ranks."""
    return _correlation(*(ranks(torch.tensor(side, dtype=torch.float64)) for side in (said, right)))


def ranks(values_N: Tensor) -> Tensor:
    """Ranks from 1, float64 (N,); equal numbers share the mean of theirs."""
    found: tuple[Tensor, ...] = torch.unique(values_N, return_inverse=True, return_counts=True)
    _, place_N, count_U = found
    mean_U = count_U.cumsum(0) - (count_U.double() - 1) / 2
    return mean_U[place_N]


def _correlation(one_N: Tensor, other_N: Tensor) -> float:
    return float((_direction(one_N) * _direction(other_N)).sum().clamp(-1, 1))


def _direction(values_N: Tensor) -> Tensor:
    """Differences from the mean, as a vector of length 1; zeros where there are none."""
    if bool((values_N == values_N[0]).all()):
        return torch.zeros_like(values_N)
    apart_N = values_N - values_N.mean()
    apart_N = apart_N / apart_N.abs().max()  # so that squares neither vanish nor overflow
    return apart_N / apart_N.square().sum().sqrt()
