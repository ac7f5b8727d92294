"""Fixtures: a tiny encoder, and prefixes with heads that were trained on it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import foreword
from tests.tasks.models import ROWS, tiny_encoder


@pytest.fixture
def encoder() -> foreword.Backbone:
    """A fresh tiny encoder."""
    return tiny_encoder()


@pytest.fixture(scope="session")
def trained() -> Callable[[str], foreword.Prefix]:
    """A prefix for a task, trained once on all of its rows."""
    made: dict[str, foreword.Prefix] = {}

    def get(task: str) -> foreword.Prefix:
        if task not in made:
            settings = foreword.TrainSettings(length=6, steps=120, batch_size=6, lr=0.1)
            made[task] = foreword.train(tiny_encoder(), ROWS[task], settings).prefix
        return made[task]

    return get
