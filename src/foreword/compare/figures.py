"""The figures of a comparison: means with deviations, the order of methods, and how they are written."""

from __future__ import annotations

import math
import statistics
import unicodedata
from collections.abc import Iterable
from typing import NamedTuple

from foreword.compare.result import Comparison, Latency, Side

NONE = "\N{EN DASH}"
"""Stands where there is no number."""

MINUS = "\N{MINUS SIGN}"
"""As long as a plus, unlike the hyphen."""

TIMES = "\N{MULTIPLICATION SIGN}"

NLL = "{:.3f}"
SIGNED = "{:+z.3f}"
RATIO = "{:.2f}"

_COUNTS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K"), (1.0, ""))
_TURNS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Characters that set the direction of what follows them, even of figures: 4.2 would be read as 2.4."""
_BYTES = ((1e12, " TB"), (1e9, " GB"), (1e6, " MB"), (1e3, " kB"), (1.0, " B"))


class Spread(NamedTuple):
    """A mean over seeds.

    Attributes:
        mean: The mean.
        deviation: The standard deviation; None of one seed, which has none.
    """

    mean: float
    deviation: float | None = None

    @property
    def ends(self) -> tuple[float, float]:
        """The mean less and plus the deviation."""
        reach = self.deviation or 0.0
        return self.mean - reach, self.mean + reach


def spread(values: Iterable[float | None]) -> Spread | None:
    """Mean and deviation of the values that exist; None without any, or where one is not finite."""
    known = [value for value in values if value is not None]
    if not known or not all(map(math.isfinite, known)):
        return None
    return Spread(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None)


def figure(side: Side, name: str) -> Spread | None:
    """A figure on test rows."""
    return spread(seed.figures.get(name) for seed in side.seeds)


def forgotten(side: Side, name: str) -> Spread | None:
    """What was forgotten of a neutral set."""
    return spread(seed.forgotten.get(name) for seed in side.seeds)


def seconds(side: Side) -> Spread | None:
    """Seconds of training; None of what is not trained."""
    return spread(seed.seconds for seed in side.seeds) if side.trained else None


def speed(side: Side) -> Spread | None:
    """Tokens per second of training; None of what is not trained."""
    return spread(seed.tokens_per_second for seed in side.seeds) if side.trained else None


def peak(side: Side) -> Spread | None:
    """Bytes of memory above those of the loaded backbone."""
    return spread(seed.peak_bytes for seed in side.seeds)


def ranked(comparison: Comparison) -> list[Side]:
    """The methods by the figure that decides, best first; without it next to last, failed ones last."""
    sign = -1.0 if comparison.metric.higher else 1.0

    def place(side: Side) -> tuple[bool, bool, float]:
        found = figure(side, comparison.metric.name)
        return side.failed is not None, found is None, sign * found.mean if found else 0.0

    return sorted(comparison.sides, key=place)


def neutral_sets(comparison: Comparison) -> list[str]:
    """Names of the neutral sets, in the order in which they come."""
    seeds = (seed for side in comparison.sides for seed in side.seeds)
    return list(dict.fromkeys(name for seed in seeds for name in seed.forgotten))


def batches(comparison: Comparison, phase: str) -> list[int]:
    """Numbers of rows at which ``prefill`` or ``decode`` was timed."""
    timed = (latency for side in comparison.sides for latency in (side.latency, side.merged))
    return sorted({rows for latency in timed for rows in ratios(latency, phase)})


def ratios(latency: Latency | None, phase: str) -> dict[int, float]:
    """By number of rows the times of ``prefill`` or ``decode`` over those of the frozen model."""
    if latency is None:
        return {}
    return dict(latency.prefill if phase == "prefill" else latency.decode)


def rows_at_once(rows: int) -> str:
    """A size of batch in words."""
    return f"{rows} {'row' if rows == 1 else 'rows'}"


def written(form: str, value: float | None) -> str:
    """A number in its form, with a minus as long as a plus."""
    if value is None or not math.isfinite(value):
        return NONE
    return form.format(value).replace("-", MINUS)


def spread_written(form: str, found: Spread | None) -> str:
    """A mean and its deviation, if it has one."""
    if found is None:
        return NONE
    mean = written(form, found.mean)
    if found.deviation is None:
        return mean
    return f"{mean} ± {written(unsigned(form), found.deviation)}"


def unsigned(form: str) -> str:
    """A form without a plus, as deviations have it."""
    return form.replace(":+", ":")


def digits(value: float | None) -> str:
    """A number to three digits, or to the whole, with thousands apart."""
    if value is None or not math.isfinite(value):
        return NONE
    if 100 <= abs(value) < 1e9:
        return written("{:,.0f}", value)
    return written("{:.3g}", value)


def count(value: object) -> str:
    """A whole number with its thousands apart; anything else as it is."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def percent(share: float | None) -> str:
    """A share of the whole."""
    return NONE if share is None else f"{digits(100 * share)}%"


def share(trained: int, comparison: Comparison) -> float | None:
    """Part of the backbone's parameters that as many are; None where the backbone's are not known."""
    whole = comparison.backbone.get("parameters")
    return trained / whole if isinstance(whole, int) and whole > 0 else None


def short_count(value: float) -> str:
    """A number of parameters to three digits, as 184K."""
    return _scaled(value, _COUNTS)


def size(value: float | None) -> str:
    """Bytes to three digits, as 369 kB."""
    return NONE if value is None else _scaled(value, _BYTES)


def spelled(text: str, keep: str = "") -> str:
    """A text with its control characters and halves of characters spelled out, but for some.

    So are those that turn the direction of what stands behind them, which may be a figure.
    """
    return "".join(c if c in keep or _is_shown(c) else repr(c)[1:-1] for c in text)


def _is_shown(character: str) -> bool:
    """Whether a terminal may have it, and XML."""
    is_plain = unicodedata.category(character) not in ("Cc", "Cs")
    return is_plain and character not in f"\ufffe\uffff{_TURNS}"


def _scaled(value: float, units: tuple[tuple[float, str], ...]) -> str:
    """A number in the largest unit of which there is one, once it is rounded."""
    rounded = float(f"{value:.3g}")
    unit, letters = next((pair for pair in units if abs(rounded) >= pair[0]), units[-1])
    return f"{digits(rounded / unit)}{letters}"
