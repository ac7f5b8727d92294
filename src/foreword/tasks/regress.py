"""Regression: a number for each row, a text or a pair of texts, from one vector for it.

Shapes: B rows, N targets, L labels, which is 1.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foreword.backbone.kinds.base import IGNORED
from foreword.data.each import of_each
from foreword.data.template import Task, columns
from foreword.data.values import is_missing
from foreword.errors import DataError
from foreword.head import VALUE, Head
from foreword.tasks.base import Measured, Row
from foreword.tasks.correlation import pearson, spearman
from foreword.tasks.reading import Reading
from foreword.tasks.texts import OfTexts, target_column

LARGEST = 1e15
"""Numbers from here on, whose squares float32 would hardly hold, are refused."""


class Regress(OfTexts):
    """A text, or a pair of texts, and its number."""

    name = "regress"
    figures = (
        ("Pearson r", "pearson", "{:.3f}"),
        ("Spearman rho", "spearman", "{:.3f}"),
        ("mean squared error", "mse", "{:.4g}"),
    )
    loss = ("squared error in deviations", "loss", "{:.4f}")

    def columns(self, templates: Task, rows: Sequence[Row]) -> None:
        """Those of the text or texts, and one that holds numbers."""
        column_of(templates)
        super().columns(templates, rows)
        of_each(rows, partial(self.gold, templates), "row")

    def labels(self, templates: Task, rows: Sequence[Row]) -> tuple[str, ...]:
        """The one number."""
        return VALUE

    def targets(
        self, templates: Task, labels: Sequence[str], row: Row, readings: Sequence[Reading]
    ) -> list[list[Any]]:
        """The number itself; the one that means "no target" moves by the least that float32 knows."""
        value = np.float32(self.gold(templates, row))
        if value == np.float32(IGNORED):
            value = np.nextafter(value, np.float32(0))
        return [[float(value)]]

    def flat(
        self, logits: Tensor, labels: Tensor, mask_BT: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One target for each row."""
        return logits[:, 0], labels[:, 0], torch.arange(len(labels), device=labels.device)

    def losses(self, head: Head, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Squared errors in units of the deviation that the head was trained on; none is a hit."""
        assert head.mean is not None
        assert head.deviation is not None
        wanted_N = ((targets.double() - head.mean) / head.deviation).float()
        errors_N = (outputs - wanted_N).square()
        return errors_N, torch.zeros_like(errors_N, dtype=torch.bool)

    def predicted(
        self,
        templates: Task,
        labels: Sequence[str],
        row: Row,
        readings: Sequence[Reading],
        logits: Sequence[Tensor],
    ) -> Measured:
        """The number, on the scale of the rows."""
        return Measured(float(logits[0][0]))

    def gold(self, templates: Task, row: Row) -> float:
        """The row's number."""
        name = column_of(templates)
        try:
            return number_of(row.get(name))
        except DataError as error:
            raise DataError(f"column {name!r}: {error}") from error

    def measured(
        self,
        predictions: Sequence[Measured],
        gold: Sequence[float],
        labels: Sequence[str] = (),
    ) -> dict[str, float]:
        """Pearson's and Spearman's correlation, -1 to 1, and the mean squared error."""
        said = [one.value for one in predictions]
        errors = [(one - right) ** 2 for one, right in zip(said, gold, strict=True)]
        return {
            "pearson": pearson(said, gold),
            "spearman": spearman(said, gold),
            "mse": math.fsum(errors) / len(errors),
        }


def scale_of_numbers(templates: Task, rows: Sequence[Row]) -> tuple[float, float]:
    """Mean and deviation of the rows' numbers.

    Raises:
        DataError: All are the same, so that there is nothing to learn.
    """
    values = np.array([Regress().gold(templates, row) for row in rows], dtype=np.float64)
    deviation = float(values.std())
    if bool((values == values[0]).all()) or deviation == 0:
        raise DataError(
            f"all rows have the number {values[0]}; regression needs at least two different ones"
        )
    return float(values.mean()), deviation


def has_fractions(templates: Task, rows: Sequence[Row]) -> bool:
    """Whether a row's label is a number with a fractional part, which no class is.

    Tables without types, as .csv and .tsv are, have numbers as text: there all labels must be some.
    """
    names = columns(templates.target or "")
    if len(names) != 1:
        return False
    values = [row.get(names[0]) for row in rows]
    if all(isinstance(value, str) for value in values):
        return _spell_fractions(values)
    return any(isinstance(v, float | np.floating) and math.isfinite(v) and v % 1 for v in values)


def _spell_fractions(texts: Sequence[Any]) -> bool:
    """Whether all of some texts spell numbers, and one of them has a fractional part."""
    try:
        return any(number % 1 for number in [*map(number_of, texts)])
    except DataError:
        return False


def column_of(templates: Task) -> str:
    """The column of the numbers.

    Raises:
        DataError: The target template names more, or writes something beside it.
    """
    return target_column(
        templates, "for regression the target template names one column of numbers, such as {label}"
    )


def number_of(value: Any) -> float:
    """A value of a row as a number; so is text that spells one, as tables without types have it.

    Raises:
        DataError: It is none, or too large.
    """
    found = math.nan
    if not is_missing(value) and isinstance(value, numbers.Number | str) and not _is_truth(value):
        try:
            found = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            found = math.nan
    if not abs(found) < LARGEST:
        raise DataError(f"found {repr(value)[:40]}, expected a number below {LARGEST:g} in size")
    return found


def _is_truth(value: Any) -> bool:
    return isinstance(value, bool | np.bool_)
