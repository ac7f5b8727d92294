"""`Mixture`: several prefixes, and the frozen model, whose next-token probabilities are multiplied.

Shapes: V vocabulary.
"""

from __future__ import annotations

import hashlib
import struct
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from foreword.arguments import expect
from foreword.branches import Branch, branches_of, check_finite
from foreword.described import Described
from foreword.errors import DataError
from foreword.prefix import Prefix, check_prefix


@dataclass(frozen=True, eq=False)
class Mixture:
    """Prefixes with weights w, whose log-probabilities of the next token are mixed.

    log p = (1 - sum w) log p(frozen model) + sum w_i log p(prefix i), renormalised.

    Weights are any numbers: one prefix at 1.5 is pushed beyond itself (classifier-free guidance, Sanchez
    et al., 2023, arXiv 2306.17806), one at -0.5 is steered away from (DExperts, Liu et al., 2021, arXiv
    2105.03023, eq. 2). Equal prefixes are one branch, and a branch that counts 0 is not computed, so
    ``((1, a), (0, b))`` is ``a`` to the last bit. Each branch costs a forward pass per token. A prefix
    that stands for a mixture itself is its pieces, whose weights are multiplied by its own.

    The first prefix that takes part is the leading one: templates, and how texts begin and end, are
    those of its training.

    Attributes:
        parts: Weights and prefixes, 1 to 8 of them, none of which stands for a mixture.

    Raises:
        DataError: A weight is not a finite number, or there are too many parts, or none.
        PrefixError: What stands for a prefix is none.

    Examples:
        >>> mixture = foreword.Mixture(((1.0, formal), (-0.5, toxic)))  # doctest: +SKIP
        >>> foreword.generate(backbone, ["Dear"], mixture)  # doctest: +SKIP
    """

    parts: tuple[tuple[float, Prefix], ...]

    def __post_init__(self) -> None:
        expected = "pairs of a weight and a Prefix, such as ((1.0, a), (-0.5, b))"
        expect("parts", self.parts, Sequence, expected, DataError)
        parts = tuple(self.parts)
        if not parts:
            raise DataError("a mixture needs at least one prefix; found none")
        for part in parts:
            if not isinstance(part, tuple | list) or len(part) != 2:
                raise DataError(f"parts must be {expected}; found {part!r} among them")
            check_prefix(part[1], "a mixture's prefix")
            check_finite("weight", part[0])
        opened_parts = (part for weight, one in parts for part in _parts_of(weight, one))
        object.__setattr__(self, "parts", tuple(opened_parts))
        _ = self.branches

    @classmethod
    def of(cls, prefix: Prefix) -> Mixture:
        """The mixture that a prefix of combination ``logits`` stands for: its pieces, as they count.

        Any other prefix is a mixture of itself alone.

        Raises:
            DataError: It has too many pieces.
        """
        check_prefix(prefix)
        if not is_mixture(prefix):
            return cls(((1.0, prefix),))
        if prefix not in _opened:  # whose digests would else be computed for each request
            weights = (piece.strength for piece in prefix.meta.pieces)
            _opened[prefix] = cls(tuple(zip(weights, prefix.split(), strict=True)))
        return _opened[prefix]

    @cached_property
    def branches(self) -> tuple[Branch[Prefix], ...]:
        """The forward passes that it takes, at least one; the frozen model's comes last."""
        return branches_of(self.parts, lambda one: one.digest)

    @property
    def prefix(self) -> Prefix | None:
        """The leading prefix; None where the frozen model alone takes part."""
        return self.branches[0].under

    @property
    def coefficients(self) -> tuple[float, ...]:
        """What each branch's log-probabilities are multiplied by; they add up to 1."""
        return tuple(one.coefficient for one in self.branches)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over weights and prefixes, as hexadecimal."""
        total = hashlib.sha256(b"mixture")
        for weight, one in self.parts:
            total.update(struct.pack("<d", weight))
            total.update(bytes.fromhex(one.digest))
        return total.hexdigest()


_opened: weakref.WeakKeyDictionary[Prefix, Mixture] = weakref.WeakKeyDictionary()
"""By prefix the mixture that it stands for."""


def _parts_of(weight: float, prefix: Prefix) -> list[tuple[float, Prefix]]:
    """What a weighted prefix adds to a mixture: itself, or the pieces of the mixture that it is."""
    if not is_mixture(prefix):
        return [(weight, prefix)]
    return [(weight * own, part) for own, part in Mixture.of(prefix).parts]


def is_mixture(prefix: Described) -> bool:
    """Whether a prefix stands for a mixture of its pieces."""
    return prefix.meta.combination == "logits"


def opened(given: Any) -> Any:
    """What was given, but of a prefix that stands for a mixture that mixture."""
    return Mixture.of(given) if isinstance(given, Prefix) and is_mixture(given) else given


def plain_or_mixed(given: Any) -> Prefix | Mixture | None:
    """A prefix, a mixture or None; a mixture of one branch is what that branch runs under.

    Raises:
        PrefixError: It is none of them.
    """
    if isinstance(given, Mixture):
        return given if len(given.branches) > 1 else given.prefix
    if given is not None:
        check_prefix(given)
    return given  # type: ignore[no-any-return]


def combined(logprobs: Iterable[Tensor], coefficients: Sequence[float]) -> Tensor:
    """The sum of log-probabilities (..., V), each times its coefficient: logits of a mixture.

    A token that a branch rules out (-inf) stays ruled out, whatever its coefficient.

    Args:
        logprobs: Per branch, float32; of an iterator one is in memory at a time.
        coefficients: As many numbers, at least one.

    Returns:
        Float32 (..., V), not normalised.
    """
    every = zip(coefficients, logprobs, strict=True)
    coefficient, first = next(every)
    total, ruled_out = coefficient * first, first.isneginf()
    for coefficient, each in every:
        total.add_(each, alpha=coefficient)
        ruled_out |= each.isneginf()
    return total.masked_fill_(ruled_out, -torch.inf)
