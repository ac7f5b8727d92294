"""What every way to run is compared with: the text in context, row by row, without any prefix.

A run's logits are compared step by step: whatever tokens a way chose, the reference is a full forward
pass over text, row and those tokens. Shapes: N new tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from foreword.backbone import Backbone
from foreword.prefix import Prefix, WindowPolicy
from tests.oracle.checks import EXACT, MOVED, difference, padded
from tests.oracle.families import BY_NAME, VOCABULARY, Family, attention_of
from tests.oracle.reference import in_context

NEW_TOKENS = 7
ROWS = (19, 24, 21)
"""Lengths of the rows: all more than twice the window."""
TEXTS = (6, 0, 9)
"""Lengths of the rows' texts; 0: this row has no prefix."""

CASES: list[tuple[str, WindowPolicy]] = [
    ("llama", "visible"),
    ("gpt2", "visible"),
    ("mistral", "visible"),
    ("mistral", "windowed"),
    ("gemma2", "visible"),
    ("gemma2", "windowed"),
    ("qwen3", "visible"),
    ("bloom", "visible"),
    ("mpt", "visible"),
    ("gpt_neo", "windowed"),
    ("gptj", "visible"),
]
"""Rotary, absolute positions, a window in each layer or some, soft-capping in eager attention; then
attention of their own: ALiBi by position and by column, a mask in a buffer, a table of positions."""

PACKED = [(family, windows) for family, windows in CASES if not BY_NAME[family].alibi]
"""ALiBi models take no position_ids, which alone tell where a packed sequence begins."""


@dataclass(frozen=True)
class Way:
    """A tiny model, rows, and a text for each row with the prefix that it is."""

    family: Family
    backbone: Backbone
    rows: tuple[Tensor, ...]
    texts: tuple[Tensor, ...]
    windows: WindowPolicy

    @property
    def model(self) -> PreTrainedModel:
        """The transformers model."""
        return self.backbone.model

    def prefix(self, text: Tensor) -> Prefix:
        """The text's own keys and values."""
        return self.backbone.capture(text.tolist()).with_meta(windows=self.windows)

    @property
    def shared(self) -> Prefix:
        """The first text's prefix, for all rows."""
        return self.prefix(self.texts[0])

    @property
    def mixed(self) -> list[Prefix | None]:
        """A prefix of another length for each row, or none."""
        return [self.prefix(text) if len(text) else None for text in self.texts]

    def logits(self, text: Tensor, row: Tensor) -> Tensor:
        """Logits (T, V) of the row with the text in context."""
        visible = self.windows == "visible"
        return in_context(self.family, self.model, text, row, visible=visible)


def way(family: str = "llama", windows: WindowPolicy = "visible", seed: int = 0) -> Way:
    """A family's case, the same for the same seed."""
    spec = BY_NAME[family]
    generator = torch.Generator().manual_seed(seed + 1)

    def tokens(count: int) -> Tensor:
        return torch.randint(3, VOCABULARY, (count,), generator=generator)

    rows, texts = tuple(map(tokens, ROWS)), tuple(map(tokens, TEXTS))
    return Way(spec, Backbone(spec.build(attention_of(spec), seed)), rows, texts, windows)


def generated(model: PreTrainedModel, rows: Sequence[Tensor], **options: Any) -> Any:
    """`generate` over the rows, left-padded, with every step's logits."""
    ids, mask = padded(tuple(rows), "left")
    given = {
        "max_new_tokens": NEW_TOKENS,
        "do_sample": False,
        "pad_token_id": 0,
        "output_logits": True,
        "output_scores": True,
        "return_dict_in_generate": True,
    }
    return model.generate(ids, attention_mask=mask, **{**given, **options})


def new_tokens(rows: Sequence[Tensor], out: Any) -> Tensor:
    """The tokens that were added: (rows, N)."""
    return out.sequences[:, max(map(len, rows)) :]


def error(way: Way, texts: Sequence[Tensor], rows: Sequence[Tensor], out: Any) -> float:
    """Largest difference of any step's logits from the reference, relative to the largest."""
    found, expected = steps(way, texts, rows, out)
    return difference(found, expected)


def steps(
    way: Way, texts: Sequence[Tensor], rows: Sequence[Tensor], out: Any
) -> tuple[list[Tensor], list[Tensor]]:
    """Per generated row the logits (N, V) found and expected; row i belongs to input i // k."""
    new = new_tokens(rows, out)
    each = len(new) // len(rows)
    expected = []
    for index, added in enumerate(new):
        row = rows[index // each]
        whole = way.logits(texts[index // each], torch.cat([row, added]))
        expected.append(whole[len(row) - 1 : -1])
    found = [torch.stack([step[index] for step in out.logits]) for index in range(len(new))]
    return found, expected


def agrees(way: Way, texts: Sequence[Tensor], rows: Sequence[Tensor], out: Any) -> bool:
    """Whether the run agrees with the texts in context, and would not without them."""
    without = [text[:0] for text in texts]
    found, expected = steps(way, texts, rows, out)
    _, bare = steps(way, without, rows, out)
    first = next(index for index, text in enumerate(texts) if len(text))
    each = len(found) // len(rows)
    told_apart = float((expected[first * each] - bare[first * each]).abs().max())
    assert told_apart > MOVED, "the text changes nothing, so the comparison says nothing"
    return difference(found, expected) <= EXACT
