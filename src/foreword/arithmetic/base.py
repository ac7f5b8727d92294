"""What prefixes are to those who compute with them, and the small things that all of it needs."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Mapping
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor

from foreword.arguments import shown
from foreword.description import Piece, PrefixMeta, Site
from foreword.errors import PrefixError
from foreword.head import Head


class Composable(Protocol):
    """A prefix; `Prefix` says what each of its fields is."""

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites, in call order."""

    @property
    def keys(self) -> tuple[Tensor, ...]:
        """Per site (H, P, D)."""

    @property
    def values(self) -> tuple[Tensor, ...]:
        """Per site (H, P, E)."""

    @property
    def meta(self) -> PrefixMeta:
        """See `PrefixMeta`."""

    @property
    def head(self) -> Head | None:
        """See `Head`."""

    @property
    def start(self) -> Self | None:
        """Where training started, if that is known."""

    @property
    def length(self) -> int:
        """Prefix length P, in virtual tokens."""

    @property
    def dtype(self) -> torch.dtype:
        """The tensors' common dtype."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Keys, values, and those of the head."""

    @property
    def digest(self) -> str:
        """The prefix's identity."""

    def first_not_finite(self) -> str | None:
        """Name of the first tensor that holds NaN or infinity, or None."""


P = TypeVar("P", bound=Composable)


def changed(prefix: P, **fields: Any) -> P:
    """The prefix with other fields."""
    made: P = dataclasses.replace(prefix, **fields)  # type: ignore[type-var]
    return made


def plain(prefix: P, tensors: Mapping[str, tuple[Tensor, ...]]) -> P:
    """Other keys and values in place of a prefix's, without pieces and start."""
    meta = dataclasses.replace(prefix.meta, pieces=(), combination="attention")
    return changed(prefix, **tensors, meta=meta, start=None)


def pieces_of(prefix: Composable) -> tuple[Piece, ...]:
    """The prefix's pieces; of a plain one itself, as one without a name."""
    return prefix.meta.pieces or (Piece("", prefix.length),)


def check_contents(prefix: Composable) -> None:
    """Check that a prefix holds numbers, all of them finite.

    Raises:
        PrefixError: It does not.
    """
    broken = prefix.first_not_finite()
    if broken is not None:
        raise PrefixError(f"{broken} holds NaN or infinity; nothing is computed of such a prefix")


def is_number(value: object) -> bool:
    """Whether a value is a real number of any library."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def number_of(what: str, value: object) -> float:
    """A number as Python's own float.

    Raises:
        PrefixError: It is none, or not finite.
    """
    if not is_number(value):
        raise PrefixError(f"{what} must be a number; found {shown(value)}")
    try:
        number = float(value)  # type: ignore[arg-type]
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise PrefixError(f"{what} must be finite; found {shown(value)}")
    return number
