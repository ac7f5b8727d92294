"""Rows of unequal length as one batch. Shapes: B rows, T tokens of the longest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foreword.backbone.kinds.base import IGNORED
from foreword.data.encode import Encoded


@dataclass(frozen=True)
class Collator:
    """Pads on the right, for training and scoring.

    Attributes:
        pad: Token id of the padding, which the mask hides.
    """

    pad: int

    def __call__(self, rows: Sequence[Encoded]) -> dict[str, Tensor]:
        """``input_ids``, ``attention_mask`` and ``labels``, each (B, T) int64.

        Labels have a T of their own where rows do (encoder-decoders); those of rows that are measured
        are float32. Where rows have token types, there are ``token_type_ids`` too; where they select
        pieces of a prefix with control, ``pieces``, filled up with 0.
        """
        longest = max(len(row.input_ids) for row in rows)
        ids_BT = torch.full((len(rows), longest), self.pad, dtype=torch.long)
        targets = max(len(row.labels) for row in rows)
        measured = any(isinstance(label, float) for row in rows for label in row.labels[:1])
        dtype = torch.float32 if measured else torch.long
        labels_BT = torch.full((len(rows), targets), IGNORED, dtype=dtype)
        mask_BT = torch.zeros(len(rows), longest, dtype=torch.long)
        for index, row in enumerate(rows):
            length = len(row.input_ids)
            ids_BT[index, :length] = torch.tensor(row.input_ids)
            labels_BT[index, : len(row.labels)] = torch.tensor(row.labels)
            mask_BT[index, :length] = 1
        made = {"input_ids": ids_BT, "attention_mask": mask_BT, "labels": labels_BT}
        if any(row.types is not None for row in rows):
            made["token_type_ids"] = _types(rows, longest)
        if any(row.pieces for row in rows):
            made["pieces"] = _pieces(rows)
        return made


def _types(rows: Sequence[Encoded], longest: int) -> Tensor:
    """Token types (B, T), 0 where a row has none."""
    types_BT = torch.zeros(len(rows), longest, dtype=torch.long)
    for index, row in enumerate(rows):
        if row.types is not None:
            types_BT[index, : len(row.types)] = torch.tensor(row.types)
    return types_BT


def _pieces(rows: Sequence[Encoded]) -> Tensor:
    """Numbers of the pieces that each row selects, int64, 0 where there are no more."""
    pieces = torch.zeros(len(rows), max(len(row.pieces) for row in rows), dtype=torch.long)
    for index, row in enumerate(rows):
        pieces[index, : len(row.pieces)] = torch.tensor(row.pieces, dtype=torch.long)
    return pieces


def left_padded(prompts: Sequence[Sequence[int]], pad: int) -> dict[str, Tensor]:
    """Prompts as ``input_ids`` and ``attention_mask`` (B, T), padded on the left."""
    longest = max(map(len, prompts))
    ids_BT = torch.full((len(prompts), longest), pad, dtype=torch.long)
    mask_BT = torch.zeros(len(prompts), longest, dtype=torch.long)
    for index, prompt in enumerate(prompts):
        ids_BT[index, longest - len(prompt) :] = torch.tensor(list(prompt))
        mask_BT[index, longest - len(prompt) :] = 1
    return {"input_ids": ids_BT, "attention_mask": mask_BT}


def right_padded(prompts: Sequence[Sequence[int]], pad: int) -> dict[str, Tensor]:
    """Texts as ``input_ids`` and ``attention_mask`` (B, T), padded on the right."""
    return unlabelled([Encoded(list(prompt), []) for prompt in prompts], pad)


def unlabelled(rows: Sequence[Encoded], pad: int) -> dict[str, Tensor]:
    """What `Collator` makes of rows, but for their labels."""
    batch = Collator(pad)(rows)
    return {name: tensor for name, tensor in batch.items() if name != "labels"}


def padding_of(tokenizer: object, vocabulary: int | None = None) -> int:
    """The tokenizer's padding token, else its end of sequence, else 0: it is masked anyway.

    One that was added to the tokenizer and not to the backbone's embeddings, of `vocabulary` tokens,
    cannot be embedded and is passed over.
    """
    for name in ("pad_token_id", "eos_token_id"):
        found = getattr(tokenizer, name, None)
        if found is not None and (vocabulary is None or found < vocabulary):
            return int(found)
    return 0
