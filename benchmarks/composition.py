"""Unseen combinations: tasks and attributes whose prefixes were trained alone, put together.

    python benchmarks/composition.py --models FOLDER [--seeds 0] [--ways joint,concat]

Three tasks on Yelp's sentences (write a review that has a keyword, begins with given words, has a given
number of words) and two attributes (positive, negative). Prefixes of 16 by the default recipe in 90
steps, a task's from rows of both attributes. No way but `joint` sees rows of a combination. Texts are
drawn at temperature 1. Figures: share of texts that do the task, that have the attribute by a judge,
and both.

Finished points are kept in benchmarks/results/composition.jsonl and not repeated.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from attributes import SEEDS, SENTIMENT, distinct, judge, perplexity, splits
from common import SHARED, Results, Row, table
from control import Bench, between, less
from control_figures import interval
from sampling import Branch, drawn
from transformers.utils import logging

import foreword
from foreword.data.written import written_for
from foreword.prefix import Prefix
from foreword.train import TrainSettings
from foreword.train.initialisation import start

TEXTS = 64
"""Inputs of a combination and seed."""
MOST = 24
"""Most tokens of a text."""
STEPS = 90
NOUNS = "business chicken customer drinks experience location lunch people place quality restaurant"
KEYWORDS = frozenset([*NOUNS.split(), "rooms", "steak", "store", "time", "visit", "wait", "work"])
"""Nouns that sentences of both attributes have about as often: either has 35% of them at least."""


@dataclass(frozen=True)
class Task:
    """Something that a text must do.

    Attributes:
        name: What.
        prompt: Its template, with a place for what is wanted.
        wanted: What a text is an answer to, or None where it can be none.
        done: Whether a text does it.
    """

    name: str
    prompt: str
    wanted: Callable[[str], str | None]
    done: Callable[[str, str], bool]

    @property
    def settings(self) -> TrainSettings:
        """The recipe of its prefix."""
        return TrainSettings(prompt=self.prompt, target=" {text}", length=16, steps=STEPS)

    def rows(self, texts: Sequence[str]) -> list[Row]:
        """Rows of the texts that can be an answer."""
        pairs = ((text, self.wanted(text)) for text in texts)
        return [{"text": text, "wanted": wanted} for text, wanted in pairs if wanted is not None]


def _keyword(text: str) -> str | None:
    known = [word for word in text.split() if word in KEYWORDS]
    return known[len(text) % len(known)] if known else None


def _opening(text: str) -> str | None:
    words = text.split()
    return " ".join(words[:2]) if len(words) > 4 else None


def _count(text: str) -> str:
    return str(len(text.split()))


TASKS = (
    Task(
        "keyword",
        "Keyword: {wanted}\nReview:",
        _keyword,
        lambda text, wanted: wanted in text.lower().split(),
    ),
    Task(
        "opening",
        "Opening: {wanted}\nReview:",
        _opening,
        lambda text, wanted: f"{text.lower()} ".startswith(f"{wanted} "),
    ),
    Task(
        "words",
        "Number of words: {wanted}\nReview:",
        _count,
        lambda text, wanted: abs(len(text.split()) - int(wanted)) <= 1,
    ),
)


@dataclass(frozen=True)
class Parts:
    """What ways put together: prefixes of one seed, and the starts of the task's and the attribute's."""

    bench: Compositions
    task: Task
    attribute: str
    seed: int

    @cached_property
    def of_task(self) -> Prefix:
        """The task's, from rows of both attributes."""
        return self.bench.of_task(self.task, self.seed)

    @cached_property
    def of_attribute(self) -> Prefix:
        """The attribute's, from rows of no task."""
        return self.bench.control.prefix(self.attribute, self.seed)

    @cached_property
    def of_opposite(self) -> Prefix:
        """The opposite attribute's."""
        return self.bench.control.prefix(SENTIMENT.opposite(self.attribute), self.seed)

    @cached_property
    def first(self) -> Prefix:
        """What all of them started from."""
        return start(self.bench.control.backbone, self.task.settings)

    @cached_property
    def plain(self) -> tuple[int, ...]:
        """The prompt that attributes were trained after."""
        return tuple(self.bench.control.backbone.tokens(SENTIMENT.prompt))


Way = Callable[[Parts], list[Branch]]


def joint(parts: Parts) -> list[Branch]:
    """Trained on rows of the combination: the upper bound."""
    return [Branch(parts.bench.joint(parts.task, parts.attribute, parts.seed))]


def task_alone(parts: Parts) -> list[Branch]:
    """The task's prefix without the attribute's."""
    return [Branch(parts.of_task)]


def attribute_alone(parts: Parts) -> list[Branch]:
    """The attribute's prefix without the task's."""
    return [Branch(parts.of_attribute)]


def concat(parts: Parts) -> list[Branch]:
    """The attribute's in front of the task's, both at full strength."""
    return [
        Branch(foreword.cascade(parts.bench.control.backbone, parts.of_attribute, parts.of_task))
    ]


def half_sum(parts: Parts) -> list[Branch]:
    """Half of what each learned."""
    return [Branch(between(parts.of_task, parts.of_attribute, 0.5))]


def whole_sum(parts: Parts) -> list[Branch]:
    """All of what each learned."""
    return [Branch(less(parts.of_task, parts.of_attribute, parts.first, -1.0))]


def difference(parts: Parts) -> list[Branch]:
    """The task's and half of what sets the attribute apart from its opposite."""
    return [Branch(less(parts.of_task, parts.of_attribute, parts.of_opposite, -0.5))]


def over_base(parts: Parts) -> list[Branch]:
    """``task * (attribute / base)^0.5``, all after the task's prompt."""
    return [Branch(parts.of_task), Branch(parts.of_attribute, 0.5), Branch(None, -0.5)]


def over_opposite(parts: Parts) -> list[Branch]:
    """``task * (attribute / opposite)^0.5``, all after the task's prompt."""
    return [
        Branch(parts.of_task),
        Branch(parts.of_attribute, 0.5),
        Branch(parts.of_opposite, -0.5),
    ]


def over_opposite_plain(parts: Parts) -> list[Branch]:
    """The same, where the attributes read the prompt that they were trained after."""
    return [
        Branch(parts.of_task),
        Branch(parts.of_attribute, 0.5, parts.plain),
        Branch(parts.of_opposite, -0.5, parts.plain),
    ]


WAYS: dict[str, Way] = {
    "joint": joint,
    "task alone": task_alone,
    "attribute alone": attribute_alone,
    "logits, over opposite, own prompt": over_opposite_plain,
    "logits, over opposite": over_opposite,
    "logits, over base": over_base,
    "difference": difference,
    "sum, halves": half_sum,
    "sum": whole_sum,
    "concat": concat,
}
PASSES = {
    "logits, over opposite, own prompt": 3,
    "logits, over opposite": 3,
    "logits, over base": 3,
}
"""Forward passes of a token, where they are more than one."""


@dataclass(frozen=True)
class Compositions:
    """The backbone and the judge (as for control), and the kept figures of combinations."""

    control: Bench
    results: Results

    def of_task(self, task: Task, seed: int) -> Prefix:
        """A task's prefix, trained once."""
        texts = [
            text
            for attribute in SENTIMENT.attributes
            for text in splits(self.control.shared, SENTIMENT)[attribute].learned[seed]
        ]
        return self._trained(f"task-{task.name}-{seed}", task, texts, seed)

    def joint(self, task: Task, attribute: str, seed: int) -> Prefix:
        """A combination's prefix, trained once."""
        texts = splits(self.control.shared, SENTIMENT)[attribute].learned[seed]
        return self._trained(f"joint-{task.name}-{attribute}-{seed}", task, texts, seed)

    def _trained(self, name: str, task: Task, texts: Sequence[str], seed: int) -> Prefix:
        place = self.control.folder / f"{name}.safetensors"
        if not place.is_file():
            rows = task.rows(texts)
            random.Random(seed).shuffle(rows)
            result = foreword.train(self.control.backbone, rows, replace(task.settings, seed=seed))
            foreword.save_prefix(result.prefix, place)
            print(f"trained {name} in {result.seconds:.0f} s", flush=True)
        return foreword.load_prefix(place)

    def inputs(self, task: Task) -> list[str]:
        """What is wanted of texts: of held-out rows, half of each attribute."""
        held = splits(self.control.shared, SENTIMENT)
        rows = [
            row["wanted"]
            for attribute in SENTIMENT.attributes
            for row in task.rows(held[attribute].held)[: TEXTS // 2]
        ]
        random.Random(0).shuffle(rows)
        return rows

    def measure(self, way: str, task: Task, attribute: str, seed: int) -> None:
        """Figures of one combination in one way, unless they are known."""
        run = f"{task.name} {attribute} {way} seed {seed}"
        if run in self.results:
            return
        parts = Parts(self, task, attribute, seed)
        backbone = self.control.backbone
        written = written_for(backbone, parts.of_task, task.settings.templates)
        wanted = self.inputs(task)
        prompts = [backbone.tokens(task.prompt.format(wanted=one)) for one in wanted]
        texts = drawn(backbone, WAYS[way](parts), prompts, written, seed=seed, most=MOST)
        texts = [text.partition("\n")[0].strip() for text in texts]
        with (self.control.folder / "texts.jsonl").open("a") as file:
            file.write(json.dumps({"run": f"composition {run}", "texts": texts}) + "\n")
        line = self.results.add(run, **self.figures(task, wanted, texts, attribute))
        print(json.dumps(line), flush=True)

    def figures(
        self, task: Task, wanted: Sequence[str], texts: Sequence[str], attribute: str
    ) -> Row:
        """What is measured of texts."""
        done = [task.done(text, one) for text, one in zip(texts, wanted, strict=True)]
        has = self.control.judge.each(texts, attribute)
        both = [first and second for first, second in zip(done, has, strict=True)]
        return {
            "count": len(texts),
            "task": round(sum(done) / len(done), 4),
            "attribute": round(sum(has) / len(has), 4),
            "both": round(sum(both) / len(both), 4),
            "perplexity": round(perplexity(self.control.backbone, SENTIMENT.prompt, texts), 1),
            "distinct_2": round(distinct(texts, 2), 4),
        }


def lines_of(results: Results) -> list[Row]:
    """The table: a row for each way, means over combinations and seeds."""
    made = []
    for way in WAYS:
        lines = [
            [line for seed in SEEDS if (line := results.get(f"{t.name} {a} {way} seed {seed}"))]
            for t in TASKS
            for a in SENTIMENT.attributes
        ]
        if all(lines):
            every = [line for of_one in lines for line in of_one]
            low, high = interval([[{**one, "share": one["both"]} for one in of] for of in lines])
            made.append(
                {
                    "way": way,
                    "passes": PASSES.get(way, 1),
                    **{
                        name: sum(line[name] for line in every) / len(every)
                        for name in ("task", "attribute", "both")
                    },
                    "interval": f"{low:.2f}-{high:.2f}",
                    **{
                        f"{t.name}, both": sum(
                            line["both"] for line in every if line["run"].startswith(t.name)
                        )
                        / sum(line["run"].startswith(t.name) for line in every)
                        for t in TASKS
                    },
                    "seeds": min(map(len, lines)),
                }
            )
    return made


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, required=True, help="folder that has minilm-l6-v2")
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--output", type=Path, default=Path("control-output"))
    parser.add_argument("--ways", default=";".join(WAYS), help="with semicolons between")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--table", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    folder = Path(__file__).parent / "results"
    results = Results(folder / "composition.jsonl")
    if not arguments.table:
        encoder = foreword.load(str(arguments.models / "minilm-l6-v2"))
        told = judge(arguments.shared, SENTIMENT, encoder, arguments.output)
        kept = Results(folder / "control.jsonl")
        control = Bench(foreword.load(), SENTIMENT, told, arguments.shared, arguments.output, kept)
        bench = Compositions(control, results)
        for seed in map(int, arguments.seeds.split(",")):
            for way in arguments.ways.split(";"):
                for task in TASKS:
                    for attribute in SENTIMENT.attributes:
                        bench.measure(way, task, attribute, seed)
    print(table(lines_of(results)))


if __name__ == "__main__":
    main()
