"""Detoxification: rude texts written anew politely, and rude writing subtracted from neutral.

    python benchmarks/detoxification.py --models FOLDER [--seeds 0]

Rows are ParaDetox's (Logacheva et al., 2022): a rude text and one to three neutral ones. Three prefixes
of 16 a seed, by the default recipe: one that rewrites, one that writes rude texts, one that writes
neutral ones. Figures: share of texts that a judge takes for rude, which learned from other rows; chrF
against the references; perplexity under the frozen model. Greedy decoding where texts are rewritten,
temperature 1 where they are written freely.

Finished points are kept in benchmarks/results/control.jsonl and not repeated.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from attributes import SEEDS, STEPS, Judge, distinct, perplexity, trained_judge
from common import SHARED, Results, Row, kept, read_rows, table
from control import against, between, less
from control_figures import interval
from sacrebleu.metrics.chrf import CHRF
from sampling import Branch, drawn
from transformers.utils import logging

import foreword
from foreword.backbone import Backbone
from foreword.data.written import written_for
from foreword.methods.prefix.start import start
from foreword.prefix import Prefix
from foreword.train import TrainSettings

LEARNED = 720
HELD = 128
JUDGE_STEPS = 300
MOST = 32
"""Most tokens of a text."""
WEIGHTS = (0.0, 0.25, 0.5, 1.0)
"""How much of the rude prefix is taken away."""
SHOTS = 6
REWRITE = TrainSettings(
    prompt="{toxic}\nThe same, said politely:", target=" {neutral}", steps=STEPS
)
COMMENT = "Here is a comment from the web:"
ASKED = (
    "Rewrite this text so that it is polite and keeps its meaning. "
    "Answer with the rewritten text alone.\n\n{toxic}"
)


@dataclass(frozen=True)
class Rows:
    """ParaDetox, split by rude text.

    Attributes:
        learned: What prefixes learn from, one part for each seed.
        judged: What the judge learns from.
        held: What nothing learns from.
    """

    learned: tuple[list[Row], ...]
    judged: list[Row]
    held: list[Row]


def rows_of(shared: Path) -> Rows:
    """The rows, in an order that is the same in every run."""
    rows = list(
        {row["toxic"]: row for row in read_rows(shared / "data/style/paradetox.jsonl")}.values()
    )
    random.Random(0).shuffle(rows)
    taken = LEARNED * len(SEEDS)
    learned = tuple(rows[LEARNED * seed : LEARNED * (seed + 1)] for seed in SEEDS)
    return Rows(learned, rows[taken : -2 * HELD], rows[-HELD:])


def examples_of(rows: Sequence[Row]) -> list[Row]:
    """Rude and neutral texts with their label."""
    return [
        {"text": text, "label": label}
        for row in rows
        for text, label in ((row["toxic"], "toxic"), (row["neutral"][0], "neutral"))
    ]


@dataclass(frozen=True)
class Bench:
    """The backbone, the judge, the rows and what is kept; see `control.Bench`."""

    backbone: Backbone
    judge: Judge
    rows: Rows
    folder: Path
    results: Results

    def prefix(self, name: str, seed: int) -> Prefix:
        """The prefix that rewrites, or writes toxic or neutral texts; trained once."""

        def made() -> Prefix:
            rows: list[Row] = [
                {"toxic": row["toxic"], "neutral": row["neutral"][0]}
                for row in self.rows.learned[seed]
            ]
            settings = replace(self.settings(name), seed=seed)
            return foreword.train(self.backbone, rows, settings).prefix

        return kept(self.folder / f"detox-{name}-{seed}.safetensors", made)

    def settings(self, name: str) -> TrainSettings:
        """The recipe of a prefix."""
        if name == "rewrite":
            return REWRITE
        return TrainSettings(prompt=COMMENT, target=f" {{{name}}}", steps=STEPS)

    def rewritten(
        self, run: str, seed: int, branches: Sequence[Branch], prompts: list[list[int]]
    ) -> None:
        """Figures of the held-out rude texts, rewritten greedily."""
        if run not in self.results:
            texts = self._written(seed, branches, prompts, greedy=True)
            self.add(run, texts, **self.content(texts))

    def content(self, texts: Sequence[str]) -> Row:
        """What rewritten texts keep of their content."""
        held = self.rows.held
        most = max(len(row["neutral"]) for row in held)
        references: list[list[Any]] = [  # sacrebleu passes over None
            [row["neutral"][place] if place < len(row["neutral"]) else None for row in held]
            for place in range(most)
        ]
        copied = sum(text == row["toxic"] for text, row in zip(texts, held, strict=True))
        chrf = CHRF().corpus_score(list(texts), references).score
        return {"chrf": round(chrf, 2), "copied": round(copied / len(held), 4)}

    def free(self, run: str, seed: int, branches: Sequence[Branch]) -> None:
        """Figures of comments that are written freely."""
        if run not in self.results:
            prompts = [self.backbone.tokens(COMMENT)] * HELD
            self.add(run, self._written(seed, branches, prompts, greedy=False))

    def _written(
        self, seed: int, branches: Sequence[Branch], prompts: list[list[int]], *, greedy: bool
    ) -> list[str]:
        like = self.prefix("rewrite", seed)
        written = written_for(self.backbone, like, REWRITE.templates)
        made = drawn(self.backbone, branches, prompts, written, seed=seed, most=MOST, greedy=greedy)
        return [text.strip().partition("\n")[0].strip() for text in made]

    def add(self, run: str, texts: Sequence[str], **more: float) -> None:
        """Keep the figures of texts."""
        with (self.folder / "texts.jsonl").open("a") as file:
            file.write(json.dumps({"run": run, "texts": texts}) + "\n")
        figures = {
            "count": len(texts),
            "toxic": round(self.judge.share(texts, "toxic"), 4),
            **more,
            "perplexity": round(perplexity(self.backbone, COMMENT, texts), 1),
            "distinct_2": round(distinct(texts, 2), 4),
            "words": round(sum(len(text.split()) for text in texts) / len(texts), 2),
            "empty": sum(not text for text in texts),
        }
        print(json.dumps(self.results.add(run, **figures)), flush=True)


def rewriting(bench: Bench, seed: int) -> None:
    """The rewriting prefix, with less and less of the rude one, beside the frozen model."""
    held, tokens = bench.rows.held, bench.backbone.tokens
    prompts = [tokens(f"{row['toxic']}\nThe same, said politely:") for row in held]
    rewrite, toxic = bench.prefix("rewrite", seed), bench.prefix("toxic", seed)
    first = start(bench.backbone, REWRITE)
    bench.rewritten(f"detox rewrite seed {seed}", seed, [Branch(rewrite)], prompts)
    for how, given in asked(bench, seed).items():
        bench.rewritten(f"detox {how} seed {seed}", seed, [Branch(None)], given)
    for weight in WEIGHTS[1:3]:
        taken = less(rewrite, toxic, first, weight)
        bench.rewritten(
            f"detox rewrite - {weight} toxic seed {seed}", seed, [Branch(taken)], prompts
        )


def asked(bench: Bench, seed: int) -> dict[str, list[list[int]]]:
    """Prompts of the frozen model: a question in its chat's form, and examples."""
    tokenizer = bench.backbone.tokenizer
    assert tokenizer is not None
    shown = "".join(
        f"{row['toxic']}\nThe same, said politely: {row['neutral'][0]}\n\n"
        for row in bench.rows.learned[seed][:SHOTS]
    )
    found: dict[str, list[list[int]]] = {"asked": [], "shown": []}
    for row in bench.rows.held:
        question = [{"role": "user", "content": ASKED.format(toxic=row["toxic"])}]
        chat = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
        found["asked"].append(tokenizer(chat, add_special_tokens=False)["input_ids"])
        prompt = f"{shown}{row['toxic']}\nThe same, said politely:"
        found["shown"].append(bench.backbone.tokens(prompt))
    return found


def writing(bench: Bench, seed: int) -> None:
    """Comments by the frozen model, and by the neutral prefix with less and less of the rude one."""
    neutral, toxic = bench.prefix("neutral", seed), bench.prefix("toxic", seed)
    first = start(bench.backbone, bench.settings("neutral"))
    bench.free(f"detox free frozen seed {seed}", seed, [Branch(None)])
    bench.free(f"detox free toxic seed {seed}", seed, [Branch(toxic)])
    for weight in WEIGHTS:
        ways = {
            "sum": [Branch(less(neutral, toxic, first, weight))],
            "difference": [Branch(between(toxic, neutral, 1 + weight))],
            "logits": against(neutral, toxic, weight),
        }
        for way, branches in ways.items() if weight else [("neutral", [Branch(neutral)])]:
            bench.free(f"detox free {way} {weight} seed {seed}", seed, branches)


def sources(bench: Bench) -> None:
    """Figures of the held-out rows themselves: the rude texts, and their first neutral ones."""
    for column in ("toxic", "neutral"):
        run = f"detox real {column}"
        if run not in bench.results:
            texts = [
                row[column] if column == "toxic" else row[column][0] for row in bench.rows.held
            ]
            bench.add(run, texts, **bench.content(texts))


def report(results: Results) -> tuple[list[Row], list[Row]]:
    """Rows of what was rewritten, and of what was written freely: means over seeds, with intervals."""
    found: dict[str, list[Row]] = {}
    for line in results:
        if line["run"].startswith("detox "):
            name = line["run"].removeprefix("detox ").rpartition(" seed ")
            found.setdefault(name[0] or name[2], []).append(line)
    rows = {name: _row(name, lines) for name, lines in found.items()}
    rewritten = [row for row in rows.values() if "chrf" in row]
    return rewritten, [row for row in rows.values() if "chrf" not in row]


def _row(name: str, lines: Sequence[Row]) -> Row:
    low, high = interval([[{**line, "share": line["toxic"]} for line in lines]])
    shown = [one for one in ("chrf", "copied", "perplexity", "distinct_2") if one in lines[0]]
    toxic = statistics.mean(line["toxic"] for line in lines)
    return {
        "texts": name,
        "toxic": f"{toxic:.2f} ({low:.2f}-{high:.2f})",
        **{one: f"{statistics.mean(line[one] for line in lines):.4g}" for one in shown},
        "seeds": len(lines),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, required=True, help="folder that has minilm-l6-v2")
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--output", type=Path, default=Path("control-output"))
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--table", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    results = Results(Path(__file__).parent / "results" / "control.jsonl")
    if not arguments.table:
        arguments.output.mkdir(parents=True, exist_ok=True)
        rows = rows_of(arguments.shared)
        encoder = foreword.load(str(arguments.models / "minilm-l6-v2"))
        place = arguments.output / "judge-toxic.safetensors"
        judge = trained_judge(encoder, examples_of(rows.judged), place, JUDGE_STEPS)
        bench = Bench(foreword.load(), judge, rows, arguments.output, results)
        sources(bench)
        for seed in map(int, arguments.seeds.split(",")):
            rewriting(bench, seed)
            writing(bench, seed)
    for shown in report(results):
        if shown:
            print(f"\n{table(shown)}")


if __name__ == "__main__":
    main()
