"""What is commonly said of methods, beside what was measured of them.

The ranges are those that overviews of parameter-efficient fine-tuning repeat, mostly without a source;
they stand here to be checked, not to be relied on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from foreword.compare.figures import NONE, digits, percent, ratios, share
from foreword.compare.markup import Markup, element
from foreword.compare.result import Comparison, Latency, Side


@dataclass(frozen=True)
class Claim:
    """What is said of a method.

    Attributes:
        share: What it trains of the backbone, in percent.
        latency: By how many percent it makes the model slower.
        merged: Whether that is said of it once merged into the weights.
    """

    share: str
    latency: str
    merged: bool = False


CLAIMS = {
    "prefix": Claim("0.1 to 3%", "5 to 15%"),
    "lora": Claim("0.01 to 1%", "under 1%, merged", merged=True),
    "adapter": Claim("0.5 to 8%", "8 to 20%"),
}
"""By a method's word."""

_HEADS = ("Trained, it is said", "here", "Slower, it is said", "prompts, here", "decoding, here")


def claims_table(comparison: Comparison) -> Markup | None:
    """The methods of which something is said and measured; None without any."""
    rows = [_row(side, claim, comparison) for side, claim in _claimed(comparison)]
    if not rows:
        return None
    heads = [element("th", "Method", scope="col", class_="words")]
    heads += [element("th", head, scope="col") for head in _HEADS]
    return element(
        "table", element("thead", element("tr", *heads)), element("tbody", *rows), class_="claims"
    )


def _claimed(comparison: Comparison) -> Iterator[tuple[Side, Claim]]:
    """The methods of which something is said, whatever settings they have."""
    for side in comparison.sides:
        claim = CLAIMS.get(side.name.partition("+")[0])
        if claim is not None and side.failed is None:
            yield side, claim


def _row(side: Side, claim: Claim, comparison: Comparison) -> Markup:
    latency = side.merged if claim.merged else side.latency
    cells = (
        claim.share,
        percent(share(side.trained, comparison)),
        claim.latency,
        *(slower(latency, phase) for phase in ("prefill", "decode")),
    )
    head = element("th", side.label, scope="row")
    return element("tr", head, *(element("td", cell) for cell in cells))


def slower(latency: Latency | None, phase: str) -> str:
    """By how many percent a phase takes longer, from the least to the most over sizes of batches."""
    measured = sorted(100 * (ratio - 1) for ratio in ratios(latency, phase).values())
    if not measured:
        return NONE
    least, most = (digits(round(value)) for value in (measured[0], measured[-1]))
    return f"{least}%" if least == most else f"{least} to {most}%"
