"""Prefix tuning as a `Method`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

import torch

from foreword.backbone import Backbone
from foreword.data import Encoded
from foreword.data.attributes import values_in
from foreword.errors import TrainingError
from foreword.head import HEAD_TASKS
from foreword.methods.base import Applied, Method, Rows, Start
from foreword.methods.heads import numbers_of
from foreword.methods.prefix.build import parameterise
from foreword.methods.prefix.dropout import PrefixDropout
from foreword.methods.prefix.headed import with_head
from foreword.methods.prefix.learner import PrefixLearner, detached
from foreword.methods.prefix.settings import ATTRIBUTE_LENGTH, LENGTH, PrefixSettings
from foreword.methods.prefix.start import start
from foreword.objectives.base import Objective
from foreword.objectives.encode import InFront, room
from foreword.prefix import Prefix
from foreword.store import PrefixStore

S = TypeVar("S", bound=PrefixSettings)


class PrefixMethod(Method[S, Prefix]):
    """Keys and values in front of the input, in every layer.

    Args:
        store: Where a prefix that ``init`` names is looked up; by default the user's store.
    """

    name = "prefix"
    settings = PrefixSettings
    selects = True

    def __init__(self, store: PrefixStore | None = None) -> None:
        self.store = store

    def check(self, settings: S) -> None:
        """Check that demonstrations are of a task that writes text.

        Raises:
            TrainingError: They are not.
        """
        if settings.init == "demonstrations" and settings.task in HEAD_TASKS:
            raise TrainingError(
                f"init='demonstrations' needs a task that writes text; found {settings.task!r}"
            )

    def start(self, backbone: Backbone, settings: S, rows: Rows) -> PrefixStart[S]:
        """The keys and values that training starts from, and a head of zeros if the task needs one."""
        room(backbone, settings, settings.length or 1)
        values = values_in(settings.attribute_names, rows)
        plain = start(backbone, settings, rows, self.store, values)
        first = with_head(backbone, plain, settings, rows)
        return PrefixStart(backbone, resolved(settings, first), first)


class PrefixStart(Start[S, Prefix]):
    """A prefix to start from.

    Args:
        backbone: The backbone.
        settings: The settings, with the lengths that the start decided.
        first: The prefix, float32.
    """

    def __init__(self, backbone: Backbone, settings: S, first: Prefix) -> None:
        self.backbone = backbone
        self.settings = settings
        self.first = first
        self.in_front = InFront.of(first)
        self.digest = first.digest
        self.numbers = first.parameters

    @property
    def trained(self) -> int:
        """The parameterisation's numbers, and the head's."""
        made = parameterise(self.backbone, self.first.with_head(None), self.settings)
        trained = sum(parameter.numel() for parameter in made.parameters())
        return trained + numbers_of(self.first.head)

    @contextmanager
    def learning(
        self, objective: Objective, rows: Sequence[Encoded], rate: float
    ) -> Iterator[PrefixLearner]:
        """The start's parameterisation, and the backbone attached without a prefix."""
        settings = self.settings
        made = parameterise(self.backbone, self.first, settings, rows)
        dropout = PrefixDropout(settings.dropout, settings.frozen, settings.seed)
        with self.backbone.attached(None) as attachment:
            learner = PrefixLearner(made, self.backbone, attachment, dropout, objective)
            yield learner.to(self.backbone.device)

    @contextmanager
    def applied(self, value: Prefix) -> Iterator[Applied]:
        """The backbone as it is, and the prefix to use with it."""
        yield Applied(self.backbone, value, InFront.of(value))


def resolved(settings: S, first: Prefix) -> S:
    """The settings with the lengths that the start decided, so that the recipe says them."""
    shared = first.meta.pieces[0].length if settings.attributes else first.length
    length = shared if settings.starts_from_prefix else LENGTH
    own = settings.attribute_length or (ATTRIBUTE_LENGTH if settings.attributes else None)
    return replace(settings, length=settings.length or length, attribute_length=own)


def started_from(first: Prefix, settings: PrefixSettings) -> Prefix:
    """What the first step of training finds, as plain tensors: closed gates leave values of zero.

    Args:
        first: What training starts from.
        settings: What training does.
    """
    plain = replace(detached(first), start=None)
    if settings.parameterization != "gated":
        return plain
    return replace(plain, values=tuple(map(torch.zeros_like, plain.values)))
