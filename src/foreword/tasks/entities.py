"""Entities in tags: how tags spell them, and how many are right. seqeval counts them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from foreword.errors import DataError

INSTALL = 'pip install "foreword[tag]"'
OUTSIDE = "O"
"""The tag of words outside of any entity."""

Tags = Sequence[Sequence[str]]
Spelling = Callable[[str], str]
"""From a tag to the one that seqeval reads, in IOBES."""

_SCHEMES: tuple[Mapping[str, str], ...] = (
    {"B": "B", "I": "I", "E": "E", "S": "S"},  # IOB, IO and IOBES
    {"B": "B", "I": "I", "L": "E", "U": "S"},  # BILOU
    {"B": "B", "M": "I", "E": "E", "S": "S"},  # BMES
    {"B": "B", "M": "I", "E": "E", "W": "S"},  # BMEWO
)
"""The marks of a word's place in its entity, and those of IOBES for them."""

_BEFORE, _AFTER = re.compile(r"([BIESLUMW])(?:-(.+))?"), re.compile(r"(.+)-([BIESLUMW])")


def spelling_of(tags: Iterable[str]) -> Spelling:
    """How tags spell entities.

    Known are marks of a word's place before the kind (``B-person``), after it or alone, as IOB, IO,
    IOBES, BILOU and BMES have them, and kinds alone (``person``), where words of one kind that stand
    together are one entity.

    Args:
        tags: All tags of a head and its rows.

    Raises:
        DataError: They spell none that is known: they are numbers, or no tag stands for words outside.
    """
    inside = sorted({*tags} - {OUTSIDE})
    for pattern, kind in ((_BEFORE, 2), (_AFTER, 1)):
        matches = [match for tag in inside if (match := pattern.fullmatch(tag))]
        marks = {match[3 - kind] for match in matches}
        scheme = next((one for one in _SCHEMES if marks <= set(one)), None)
        if len(matches) != len(inside) or scheme is None:
            continue
        named = pattern is _BEFORE and all(match[kind] for match in matches)
        if marks & {"B", "I"} or (marks and named):
            return _marked(pattern, kind, scheme)
    _refuse_odd(inside, {*tags})
    return lambda tag: tag if tag == OUTSIDE else f"I-{tag}"


def _marked(pattern: re.Pattern[str], kind: int, scheme: Mapping[str, str]) -> Spelling:
    def spelled(tag: str) -> str:
        match = pattern.fullmatch(tag)
        return tag if match is None else f"{scheme[match[3 - kind]]}-{match[kind] or '_'}"

    return spelled


def _refuse_odd(inside: Sequence[str], tags: set[str]) -> None:
    """Refuse tags that are no kinds of entities."""
    remedy = f"expected tags such as B-person, I-person and {OUTSIDE}"
    numbers = [tag for tag in inside if tag.removeprefix("-").isdecimal()]
    marked = [tag for tag in inside if re.match("[BI]-|[BI]$|.+-[BI]$", tag)]
    if numbers:
        raise DataError(
            f"the tag {numbers[0]!r} is a number, which says nothing of entities; {remedy}. Give the "
            "tags' names, which a data set's features know"
        )
    if marked:
        others = [tag for tag in inside if tag not in marked] or marked
        raise DataError(f"the tags {marked[0]!r} and {others[-1]!r} follow no scheme; {remedy}")
    if OUTSIDE not in tags and inside:
        raise DataError(f"no tag is {OUTSIDE!r}, for words outside of entities; {remedy}")


def entity_figures(said: Tags, right: Tags, spelled: Spelling) -> dict[str, float]:
    """F1, precision and recall of entities, 0 to 100: right are those right in kind and extent.

    Where there are none and none are said, all is right.

    Raises:
        DataError: seqeval is not installed.
    """
    try:
        from seqeval.metrics import f1_score, precision_score, recall_score
    except ImportError as error:
        raise DataError(f"entities are scored by seqeval; run: {INSTALL}") from error
    rows = [[[spelled(tag) for tag in tags] for tags in own] for own in (right, said)]
    some = any(tag != OUTSIDE for own in rows for tags in own for tag in tags)
    scored = {"f1": f1_score, "precision": precision_score, "recall": recall_score}
    return {name: 100 * float(of(*rows, zero_division=0)) if some else 100.0
            for name, of in scored.items()}  # fmt: skip
