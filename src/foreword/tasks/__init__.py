"""Tasks of a head: a small file each for what they differ in."""

from __future__ import annotations

from foreword.head import HeadTask
from foreword.tasks.answer import Answer
from foreword.tasks.base import (
    Answered,
    Classified,
    Labelled,
    Labelling,
    Measured,
    Multilabelled,
    Prediction,
    Tagged,
)
from foreword.tasks.classify import Classify
from foreword.tasks.multilabel import Multilabel
from foreword.tasks.reading import Reader, Reading, reader_for
from foreword.tasks.regress import Regress
from foreword.tasks.tag import Tag

__all__ = [
    "LABELLINGS",
    "Answered",
    "Classified",
    "Labelled",
    "Labelling",
    "Measured",
    "Multilabelled",
    "Prediction",
    "Reader",
    "Reading",
    "Tagged",
    "reader_for",
]

LABELLINGS: dict[HeadTask, Labelling] = {
    "classify": Classify(),
    "tag": Tag(),
    "answer": Answer(),
    "regress": Regress(),
    "multilabel": Multilabel(),
}
"""By the task that a head names."""
