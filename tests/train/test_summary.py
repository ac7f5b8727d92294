"""The figures that training ends with."""

from __future__ import annotations

from typing import Any

import pytest

import foreword
from foreword.train.summary import last_and_best, summary


def history(*losses: float) -> list[dict[str, float]]:
    return [{"step": float(step), "loss": loss} for step, loss in enumerate(losses, 1)]


@pytest.mark.parametrize(("steps", "last"), [(1, 1), (10, 1), (11, 2), (195, 20), (1000, 20)])
def test_the_final_loss_is_a_mean_of_the_last_steps(steps: int, last: int) -> None:
    found = last_and_best(history(*map(float, range(steps))))
    assert found["mean_last_steps"] == last
    assert found["mean_last_loss"] == pytest.approx(steps - 1 - (last - 1) / 2)
    assert found["best_step"] is None


def test_the_best_step_is_the_first_with_the_lowest_nll() -> None:
    evaluated = [{"step": 10.0 * n, "eval_loss": nll} for n, nll in ((1, 3.0), (2, 2.0), (3, 2.0))]
    found = last_and_best([*history(1.0, 0.5), *evaluated])
    assert found["best_step"] == 20
    said = summary({**found, "best_eval_nll": 2.0})
    assert said == (
        "final loss 0.5000 (of the last step); kept as it was after step 20, the best of the "
        "evaluations: NLL 2.0000"
    )


def test_no_step_has_no_loss() -> None:
    assert last_and_best([]) == {"mean_last_loss": None, "mean_last_steps": 0, "best_step": None}


def test_training_keeps_them_beside_the_loss_of_the_last_step(
    tiny: foreword.Backbone, rows: list[dict[str, str]]
) -> None:
    settings: dict[str, Any] = {"prompt": "{mr} ->", "target": " {ref}", "length": 2, "steps": 12}
    made = foreword.TrainSettings(**settings, batch_size=2, checkpoint_every=4)
    result = foreword.train(tiny, rows, made, evaluation=rows)
    training = result.prefix.meta.training
    losses = [entry["loss"] for entry in result.history if "loss" in entry]
    assert training["final_loss"] == losses[-1]
    assert training["mean_last_steps"] == 2
    assert training["mean_last_loss"] == pytest.approx(sum(losses[-2:]) / 2)
    evaluated = {e["eval_loss"]: e["step"] for e in result.history if "eval_loss" in e}
    assert training["best_step"] == evaluated[min(evaluated)]
    assert summary(training).startswith("final loss ")
