"""The page of a comparison: one HTML file to share, which asks nothing of any other place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from foreword.compare.bars import latency_plot
from foreword.compare.claims import claims_table
from foreword.compare.curves import curves_plot
from foreword.compare.figures import NLL, NONE, count, percent, share, written
from foreword.compare.markup import Markup, element, joined
from foreword.compare.plots import COSTS, Cost, better, points_of, quality_plot
from foreword.compare.result import Comparison, Side, Tried
from foreword.compare.results import PHASES, TRAITS, results_table
from foreword.compare.style import STYLE

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""What browsers enforce: no request, no script."""


def page_of(comparison: Comparison) -> str:
    """The page: verdict, figures, plots, and how each of them was come by.

    Args:
        comparison: What was measured.

    Returns:
        HTML in one piece, without scripts, light or dark as the reader has it.
    """
    sections = (
        _facts(comparison),
        _results(comparison),
        _plots(comparison),
        _latencies(comparison),
        _claims(comparison),
        _searches(comparison),
        _fairness(comparison),
        _commands(comparison),
    )
    body = element("body", _header(comparison), element("main", *sections))
    return f"<!DOCTYPE html>\n{element('html', _head(comparison), body, lang='en')}\n"


def _head(comparison: Comparison) -> Markup:
    """What is not seen: title, style, and that nothing is loaded."""
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("link", rel="icon", href="data:,"),
        element("title", f"Methods compared: {_title(comparison)}"),
        element("style", Markup(STYLE)),
    )


def _title(comparison: Comparison) -> str:
    """Backbone and data."""
    names = (comparison.backbone.get("name"), comparison.data.get("name"))
    return " on ".join(str(name) for name in names if name)


def _header(comparison: Comparison) -> Markup:
    """The title and the verdict."""
    verdict = [element("p", sentence) for sentence in comparison.verdict]
    shown = [element("section", element("h2", "Verdict"), *verdict, class_="verdict")]
    return element(
        "header",
        element("p", "Methods compared"),
        element("h1", _title(comparison)),
        *(shown if verdict else []),
    )


def _section(title: str, *inside: str) -> Markup:
    return element("section", element("h2", title), *inside)


def _facts(comparison: Comparison) -> Markup:
    """On what, where, when and with which command it was measured."""
    facts = {
        "Backbone": _named(comparison.backbone, ("family", "kind", "dtype"), ("parameters",)),
        "Rows": _named(comparison.data, (), ("train", "held", "test")),
        "Task": comparison.task,
        "Steps of each training": count(comparison.steps),
        "Budget": _budget(comparison),
        "Machine": comparison.machine,
        "Day": comparison.made,
        "Version": comparison.version and f"Foreword {comparison.version}",
    }
    pairs = [
        joined(element("dt", name), element("dd", fact)) for name, fact in facts.items() if fact
    ]
    command = [element("pre", element("code", comparison.command))] if comparison.command else []
    return _section("What was compared", element("dl", *pairs), *command)


_COUNTED = {
    "parameters": "parameters",
    "train": "to train on",
    "held": "held out",
    "test": "to test on",
}
"""By a key of the backbone or the data what its number counts."""


def _named(found: Mapping[str, Any], words: Sequence[str], numbers: Sequence[str]) -> str:
    """The name of the backbone or the data, and what is known of it."""
    known = [str(found[key]) for key in words if found.get(key)]
    known += [f"{count(found[key])} {_COUNTED[key]}" for key in numbers if key in found]
    name = str(found.get("name", ""))
    return f"{name} ({', '.join(known)})" if known else name


def _budget(comparison: Comparison) -> str:
    """Most numbers that a method may train."""
    if comparison.budget is None:
        return "no limit to what a method trains"
    part = share(comparison.budget, comparison)
    of = "" if part is None else f" ({percent(part)} of the backbone)"
    return f"at most {comparison.budget:,} trained parameters{of}"


def _results(comparison: Comparison) -> Markup:
    """The main table, and what its figures are."""
    metric = comparison.metric
    seeds = max((len(side.seeds) for side in comparison.sides), default=0)
    over = f"Means ± standard deviations over {seeds} seeds. " if seeds > 1 else ""
    note = (
        f"Sorted by {metric.label}, {better(metric)}. {over}NLL and what was forgotten of neutral text "
        "in nats per target; times of prefill and decoding over those of the frozen model, in brackets "
        "once merged into the weights; memory of training above that of the loaded backbone."
    )
    traits = [
        joined(element("dt", head), element("dd", meaning)) for head, meaning in TRAITS.values()
    ]
    table = _scrolled(results_table(comparison), "Results")
    return _section(
        "Results", element("p", note, class_="soft"), table, element("dl", *traits, class_="traits")
    )


def _scrolled(table: Markup, label: str) -> Markup:
    """A table that scrolls by itself where it is wider than the page."""
    return element("div", table, class_="scroll", role="region", aria_label=label, tabindex="0")


def _plots(comparison: Comparison) -> Markup:
    """Quality against each cost, and learning curves."""
    figures = [_against(comparison, cost, number) for number, cost in enumerate(COSTS)]
    curves = _figure("Learning curves", curves_plot(comparison, "curves"), _CURVES)
    return _section(
        "Quality, cost and learning",
        element("p", _BARS, class_="soft"),
        element("div", *figures, curves, class_="plots"),
    )


_BARS = (
    "Error bars are one standard deviation over seeds to both sides; dashed horizontal lines are what "
    "is not trained."
)
_CURVES = "Means over seeds, smoothed over a twentieth of the steps."


def _against(comparison: Comparison, cost: Cost, number: int) -> Markup:
    """A plot, and who is not in it."""
    shown = {point.series.index for point in points_of(comparison, cost)}
    absent = [
        side.label
        for index, side in enumerate(comparison.sides)
        if side.trained and index not in shown
    ]
    note = f"Not known for: {'; '.join(absent)}." if absent else ""
    title = f"{comparison.metric.label} against {cost.name[0].lower()}{cost.name[1:]}"
    return _figure(title, quality_plot(comparison, cost, f"quality-{number}"), note)


def _figure(title: str, plot: Markup | None, note: str = "") -> Markup:
    """A plot under its title; a word where there is nothing to draw."""
    caption = element("figcaption", element("h3", title), note)
    return element("figure", caption, element("p", "No figures.") if plot is None else plot)


def _latencies(comparison: Comparison) -> Markup:
    """What each method adds to the time of a prompt and of a token."""
    figures = [
        _figure(phase.capitalize(), latency_plot(comparison, phase, f"latency-{phase}"))
        for phase in PHASES
    ]
    note = (
        "Times over those of the frozen model, which is 1, by the number of rows that go through at "
        "once. Outlined bars are the method merged into the weights."
    )
    return _section(
        "Latency",
        element("p", note, class_="soft"),
        element("div", *figures, class_="plots"),
    )


def _claims(comparison: Comparison) -> Markup:
    """What is commonly said of methods, and what was measured."""
    table = claims_table(comparison)
    if table is None:
        return joined()
    note = (
        "The ranges that overviews repeat, beside the figures of this comparison: of prompts and of "
        "decoding the least and the most over the numbers of rows."
    )
    return _section(
        "What is said, and what was measured",
        element("p", note, class_="soft"),
        _scrolled(table, "What is said"),
    )


def _searches(comparison: Comparison) -> Markup:
    """Rates that were tried, method by method."""
    searches = [_search(side) for side in comparison.sides if side.search]
    if not searches:
        return joined()
    note = f"NLL on held-out rows, by which the rate was chosen; {NONE} where training failed."
    return _section(
        "Search for the learning rate",
        element("p", note, class_="soft"),
        element("div", *searches, class_="searches"),
    )


def _search(side: Side) -> Markup:
    """The rates of one method, and whether a better one may lie beyond."""
    settings = ", ".join(f"{name} {value}" for name, value in side.settings.items())
    remark = (
        "The chosen rate is not between two that are worse: a better one may lie beyond them all."
    )
    heads = [element("th", "Optimiser", scope="col", class_="words")]
    heads += [element("th", head, scope="col") for head in ("Rate", "NLL", "Chosen")]
    tried = sorted(side.search, key=lambda one: (one.optimizer, one.rate))
    return element(
        "section",
        element("h3", side.label),
        *([element("p", settings, class_="soft")] if settings else []),
        element(
            "table",
            element("thead", element("tr", *heads)),
            element("tbody", *(_tried(side, one) for one in tried)),
        ),
        *([element("p", remark)] if side.rate is not None and not side.interior else []),
    )


def _tried(side: Side, one: Tried) -> Markup:
    """A rate and its loss."""
    chosen = (one.optimizer, one.rate) == (side.optimizer, side.rate)
    return element(
        "tr",
        element("th", one.optimizer, scope="row"),
        element("td", f"{one.rate:g}"),
        element("td", written(NLL, one.loss)),
        element("td", "chosen" if chosen else ""),
        class_="chosen" if chosen else None,
    )


def _fairness(comparison: Comparison) -> Markup:
    """What was equal for all methods, and what could not be."""
    lists = (("What was equal", comparison.equal), ("What could not be", comparison.unequal))
    return joined(
        *(
            _section(title, element("ul", *(element("li", entry) for entry in entries)))
            for title, entries in lists
            if entries
        )
    )


def _commands(comparison: Comparison) -> Markup:
    """What runs each training again."""
    tables = [
        element(
            "table",
            element("caption", element("h3", side.label)),
            element("tbody", *(_command(*pair) for pair in runs)),
            class_="commands",
        )
        for side in comparison.sides
        if (runs := list(_runs(side)))
    ]
    return _section("Commands", *tables) if tables else joined()


def _runs(side: Side) -> Iterator[tuple[str, str]]:
    """Names and commands of the trainings of one method."""
    for seed in side.seeds:
        if seed.command:
            yield f"Seed {seed.seed}", seed.command
    for one in side.search:
        if one.command:
            yield f"Search, {one.optimizer} {one.rate:g}", one.command


def _command(name: str, command: str) -> Markup:
    return element(
        "tr",
        element("th", name, scope="row"),
        element("td", element("code", command), class_="words"),
    )
