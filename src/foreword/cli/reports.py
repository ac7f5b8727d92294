"""The report of a composition, which `compose --report` makes and `inspect` shows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.table import Table

from foreword.cli.console import heard, note, say, show, table, visible
from foreword.cli.inputs import rows_from, templates_in
from foreword.cli.progress import parts as parts_of_work
from foreword.data.given import Rows
from foreword.description import PrefixMeta
from foreword.errors import DataError, StoreError
from foreword.options import GenerateOptions
from foreword.store import PrefixStore

if TYPE_CHECKING:
    from foreword.backbone import Backbone
    from foreword.evaluate.reported import CompositionReport
    from foreword.prefix import Prefix


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ReportArguments:
    """A report on the composition, which goes into its file."""

    report: str | None = None
    """Held-out rows, as in training: evaluate the frozen model, each part, and the composition on them,
    and keep the figures in the composition's file."""

    train: str | None = None
    """Rows of the whole task: train one prefix of the composition's length on them, as an upper
    bound."""

    steps: int | None = None
    """Optimiser steps of that training; its settings are by default those of the first part."""

    epochs: float | None = None
    """Passes over its rows, instead of steps."""

    lr: float | None = None
    """Its peak learning rate."""

    limit: int | None = None
    """Only the first so many distinct inputs of the held-out rows."""

    max_new_tokens: int = 128
    """Most tokens of an output, where text is evaluated."""

    as_json: Annotated[bool, Parameter(name="--json")] = False
    """Print the report as JSON, and nothing else."""

    def check(self) -> None:
        """Check that nothing is asked of a report that is not made, or of a training that is not done.

        Raises:
            DataError: An option needs another.
        """
        if self.report is None and self != ReportArguments():
            raise DataError(
                "--train, --steps, --epochs, --lr, --limit, --max-new-tokens and --json are for the "
                "report; give --report DATA too"
            )
        if self.train is None and self.training:
            raise DataError(
                "--steps, --epochs and --lr are for the joint training; give --train ROWS too"
            )
        if self.steps is not None and self.epochs is not None:
            raise DataError("give --steps or --epochs, not both")
        _ = self.options

    @property
    def training(self) -> dict[str, Any]:
        """The settings of the joint training that were given."""
        given = {"steps": self.steps, "epochs": self.epochs, "lr": self.lr}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def options(self) -> GenerateOptions:
        """How text is generated."""
        return GenerateOptions(max_new_tokens=self.max_new_tokens)

    def rows(self, meta: PrefixMeta) -> tuple[Rows, Rows | None]:
        """Held-out and training rows, with the columns that the first part's templates name.

        Raises:
            DataError: They cannot be read, or lack a column.
        """
        assert self.report is not None
        held_out = rows_from(self.report)
        train = None if self.train is None else rows_from(self.train)
        templates = templates_in(meta)
        if templates is not None:
            templates.check_columns(held_out)
            templates.check_columns(train or [])
        return held_out, train


@dataclass(frozen=True)
class Stored:
    """A composition that is in the store, and can be replaced by the same one with a report.

    Attributes:
        store: The store.
        name: Its name.
        prefix: The composition, without a report.
    """

    store: PrefixStore
    name: str
    prefix: Prefix

    def replace(self, report: CompositionReport) -> None:
        """Have it in the store with a report.

        Raises:
            StoreError: Another prefix came in its place meanwhile.
        """
        from foreword.evaluate.composition import with_report

        if self.store.outline(self.name).meta.parents != self.prefix.meta.parents:
            raise StoreError(
                f"another prefix has the name {self.name!r} in {self.store.folder} by now, so the "
                "report was not kept; compose again under another name"
            )
        self.store.save(self.name, with_report(self.prefix, report), overwrite=True)


def reported(
    backbone: Backbone,
    stored: Stored,
    parts: Mapping[str, Prefix],
    rows: tuple[Rows, Rows | None],
    arguments: ReportArguments,
) -> CompositionReport:
    """Make the report of a composition and keep it in its file; a stop loses the report alone."""
    from foreword.cli.bar import TrainingBar
    from foreword.evaluate.composition import compose_report, joint_settings

    held_out, train = rows
    settings = None if train is None else joint_settings(stored.prefix, **arguments.training)
    bar, kept = TrainingBar(), "without its report"

    def so_far(report: CompositionReport) -> None:
        nonlocal kept
        stored.replace(report)
        kept = "with its report but for the joint prefix"

    try:
        with heard("foreword.train"), parts_of_work() as progress:
            report = compose_report(
                backbone,
                stored.prefix,
                parts,
                held_out,
                name=stored.name,
                train_rows=train,
                settings=settings,
                options=arguments.options,
                limit=arguments.limit,
                store=stored.store,
                callbacks=[bar],
                progress=progress,
                so_far=so_far,
            )
        stored.replace(report)
    except BaseException:
        note(f"{stored.name} is in the store {kept}")
        raise
    finally:
        bar.stop()
    return report


def show_report(report: CompositionReport, *, as_json: bool = False) -> None:
    """A report on standard output."""
    if as_json:
        say(json.dumps(report.as_json(), ensure_ascii=False, indent=1))
        return
    show(report_table(report))
    note(visible(report.about))


def report_table(report: CompositionReport) -> Table:
    """A line for each model."""
    made = table("report", "", *(label for label, _, _ in report.figures))
    for model in report.models:
        cells = (form.format(model.figures[name]) for _, name, form in report.figures)
        made.add_row(visible(model.name), *cells)
    return made
