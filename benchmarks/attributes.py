"""What control of attributes is measured with: real rows, judges, and figures of written texts.

Sentiment is that of sentences from Yelp's reviews, style that of FlickrStyle's captions (humorous or
romantic). Rows are split by text: what prefixes learn from, what judges learn from, and what both are
compared with are three disjoint parts.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from common import Row, kept, read_rows

import foreword
from foreword.backbone import Backbone
from foreword.backbone.kinds.base import IGNORED
from foreword.data import Collator, Encoded
from foreword.data.collate import padding_of
from foreword.objectives.supervised import score
from foreword.tasks import Classified, Prediction
from foreword.train import TrainSettings

LEARNED = 800
"""Rows of one attribute and seed that a prefix may learn from."""
SEEDS = (0, 1, 2)
STEPS = 90
"""Steps of a prefix."""
HELD = 1000
"""Rows of each attribute that nothing learns from."""


@dataclass(frozen=True)
class Domain:
    """Texts of one kind, and the two attributes that they may have.

    Attributes:
        name: What the attributes are of.
        file: Its rows, below the folder of data.
        column: Which column says the attribute.
        attributes: Both.
        prompt: What every text is written after.
        asked: What the frozen model is asked for, with a place for the attribute.
    """

    name: str
    file: str
    column: str
    attributes: tuple[str, str]
    prompt: str
    asked: str

    def opposite(self, attribute: str) -> str:
        """The other attribute."""
        first, second = self.attributes
        return second if attribute == first else first

    @property
    def settings(self) -> TrainSettings:
        """The recipe of a prefix: the defaults, in few steps."""
        return TrainSettings(prompt=self.prompt, target=" {text}", length=16, steps=STEPS)


SENTIMENT = Domain(
    "sentiment",
    "style/yelp_sentiment_test.jsonl",
    "sentiment",
    ("positive", "negative"),
    "Here is a short review of a local business:",
    "Write one {attribute} sentence from a customer's review of a local business. "
    "Answer with the sentence alone.",
)
STYLE = Domain(
    "style",
    "style/flickrstyle_captions.jsonl",
    "style",
    ("humorous", "romantic"),
    "Here is a short caption of a photo:",
    "Write one {attribute} caption for a photo, of one sentence. Answer with the caption alone.",
)
DOMAINS = (SENTIMENT, STYLE)


@dataclass(frozen=True)
class Split:
    """Texts of one attribute.

    Attributes:
        learned: What a prefix may learn from, one part for each seed.
        judged: What a judge learns from.
        held: What nothing learns from.
    """

    learned: tuple[list[str], ...]
    judged: list[str]
    held: list[str]


@cache
def splits(shared: Path, domain: Domain) -> dict[str, Split]:
    """The texts of both attributes, each once; those that have both are left out."""
    seen: dict[str, list[str]] = {}
    for row in read_rows(shared / "data" / domain.file):
        seen.setdefault(row["text"], []).append(row[domain.column])
    once = [(text, found[0]) for text, found in seen.items() if len(set(found)) == 1]
    random.Random(0).shuffle(once)
    return {
        attribute: _split([text for text, found in once if found == attribute])
        for attribute in domain.attributes
    }


def _split(texts: list[str]) -> Split:
    taken = LEARNED * len(SEEDS)
    learned = tuple(texts[LEARNED * seed : LEARNED * (seed + 1)] for seed in SEEDS)
    return Split(learned, texts[taken:-HELD], texts[-HELD:])


@dataclass(frozen=True)
class Judge:
    """A classifier that tells both attributes apart: an encoder under a prefix with a head.

    Attributes:
        encoder: The encoder.
        prefix: What it learned from rows that no other prefix saw.
    """

    encoder: Backbone
    prefix: foreword.Prefix

    def each(self, texts: Sequence[str], attribute: str) -> list[bool]:
        """Whether it takes each text for the attribute's; an empty one is nobody's."""
        full = [{"text": text} for text in texts if text]
        said = iter(foreword.predict(self.encoder, full, self.prefix) if full else [])
        return [bool(text) and _label(next(said)) == attribute for text in texts]

    def share(self, texts: Sequence[str], attribute: str) -> float:
        """Share of the texts that it takes for the attribute's."""
        return sum(self.each(texts, attribute)) / len(texts)


def _label(said: Prediction) -> str:
    assert isinstance(said, Classified)
    return said.label


def judge(shared: Path, domain: Domain, encoder: Backbone, folder: Path) -> Judge:
    """The judge of a domain, trained once and kept in a folder."""
    rows = [
        {"text": text, "label": attribute}
        for attribute, split in splits(shared, domain).items()
        for text in split.judged
    ]
    if domain is SENTIMENT:
        rows += _sst(shared)
    return trained_judge(encoder, rows, folder / f"judge-{domain.name}.safetensors")


def trained_judge(encoder: Backbone, rows: Sequence[Row], place: Path, steps: int = 600) -> Judge:
    """A judge that learned from rows with ``text`` and ``label``, or the file of one."""

    def made() -> foreword.Prefix:
        mixed = list(rows)
        random.Random(1).shuffle(mixed)
        settings = TrainSettings(
            prompt="{text}", target="{label}", task="classify", steps=steps, batch_size=32
        )
        return foreword.train(encoder, mixed, settings).prefix

    return Judge(encoder, kept(place, made))


def _sst(shared: Path) -> list[Row]:
    """Sentences of SST-2, of films, with the same two attributes."""
    rows = read_rows(shared / "data/classification/sst2_train.jsonl")
    return [{"text": r["text"], "label": ("negative", "positive")[r["label"]]} for r in rows]


def perplexity(backbone: Backbone, prompt: str, texts: Sequence[str], size: int = 48) -> float:
    """Perplexity of the texts' tokens after the prompt, under the frozen backbone; without the end.

    All tokens count alike, so that a long text counts more than a short one.
    """
    given = backbone.tokens(prompt)
    rows = []
    for text in texts:
        if text:
            ids = backbone.tokens(f"{prompt} {text}")
            rows.append(Encoded(ids, [IGNORED] * len(given) + ids[len(given) :]))
    if not rows:
        return math.nan
    assert backbone.tokenizer is not None
    collate = Collator(padding_of(backbone.tokenizer, backbone.vocabulary))
    total, count = 0.0, 0
    with torch.inference_mode(), backbone.inferring(None):
        for first in range(0, len(rows), size):
            batch: dict[str, Any] = collate(rows[first : first + size])
            nll_N = score(backbone.model, batch).nll_N
            total, count = total + float(nll_N.sum()), count + len(nll_N)
    return math.exp(total / count)


def distinct(texts: Sequence[str], order: int) -> float:
    """Different n-grams of words over all of them (Li et al., 2016, distinct-n)."""
    words = [text.lower().split() for text in texts]
    grams = list(
        chain.from_iterable(
            zip(*(row[start:] for start in range(order)), strict=False) for row in words
        )
    )
    return len(set(grams)) / len(grams) if grams else 0.0


def looping(text: str) -> bool:
    """Whether a word stands there three times in a row, or a pair of words twice in a row."""
    words = text.lower().split()
    thrice = any(a == b == c for a, b, c in zip(words, words[1:], words[2:], strict=False))
    return thrice or any(words[i : i + 2] == words[i + 2 : i + 4] for i in range(len(words) - 3))


def wilson(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Interval of a share of so many samples (Wilson, 1927), 95% by default."""
    middle = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return (middle - spread) / scale, (middle + spread) / scale
