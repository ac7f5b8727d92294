"""`Scores`: the figures of one evaluation, read back from what `foreword evaluate --json` printed."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from foreword.errors import DataError
from foreword.evaluate.labels import Figure, figures_in
from foreword.evaluate.metrics import BLEU, ROUGE_L, Tokenisation
from foreword.evaluate.run import FIGURES, figures_under
from foreword.prefix import Prefix


@dataclass(frozen=True)
class Scores:
    """Figures of a prefix on one set.

    Attributes:
        prefix: Figures with the prefix, by field of `Metrics`; finite.
        base: Those of the frozen model alone, or None.
        inputs: Distinct inputs.
        rows: Rows scored.
        data: Where the rows were read, or empty.
        same_weights: Whether the backbone had the weights that the prefix was made on.
        figures: How tables show them: label, field, format.
    """

    prefix: Mapping[str, float]
    base: Mapping[str, float] | None
    inputs: int
    rows: int
    data: str
    same_weights: bool
    figures: tuple[Figure, ...] = FIGURES


def scores_of(found: Any, prefix: Prefix) -> Scores:
    """The figures in `Evaluation.as_json`, once they are seen to be this prefix's.

    Raises:
        DataError: A field is missing or ill-formed, or the figures are another prefix's.
    """
    if not isinstance(found, Mapping):
        raise DataError(
            "the metrics are not a JSON object; give what `foreword evaluate NAME DATA --json` prints"
        )
    if "lm_eval" in found:
        raise DataError(
            "the metrics are of tasks of lm-eval, and a card shows those of a set; give what "
            "`foreword evaluate NAME DATA --json` prints"
        )
    digest = found.get("digest")
    if digest != prefix.digest:
        named = f"prefix {digest[:12]!r}" if isinstance(digest, str) and digest else "no prefix"
        raise DataError(
            f"the metrics are those of {named}, expected {prefix.digest[:12]!r}; evaluate this prefix "
            "with `foreword evaluate NAME DATA --json` and give what that prints"
        )
    base = found.get("base")
    shown = _shown(found, prefix)
    return Scores(
        prefix=figures_named("prefix", found.get("prefix"), shown),
        base=None if base is None else figures_named("base", base, shown),
        figures=shown,
        inputs=_count("inputs", found.get("inputs")),
        rows=_count("rows", found.get("rows")),
        data=found["data"] if isinstance(found.get("data"), str) else "",
        same_weights=found.get("same_weights") is True,
    )


def dataset_of(source: str) -> str:
    """A set's name; of a file its name without its folders, which are nobody's business."""
    if source.endswith((".jsonl", ".json", ".csv", ".tsv", ".parquet")):
        return re.split(r"[/\\]", source)[-1]
    return source or "rows"


def _shown(found: Mapping[str, Any], prefix: Prefix) -> tuple[Figure, ...]:
    """Which figures there are, and how tables show them."""
    if prefix.head is not None:
        own = found.get("prefix")
        return figures_in(own if isinstance(own, Mapping) else {}, prefix.head.task)
    return figures_under(tokenisation_of(found.get("tokenisation", {})))


def tokenisation_of(found: Any) -> Tokenisation:
    """What counts as a word; versions that did not say it knew the usual alone."""
    usual = Tokenisation()
    if not isinstance(found, Mapping):
        raise DataError("the metrics' 'tokenisation' is not an object")
    read = Tokenisation(**{name: found.get(name, way) for name, way in asdict(usual).items()})
    for name, known in (("bleu", BLEU), ("rouge_l", ROUGE_L)):
        if getattr(read, name) not in known:
            raise DataError(f"the metrics' tokenisation.{name} is none of {', '.join(known)}")
    return read


def figures_named(what: str, found: Any, shown: tuple[Figure, ...]) -> dict[str, float]:
    """The figures that are shown, each a finite number.

    Raises:
        DataError: One is not.
    """
    if not isinstance(found, Mapping):
        raise DataError(f"the metrics' {what!r} is not an object with figures")
    return {name: _number(f"{what}.{name}", found.get(name)) for _, name, _ in shown}


def _number(what: str, found: Any) -> float:
    plain = isinstance(found, int | float) and not isinstance(found, bool)
    try:
        number = float(found) if plain else math.nan
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise DataError(f"the metrics' {what} is not a finite number")
    return number


def _count(what: str, found: Any) -> int:
    if type(found) is not int or found < 1:
        raise DataError(f"the metrics' {what!r} is not a whole number of at least 1")
    return found
