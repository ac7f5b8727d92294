"""Prefixes trained beside others that stay as they are, so that they work there too.

Shapes: B rows of a batch, T tokens.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from common import Row

from foreword.attention.bound import Bound, bind_rows, live_identity
from foreword.backbone import Backbone
from foreword.data import Collator, Encoded
from foreword.data.collate import padding_of
from foreword.methods.prefix.build import parameterise
from foreword.objectives.encode import encode
from foreword.objectives.supervised import score
from foreword.prefix import Prefix
from foreword.train import TrainSettings
from foreword.train.soap import SOAP

RECIPE = TrainSettings(prompt="{given}", target=" {text}")


@dataclass(frozen=True)
class Share:
    """Some of each step's rows.

    Attributes:
        behind: What stands between the prefix and the text in training there; None: nothing.
        rows: Rows with ``given`` and ``text``.
        size: How many a step has.
    """

    behind: Prefix | None
    rows: Sequence[Row]
    size: int


def touched_up(
    backbone: Backbone, prefix: Prefix, shares: Sequence[Share], steps: int, seed: int
) -> Prefix:
    """A prefix after some more steps, in each of which it stands in front of others in some rows.

    Args:
        backbone: The backbone.
        prefix: Where training goes on from. Where others are, it stands as in a cascade before them.
        shares: What each step is made of.
        steps: Steps, with half of the recipe's learning rate, falling to 0.
        seed: Of the order of rows.
    """
    torch.manual_seed(seed)
    plain = replace(prefix, start=None)
    trained = parameterise(backbone, plain, replace(RECIPE, length=prefix.length))
    order = [_endless(backbone, one.rows, prefix, seed) for one in shares]
    row_of_B = tuple(itertools.chain(*([at] * one.size for at, one in enumerate(shares))))
    assert backbone.tokenizer is not None
    collate = Collator(padding_of(backbone.tokenizer, backbone.vocabulary))
    optimizer = SOAP(trained.parameters(), lr=RECIPE.lr / 2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    with backbone.attached(None) as attachment:
        for _ in range(steps):
            batch: dict[str, Any] = collate([next(order[at]) for at in row_of_B])
            bound = _before(backbone, trained.materialise(), shares, row_of_B)
            with attachment.using(bound):
                scores = score(backbone.model, batch)
            scores.nll_N.mean().backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    made = trained.materialise()
    return replace(
        made,
        keys=tuple(key.detach() for key in made.keys),
        values=tuple(value.detach() for value in made.values),
    )


def _before(
    backbone: Backbone, prefix: Prefix, shares: Sequence[Share], row_of_B: tuple[int, ...]
) -> Bound:
    """The live prefix for each row, before what is behind it there."""
    others = [one.behind for one in shares]
    every = [
        prefix if one is None else _joined(backbone.turned(prefix, -one.length), one)
        for one in others
    ]
    bound = bind_rows(every, backbone.sites, identity=live_identity())
    return replace(bound, row_of_B=row_of_B)


def _joined(prefix: Prefix, behind: Prefix) -> Prefix:
    """Both, the first with its gradients and the second as it is."""
    pairs = [
        zip(own, of_other, strict=True)
        for own, of_other in ((prefix.keys, behind.keys), (prefix.values, behind.values))
    ]
    keys, values = (tuple(torch.cat(pair, dim=1) for pair in of) for of in pairs)
    return replace(prefix, keys=keys, values=values)


def _endless(
    backbone: Backbone, rows: Sequence[Row], prefix: Prefix, seed: int
) -> Iterator[Encoded]:
    """Rows as token ids, in a new order each time round."""
    encoded, _ = encode(backbone, rows, RECIPE, prefix)
    draw = random.Random(seed)
    while True:
        yield from draw.sample(encoded, len(encoded))
