"""Class weights: those of scikit-learn, in the loss of training alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

import foreword
from foreword.data import Encoded
from foreword.errors import TrainingError
from foreword.objectives.class_weights import class_weights, weighted
from tests.tasks.models import CLASSIFY, TAG, tiny_encoder

RARE = [row for row in CLASSIFY if row["label"] == "good"] + CLASSIFY[-2:]
STEP: dict[str, Any] = {"length": 2, "steps": 1, "batch_size": len(RARE)}


def trained(**settings: Any) -> foreword.TrainResult:
    made = foreword.TrainSettings(**{**STEP, **settings})
    return foreword.train(tiny_encoder(), RARE, made, evaluation=RARE)


def test_weights_are_those_of_scikit_learn() -> None:
    labels = [0, 0, 0, 2, 2, 0]
    rows = [Encoded([5], [label]) for label in labels]
    settings = foreword.TrainSettings(class_weights="balanced")
    found = class_weights(settings, rows, 3)
    wanted = compute_class_weight("balanced", classes=torch.tensor([0, 2]).numpy(), y=labels)
    assert found is not None
    assert found.tolist() == pytest.approx([wanted[0], 0, wanted[1]])
    assert float(found[labels].sum()) == pytest.approx(len(rows))
    assert class_weights(foreword.TrainSettings(), rows, 3) is None


def test_a_blank_row_stays_without_loss() -> None:
    nll_B = torch.tensor([2.0, 0.0])
    found = weighted(nll_B, torch.tensor([1, -100]), torch.tensor([0.5, 3.0]))
    assert found.tolist() == [6.0, 0.0]


def test_the_recipe_says_it_and_the_loss_keeps_its_size() -> None:
    plain, balanced = trained(optimizer="adamw"), trained(class_weights="balanced")
    assert plain.prefix.meta.recipe["class_weights"] is None
    assert balanced.prefix.meta.recipe["class_weights"] == "balanced"
    first = [result.history[0]["loss"] for result in (plain, balanced)]
    assert first == pytest.approx([0.6931] * 2, abs=1e-3)  # weights sum to the number of rows


def test_a_weight_is_as_good_as_repeated_rows() -> None:
    rare = [row for row in RARE if row["label"] == "bad"]
    repeated = [*RARE, *rare, *rare]  # six of each class

    def losses(rows: Any, **settings: Any) -> list[float]:
        made = {**STEP, "steps": 4, "optimizer": "adamw", "lr": 0.01, "batch_size": len(rows)}
        made = {**made, "warmup": 0.0, **settings}
        history = foreword.train(tiny_encoder(), rows, foreword.TrainSettings(**made)).history
        return [entry["loss"] for entry in history]

    weighed = losses(RARE, class_weights="balanced")
    assert weighed == pytest.approx(losses(repeated), rel=5e-3)
    assert weighed != pytest.approx(losses(RARE), rel=5e-2)


def test_other_tasks_have_none() -> None:
    settings = foreword.TrainSettings(**STEP, class_weights="balanced")
    with pytest.raises(TrainingError, match="class_weights is only used with task='classify'"):
        foreword.train(tiny_encoder(), TAG, settings)
    with pytest.raises(TrainingError, match="class_weights must be one of balanced"):
        foreword.TrainSettings(class_weights="odd")  # type: ignore[arg-type]
