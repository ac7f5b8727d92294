"""Sets of pairs, of numbers and of several labels, which are public but may not be shipped here.

A folder holds them as they are published:

- ``sick``: SICK_train.txt, SICK_trial.txt, SICK_test_annotated.txt (SemEval 2014, task 1; CC BY-NC-SA
  3.0): does the first sentence entail the second? Results were made with the copy in the repository
  brmson/dataset-sts at e1d3375.
- ``stsb``: stsb-en-train.csv, -dev.csv, -test.csv (STS benchmark; scores CC BY-SA 4.0, the texts under
  licences of their own): how alike two sentences are, 0 to 5. From PhilipMay/stsb-multi-mt at 30de0de.
- ``goemotions``: train.tsv, dev.tsv, test.tsv, labels.txt (GoEmotions, Apache-2.0; six feelings and
  "neutral"): what a comment expresses. From monologg/GoEmotions-pytorch at b75f9d3, data/ekman.

Each has rows to train on, rows that rates are chosen on, and rows that figures come from, as published.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

from common import Row, shuffled

HELD = 1000
"""Most rows that rates are chosen on."""


class Split(TypedDict):
    """Rows to train on, rows that rates are chosen on, and rows that figures come from."""

    train: list[Row]
    held: list[Row]
    test: list[Row]


def sick(folder: Path) -> Split:
    """Pairs: ``text``, ``text_pair``, ``label``."""
    names = ("SICK_train.txt", "SICK_trial.txt", "SICK_test_annotated.txt")
    return _split([folder / "sick" / name for name in names], _sick_rows)


def stsb(folder: Path) -> Split:
    """Pairs and a number: ``text``, ``text_pair``, ``label``."""
    names = ("stsb-en-train.csv", "stsb-en-dev.csv", "stsb-en-test.csv")
    return _split([folder / "stsb" / name for name in names], _stsb_rows)


def goemotions(folder: Path) -> Split:
    """Texts: ``text``, ``labels``."""
    names = ("train.tsv", "dev.tsv", "test.tsv")
    return _split([folder / "goemotions" / name for name in names], _goemotions_rows)


def _split(files: list[Path], rows_of: Callable[[Path], list[Row]]) -> Split:
    train, held, test = map(rows_of, files)
    return {"train": shuffled(train), "held": shuffled(held)[:HELD], "test": test}


def _sick_rows(file: Path) -> list[Row]:
    with file.open(encoding="utf-8", newline="") as lines:
        found = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [
        {
            "text": one["sentence_A"],
            "text_pair": one["sentence_B"],
            "label": one["entailment_judgment"].strip().lower(),
        }
        for one in found
    ]


def _stsb_rows(file: Path) -> list[Row]:
    with file.open(encoding="utf-8", newline="") as lines:
        return [
            {"text": first, "text_pair": second, "label": float(score)}
            for first, second, score in csv.reader(lines)
        ]


def _goemotions_rows(file: Path) -> list[Row]:
    names = (file.parent / "labels.txt").read_text(encoding="utf-8").split()
    with file.open(encoding="utf-8", newline="") as lines:
        found = list(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [
        {"text": text, "labels": [names[int(number)] for number in numbers.split(",")]}
        for text, numbers, _ in found
    ]
