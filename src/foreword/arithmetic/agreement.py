"""Whether prefixes may be put together: made on one backbone, for one tokenizer, under one policy."""

from __future__ import annotations

import reprlib
from typing import Any

from foreword.arithmetic.base import Composable
from foreword.errors import PrefixError

_KNOWN = {
    "family": ("use prefixes of one backbone", ""),
    "fingerprint": (
        "train both on the same weights",
        ", or drop a claim: prefix.with_meta(fingerprint='')",
    ),
    "tokenizer": (
        "train both with one tokenizer",
        ", or drop a claim: prefix.with_meta(tokenizer='')",
    ),
}
"""Fields of the meta that agree where they are equal, or one is not known; and what to do, of which the
second part is for Python alone."""

_EQUAL = {
    "positions": (
        "train both under one position policy",
        ", or move one with backbone.moved(prefix, positions)",
    ),
    "windows": ("train both under one window policy", ""),
    "bos": ("train both on inputs with, or both without, the BOS", ""),
    "softmax": ("train both gated, or neither", ""),
}
"""Fields of the meta that agree where they are equal; and what to do."""


def check_agreement(what: str, first: Composable, other: Composable) -> None:
    """Check that two prefixes were made for one backbone, tokenizer and policy.

    Args:
        what: What they are to be, such as ``a sum``.
        first: A prefix.
        other: Another.

    Raises:
        PrefixError: They were not; the message names what differs and what to do.
    """
    _check_sites(what, first, other)
    for name, remedy in {**_KNOWN, **_EQUAL}.items():
        has, found = getattr(first.meta, name), getattr(other.meta, name)
        unknown = name in _KNOWN and not (has and found)
        if has != found and not unknown:
            raise _differing(what, name, has, found, *remedy)


def _check_sites(what: str, first: Composable, other: Composable) -> None:
    labels = [[site.label for site in one.sites] for one in (first, other)]
    if labels[0] != labels[1]:
        lacking = sorted(set(labels[0]) ^ set(labels[1])) or ["another order of sites"]
        raise PrefixError(
            f"{what} needs prefixes at the same sites; found {len(labels[0])} and {len(labels[1])}, "
            f"and only one has {lacking[0]}. ",
            "Cut one down with prefix.only(labels)",
            command="Train both on the same sites (--sites)",
        )
    for own, site in zip(first.sites, other.sites, strict=True):
        if own.geometry != site.geometry:
            raise PrefixError(
                f"{what} needs prefixes of one geometry; site {own.label} has (stack, layer, key/value "
                f"heads, key dimension, value dimension, window) = {own.geometry} in one and "
                f"{site.geometry} in the other. Use prefixes of one backbone"
            )


def check_length(what: str, first: Composable, other: Composable) -> None:
    """Check that two prefixes have one length.

    Raises:
        PrefixError: They have not.
    """
    if first.length != other.length:
        remedy = "cut the longer one, as in prefix[:8], or put them side by side"
        raise _differing(
            what,
            "length",
            first.length,
            other.length,
            remedy,
            " with foreword.concat",
            command=" (--mode concat)",
        )


def check_pieces_alike(what: str, first: Composable, other: Composable) -> None:
    """Check that two prefixes are plain, or have pieces of the same lengths and strengths.

    Raises:
        PrefixError: They are not, or one is a mixture of logits or of controls.
    """
    for one in (first, other):
        check_attention(what, one)
    sizes = [
        [(piece.length, piece.strength) for piece in one.meta.pieces] or [(one.length, 1.0)]
        for one in (first, other)
    ]
    if sizes[0] != sizes[1]:
        raise PrefixError(
            f"{what} needs prefixes with pieces of the same (length, strength); found "
            f"{reprlib.repr(sizes[0])} and {reprlib.repr(sizes[1])}. Set strengths afterwards",
            ", as in (a + b).strength(0.5)",
            command=", with --strength",
        )


def check_attention(what: str, prefix: Composable) -> None:
    """Check that a prefix stands in front of the text as a whole.

    Raises:
        PrefixError: It is a mixture of logits or of controls.
    """
    if prefix.meta.combination != "attention":
        raise PrefixError(
            f"{what} needs prefixes that stand in front of the text; found one whose pieces are "
            f"combined as {prefix.meta.combination!r}. ",
            "Take its pieces apart with prefix.split()",
            command="Name what it was made of in its place",
        )


def check_heads(what: str, first: Composable, other: Composable) -> None:
    """Check that neither prefix has a head, or that both have one that says the same.

    Raises:
        PrefixError: They have not.
    """
    said = [None if one.head is None else one.head.describe_all() for one in (first, other)]
    if said[0] == said[1]:
        return
    if None in said:
        raise PrefixError(
            f"{what} needs a head in both prefixes or in none; found one in only one of them. ",
            "Drop it with prefix.with_head(None)",
            command="Use prefixes of one kind",
        )
    assert said[0] is not None
    assert said[1] is not None
    name = next(name for name in said[0] if said[0][name] != said[1].get(name))
    remedy = "train both on the same task and labels"
    raise _differing(what, f"{name} of the head", said[0][name], said[1].get(name), remedy)


def _differing(
    what: str, name: str, has: Any, found: Any, remedy: str, python: str = "", command: str = ""
) -> PrefixError:
    """The error, with what to do; beside it more, in Python and on the command line."""
    said = f"{what} needs prefixes of the same {name}; found {_short(has)} and {_short(found)}"
    return PrefixError(f"{said}: {remedy}", python, command=command)


def _short(value: Any) -> str:
    """A value in a few words; of a digest its beginning."""
    return repr(value[:12]) if isinstance(value, str) else reprlib.repr(value)
