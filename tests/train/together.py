"""What two processes do in `test_ranks.py`, as `torchrun ... -m tests.train.together FOLDER`.

Everything in one start, because starting takes longer than training. Rank 0 writes what it trained to
the folder; each rank writes the errors that it met.
"""

from __future__ import annotations

import errno
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

import foreword
from foreword.errors import ForewordError
from foreword.objectives import supervised
from foreword.train import trainer
from foreword.train.ranks import index
from tests.conftest import MEMORY, byte_tokenizer, tiny_model

ROWS = [
    {**row, "ref": row["ref"] * (1 + number % 3), "food": "fish" if number % 3 == 2 else "other"}
    for number, row in enumerate(MEMORY)
][:11]
"""Eleven rows, whose targets differ much in length: neither steps nor processes get equal shares."""
CASES: dict[str, dict[str, Any]] = {
    "grouped": {},
    "shuffled": {"group_by_length": False},
    "accumulated": {"accumulate": 2, "steps": 4},
    "dropped": {"dropout": 0.3, "parameterization": "mlp", "mlp_width": 8},
    "controlled": {"attributes": "food", "attribute_length": 2, "dropout": 0.3},
    "gated": {"parameterization": "gated", "gradient_checkpointing": True},
}
LAST = 7


def settings(rows_at_once: int, **fields: Any) -> foreword.TrainSettings:
    own = {"length": 6, "steps": LAST, "checkpoint_every": 3, "batch_size": rows_at_once}
    return foreword.TrainSettings(prompt="{mr} ->", target=" {ref}", **{**own, **fields})


def backbone() -> foreword.Backbone:
    return foreword.Backbone(tiny_model(), byte_tokenizer(), name="tiny")


class Leave(TrainerCallback):
    """An end without warning, on every rank."""

    def on_step_end(self, args: object, state: Any, control: object, **_: object) -> None:
        if state.global_step == 5:
            raise SystemExit


class Fault:
    """Something that goes wrong on one rank only: a forward pass, or the second checkpoint."""

    def __init__(self, rank: int, call: int) -> None:
        self.here = index() == rank
        self.calls, self.call = 0, call
        self.score, self.publish = supervised.score, trainer.publish

    def nan(self, *args: Any, **kwargs: Any) -> Any:
        scores = self.score(*args, **kwargs)
        self.calls += 1
        if self.here and self.calls == self.call:
            scores.nll_N.data[0] = math.nan
        return scores

    def full(self, aside: Path, place: Path) -> None:
        if place.name == "checkpoint-6":
            raise OSError(errno.ENOSPC, "No space left on device")
        self.publish(aside, place)


def main(out: Path) -> None:
    torch.set_num_threads(1)
    tiny = backbone()
    errors: dict[str, Any] = {}

    def run(name: str, rows: Any = ROWS, **options: Any) -> None:
        fields = options.pop("settings", {})
        try:
            result = foreword.train(
                tiny, rows, settings(2, **fields), evaluation=ROWS[:3], folder=out / name, **options
            )
        except ForewordError as error:
            kept = isinstance(error, foreword.TrainingStopped)
            steps = error.result.prefix.meta.training["steps"] if kept else None
            errors[name] = [str(error), steps]
            return
        except SystemExit:
            return
        errors[name] = result.history
        if index() == 0:
            foreword.save_prefix(result.prefix, out / f"{name}.safetensors")

    for name, fields in CASES.items():
        run(name, settings=fields)
    run("resumed", callbacks=[Leave()])
    run("resumed", resume=True)
    run("other-rows", rows=ROWS[index() :])
    for name, call in (("nan", 5), ("nan-evaluation", 4), ("full", 0)):
        fault = Fault(0 if name == "full" else 1, call)
        supervised.score = fault.nan
        trainer.publish = fault.full if name == "full" else fault.publish
        run(name)
        supervised.score, trainer.publish = fault.score, fault.publish
    (out / f"errors-{index()}.json").write_text(json.dumps(errors))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
