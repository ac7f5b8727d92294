"""Quality at equal size: prefix tuning against LoRA and PEFT's prefix tuning, on E2E.

    python benchmarks/quality.py [--shared ../shared] [--only search,variants,final,others]

Rows are split by meaning representation: what rates and recipes are chosen on (held out of the
development set) and what is reported (the test set, read once per final run) is never trained on.

- search: learning rates, doubled or halved until the best is interior; 800 examples, one seed.
- variants: other recipes for the prefix at its own rate; the same examples and seed.
- final: one epoch at the chosen rates; NLL and BLEU on the test set.
- others: the defaults on two other sets.

Finished runs are kept in benchmarks/results/quality.jsonl and not repeated; a run that was cut off
goes on from its checkpoint.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from common import SHARED, Results, Row, machine, read_rows, table
from peers import Learned, lora, peft_prefix
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

import foreword
from foreword.backbone import Backbone
from foreword.data import Encoded
from foreword.evaluate.run import measured, scored
from foreword.methods.prefix.settings import NEUTRAL_TEXT
from foreword.methods.prefix.start import start
from foreword.objectives.encode import encode
from foreword.options import GenerateOptions
from foreword.train import TrainSettings

EXAMPLES = 800
SEEDS = (0, 1, 2)
HELD_OUT = 10
"""One in so many inputs of the development set is held out."""

Side = Callable[..., AbstractContextManager[Learned]]


@dataclass(frozen=True)
class Method:
    """One side: how it is trained, and the rates that its search begins with."""

    side: Side
    rates: tuple[float, ...]
    seeds: tuple[int, ...] = SEEDS
    optimizer: Literal["soap", "adamw"] = "adamw"


@dataclass(frozen=True)
class Set:
    """A task: its templates and rows, split by input."""

    name: str
    prompt: str
    target: str
    train: list[Row]
    held: list[Row]
    test: list[Row]
    epochs: float = 1.0

    def settings(self, **changes: Any) -> TrainSettings:
        """The default recipe on this task."""
        return TrainSettings(prompt=self.prompt, target=self.target, epochs=self.epochs, **changes)


@contextmanager
def prefix(
    backbone: Backbone,
    rows: Sequence[Row],
    settings: TrainSettings,
    folder: Path,
    callbacks: Sequence[TrainerCallback],
) -> Iterator[Learned]:
    """Foreword: what `foreword train` does."""
    result = foreword.train(
        backbone, rows, settings, folder=folder, resume=True, callbacks=callbacks
    )
    yield backbone, result.prefix, result.prefix.meta.training["trained_parameters"]


def encoded(side: Side) -> Side:
    """A side that wants token ids, given rows."""

    def run(backbone: Backbone, rows: Any, settings: TrainSettings, *rest: Any) -> Any:
        like = start(backbone, settings)
        return side(backbone, encode(backbone, rows, settings, like)[0], settings, *rest)

    return run


METHODS = {
    "prefix": Method(prefix, (0.03, 0.06, 0.12), optimizer="soap"),
    "prefix; adamw": Method(prefix, (0.015, 0.03, 0.06)),
    "lora": Method(encoded(lora), (0.003, 0.006, 0.012)),
    "peft prefix; default": Method(encoded(peft_prefix), (0.01, 0.03, 0.1), (0,)),
    "peft prefix; from text": Method(
        encoded(partial(peft_prefix, text=NEUTRAL_TEXT)), (0.01, 0.03, 0.1), (0,)
    ),
}

VARIANTS: dict[str, dict[str, Any]] = {
    "random batches": {"group_by_length": False},
    "batch 4": {"batch_size": 4},
    "batch 16": {"batch_size": 16},
    "length 8": {"length": 8},
    "length 32": {"length": 32},
    "length 64": {"length": 64},
    "task text": {
        "init_text": "Turn the facts about a restaurant into one fluent sentence that names it and "
        "states every fact."
    },
    "demonstrations, length 96": {"init": "demonstrations", "length": 96},
    "adamw": {"optimizer": "adamw"},
    "gated, lr 0.06": {"parameterization": "gated", "lr": 0.06},
    "gated, lr 0.12": {"parameterization": "gated", "lr": 0.12},
    "gated, lr 0.24": {"parameterization": "gated", "lr": 0.24},
    "mlp, lr 0.01": {"parameterization": "mlp", "lr": 0.01},
    "last 15 layers, length 32": {"layers": "last:15", "length": 32},
    "sink frozen": {"frozen": 1},
    "warm-up 0.03": {"warmup": 0.03},
}


class Pausing(TrainerCallback):  # type: ignore[misc]
    """Waits between two steps while a file exists, so that something else can be timed."""

    def __init__(self, file: Path | None) -> None:
        self.file = file

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Wait."""
        while self.file is not None and self.file.exists():
            time.sleep(0.5)


@dataclass(frozen=True)
class Bench:
    """The backbone, the kept results, and the folder for checkpoints."""

    backbone: Backbone
    results: Results
    folder: Path
    pause: Path | None

    def trained(
        self, run: str, method: Method, rows: list[Row], settings: TrainSettings
    ) -> AbstractContextManager[Learned]:
        """A side after training on the rows."""
        place = self.folder / run.replace(" ", "-").replace(";", "").replace("/", "-")
        place.parent.mkdir(parents=True, exist_ok=True)
        return method.side(self.backbone, rows, settings, place, [Pausing(self.pause)])

    def held_out(self, run: str, method: Method, task: Set, settings: TrainSettings) -> Row:
        """NLL on held-out rows after training on the first examples; from the results, if there."""
        if run in self.results:
            return self.results[run]
        began = time.perf_counter()
        with self.trained(run, method, task.train[:EXAMPLES], settings) as (changed, made, count):
            seconds = time.perf_counter() - began
            like = made or start(self.backbone, settings)
            rows: list[Encoded] = encode(changed, task.held, settings, like)[0]
            nll = scored(changed, made, rows, 32)[0]
        line = self.results.add(
            run, lr=settings.lr, parameters=count, held_nll=nll, seconds=round(seconds)
        )
        print(json.dumps(line), flush=True)
        return line

    def tested(self, run: str, method: Method, task: Set, settings: TrainSettings) -> Row:
        """NLL and BLEU on the test rows after training on all rows."""
        if run in self.results:
            return self.results[run]
        began = time.perf_counter()
        with self.trained(run, method, task.train, settings) as (changed, made, count):
            seconds = time.perf_counter() - began
            figures = test_figures(changed, made, task, settings)
        line = self.results.add(
            run, lr=settings.lr, parameters=count, seconds=round(seconds), **figures
        )
        print(json.dumps(line), flush=True)
        return line


def test_figures(backbone: Backbone, made: Any, task: Set, settings: TrainSettings) -> Row:
    """What the test rows say."""
    like = made or start(backbone, settings)
    options = GenerateOptions(max_new_tokens=80, batch_size=32)
    figures = measured(backbone, made, like, settings.templates, task.test, options)
    return {
        "test_nll": figures.nll,
        "bleu": figures.bleu,
        "chrf": figures.chrf,
        "rouge_l": figures.rouge_l,
    }


def e2e(shared: Path) -> Set:
    """E2E (Novikova et al., 2017): tuned on its development set, reported on its test set."""
    data = shared / "data" / "data2text"
    train, held = split(read_rows(data / "e2e_dev.jsonl"), "mr")
    return Set("e2e", "{mr} ->", " {ref}", train, held, read_rows(data / "e2e_test.jsonl"))


def others(shared: Path) -> list[Set]:
    """Detoxification, and questions' types as words: a rewriting task and a task with short targets."""
    data = shared / "data"
    detox, rest = split(
        [
            {"toxic": row["toxic"], "neutral": row["neutral"][0]}
            for row in read_rows(data / "style" / "paradetox.jsonl")[:3000]
        ],
        "toxic",
    )
    trec, held = split(read_rows(data / "classification" / "trec_train.jsonl"), "text")
    test = read_rows(data / "classification" / "trec_test.jsonl")
    return [
        Set("paradetox", "{toxic} ->", " {neutral}", detox, rest, rest),
        Set("trec", "{text} ->", " {label}", trec, held, test),
    ]


def split(rows: list[Row], column: str) -> tuple[list[Row], list[Row]]:
    """Rows to train on and rows held out, shuffled, no input in both."""
    inputs = sorted({row[column] for row in rows})
    generator = random.Random(0)
    generator.shuffle(inputs)
    held = set(inputs[: len(inputs) // HELD_OUT])
    rows = generator.sample(rows, len(rows))
    return (
        [row for row in rows if row[column] not in held],
        [row for row in rows if row[column] in held],
    )


def search(bench: Bench, task: Set, name: str) -> float:
    """The best learning rate, with a worse one on either side."""
    method = METHODS[name]
    rates = list(method.rates)
    while True:
        nll = {
            rate: bench.held_out(
                f"search/{task.name}/{name}/lr {rate:g}",
                method,
                task,
                task.settings(lr=rate, optimizer=method.optimizer),
            )["held_nll"]
            for rate in rates
        }
        best = min(nll, key=nll.__getitem__)
        if best == rates[0]:
            rates.insert(0, rates[0] / 2)
        elif best == rates[-1]:
            rates.append(rates[-1] * 2)
        else:
            return best


def report(bench: Bench, task: Set) -> None:
    """Print what is there of the final table, and the bar."""
    lines = list(bench.results)
    final = {}
    for name in METHODS:
        begins = f"final/{task.name}/{name}/"
        final[name] = [line for line in lines if line["run"].startswith(begins)]
    seen = {name: found for name, found in final.items() if found}
    if seen:
        print(table([{"method": n, "seeds": len(f), **_means(f)} for n, f in seen.items()]))
    nll = {name: [line["test_nll"] for line in final[name]] for name in ("prefix", "lora")}
    if all(len(found) > 1 for found in nll.values()):
        ours, theirs = (statistics.mean(found) for found in nll.values())
        error = sum(statistics.variance(found) / len(found) for found in nll.values()) ** 0.5
        print(
            f"prefix - lora: {ours - theirs:+.4f}, standard error {error:.4f}; bar (at most two): "
            f"{'met' if ours <= theirs + 2 * error else 'missed'}"
        )


def _means(found: list[Row]) -> Row:
    made: Row = {"parameters": found[0]["parameters"], "lr": found[0]["lr"]}
    for key in ("test_nll", "bleu", "chrf", "rouge_l"):
        made[key] = statistics.mean(line[key] for line in found)
    nlls = [line["test_nll"] for line in found]
    made["sd of NLL"] = statistics.stdev(nlls) if len(nlls) > 1 else float("nan")
    return made


def main() -> None:
    """Run what is missing, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--only", default="search,variants,final,others")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)), help="of the final runs")
    parser.add_argument("--pause", type=Path, help="wait between steps while this file exists")
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()) / "foreword-quality"
    )
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    names = arguments.methods.split(",")
    seeds = set(map(int, arguments.seeds.split(",")))
    results = Results(Path(__file__).parent / "results" / "quality.jsonl")
    backbone = foreword.load(dtype="bfloat16")
    bench = Bench(backbone, results, arguments.work, arguments.pause)
    task = e2e(arguments.shared)
    print(json.dumps({**machine(), "backbone": backbone.name, "dtype": str(torch.bfloat16)}))
    stages = arguments.only.split(",")
    if "variants" in stages:
        lr = search(bench, task, "prefix")
        for name, changes in VARIANTS.items():
            settings = replace(task.settings(lr=lr), **changes)
            bench.held_out(f"variant/{task.name}/{name}", METHODS["prefix"], task, settings)
    for name in names if {"search", "final"} & set(stages) else []:
        lr = search(bench, task, name)
        if "final" in stages:
            for seed in sorted(set(METHODS[name].seeds) & seeds):
                settings = task.settings(lr=lr, seed=seed, optimizer=METHODS[name].optimizer)
                run = f"final/{task.name}/{name}/seed {seed}"
                bench.tested(run, METHODS[name], task, settings)
    if "others" in stages:
        compare_others(bench, others(arguments.shared))
    report(bench, task)


def compare_others(bench: Bench, tasks: list[Set]) -> None:
    """The default recipe, LoRA at its own best rate, and the frozen model, on other tasks."""
    for task in tasks:
        if f"frozen/{task.name}" not in bench.results:
            bench.results.add(
                f"frozen/{task.name}",
                parameters=0,
                **test_figures(bench.backbone, None, task, task.settings()),
            )
        short = replace(task, train=task.train[:EXAMPLES])
        for name in ("prefix", "lora"):
            settings = task.settings()
            if name != "prefix":
                lr, optimizer = search(bench, task, name), METHODS[name].optimizer
                settings = replace(settings, lr=lr, optimizer=optimizer)
            bench.tested(f"final/{task.name}/{name}/seed 0", METHODS[name], short, settings)
        report(bench, task)


if __name__ == "__main__":
    main()
