"""Arithmetic of prefixes: negation, and whether alike prefixes are good starts for one another.

Analogies are ways of `combination_ways.py`, measured beside the others.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from attributes import SENTIMENT, perplexity, splits, wilson
from beside import RECIPE, Share, touched_up
from combinations import TASKS, Trained, as_in_rows
from common import Results, Row
from sampling import Branch, drawn
from torch import Tensor

from foreword.data import Collator
from foreword.data.collate import padding_of
from foreword.data.template import Task as Templates
from foreword.data.written import written_for
from foreword.methods.prefix.start import start
from foreword.objectives.encode import encode
from foreword.objectives.supervised import score
from foreword.prefix import Prefix

if TYPE_CHECKING:
    from composition import Bench

FEW = 12
"""Steps from another prefix."""
TOLD = 48
"""Held-out rows that a start is told by."""
NEUTRAL = "neutral text"


def arithmetic(bench: Bench, seed: int) -> None:
    """Measure both, unless they are known."""
    for attribute in SENTIMENT.attributes:
        for name, prefix in _negations(bench.trained, attribute, seed).items():
            _negated(bench, f"negation {attribute} {name} seed {seed}", attribute, prefix, seed)
    _transfers(bench.trained, bench.results, seed)


def _negations(trained: Trained, attribute: str, seed: int) -> dict[str, Prefix]:
    """The attribute's opposite, taken away in some ways."""
    opposite = trained.of_attribute(SENTIMENT.opposite(attribute), seed)
    assert opposite.start is not None
    return {
        "start": 0 * opposite,
        "start - 0.5 learned": -0.5 * opposite,
        "start - learned": -1 * opposite,
        "- 0.5 keys and values": _times(opposite, -0.5),
        "- keys and values": _times(opposite, -1.0),
        "opposite - 0.5 (opposite - attribute)": opposite.interpolate(
            trained.of_attribute(attribute, seed), 0.5
        ),
        "opposite - 1.5 (opposite - attribute)": opposite.interpolate(
            trained.of_attribute(attribute, seed), 1.5
        ),
    }


def _times(prefix: Prefix, weight: float) -> Prefix:
    """Keys and values times a number, as if they had started at zero."""
    keys = tuple(weight * key for key in prefix.keys)
    return replace(
        prefix, keys=keys, values=tuple(weight * one for one in prefix.values), start=None
    )


def _negated(bench: Bench, run: str, attribute: str, prefix: Prefix, seed: int) -> None:
    """Texts after the attributes' prompt, under one prefix."""
    if run in bench.results:
        return
    backbone = bench.trained.backbone
    written = written_for(backbone, prefix, Templates(SENTIMENT.prompt, " {text}"))
    prompts = [backbone.tokens(SENTIMENT.prompt)] * bench.samples
    texts = [
        as_in_rows(text)
        for text in drawn(backbone, [Branch(prefix)], prompts, written, seed=seed, most=24)
    ]
    bench.results.add(
        run,
        count=len(texts),
        share=round(bench.judge.share(texts, attribute), 4),
        perplexity=round(perplexity(backbone, SENTIMENT.prompt, texts), 1),
        sample=texts[:3],
    )


def _transfers(trained: Trained, results: Results, seed: int) -> None:
    """NLL of each target's held-out rows before and after a few steps from each source."""
    known = {attribute: trained.of_attribute(attribute, seed) for attribute in SENTIMENT.attributes}
    known |= {task.name: trained.of_task(task, seed) for task in TASKS}
    first = start(trained.backbone, trained.settings("{given}", seed))
    sources = {NEUTRAL: first, **known}
    for target, own in known.items():
        learned, held = _rows_of(trained, target, seed)
        for source, prefix in sources.items():
            run = f"transfer {source} to {target} seed {seed}"
            if source == target or run in results:
                continue
            share = Share(None, learned, 8)
            made = touched_up(trained.backbone, prefix, [share], FEW, seed)
            results.add(
                run,
                cosine=None if source == NEUTRAL else round(cosine(prefix, own, first), 4),
                before=round(_nll(trained, prefix, held), 4),
                after=round(_nll(trained, made, held), 4),
            )


def _rows_of(trained: Trained, target: str, seed: int) -> tuple[list[Row], list[Row]]:
    """Rows to learn from, and rows that nothing learns from."""
    held = splits(trained.shared, SENTIMENT)
    every = SENTIMENT.attributes if target not in SENTIMENT.attributes else (target,)
    texts = [text for one in every for text in trained.texts(one, seed)]
    others = [text for one in every for text in held[one].held[:TOLD]]
    for task in TASKS:
        if task.name == target:
            return task.rows(texts), task.rows(others)[:TOLD]
    plain = [[{"text": text, "given": SENTIMENT.prompt} for text in of] for of in (texts, others)]
    return plain[0], plain[1][:TOLD]


@torch.inference_mode()
def _nll(trained: Trained, prefix: Prefix, rows: Sequence[Row]) -> float:
    """Mean NLL of a target token."""
    backbone = trained.backbone
    assert backbone.tokenizer is not None
    collate = Collator(padding_of(backbone.tokenizer, backbone.vocabulary))
    encoded, _ = encode(backbone, rows, RECIPE, prefix)
    batch: dict[str, Any] = collate(encoded)
    with backbone.inferring(prefix):
        return float(score(backbone.model, batch).nll_N.mean())


def cosine(one: Prefix, other: Prefix, first: Prefix) -> float:
    """Cosine of what two prefixes learned since one start, mean over keys and values of all layers."""
    found = [
        torch.cosine_similarity((a - c).flatten(), (b - c).flatten(), dim=0)
        for of in ("keys", "values")
        for a, b, c in zip(*(_tensors(x, of) for x in (one, other, first)), strict=True)
    ]
    return float(torch.stack(found).mean())


def _tensors(prefix: Prefix, name: str) -> tuple[Tensor, ...]:
    found: tuple[Tensor, ...] = getattr(prefix, name)
    return found


def negation_rows(results: Results) -> list[Row]:
    """Share of texts with the attribute whose opposite was taken away, and how likely they are."""
    rows = []
    for line in results:
        if str(line["run"]).startswith("negation "):
            said, _, seed = str(line["run"]).rpartition(" seed ")
            _, attribute, name = said.split(" ", 2)
            low, high = wilson(line["share"], line["count"])
            share = f"{line['share']:.2f} ({low:.2f}-{high:.2f})"
            shown = {"share": share, "perplexity": line["perplexity"], "seed": seed}
            rows.append({"towards": attribute, "prefix": name, **shown})
    return rows


def transfer_rows(results: Results) -> list[Row]:
    """Per source and target the cosine, and the NLL before and after a few steps."""
    rows = []
    for line in results:
        if str(line["run"]).startswith("transfer "):
            said, _, seed = str(line["run"])[9:].rpartition(" seed ")
            source, _, target = said.rpartition(" to ")
            shown = {at: line[at] for at in ("cosine", "before", "after")}
            rows.append({"target": target, "source": source, **shown, "seed": seed})
    return rows


def _ranks(values: Sequence[float]) -> list[float]:
    """The place of each among them, from 0; of equal ones the mean of their places."""
    order = sorted(values)
    return [order.index(one) + (order.count(one) - 1) / 2 for one in values]


def tracking_rows(results: Results) -> list[Row]:
    """Correlation of the cosine with the NLL that a start saves beside the neutral one."""
    rows = transfer_rows(results)
    neutral = {(row["target"], row["seed"]): row for row in rows if row["source"] == NEUTRAL}
    compared = [(row, neutral.get((row["target"], row["seed"]))) for row in rows]
    pairs = [(row, base) for row, base in compared if base and row["cosine"] is not None]
    if len(pairs) < 3:
        return []
    made = []
    for at in ("before", "after"):
        saved = [base[at] - row[at] for row, base in pairs]
        alike = [row["cosine"] for row, _ in pairs]
        made.append(
            {
                "NLL": at,
                "pairs": len(pairs),
                "rank correlation": f"{statistics.correlation(_ranks(alike), _ranks(saved)):.2f}",
                "mean saving": f"{statistics.mean(saved):.3f}",
                "better than neutral": f"{sum(one > 0 for one in saved)}",
            }
        )
    return made
