"""A start from in-context examples: whole rows of the training data, prompt and target, in a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from foreword.backbone import Backbone
from foreword.data import Encoder
from foreword.data.template import Task
from foreword.errors import DataError
from foreword.prefix import Bos

CANDIDATES = 1000
"""Rows that are drawn at most to look for examples that fit."""


def demonstration_tokens(
    backbone: Backbone, rows: Sequence[Mapping[str, Any]], task: Task, length: int, seed: int
) -> list[int]:
    """Token ids of as many whole examples as fit into `length` tokens.

    Rows are drawn in an order that the seed decides, and each that still fits is taken. A BOS that
    inputs start with comes first and once; every example ends as a target does in training.

    Raises:
        DataError: Not one example fits, or a row cannot be used.
    """
    if backbone.tokenizer is None:
        raise DataError("this backbone has no tokenizer, so demonstrations cannot be encoded")
    task.check(rows)
    carries = backbone.bos == "input"
    bos: Bos = "prefix" if carries else backbone.bos
    encoder = Encoder(
        backbone.tokenizer, task, bos=bos, limit=backbone.context, vocabulary=backbone.vocabulary
    )
    ids = [int(backbone.tokenizer.bos_token_id)] if carries else []
    begun, shortest = len(ids), 0
    for index in _drawn(len(rows), seed):
        example = _encoded(encoder, rows, index)
        if len(ids) + len(example) <= length:
            ids += example
        needed = begun + len(example)
        shortest = min(shortest or needed, needed)
    if len(ids) == begun:
        raise DataError(
            f"not one demonstration fits into a prefix of {length} tokens; the shortest of those "
            f"drawn needs --length {shortest}"
        )
    return ids


def _drawn(count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator).tolist()[:CANDIDATES]


def _encoded(encoder: Encoder, rows: Sequence[Mapping[str, Any]], index: int) -> list[int]:
    try:
        return encoder.row(rows[index]).input_ids
    except DataError as error:
        raise DataError(f"row {index + 1}: {error}") from error
