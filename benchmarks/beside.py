"""Prefixes trained beside others that stay as they are, so that they work there too.

Shapes: B rows of a batch, T tokens.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from common import Row

from foreword.attention.bound import Bound, bind_rows, live_identity
from foreword.backbone import Backbone
from foreword.data import Collator, Encoded
from foreword.data.collate import padding_of
from foreword.prefix import Prefix
from foreword.train import TrainSettings
from foreword.train.objective import score
from foreword.train.parameterise import parameterise
from foreword.train.run import encode
from foreword.train.soap import SOAP

RECIPE = TrainSettings(prompt="{given}", target=" {text}")


@dataclass(frozen=True)
class Share:
    """Some of each step's rows.

    Attributes:
        front: What stands in front of the prefix in training there; None: nothing.
        rows: Rows with ``given`` and ``text``.
        size: How many a step has.
    """

    front: Prefix | None
    rows: Sequence[Row]
    size: int


def touched_up(
    backbone: Backbone, prefix: Prefix, shares: Sequence[Share], steps: int, seed: int
) -> Prefix:
    """A prefix after some more steps, in each of which others are in front of it in some rows.

    Args:
        backbone: The backbone.
        prefix: Where training goes on from. It stands where it stands alone, the others before it.
        shares: What each step is made of.
        steps: Steps, with half of the recipe's learning rate, falling to 0.
        seed: Of the order of rows.
    """
    torch.manual_seed(seed)
    plain = replace(prefix, start=None)
    trained = parameterise(backbone, plain, replace(RECIPE, length=prefix.length))
    fronts = [
        None if one.front is None else backbone.shifted(one.front, -prefix.length) for one in shares
    ]
    order = [_endless(backbone, one.rows, prefix, seed) for one in shares]
    row_of_B = tuple(itertools.chain(*([at] * one.size for at, one in enumerate(shares))))
    assert backbone.tokenizer is not None
    collate = Collator(padding_of(backbone.tokenizer, backbone.vocabulary))
    optimizer = SOAP(trained.parameters(), lr=RECIPE.lr / 2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    with backbone.attached(None) as attachment:
        for _ in range(steps):
            batch = [next(order[at]) for at in row_of_B]
            bound = _behind(backbone, trained.materialise(), fronts, row_of_B)
            with attachment.using(bound):
                scores = score(backbone.model, **collate(batch))
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


def _behind(
    backbone: Backbone,
    prefix: Prefix,
    fronts: Sequence[Prefix | None],
    row_of_B: tuple[int, ...],
) -> Bound:
    """The live prefix for each row, behind what is in front of it there."""
    every = [prefix if front is None else _joined(front, prefix) for front in fronts]
    bound = bind_rows(every, backbone.sites, identity=live_identity())
    return replace(bound, row_of_B=row_of_B)


def _joined(front: Prefix, prefix: Prefix) -> Prefix:
    """Both, the first as it is and the second with its gradients."""
    pairs = [
        zip(of_front, own, strict=True)
        for of_front, own in ((front.keys, prefix.keys), (front.values, prefix.values))
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
