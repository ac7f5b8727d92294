"""What a model is worth on rows, whichever method changed it, and what it forgot."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from foreword.backbone import Backbone
from foreword.compare.result import Metric
from foreword.compare.split import Split
from foreword.data import Encoded, read_rows
from foreword.data.template import Task
from foreword.errors import DataError
from foreword.evaluate.labels import labelled, measured_labels
from foreword.evaluate.run import FIGURES, measured, scored
from foreword.head import HEAD_TASKS, Head
from foreword.methods.base import Applied
from foreword.mixing import encoder_under
from foreword.objectives.encode import InFront
from foreword.objectives.settings import DataSettings
from foreword.objectives.unseen import unseen_in
from foreword.options import BATCH, GenerateOptions
from foreword.predict import templates_of
from foreword.prefix import Prefix
from foreword.tasks import LABELLINGS

Rows = Sequence[Mapping[str, Any]]

Neutral = Mapping[str, tuple[Rows, float]]
"""By neutral set its rows, and the NLL that the frozen model has on them."""

NEUTRAL: Mapping[str, Task] = {
    "text": Task("{begin}", "{rest}"),
    "instructions": Task("{instruction}\n{input}\n", "{output}"),
}
"""Neutral sets that ship with the package, and how they are read."""

BEGINNING = 8
"""Words of a neutral paragraph that are its prompt."""


@dataclass(frozen=True)
class Judge:
    """Measures models on one task, each in the same way.

    Attributes:
        backbone: The frozen backbone.
        settings: How rows are read, with the task decided.
        like: A prefix with templates, which leaves the room that a model without a prefix is given, so
            that its texts are cut as under this one; behind more virtual tokens there is less.
        new_tokens: Most tokens of a text that is written.
    """

    backbone: Backbone
    settings: DataSettings
    like: Prefix
    new_tokens: int = 64
    _neutral: dict[tuple[str, int], float] = field(default_factory=dict, repr=False, compare=False)

    @property
    def options(self) -> GenerateOptions:
        """How texts are written: greedily."""
        return GenerateOptions(max_new_tokens=self.new_tokens, batch_size=BATCH)

    def metric(self, known: Collection[str]) -> Metric:
        """The figure that decides.

        Args:
            known: Names of figures that there are: tags that spell no entities have none of entities.
        """
        task = self.settings.task
        if task in HEAD_TASKS:
            every = LABELLINGS[task].figures
            label, name, form = next((one for one in every if one[1] in known), every[0])
            return Metric(name, label, higher=True, form=form)
        label, name, form = next(one for one in FIGURES if one[1] == "bleu")
        return Metric(name, label, higher=True, form=form)

    def nll(self, applied: Applied, rows: Rows) -> float:
        """NLL per target of rows, in nats."""
        if applied.in_front.head is not None:
            return self._labels(applied, rows)["nll"]
        return self._nll(applied, rows, self.settings.templates)

    def figures(self, applied: Applied, rows: Rows) -> dict[str, float]:
        """All figures of rows, ``nll`` among them, as `foreword evaluate` has them."""
        if applied.in_front.head is not None:
            found = self._labels(applied, rows)
        else:
            found = dataclasses.asdict(
                measured(
                    applied.backbone,
                    applied.prefix,
                    self._leaving(applied.in_front.length),
                    self.settings.templates,
                    rows,
                    self.options,
                )
            )
        return {name: value for name, value in found.items() if name != "seconds"}

    def forgotten(self, applied: Applied, neutral: Neutral) -> dict[str, float]:
        """By neutral set the NLL of its rows less that of the frozen model.

        Args:
            applied: A model.
            neutral: What `neutral` gave of as many virtual tokens, before anything changed the backbone.
        """
        return {
            name: self._nll(applied, rows, NEUTRAL[name]) - was
            for name, (rows, was) in neutral.items()
        }

    def neutral(self, length: int) -> Neutral:
        """Neutral rows that have room behind so many virtual tokens, and the frozen model's NLL on them.

        They are measured once; there are none for a model that writes no text.
        """
        if self.backbone.kind == "encoder":
            return {}
        like, frozen, found = self._leaving(length), frozen_one(self.backbone), {}
        for name in NEUTRAL:
            rows = [row for row in neutral_rows(name) if self._fits(row, name, like)]
            which = name, len(rows)  # behind more tokens fewer fit, so as many are the same
            if rows and which not in self._neutral:
                self._neutral[which] = self._nll(frozen, rows, NEUTRAL[name])
            if rows:
                found[name] = rows, self._neutral[which]
        return found

    def _fits(self, row: Mapping[str, Any], name: str, like: Prefix) -> bool:
        encoder = encoder_under(self.backbone, None, NEUTRAL[name], like)
        try:
            return encoder.row(row).truncated == 0
        except DataError:
            return False

    def _leaving(self, length: int) -> Prefix:
        """A prefix that leaves no more room than so many virtual tokens: `like`, repeated if need be."""
        if length <= self.like.length:
            return self.like
        times = -(-length // self.like.length)
        keys, values = (
            tuple(one.repeat(1, times, 1)[:, :length] for one in each)
            for each in (self.like.keys, self.like.values)
        )
        return dataclasses.replace(self.like, keys=keys, values=values)

    def _nll(self, applied: Applied, rows: Rows, task: Task) -> float:
        backbone, prefix = applied.backbone, applied.prefix
        encoder = encoder_under(backbone, prefix, task, self._leaving(applied.in_front.length))
        encoded: list[Encoded] = encoder.rows(rows)[0]
        return scored(backbone, prefix, encoded, self.options.batch_size)[0]

    def _labels(self, applied: Applied, rows: Rows) -> dict[str, float]:
        head = applied.in_front.head
        assert head is not None
        like = self._leaving(applied.in_front.length).with_head(head)
        unseen = unseen_in(head, templates_of(like), rows)
        # As `foreword evaluate` counts labels that no row to train on has: as wrong.
        others = () if unseen.knows_none else tuple(unseen.counts)
        seen = labelled(applied.backbone, like, rows, others)
        found = measured_labels(applied.backbone, applied.prefix, head, seen)[1]
        loss = LABELLINGS[head.task].loss[1]
        return {**found, "nll": found[loss]}


def unknown_labels(head: Head | None, settings: DataSettings, parts: Split) -> list[str]:
    """What is to be said of labels that a head does not know, for no row to train on has them."""
    sets = {"held out": parts.held, "to test on": parts.test}
    return [
        f"labels of rows {what} that no row to train on has, so that they count as wrong: {found.named}"
        for what, rows in sets.items()
        if head is not None and (found := unseen_in(head, settings.templates, rows)).counts
    ]


def frozen_one(backbone: Backbone) -> Applied:
    """The frozen backbone, as what no method changed."""
    return Applied(backbone, None, InFront(backbone.bos))


def neutral_rows(name: str) -> Rows:
    """A neutral set's rows."""
    rows = read_rows(f"foreword/neutral:{name}")
    if name != "text":
        return rows
    found = []
    for row in rows:
        words = row["text"].split(" ")
        begin, rest = words[:BEGINNING], words[BEGINNING:]
        found.append({"begin": " ".join(begin), "rest": " " + " ".join(rest)})
    return found
