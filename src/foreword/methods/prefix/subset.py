"""Which of a backbone's sites a prefix is trained for: ``layers="0-3,last:2"``, ``sites="decoder"``."""

from __future__ import annotations

import re
from collections.abc import Sequence

from foreword.description import Site
from foreword.errors import TrainingError

_PART = re.compile(
    r"(?P<one>\d{1,6})|(?P<from>\d{1,6})-(?P<to>\d{1,6})|(?P<end>first|last):(?P<count>[1-9]\d{0,5})"
)
MOST_LETTERS = 4096
"""Characters of a choice of layers: a recipe in a file from elsewhere has one, too."""


def check_layers(layers: str) -> None:
    """Check whether a choice of layers can be read.

    Raises:
        TrainingError: It cannot.
    """
    if len(layers) > MOST_LETTERS:
        raise TrainingError(
            f"layers may have {MOST_LETTERS} characters at most; found {len(layers)}. Name ranges, as "
            "in 0-9,20 or last:8"
        )
    for part in layers.split(","):
        match = _PART.fullmatch(part.strip())
        if match is None or (match["from"] and int(match["from"]) > int(match["to"])):
            raise TrainingError(
                f"layers {layers!r}: cannot read {part.strip()!r}; expected numbers, ranges and ends "
                "with commas between, such as 0-9,20 or last:8"
            )


def chosen(sites: Sequence[Site], layers: str | None, stacks: str | None) -> list[str]:
    """Labels of the chosen sites, in order; None chooses all.

    Args:
        sites: The backbone's sites.
        layers: Numbers, ranges, ``first:K`` and ``last:K``, counted within each stack.
        stacks: Names of stacks with commas between.

    Raises:
        TrainingError: There is no such layer or stack.
    """
    known = list(dict.fromkeys(site.stack for site in sites))
    wanted = known if stacks is None else [name.strip() for name in stacks.split(",")]
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise TrainingError(
            f"sites {stacks!r}: this backbone has no stack {unknown[0]!r}; it has {', '.join(known)}"
        )
    labels: list[str] = []
    for stack in wanted:
        own = [site for site in sites if site.stack == stack]
        numbers = {site.layer for site in own} if layers is None else _numbers(layers, own)
        labels += [site.label for site in own if site.layer in numbers]
    return labels


def _numbers(layers: str, own: Sequence[Site]) -> set[int]:
    """The numbers that a choice of layers means in one stack."""
    count = len(own)
    ends = [_ends(part.strip(), count) for part in layers.split(",")]
    least, most = min(first for first, _ in ends), max(last for _, last in ends)
    if least < 0 or most >= count:
        named = most if least >= 0 else f"{count - least} from its end"
        raise TrainingError(
            f"layers {layers!r}: the backbone's {own[0].stack} has {count} layers, 0 to {count - 1}; "
            f"there is no {named}"
        )
    return {number for first, last in ends for number in range(first, last + 1)}


def _ends(part: str, count: int) -> tuple[int, int]:
    """The first and the last layer of a part of a choice."""
    match = _PART.fullmatch(part)
    assert match is not None
    if match["one"]:
        return int(match["one"]), int(match["one"])
    if match["from"]:
        return int(match["from"]), int(match["to"])
    size = int(match["count"])
    return (0, size - 1) if match["end"] == "first" else (count - size, count - 1)
