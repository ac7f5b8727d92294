"""A matcher for E2E outputs: is the restaurant named, and which facts are said?

A meaning representation is ``name[Zizzi], food[Thai], familyFriendly[no]``; each ``slot[value]`` is one
fact. The rules are deliberately plain: a value counts as said when its words (or one of the usual
paraphrases of it, below) stand in the text. They miss unusual wordings, so recall is a lower bound, and
they do not look for facts that were made up.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_SLOT = re.compile(r"([a-zA-Z ]+)\[([^\]]*)\]")

_PRICES = {
    "cheap": ("cheap", "low price", "low-price", "low cost", "inexpensive", "affordable"),
    "less than £20": ("less than £20", "under £20", "below £20", "cheap", "low price", "low-price"),
    "moderate": ("moderate", "average price", "mid price", "mid-price", "medium price", "reasonabl"),
    "£20-25": ("£20-25", "£20 - £25", "£20-£25", "£20 to £25", "20-25", "between £20 and £25"),
    "high": ("high price", "high-price", "expensive", "high end", "pricey", "prices are high", "high"),
    "more than £30": ("more than £30", "over £30", "above £30", "expensive", "high price"),
}
_RATINGS = {
    "low": ("low", "poor", "1 out of 5", "one star", "1 star"),
    "average": ("average", "3 out of 5", "mediocre", "decent"),
    "high": ("high", "5 out of 5", "excellent", "great", "well rated", "top"),
    "1 out of 5": ("1 out of 5", "one out of five", "1 star", "one star", "1-star", "low"),
    "3 out of 5": ("3 out of 5", "three out of five", "3 star", "three star", "3-star", "average"),
    "5 out of 5": ("5 out of 5", "five out of five", "5 star", "five star", "5-star", "high"),
}
_AREAS = {
    "city centre": ("city centre", "city center", "centre of the city", "center of the city"),
    "riverside": ("riverside", "river"),
}
_FRIENDLY = re.compile(r"famil|child|kid")
_UNFRIENDLY = re.compile(
    r"(?:not?\b|n't\b|\bnon\b|non-|un|adults? only|isn't|without)[^.]{0,40}?(?:famil|child|kid)"
    r"|adults? only|adult-only|(?:famil|child|kid)[a-z -]{0,20}(?:unfriendly|not welcome)"
    r"|no (?:famil|child|kid)"
)


@dataclass(frozen=True)
class SlotReport:
    """What a set of outputs says.

    Attributes:
        inputs: Number of outputs.
        named: Share of outputs that name the restaurant, 0 to 100.
        recall: Share of facts that are said, names included, 0 to 100.
        facts: Number of facts.
    """

    inputs: int
    named: float
    recall: float
    facts: int


def slots(mr: str) -> list[tuple[str, str]]:
    """Slots and values of a meaning representation, in order."""
    return [(name.strip(), value.strip()) for name, value in _SLOT.findall(mr)]


def says(slot: str, value: str, text: str) -> bool:
    """Whether a text says a fact."""
    lower, wanted = text.lower(), value.lower()
    if slot == "familyFriendly":
        unfriendly = bool(_UNFRIENDLY.search(lower))
        friendly = bool(_FRIENDLY.search(lower))
        return unfriendly if wanted == "no" else friendly and not unfriendly
    known = {"priceRange": _PRICES, "customer rating": _RATINGS, "area": _AREAS}.get(slot, {})
    phrases = known.get(wanted, (wanted,))
    return any(phrase in lower for phrase in phrases)


def slot_report(mrs: Sequence[str], texts: Sequence[str]) -> SlotReport:
    """How many outputs name the restaurant, and how many facts are said."""
    named, said, facts = 0, 0, 0
    for mr, text in zip(mrs, texts, strict=True):
        found = [(slot, says(slot, value, text)) for slot, value in slots(mr)]
        named += any(slot == "name" and hit for slot, hit in found)
        said += sum(hit for _, hit in found)
        facts += len(found)
    return SlotReport(len(mrs), 100 * named / len(mrs), 100 * said / facts, facts)
