"""How far a prefix's strength goes: attributes of written texts, swept over dials.

    python benchmarks/control.py --models FOLDER [--only sentiment] [--seeds 0] [--dials blend,logits]

A prefix of 16 is trained for each of four attributes (positive, negative; humorous, romantic) and seed,
by the default recipe in 90 steps. Texts are drawn at temperature 1 at each strength of each dial, and
of the frozen model that is asked for the attribute. Figures: share of texts that a judge takes for the
attribute's, perplexity under the frozen model beside that of real rows, distinct words and pairs.

Finished points are kept in benchmarks/results/control.jsonl and not repeated.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from attributes import (
    DOMAINS,
    SEEDS,
    STEPS,
    Domain,
    Judge,
    distinct,
    judge,
    looping,
    perplexity,
    splits,
)
from common import SHARED, Results, Row, kept, table
from control_figures import Point, beside, curve, picture, real_rows, rows_of
from sampling import Branch, drawn, drawn_each
from transformers.utils import logging

import foreword
from foreword.backbone import Backbone
from foreword.data.written import Written, written_for
from foreword.methods.prefix.start import start
from foreword.prefix import Prefix

ALL = (-0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
REAL = 300
"""Real rows of an attribute that are measured beside them."""
TEXTS = 96
"""Texts of a point and seed."""
MOST = 24
"""Most tokens of a text."""
UNASKED, ALONE = "unasked", "alone"
"""Names of the points of the frozen model and of the prefix, which dials share."""
LONGER_STEPS = 270
LONGER = f"alone, {LONGER_STEPS} steps"
"""A longer training, and the name of its point."""
TEMPERATURE = 0.7
COOLER = f"alone, temperature {TEMPERATURE}"
"""A temperature at which people draw, and the name of its point."""
LEAST = 0.01
"""Share of attention that the dial of a bias goes to."""
MEASURED = 4
"""Real texts whose attention is measured."""
SHOTS = 8
"""Examples that a prompt shows."""


@dataclass(frozen=True)
class Learned:
    """What a dial has to do with.

    Attributes:
        prefix: The attribute's.
        opposite: The opposite attribute's, of the same seed.
        first: What both started from.
        share: Share of attention that the prefix has, mean over layers, heads and queries.
        started: The prompt with the model's start token in front.
    """

    prefix: Prefix
    opposite: Prefix
    first: Prefix
    share: float
    started: tuple[int, ...] = ()


Dial = Callable[[Learned, float], list[Branch]]


def between(zero: Prefix, one: Prefix, share: float) -> Prefix:
    """Keys and values on the line through two prefixes: the first at 0, the second at 1."""
    pairs = [
        tuple(a + share * (b - a) for a, b in zip(of_zero, of_one, strict=True))
        for of_zero, of_one in ((zero.keys, one.keys), (zero.values, one.values))
    ]
    return replace(one, keys=pairs[0], values=pairs[1])


def from_start(learned: Learned, strength: float) -> list[Branch]:
    """Keys and values between the start and the prefix; 0 is the start, not the frozen model."""
    return [Branch(between(learned.first, learned.prefix, strength))]


def from_opposite(learned: Learned, strength: float) -> list[Branch]:
    """Keys and values between both prefixes: -1 is the opposite, 1 the prefix."""
    return [Branch(between(learned.opposite, learned.prefix, (1 + strength) / 2))]


def logits(learned: Learned, strength: float) -> list[Branch]:
    """``p(base) * (p(prefix) / p(base))^s``."""
    return [Branch(None, 1 - strength), Branch(learned.prefix, strength)]


def logits_against(learned: Learned, strength: float) -> list[Branch]:
    """``p(base) * (p(prefix) / p(opposite))^s`` (DExperts, Liu et al., 2021, equation 2)."""
    return [
        Branch(None),
        Branch(learned.prefix, strength),
        Branch(learned.opposite, -strength),
    ]


def against(prefix: Prefix, other: Prefix, weight: float) -> list[Branch]:
    """``p(prefix) * (p(prefix) / p(other))^weight``."""
    return [Branch(prefix, 1 + weight), Branch(other, -weight)]


def logits_between(learned: Learned, strength: float) -> list[Branch]:
    """Both prefixes' log-probabilities mixed: -1 is the opposite, 1 the prefix."""
    return against(learned.prefix, learned.opposite, (strength - 1) / 2)


def less(prefix: Prefix, other: Prefix, first: Prefix, weight: float) -> Prefix:
    """A prefix without a share of what another learned since the start that both had."""
    keys = [
        a - weight * (b - c) for a, b, c in zip(prefix.keys, other.keys, first.keys, strict=True)
    ]
    values = [
        a - weight * (b - c)
        for a, b, c in zip(prefix.values, other.values, first.values, strict=True)
    ]
    return replace(prefix, keys=tuple(keys), values=tuple(values))


def blend(learned: Learned, strength: float) -> list[Branch]:
    """Every attention output at ``text + s * (joint - text)``, which is what `Prefix.strength` does."""
    return [Branch(learned.prefix.strength(strength) if strength else None)]


def blend_started(learned: Learned, strength: float) -> list[Branch]:
    """The same after the model's start token, which is the text's own attention sink."""
    prefix = learned.prefix.strength(strength) if strength else None
    return [Branch(prefix, prompt=learned.started)]


def mass(learned: Learned, strength: float) -> list[Branch]:
    """One bias on all scores of virtual tokens: their share of attention, evenly in its log-odds.

    At 1 they have the share that is measured, towards 0 they go to `LEAST`; at 0 they are gone.
    """
    if strength == 0:
        return [Branch(None)]
    far = _log_odds(LEAST) - _log_odds(learned.share)
    return [Branch(learned.prefix, bias=(1 - strength) * far)]


def _log_odds(share: float) -> float:
    return math.log(share / (1 - share))


DIALS: dict[str, Dial] = {
    "blend": blend,
    "blend; start token": blend_started,
    "mass": mass,
    "keys and values": from_start,
    "logits": logits,
    "against": logits_against,
    "logits between": logits_between,
    "between": from_opposite,
}


FEW = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)
STRENGTHS: dict[str, Sequence[float]] = {
    "blend": ALL,
    "blend; start token": FEW,
    "logits": ALL,
    "mass": FEW,
    "keys and values": FEW,
    "against": (0.0, 0.25, 0.5, 1.0, 1.5),
    "between": (*FEW, 2.0),
    "logits between": (0.0, 0.5, 1.0, 1.5, 2.0),
}
"""Strengths at which texts are drawn."""


FROZEN_AT_0 = {"blend", "logits", "mass", "against"}


@dataclass(frozen=True)
class Bench:
    """The backbone, the judge of one domain, and what is kept.

    Attributes:
        backbone: What writes.
        domain: What is written.
        judge: What tells the attributes apart.
        shared: Folder that holds the data.
        folder: Where prefixes and texts are kept.
        results: Figures of finished points.
    """

    backbone: Backbone
    domain: Domain
    judge: Judge
    shared: Path
    folder: Path
    results: Results

    def prefix(self, attribute: str, seed: int, steps: int = STEPS) -> Prefix:
        """The attribute's prefix, trained once."""

        def made() -> Prefix:
            texts = splits(self.shared, self.domain)[attribute].learned[seed]
            settings = replace(self.domain.settings, seed=seed, steps=steps)
            rows = [{"text": text} for text in texts]
            return foreword.train(self.backbone, rows, settings).prefix

        name = f"{attribute}-{seed}" if steps == STEPS else f"{attribute}-{steps}-steps-{seed}"
        return kept(self.folder / f"{name}.safetensors", made)

    def learned(self, attribute: str, seed: int, *, attention: bool) -> Learned:
        """What the dials of an attribute and seed have to do with, its share of attention if wanted."""
        assert self.backbone.tokenizer is not None
        return Learned(
            self.prefix(attribute, seed),
            self.prefix(self.domain.opposite(attribute), seed),
            start(self.backbone, self.domain.settings),
            self.share(attribute, seed) if attention else math.nan,
            (self.backbone.tokenizer.bos_token_id, *self.backbone.tokens(self.domain.prompt)),
        )

    def share(self, attribute: str, seed: int) -> float:
        """Share of attention that real texts give to the attribute's prefix, measured once."""
        run = f"{self.domain.name} {attribute} attention seed {seed}"
        if run not in self.results:
            eager = foreword.load(attention="eager")
            prefix = self.prefix(attribute, seed)
            texts = splits(self.shared, self.domain)[attribute].held[:MEASURED]
            found = [
                attention_share(eager, prefix, f"{self.domain.prompt} {text}") for text in texts
            ]
            self.results.add(run, attention=statistics.mean(found))
        return float(self.results[run]["attention"])

    def point(
        self, run: str, attribute: str, seed: int, branches: Sequence[Branch], prompt: list[int]
    ) -> Row:
        """The figures of texts that branches write after a prompt; from the results, if there."""
        if run in self.results:
            return self.results[run]
        prompts = [prompt] * TEXTS
        written = self.written(attribute, seed)
        texts = drawn(self.backbone, branches, prompts, written, seed=seed, most=MOST)
        return self._measured(run, texts, attribute)

    def points(self, named: Mapping[str, Branch], attribute: str, seed: int) -> None:
        """The figures of texts that each branch writes alone, all of them drawn in one batch."""
        missing = {run: branch for run, branch in named.items() if run not in self.results}
        if missing:
            drawn_texts = drawn_each(
                self.backbone,
                list(missing.values()),
                self.backbone.tokens(self.domain.prompt),
                self.written(attribute, seed),
                count=TEXTS,
                seed=seed,
                most=MOST,
            )
            for run, texts in zip(missing, drawn_texts, strict=True):
                self._measured(run, texts, attribute)

    def written(self, attribute: str, seed: int) -> Written:
        """How the texts of an attribute end."""
        like = self.prefix(attribute, seed)
        return written_for(self.backbone, like, self.domain.settings.templates)

    def _measured(self, run: str, texts: list[str], attribute: str) -> Row:
        texts = [text.partition("\n")[0].strip() for text in texts]
        self._keep(run, texts)
        line = self.results.add(run, **self.figures(texts, attribute))
        print(json.dumps(line), flush=True)
        return line

    def figures(self, texts: Sequence[str], attribute: str) -> Row:
        """What is measured of texts."""
        share = self.judge.share(texts, attribute)
        return {
            "count": len(texts),
            "share": round(share, 4),
            "perplexity": round(perplexity(self.backbone, self.domain.prompt, texts), 1),
            "distinct_1": round(distinct(texts, 1), 4),
            "distinct_2": round(distinct(texts, 2), 4),
            "words": round(sum(len(text.split()) for text in texts) / len(texts), 2),
            "loops": round(sum(map(looping, texts)) / len(texts), 4),
            "empty": sum(not text for text in texts),
        }

    def _keep(self, run: str, texts: Sequence[str]) -> None:
        with (self.folder / "texts.jsonl").open("a") as file:
            file.write(json.dumps({"run": run, "texts": texts}) + "\n")


def sweep(
    bench: Bench, seed: int, dials: Sequence[str], strengths: Collection[float] | None = None
) -> None:
    """The points of a domain and seed, those at some strengths alone if they are given."""
    plain = bench.backbone.tokens(bench.domain.prompt)
    for attribute in bench.domain.attributes:
        learned = bench.learned(attribute, seed, attention="mass" in dials)
        for dial in dials:
            found = {
                f"{bench.domain.name} {attribute} {name_at(dial, at)} seed {seed}": [
                    branch for branch in DIALS[dial](learned, at) if branch.weight
                ]
                for at in STRENGTHS[dial]
                if strengths is None or at in strengths
            }
            alone = {
                run: branches[0]
                for run, branches in found.items()
                if len(branches) == 1 and branches[0].weight == 1 and not branches[0].bias
            }
            bench.points(alone, attribute, seed)
            for run, branches in found.items():
                bench.point(run, attribute, seed, branches, plain)


@torch.inference_mode()
def attention_share(eager: Backbone, prefix: Prefix, text: str) -> float:
    """Share of attention on a prefix, mean over layers, heads and the text's tokens."""
    ids = torch.tensor([eager.tokens(text)])
    with eager.inferring(prefix):
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
        weights = eager.model(**given, output_attentions=True).attentions
    return statistics.mean(float(one[..., : prefix.length].sum(-1).mean()) for one in weights)


def name_at(dial: str, strength: float) -> str:
    """The name of a dial's point. The frozen model alone and the prefix alone are many dials'."""
    if strength == 0 and dial in FROZEN_AT_0:
        return UNASKED
    if strength == 1 and dial not in {"against", "blend; start token"}:
        return ALONE
    return f"{dial} {strength}"


def asked(bench: Bench, seed: int) -> None:
    """What the frozen model writes when it is asked for the attribute, or shown examples of it."""
    for attribute in bench.domain.attributes:
        for how, prompt in prompts_of(bench, attribute, seed).items():
            run = f"{bench.domain.name} {attribute} {how} seed {seed}"
            bench.point(run, attribute, seed, [Branch(None)], prompt)


def cooler(bench: Bench, seed: int) -> None:
    """What the prefixes write at a lower temperature: log-probabilities times one over it."""
    for attribute in bench.domain.attributes:
        run = f"{bench.domain.name} {attribute} {COOLER} seed {seed}"
        branches = [Branch(bench.prefix(attribute, seed), 1 / TEMPERATURE)]
        bench.point(run, attribute, seed, branches, bench.backbone.tokens(bench.domain.prompt))


def longer(bench: Bench, seed: int) -> None:
    """What prefixes write that were trained for longer."""
    for attribute in bench.domain.attributes:
        run = f"{bench.domain.name} {attribute} {LONGER} seed {seed}"
        if run not in bench.results:
            bench.points(
                {run: Branch(bench.prefix(attribute, seed, LONGER_STEPS))}, attribute, seed
            )


def prompts_of(bench: Bench, attribute: str, seed: int) -> dict[str, list[int]]:
    """Prompts of the frozen model: none, a question in its chat's form, examples."""
    tokenizer, domain = bench.backbone.tokenizer, bench.domain
    assert tokenizer is not None
    question = [{"role": "user", "content": domain.asked.format(attribute=attribute)}]
    chat = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
    label = f"{attribute.capitalize()} {domain.prompt.lower()}"
    shown = splits(bench.shared, domain)[attribute].learned[seed][:SHOTS]
    examples = "".join(f"{label} {text}\n" for text in shown) + label
    return {
        UNASKED: bench.backbone.tokens(domain.prompt),
        "asked": tokenizer(chat, add_special_tokens=False)["input_ids"],
        "shown": bench.backbone.tokens(examples),
    }


def real(bench: Bench) -> None:
    """Figures of real rows: what the judge makes of them, and how likely the frozen model finds them."""
    for attribute, split in splits(bench.shared, bench.domain).items():
        run = f"{bench.domain.name} {attribute} real"
        if run not in bench.results:
            figures = bench.figures(split.held[:REAL], attribute)
            few = {
                name: value
                for name, value in bench.figures(split.held[:TEXTS], attribute).items()
                if name.startswith("distinct")
            }
            print(json.dumps(bench.results.add(run, **{**figures, **few})), flush=True)


def report(results: Results, domains: Sequence[Domain], path: Path | None) -> None:
    """Print the tables of what is measured, and draw its curves."""
    curves: dict[str, dict[str, list[Point]]] = {}
    each: dict[str, dict[str, list[Point]]] = {}
    for domain in domains:
        every = {dial: curve(results, domain, dial, name_at, at) for dial, at in STRENGTHS.items()}
        found = {dial: points for dial, points in every.items() if len(points) > 2}
        for shown in ("share", "perplexity", "distinct-2", "loops") if found else ():
            print(f"\n{domain.name}: {shown}\n\n{table(rows_of(found, shown))}")
            curves[domain.name] = found
        first, at = next(iter(STRENGTHS.items()))
        alone = {
            one: curve(results, domain, first, name_at, at, [one]) for one in domain.attributes
        }
        if all(alone.values()):
            each[domain.name] = alone
            print(f"\n{domain.name}: share by {first}, each attribute\n")
            print(table(rows_of(alone, "share")))
        if lines := beside(results, domain, (UNASKED, "asked", "shown", ALONE, COOLER, LONGER)):
            print(f"\n{domain.name}: texts beside them\n\n{table(lines)}")
    if curves and path is not None:
        picture(curves, each, {domain.name: real_rows(results, domain) for domain in domains}, path)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, required=True, help="folder that has minilm-l6-v2")
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--output", type=Path, default=Path("control-output"))
    parser.add_argument("--only", help="sentiment or style")
    parser.add_argument("--dials", default=",".join(DIALS))
    parser.add_argument("--strengths", help="those of the dials that are measured")
    parser.add_argument("--longer", action="store_true", help=f"train for {LONGER_STEPS} steps too")
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--picture", type=Path, help="PNG file of the curves")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    results = Results(Path(__file__).parent / "results" / "control.jsonl")
    domains = [domain for domain in DOMAINS if arguments.only in (None, domain.name)]
    some = arguments.strengths and [*map(float, arguments.strengths.split(","))]
    if not arguments.table:
        arguments.output.mkdir(parents=True, exist_ok=True)
        backbone = foreword.load()
        encoder = foreword.load(str(arguments.models / "minilm-l6-v2"))
        for domain in domains:
            told = judge(arguments.shared, domain, encoder, arguments.output)
            bench = Bench(backbone, domain, told, arguments.shared, arguments.output, results)
            real(bench)
            for seed in map(int, arguments.seeds.split(",")):
                asked(bench, seed)
                cooler(bench, seed)
                if arguments.longer:
                    longer(bench, seed)
                sweep(bench, seed, arguments.dials.split(","), some)
    report(results, domains, arguments.picture)


if __name__ == "__main__":
    main()
