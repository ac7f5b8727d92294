"""Unseen combinations: tasks and attributes whose prefixes were trained alone, put together.

    python benchmarks/composition.py --models FOLDER [--seeds 0] [--samples 48] [--ways "cascade;sum"]

Three tasks on Yelp's sentences (see `combinations.py`) and two attributes. Prefixes of 16 by the default
recipe in 90 steps. No way but joint training sees rows of a combination that it is measured on. Texts
are drawn at temperature 1. Figures: share of texts that do the task, that have the attribute by a
judge, and both. Strengths and weights that a way chooses are chosen with one seed's prefixes, on other
inputs, one for all combinations.

Then what happens inside (`composition_inside.py`), and arithmetic (`prefix_arithmetic.py`).

Finished points are kept in benchmarks/results/composition.jsonl and not repeated.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from attributes import SEEDS, SENTIMENT, STEPS, Judge, distinct, judge, perplexity, splits
from combination_ways import ASKED, WAYS, Composed, Parts
from combinations import TASKS, Task, Trained, as_in_rows, inputs
from common import SHARED, Results, Row, table
from composition_figures import REAL, picture, ratios_of, tuned_rows, ways_rows
from composition_inside import inside, inside_rows, size_rows
from prefix_arithmetic import arithmetic, negation_rows, tracking_rows, transfer_rows
from sampling import Branch, drawn
from transformers.utils import logging

import foreword
from foreword.data.template import Task as Templates
from foreword.data.written import written_for
from foreword.prefix import Prefix

MOST = 24
"""Most tokens of a text."""
TUNING = 16
"""Inputs of a combination that strengths are chosen by."""


@dataclass(frozen=True)
class Combination:
    """A task and an attribute."""

    task: Task
    attribute: str

    @property
    def name(self) -> str:
        """What its points are called."""
        return f"{self.task.name} {self.attribute}"


COMBINATIONS = [Combination(task, one) for task in TASKS for one in SENTIMENT.attributes]


@dataclass(frozen=True)
class Bench:
    """Prefixes, the judge, and the figures that are kept.

    Attributes:
        trained: The prefixes.
        judge: What tells the attributes apart.
        results: Figures of finished points.
        samples: Inputs of a combination.
        tuned_with: The seed of the prefixes that strengths and weights are chosen with.
    """

    trained: Trained
    judge: Judge
    results: Results
    samples: int
    tuned_with: int = SEEDS[0]

    def measure(self, way: str, seed: int) -> None:
        """Figures of every combination in one way, unless they are known."""
        found = WAYS[way]
        named = {one: f"{one.name} {way} seed {seed}" for one in COMBINATIONS}
        if all(run in self.results for run in named.values()):
            return
        composed = found.composed or self.chosen(way, found.tuned or {})
        self.points(named, composed, seed, self.samples, asked=way == ASKED)

    def chosen(self, way: str, tuned: dict[str, Composed]) -> Composed:
        """The one of some strengths with which most texts had both, on other inputs."""
        both = {}
        for name, composed in tuned.items():
            named = {one: f"tuning {way}, {name}: {one.name}" for one in COMBINATIONS}
            if any(run not in self.results for run in named.values()):
                self.points(named, composed, self.tuned_with, TUNING, tuning=True)
            lines = [self.results[run] for run in named.values()]
            both[name] = sum(line["both"] for line in lines) / len(lines)
        return tuned[max(both, key=lambda name: both[name])]

    def points(
        self,
        named: Mapping[Combination, str],
        composed: Composed,
        seed: int,
        count: int,
        *,
        asked: bool = False,
        tuning: bool = False,
    ) -> None:
        """Draw the texts of combinations at once, and keep their figures by name."""
        wanted, prompts, branches = [], [], []
        for one in named:
            parts = Parts(self.trained, one.task, one.attribute, seed)
            own = inputs(self.trained.shared, one.task, count, tuning=tuning)
            wanted.append(own)
            prompts += [self.prompt(one, text, asked) for text in own]
            branches.append(composed(parts))
        drawn_at = seed + (1000 if tuning else 0)
        texts = self.texts(_together(branches, count), prompts, seed, drawn_at)
        for place, (one, run) in enumerate(named.items()):
            own_texts = texts[place * count : (place + 1) * count]
            with (self.trained.folder / "texts.jsonl").open("a") as file:
                file.write(json.dumps({"run": run, "texts": own_texts}) + "\n")
            line = self.results.add(run, **self.figures(one, wanted[place], own_texts))
            print(json.dumps(line), flush=True)

    def real(self) -> None:
        """Figures of rows that nothing learned from, unless they are known."""
        for one in COMBINATIONS:
            run = f"{one.name} {REAL} seed {SEEDS[0]}"
            if run not in self.results:
                held = splits(self.trained.shared, SENTIMENT)[one.attribute].held
                rows = one.task.rows(held)[: self.samples]
                wanted, texts = ([row[name] for row in rows] for name in ("wanted", "text"))
                self.results.add(run, **self.figures(one, wanted, texts))

    def prompt(self, one: Combination, wanted: str, asked: bool) -> list[int]:
        """Token ids of a task's prompt, or of a question in the chat's form."""
        backbone = self.trained.backbone
        if not asked:
            return backbone.tokens(one.task.prompt.format(wanted=wanted))
        assert backbone.tokenizer is not None
        text = one.task.asked.format(attribute=one.attribute, wanted=wanted)
        chat = backbone.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
        )
        ids: list[int] = backbone.tokenizer(chat, add_special_tokens=False)["input_ids"]
        return ids

    def texts(
        self,
        branches: Sequence[Branch],
        prompts: Sequence[Sequence[int]],
        seed: int,
        drawn_at: int,
    ) -> list[str]:
        """A text for each prompt, as rows have them."""
        backbone = self.trained.backbone
        prefix = self.trained.of_task(TASKS[0], seed)
        written = written_for(backbone, prefix, Templates(TASKS[0].prompt, " {text}"))
        made = drawn(backbone, branches, prompts, written, seed=drawn_at, most=MOST)
        return [as_in_rows(text) for text in made]

    def figures(self, one: Combination, wanted: Sequence[str], texts: Sequence[str]) -> Row:
        """What is measured of texts."""
        pairs = zip(texts, wanted, strict=True)
        done = [one.task.done(text, given) for text, given in pairs]
        has = self.judge.each(texts, one.attribute)
        both = [first and second for first, second in zip(done, has, strict=True)]
        return {
            "count": len(texts),
            "task": round(sum(done) / len(done), 4),
            "attribute": round(sum(has) / len(has), 4),
            "both": round(sum(both) / len(both), 4),
            "perplexity": round(perplexity(self.trained.backbone, SENTIMENT.prompt, texts), 1),
            "distinct_2": round(distinct(texts, 2), 4),
        }


def combinations(bench: Bench, ways: Sequence[str], seeds: Sequence[int]) -> None:
    """Measure ways on every combination."""
    bench.real()
    for seed in seeds:
        for way in ways:
            bench.measure(way, seed)


def _together(branches: Sequence[Sequence[Branch]], count: int) -> list[Branch]:
    """The branches of combinations as those of all their texts, of each combination so many."""
    return [
        replace(first, prefix=None if first.prefix is None else _repeated(of_each, count))
        for first, of_each in zip(branches[0], zip(*branches, strict=True), strict=True)
    ]


def _repeated(branches: Sequence[Branch], count: int) -> list[Prefix]:
    """For each of their texts the prefix of its branch."""
    found = [branch.prefix for branch in branches for _ in range(count)]
    return [prefix for prefix in found if isinstance(prefix, Prefix)]


def report(results: Results, path: Path | None) -> None:
    """Print what is known, and draw it."""
    parts: tuple[tuple[str, Callable[[Results], list[Row]]], ...] = (
        ("Texts that do the task, have the attribute, and both", ways_rows),
        ("Shares of what joint training has of both", ratios_of),
        ("Strengths and weights on other inputs: both", tuned_rows),
        (
            "NLL of real rows, and attention mass: all layers (first, middle, last third)",
            inside_rows,
        ),
        ("RMS of keys and values over the start's", size_rows),
        ("Negation", negation_rows),
        ("A few steps from another prefix: NLL", transfer_rows),
        ("Whether the cosine tells how good a start is", tracking_rows),
    )
    for title, rows_of in parts:
        if rows := rows_of(results):
            print(f"\n{title}\n\n{table(rows)}")
    if path is not None:
        picture(results, path)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, required=True, help="folder that has minilm-l6-v2")
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--output", type=Path, default=Path("composition-output"))
    parser.add_argument("--ways", default=";".join(WAYS), help="with semicolons between")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--samples", type=int, default=48, help="inputs of a combination, even")
    parser.add_argument(
        "--tuned-with", type=int, default=SEEDS[0], help="seed that strengths are chosen with"
    )
    parser.add_argument("--parts", default="combinations,inside,arithmetic")
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--picture", type=Path, help="PNG file")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    results = Results(Path(__file__).parent / "results" / "composition.jsonl")
    parts = [] if arguments.table else arguments.parts.split(",")
    seeds = list(map(int, arguments.seeds.split(",")))
    if parts:
        arguments.output.mkdir(parents=True, exist_ok=True)
        encoder = foreword.load(str(arguments.models / "minilm-l6-v2"))
        told = judge(arguments.shared, SENTIMENT, encoder, arguments.output)
        trained = Trained(foreword.load(), arguments.shared, arguments.output, arguments.steps)
        bench = Bench(trained, told, results, arguments.samples, arguments.tuned_with)
    if "combinations" in parts:
        combinations(bench, arguments.ways.split(";"), seeds)
    if "inside" in parts:
        inside(trained, results, seeds[0])
    if "arithmetic" in parts:
        arithmetic(bench, seeds[0])
    report(results, arguments.picture)


if __name__ == "__main__":
    main()
