"""A matcher for E2E outputs: is the restaurant named, and which facts are said?

A meaning representation is ``name[Zizzi], food[Thai], familyFriendly[no]``; each ``slot[value]`` is
one fact. The rules are deliberately plain: a value counts as said when its words, or one of the
usual paraphrases of it, stand in the text and no ``not`` stands before them. ``high``, ``average``
and ``low`` count beside a word of price or of rating only. They miss unusual wordings, so recall is
a lower bound, and they do not look for facts that were made up.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from foreword.errors import DataError

_SLOT = re.compile(r"([a-zA-Z ]+)\[([^\]]*)\]")

_FILLERS = r"a|an|the|very|too|so|that|really|particularly|considered|in|at|have|has|located|be|of"
_NOT = re.compile(rf"(?:\bnot?|n't|\bnon|\bnever)[ -]+(?:(?:{_FILLERS}) )*$")
"""What stands right before words that are not said but denied."""

_PRICE = r"(?:pric(?:e|es|ed|ing)|costs?|range|end)\b"
_RATING = (
    r"(?:(?:customers?'?|consumer|user|overall) )*(?:rat(?:e|ed|es|ing|ings)|reviews?|reviewed)\b"
)
_LINK = (
    r"(?:ranges?|customers|by|its|it|them|is|are|was|of|as|at|a|an|the|very|quite|only|being|been|"
    r"has|have|on)"
)


def _graded(words: str, noun: str, other: str) -> str:
    """Pattern of an adjective on either side of `noun` that does not belong to `other`."""
    graded = rf"(?<!above )(?<!below )(?<!than )\b(?:{words})(?:er|ly)?"
    before = rf"{graded}[ -](?:in )?{noun}(?! (?:of|is) [£\d])"
    after = rf"\b{noun}:?[ -](?:{_LINK} )*{graded}\b(?![ -]{other})"
    return f"{before}|{after}"


def _price(words: str) -> str:
    return _graded(words, _PRICE, _RATING)


def _rating(words: str) -> str:
    return _graded(words, _RATING, _PRICE)


def _stars(number: str) -> str:
    return (
        rf"\b(?:{number})(?: stars?)? (?:out )?(?:of )?(?:5|five)\b|\b(?:{number})/5"
        rf"|(?<!of )(?<!out )\b(?:{number})[ -]stars?\b"
    )


_CHEAP = rf"\bcheap|\binexpensive|\baffordabl|{_price('low')}"
_EXPENSIVE = rf"\bexpensive|\bpricey|\bcostly|{_price('high')}"
_LOW, _AVERAGE, _HIGH = _stars("1|one"), _stars("3|three"), _stars("5|five")
_PATTERNS = {
    "priceRange": {
        "cheap": _CHEAP,
        "less than £20": rf"\b(?:less than|under|below|lower than) £? ?20\b|{_CHEAP}",
        "moderate": rf"{_price('moderate|average|mid|medium|reasonab(?:le)?')}",
        "£20-25": r"\b20 ?(?:-|\u2013|to|and) ?£? ?25\b",
        "high": _EXPENSIVE,
        "more than £30": rf"\b(?:more than|over|above) £? ?30\b|{_EXPENSIVE}",
    },
    "customer rating": {
        "low": f"{_LOW}|{_rating('low|poor')}",
        "1 out of 5": f"{_LOW}|{_rating('low|poor')}",
        "average": f"{_AVERAGE}|{_rating('average|mediocre|decent')}",
        "3 out of 5": f"{_AVERAGE}|{_rating('average|mediocre|decent')}",
        "high": f"{_HIGH}|{_rating('high|excellent|great|top|well')}",
        "5 out of 5": f"{_HIGH}|{_rating('high|excellent|great|top|well')}",
    },
    "area": {
        "city centre": r"(?<!outside )(?<!outside the )\bcity[ -]cent(?:re|er)\b"
        r"|\bcent(?:re|er) of (?:the )?city\b",
        "riverside": r"\briver(?:side)?\b",
    },
}

_FAMILY = r"\b(?:famil(?:y|ies)\b(?![ -](?:run|owned))|child(?:ren)?\b|kids?\b)"
_TOWARDS = (
    r"a|an|the|any|very|really|for|to|with|be|considered|suitable|suited|recommended|meant|ideal|good|"
    r"place|take|bring|allow|allowed|welcome|cater|accept|friendly|young|small|noisy"
)
_FRIENDLY = re.compile(_FAMILY)
_UNFRIENDLY = re.compile(
    rf"(?:(?<!why )\bnot?|n't|\bnon|\bunsuitable|\bunfriendly)[ -](?:(?:{_TOWARDS}) )*{_FAMILY}"
    rf"|{_FAMILY} (?:(?:is|are) not|isn't|aren't|not) (?:allowed|welcome|permitted|friendly)"
    rf"|{_FAMILY}[ -](?:is |are )?(?:unfriendly|unwelcome|prohibited|banned)"
    r"|\badult[ -](?:only|oriented|themed|est)|\badults only|\ban adult\b"
    r"|\bfor adults(?! and (?:f|c|k))"
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
    plain = " ".join(text.lower().replace("\u2019", "'").split())
    wanted = " ".join(value.lower().split())
    if slot == "familyFriendly":
        unfriendly = bool(_UNFRIENDLY.search(plain))
        friendly = bool(_FRIENDLY.search(plain))
        return unfriendly if wanted == "no" else friendly and not unfriendly
    found = _pattern(slot, wanted).finditer(plain)
    return any(not _NOT.search(plain[: match.start()]) for match in found)


@cache
def _pattern(slot: str, wanted: str) -> re.Pattern[str]:
    """Pattern of a value's paraphrases; by default its own words, whole, hyphens as spaces."""
    words = r"[ -]".join(map(re.escape, re.split("[ -]", wanted)))
    return re.compile(_PATTERNS.get(slot, {}).get(wanted, rf"(?<!\w){words}(?!\w)"))


def slot_report(mrs: Sequence[str], texts: Sequence[str]) -> SlotReport:
    """How many outputs name the restaurant, and how many facts are said.

    Raises:
        DataError: There is no fact to look for.
    """
    named, said, facts = 0, 0, 0
    for mr, text in zip(mrs, texts, strict=True):
        found = [(slot, says(slot, value, text)) for slot, value in slots(mr)]
        named += any(slot == "name" and hit for slot, hit in found)
        said += sum(hit for _, hit in found)
        facts += len(found)
    if not facts:
        raise DataError("no meaning representation has a fact; expected such as name[Zizzi]")
    return SlotReport(len(mrs), 100 * named / len(mrs), 100 * said / facts, facts)
