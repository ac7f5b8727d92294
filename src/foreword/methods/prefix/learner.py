"""A prefix's parameters beside the frozen backbone that reads rows under it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from foreword import format as prefix_file
from foreword.attention.attachment import Attachment
from foreword.attention.bound import bind
from foreword.attention.selected import bind_selected, selections
from foreword.backbone import Backbone
from foreword.head import Head
from foreword.methods.base import Learner
from foreword.methods.prefix.dropout import PrefixDropout
from foreword.methods.prefix.parameterization import Parameterization
from foreword.objectives.base import Batch, Objective
from foreword.prefix import Prefix


class PrefixLearner(Learner[Prefix]):
    """A parameterisation, and how often tokens were dropped, which checkpoints hold too.

    Args:
        parameterization: What is trained.
        backbone: The backbone.
        attachment: Where passes of the backbone find their prefix.
        dropout: Hides virtual tokens.
        objective: What the loss is.
    """

    noun = "the prefix"
    turns_matrices = False  # a head beside it, or an MLP that makes it, stays in its own axes

    def __init__(
        self,
        parameterization: Parameterization,
        backbone: Backbone,
        attachment: Attachment,
        dropout: PrefixDropout,
        objective: Objective,
    ) -> None:
        super().__init__(backbone, objective)
        self.parameterization = parameterization
        self.dropout = dropout
        self._attachment = (attachment,)

    @contextmanager
    def applied(self, batch: Batch) -> Iterator[Head | None]:
        """The backbone under the prefix, of which each row of the batch may select pieces."""
        prefix = self.parameterization.materialise()
        kept = self.dropout(prefix.length)
        sites = self.backbone.sites
        if prefix.meta.combination == "control":
            chosen_B = selections(batch.get("pieces"), len(batch["labels"]))
            bound = bind_selected(prefix, sites, chosen_B, live=True, kept=kept)
        else:
            bound = bind(prefix, sites, live=True, kept=kept)
        with self._attachment[0].using(bound):
            yield prefix.head

    def value(self) -> Prefix:
        """The prefix as it is now."""
        return detached(self.parameterization.materialise())

    def save(self, value: Prefix, path: Path) -> None:
        """Write a prefix's file."""
        prefix_file.save(value, path)

    def load(self, path: Path) -> Prefix:
        """Read a prefix's file."""
        return prefix_file.load(path)


def detached(prefix: Prefix) -> Prefix:
    """The prefix as plain float32 tensors on the CPU, without gradients."""

    def plain(tensor: Tensor) -> Tensor:
        return tensor.detach().float().cpu().clone()

    head = prefix.head
    return dataclasses.replace(
        prefix,
        keys=tuple(map(plain, prefix.keys)),
        values=tuple(map(plain, prefix.values)),
        head=None if head is None else head.made_of(*map(plain, head.tensors)),
    )
