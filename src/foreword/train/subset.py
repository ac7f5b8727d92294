"""Which of a backbone's sites a prefix is trained for: ``layers="0-3,last:2"``, ``sites="decoder"``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from foreword.description import Site
from foreword.errors import TrainingError

_PART = re.compile(
    r"(?P<one>\d+)|(?P<from>\d+)-(?P<to>\d+)|(?P<end>first|last):(?P<count>[1-9]\d*)"
)


def check_layers(layers: str) -> None:
    """Check whether a choice of layers can be read.

    Raises:
        TrainingError: It cannot.
    """
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
    numbers: set[int] = set()
    for part in layers.split(","):
        numbers |= set(_range(part.strip(), count))
    beyond = sorted(number for number in numbers if not 0 <= number < count)
    if beyond:
        named = beyond[-1] if beyond[0] >= 0 else f"{count - beyond[0]} from its end"
        raise TrainingError(
            f"layers {layers!r}: the backbone's {own[0].stack} has {count} layers, 0 to {count - 1}; "
            f"there is no {named}"
        )
    return numbers


def _range(part: str, count: int) -> Iterable[int]:
    match = _PART.fullmatch(part)
    assert match is not None
    if match["one"]:
        return [int(match["one"])]
    if match["from"]:
        return range(int(match["from"]), int(match["to"]) + 1)
    size = int(match["count"])
    return range(size) if match["end"] == "first" else range(count - size, count)
