"""`Branch`: one forward pass of a mixture, under a prefix or under none, and how much it counts.

A mixture of prefixes with weights w is the product of experts

    log p(next) = (1 - sum w) log p(next | base) + sum w_i log p(next | prefix i), renormalised

(Sanchez et al., "Stay on topic with classifier-free guidance", 2023, arXiv 2306.17806; Liu et al.,
"DExperts", 2021, arXiv 2105.03023, eq. 2). The coefficients of its branches add up to 1.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from foreword.errors import DataError

T = TypeVar("T")

MAX_PREFIXES = 8
"""Prefixes of one mixture at most."""

NIL = 1e-9
"""A branch whose coefficient is no larger takes no part: it is what rounding leaves of 0."""


@dataclass(frozen=True)
class Branch(Generic[T]):
    """One forward pass of a mixture.

    Attributes:
        coefficient: What its log-probabilities are multiplied by.
        under: What it runs under; None for the frozen model alone.
    """

    coefficient: float
    under: T | None


def branches_of(
    weighted: Iterable[tuple[float, T]], key: Callable[[T], Hashable]
) -> tuple[Branch[T], ...]:
    """The branches of a mixture: each prefix that takes part once, then the frozen model if it does.

    Args:
        weighted: Weights and what they are of, at most `MAX_PREFIXES`.
        key: The same for those that are one.

    Returns:
        At least one. Where there is one alone its coefficient is 1, so it is no mixture.

    Raises:
        DataError: There are too many, or their weights are no numbers or add up to none.
    """
    given = list(weighted)
    if len(given) > MAX_PREFIXES:
        raise DataError(
            f"a mixture has at most {MAX_PREFIXES} prefixes; found {len(given)}. Name fewer"
        )
    for weight, _ in given:
        check_finite("weight", weight)
    firsts: dict[Hashable, T] = {}
    weights: dict[Hashable, list[float]] = {}
    for weight, one in given:
        firsts.setdefault(key(one), one)
        weights.setdefault(key(one), []).append(weight)
    try:
        sums: list[tuple[float, T | None]] = [
            (math.fsum(weights[name]), one) for name, one in firsts.items()
        ]
        sums.append((math.fsum([1.0, *(-weight for weight, _ in given)]), None))
    except OverflowError as error:
        raise DataError("the weights add up to more than a number can hold; use less") from error
    taken = [Branch(size, under) for size, under in sums if abs(size) > NIL]
    return (Branch(1.0, taken[0].under),) if len(taken) == 1 else tuple(taken)


def check_finite(what: str, value: object) -> None:
    """Check that a weight or strength is a finite number.

    Raises:
        DataError: It is not.
    """
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value):  # type: ignore[arg-type]
        raise DataError(f"{what} must be a finite number; found {value!r}")
