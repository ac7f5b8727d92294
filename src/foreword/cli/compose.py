"""`foreword compose`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.table import Table

from foreword.cli.console import note, say, show, table, visible, working
from foreword.cli.options import BackboneOptions, StoreOptions
from foreword.cli.reports import ReportArguments, Stored, reported, show_report
from foreword.errors import DataError, NameTaken
from foreword.expressions import Expression, Mode, looked_up, parse
from foreword.store import PrefixStore, taken

if TYPE_CHECKING:
    from foreword.backbone import Backbone
    from foreword.prefix import Prefix


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ComposeArguments:
    """How it is composed, and what it is called."""

    name: str
    """Name of the new prefix in the store."""

    mode: Mode = "sum"
    """How they are put together. sum: of what they learned, times their weights; concat: side by side in
    front of the text, with weights as strengths; cascade: the same, each before the next by its
    positions; logits: what they predict is mixed by their weights."""

    data: str | None = None
    """Training rows, for the sum of prefixes that started from demonstrations."""

    overwrite: bool = False
    """Replace a prefix of that name."""


def compose(
    expression: Annotated[str, Parameter(allow_leading_hyphen=True)],
    /,
    *,
    arguments: ComposeArguments,
    report: ReportArguments = ReportArguments(),  # noqa: B008
    backbone: BackboneOptions = BackboneOptions(),  # noqa: B008
    store: StoreOptions = StoreOptions(),  # noqa: B008
) -> None:
    """Make a prefix of others, by an expression of their names.

    Names may have weights in front, as in `"0.7*formal + e2e - toxic"` or `"pos + 0.5*(pos - neg)"`,
    and behind them virtual tokens, as in `"long[:8]"`, or values of attributes, as in
    `"task[sentiment=positive]"`. A minus has spaces around it: `a-b` is a name.

    The backbone is loaded for a sum, to compute where training started, and for a cascade, to move
    positions; for the latter in float32 unless --dtype says otherwise.

    With --report DATA the composition is measured on held-out rows beside the frozen model, each of its
    parts, and with --train ROWS one prefix that is trained on the whole task. The figures go into its
    file, and `inspect` shows them.

    Parameters
    ----------
    expression
        Names of the store and how they are put together, in quotes.
    """
    parsed = parse(expression)
    if arguments.data is not None and arguments.mode != "sum":
        raise DataError(f"--data is for --mode sum; {arguments.mode} needs no training rows")
    report.check()
    place = store.open()
    for name in parsed.names:  # a wrong name is refused before anything large is imported
        with looked_up(name):
            _ = place.outline(name)
    if not arguments.overwrite and arguments.name in place:
        raise NameTaken(taken(arguments.name, place.folder))
    rows = None
    if report.report is not None:
        _refuse_alone(parsed)
        rows = report.rows(place.outline(parsed.names[0]).meta)
    stored = {name: place.load(name) for name in parsed.names}
    loaded = _loaded(parsed, stored, arguments.mode, backbone, needed=rows is not None)
    made = _composed(parsed, stored, arguments, loaded, place)
    path = place.save(arguments.name, made, overwrite=arguments.overwrite)
    if not report.as_json:
        say(
            f"{arguments.name}: {arguments.mode}, {made.length} virtual tokens, "
            f"{made.parameters:,} parameters, on {visible(made.meta.backbone)}"
        )
        show(_parents(parsed, stored))
    note(f"saved to {path}")
    if rows is None:
        return
    assert loaded is not None
    from foreword.compose import operands

    parts = operands(parsed, stored.__getitem__)
    found = reported(loaded, Stored(place, arguments.name, made), parts, rows, report)
    show_report(found, as_json=report.as_json)


def _refuse_alone(expression: Expression) -> None:
    """Check that an expression is of more than a name, which `evaluate` is for."""
    if expression.name is not None:
        raise DataError(
            f"--report is on compositions, and {expression.name} is one prefix as it is; use foreword "
            f"evaluate {expression.name}"
        )


def _loaded(
    expression: Expression,
    stored: Mapping[str, Prefix],
    mode: Mode,
    options: BackboneOptions,
    *,
    needed: bool,
) -> Backbone | None:
    """The backbone, if composing or a report needs it."""
    from foreword.compose import needs_backbone

    if not (needed or needs_backbone(expression, mode)):
        return None
    if mode == "cascade" and options.dtype == "auto":
        options = dataclasses.replace(options, dtype="float32")
    with working("loading the backbone"):
        return options.load(stored[expression.names[0]])


def _composed(
    expression: Expression,
    stored: Mapping[str, Prefix],
    arguments: ComposeArguments,
    backbone: Backbone | None,
    store: PrefixStore,
) -> Prefix:
    """The prefix that the expression means."""
    from foreword.compose import compose

    load, mode, rows = stored.__getitem__, arguments.mode, arguments.data
    return compose(expression, load, mode=mode, backbone=backbone, rows=rows, store=store)


def _parents(expression: Expression, stored: Mapping[str, Prefix]) -> Table:
    """A row for each operand."""
    made = table("", "prefix", "weight", "digest")
    for term in expression.terms:
        weight, name = f"{term.weight:g}", term.operand.name
        made.add_row(str(term.operand), weight, stored[name].digest[:12])
    return made
