"""Kinds of transformers: a prefix, LoRA of equal size and full fine-tuning, on what each kind is for.

    python benchmarks/kinds.py --models FOLDER [--shared ../shared] [--quick] [--only SET]

FOLDER holds the backbones. Every side trains for 100 steps of 8 rows with the same Trainer, rows and
seed, at each of its learning rates; the rate is chosen on held-out rows, and the figures are those of
other rows, which nothing is chosen on. A prefix has one rate, the default. With --quick each side has
one rate, and figures come from 16 inputs.

So far: encoder-decoders, on flan-t5-small (an int8 copy that was tuned to write titles). Finished runs
are kept in benchmarks/results/kinds.jsonl and not repeated.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from common import SHARED, Results, machine, read_rows, table
from peers import Learned, full, lora
from peft import TaskType
from quality import Row, encoded, prefix, split
from transformers.utils import logging

import foreword
from foreword.backbone import Backbone
from foreword.evaluate.run import measured
from foreword.generate import GenerateOptions
from foreword.train import TrainSettings
from foreword.train.initialisation import start

STEPS, BATCH = 100, 8
INPUTS, QUICK = 96, 16
"""Inputs that figures come from."""

Side = Callable[..., AbstractContextManager[Learned]]

T5_LORA = partial(lora, rank=7, modules=("q", "v"), task=TaskType.SEQ_2_SEQ_LM)
SIDES: dict[str, tuple[Side, tuple[float, ...]]] = {
    "prefix": (prefix, (0.06,)),
    "lora": (encoded(T5_LORA), (0.003, 0.001, 0.01)),
    "full": (encoded(full), (3e-4, 1e-4, 1e-3)),
}
"""How each side is trained, and its rates, that of --quick first."""


@dataclass(frozen=True)
class Set:
    """A task on a backbone."""

    name: str
    backbone: str
    prompt: str
    target: str
    train: list[Row]
    held: list[Row]
    test: list[Row]

    def settings(self, **changes: Any) -> TrainSettings:
        """The default recipe."""
        return TrainSettings(
            prompt=self.prompt, target=self.target, steps=STEPS, batch_size=BATCH, **changes
        )


def sets(shared: Path) -> list[Set]:
    """The tasks, their rows split by input."""
    data = shared / "data"
    train, held = split(read_rows(data / "data2text/e2e_dev.jsonl"), "mr")
    test = read_rows(data / "data2text/e2e_test.jsonl")
    dialogues = read_rows(data / "summarization/dialogsum_dev.jsonl")
    random.Random(0).shuffle(dialogues)
    return [
        Set("e2e", "flan-t5-small", "Describe: {mr}", "{ref}", train, held, test),
        Set(
            "dialogsum",
            "flan-t5-small",
            "Summarise: {dialogue}",
            "{summary}",
            dialogues[200:],
            dialogues[:100],
            dialogues[100:200],
        ),
    ]


def inputs_of(rows: Sequence[Row], column: str, count: int) -> list[Row]:
    """All rows of the first so many inputs."""
    kept = list(dict.fromkeys(row[column] for row in rows))[:count]
    return [row for row in rows if row[column] in kept]


def run(task: Set, backbone: Backbone, side: Side | None, rate: float, count: int) -> Row:
    """Train a side (None: the frozen model), and measure it on held-out rows and on others."""
    settings = task.settings(lr=rate) if side is not None else task.settings()
    rows = list(task.train)
    random.Random(0).shuffle(rows)
    column = "mr" if "{mr}" in task.prompt else "dialogue"
    options = GenerateOptions(max_new_tokens=96)
    like = start(backbone, settings)

    def figures(of: Backbone, made: Any, trained: int, seconds: float) -> Row:
        held = measured(of, made, like, settings.task, task.held[:count], options)
        test = inputs_of(task.test, column, count)
        told = measured(of, made, like, settings.task, test, options)
        return {
            "held_out_nll": held.nll,
            "nll": told.nll,
            "bleu": told.bleu,
            "rouge_l": told.rouge_l,
            "trained": trained,
            "seconds": seconds,
        }

    if side is None:
        return figures(backbone, None, 0, 0.0)
    began = time.perf_counter()
    with (
        tempfile.TemporaryDirectory() as folder,
        side(backbone, rows[: STEPS * BATCH], settings, Path(folder), ()) as learned,
    ):
        of, made, trained = learned
        return figures(of, made, trained, time.perf_counter() - began)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, required=True, help="folder of the backbones")
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", help="one set")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    results = Results(Path(__file__).parent / "results" / "kinds.jsonl")
    count = QUICK if arguments.quick else INPUTS
    lines = []
    for task in sets(arguments.shared):
        if arguments.only not in (None, task.name):
            continue
        backbone = foreword.load(str(arguments.models / task.backbone))
        sides: dict[str, tuple[Side | None, tuple[float, ...]]] = {
            "frozen": (None, (0.0,)),
            **SIDES,
        }
        for name, (side, rates) in sides.items():
            found = []
            for rate in rates[:1] if arguments.quick else rates:
                key = f"{task.name} {task.backbone} {name} {rate} {count}"
                if key not in results:
                    results.add(
                        key, rate=rate, **machine(), **run(task, backbone, side, rate, count)
                    )
                found.append(results[key])
            best = min(found, key=lambda line: line["held_out_nll"])
            kept = ("rate", "trained", "nll", "bleu", "rouge_l", "seconds")
            lines.append(
                {"set": task.name, "side": name, **{column: best[column] for column in kept}}
            )
            print(lines[-1], flush=True)
    print(table(lines))


if __name__ == "__main__":
    main()
