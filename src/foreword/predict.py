"""Labels and feature vectors from a backbone under a prefix.

Shapes: B rows, T tokens, D hidden size, L labels, N inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from foreword.arguments import check_count, shown
from foreword.backbone import Backbone
from foreword.backbone.given import check_backbone
from foreword.backbone.kinds import KINDS
from foreword.data import Encoded, Task
from foreword.data.collate import padding_of, unlabelled
from foreword.data.each import of_each
from foreword.data.inputs import Inputs, inputs_of, texts_of
from foreword.data.room import Room
from foreword.data.template import Input
from foreword.errors import LABELS_NONE, DataError
from foreword.head import POOLINGS, Head, Pooling, pooled
from foreword.options import BATCH
from foreword.prefix import Prefix, check_prefix
from foreword.progress import Watch, unwatched
from foreword.tasks import LABELLINGS, Prediction, Reader, Reading, reader_for
from foreword.tasks.texts import PAIR, read


def predict(
    backbone: Backbone,
    inputs: Inputs,
    prefix: Prefix,
    *,
    batch_size: int = BATCH,
    strict: bool = False,
) -> list[Prediction]:
    """Label inputs with the head that a prefix carries.

    Args:
        backbone: The backbone, left as it was found.
        inputs: Texts or rows, one alone, or the `Path` of a file of them. Of a head that tags, a text is
            split at spaces; of one that answers, it is a JSON object with question and context, and
            of one for pairs one with both texts.
        prefix: The prefix, with a head.
        batch_size: Inputs, or windows of them, in one batch.
        strict: Refuse a backbone with other weights than the prefix was made on.

    Returns:
        Per input a `Classified`, a `Tagged`, an `Answered`, a `Measured` or a `Multilabelled`, by the
        head's task.

    Raises:
        DataError: The prefix has no head, or an input is not what it labels.
        MismatchError: The prefix does not fit the backbone.

    Examples:
        >>> foreword.predict(backbone, ["a moving film"], prefix)[0].label  # doctest: +SKIP
        '1'
    """
    check_backbone(backbone)
    head = head_of(prefix)
    labelling, templates = LABELLINGS[head.task], templates_of(prefix)
    backbone.check(prefix, strict=strict)
    reader = prefix_reader(backbone, prefix)
    rows = of_each(
        inputs_of(inputs),
        lambda one: labelling.given(templates, one) if isinstance(one, str) else one,
    )
    readings = of_each(rows, lambda row: labelling.read(reader, templates, row))
    logits = head_logits(
        backbone, prefix, head, [one for own in readings for one in own], batch_size
    )
    return predictions_of(head, templates, rows, readings, logits)


def features(
    backbone: Backbone,
    texts: Inputs,
    prefix: Prefix | None = None,
    *,
    pooling: Pooling | None = None,
    batch_size: int = BATCH,
    strict: bool = False,
) -> Tensor:
    """A vector for each text, or pair of texts: what the backbone makes of it under a prefix.

    Args:
        backbone: The backbone, left as it was found.
        texts: The texts, one alone, or the `Path` of a file of them. A pair of texts is a row with the
            columns of the prefix's head for pairs, else with ``text`` and ``text_pair``.
        prefix: The prefix, with a head or without; None for the frozen model alone.
        pooling: The ``mean`` of the tokens' last hidden states, the ``first`` or the ``last``; by
            default that of the prefix's head, else the mean of an encoder and the last of a decoder.
        batch_size: Texts in one batch.
        strict: Refuse a backbone with other weights than the prefix was made on.

    Returns:
        Float32 (N, D), on the CPU, not normalised.

    Raises:
        DataError: There are no texts, or one has no tokens or is none.
        UnsupportedModel: The backbone is an encoder-decoder.

    Examples:
        >>> foreword.features(backbone, ["a moving film"], prefix).shape  # doctest: +SKIP
        torch.Size([1, 384])
    """
    check_backbone(backbone)
    backbone.needs("encoder", "decoder", what="feature extraction")
    if pooling is not None and pooling not in POOLINGS:
        raise DataError(f"pooling must be one of {', '.join(POOLINGS)}; found {shown(pooling)}")
    if prefix is not None:
        backbone.check(prefix, strict=strict)
    own = prefix.head.pooling if prefix is not None and prefix.head is not None else None
    how = pooling or own or KINDS[backbone.kind].pooling
    reader = prefix_reader(backbone, prefix)
    pairs = _pairs_of(prefix)
    readings = of_each(texts_of(texts, pairs.asked), lambda one: [_read(reader, pairs, one)])
    found: list[Tensor] = list(
        _each(
            backbone,
            prefix,
            [one for own in readings for one in own],
            batch_size,
            lambda hidden_BTD, mask_BT: pooled(hidden_BTD, mask_BT, how),
        )
    )
    if not found:
        raise DataError("there are no texts; give at least one")
    return torch.stack(found)


def _pairs_of(prefix: Prefix | None) -> Task:
    """Where the two texts of a pair are."""
    if prefix is not None and prefix.head is not None and prefix.head.pair:
        return templates_of(prefix)
    return Task("{text}", "{label}", PAIR)


def _read(reader: Reader, pairs: Task, one: Input) -> Reading:
    return reader.read(one) if isinstance(one, str) else read(reader, pairs, one)


def head_of(prefix: Prefix) -> Head:
    """The prefix's head.

    Raises:
        DataError: It has none.
    """
    check_prefix(prefix)
    if prefix.head is None:
        raise DataError(LABELS_NONE)
    return prefix.head


def templates_of(prefix: Prefix) -> Task:
    """The templates that a prefix with a head was trained with, else those of its task."""
    recipe, head = prefix.meta.recipe, head_of(prefix)
    default = LABELLINGS[head.task].templates or Task()
    pair = recipe.get("pair", PAIR) if head.pair else None
    if recipe.get("prompt") is None:
        return replace(default, second=pair)
    return Task(recipe["prompt"], recipe.get("target"), pair)


def prefix_reader(backbone: Backbone, prefix: Prefix | None) -> Reader:
    """What reads inputs for a prefix, or for the frozen model."""
    bos = backbone.bos if prefix is None else prefix.meta.bos
    return reader_for(backbone, bos, Room.behind(backbone, prefix).limit)


def predictions_of(
    head: Head,
    templates: Task,
    rows: Sequence[Mapping[str, Any]],
    readings: Sequence[list[Reading]],
    logits: Sequence[Tensor],
) -> list[Prediction]:
    """What a head says of each row, by the logits of all rows' readings one after the other."""
    labelling, rest = LABELLINGS[head.task], iter([head.scaled(one) for one in logits])
    return [
        labelling.predicted(templates, head.labels, row, own, [next(rest) for _ in own])
        for row, own in zip(rows, readings, strict=True)
    ]


def head_logits(
    backbone: Backbone,
    prefix: Prefix | None,
    head: Head,
    readings: Sequence[Reading],
    batch_size: int,
    watch: Watch = unwatched,
) -> list[Tensor]:
    """What a head says of each reading: (L,) of one with a pooling, else (T, L); on the CPU."""
    return list(_each(backbone, prefix, readings, batch_size, head.logits, watch))


@torch.no_grad()
def _each(
    backbone: Backbone,
    prefix: Prefix | None,
    readings: Sequence[Reading],
    batch_size: int,
    made: Callable[[Tensor, Tensor], Tensor],
    watch: Watch = unwatched,
) -> list[Tensor]:
    """What is made of each reading's hidden states, in order; those of like length run together.

    Of what has a row for each token, only those of real tokens are kept.
    """
    check_count("batch_size", batch_size, DataError)
    kind, pad = KINDS[backbone.kind], padding_of(backbone.tokenizer, backbone.vocabulary)
    order = sorted(range(len(readings)), key=lambda index: len(readings[index].ids))
    found: dict[int, Tensor] = {}
    watch(0, len(order))
    with backbone.inferring(prefix):
        for first in range(0, len(order), batch_size):
            batch = order[first : first + batch_size]
            rows = [
                Encoded(readings[index].ids, [], types=readings[index].types) for index in batch
            ]
            padded = unlabelled(rows, pad)
            inputs = {name: tensor.to(backbone.device) for name, tensor in padded.items()}
            out = made(kind.hidden(backbone.model, inputs), inputs["attention_mask"]).cpu()
            for index, own in zip(batch, out, strict=True):
                found[index] = own[: len(readings[index].ids)] if own.ndim == 2 else own
            watch(len(found), len(order))
    return [found[index] for index in range(len(readings))]
