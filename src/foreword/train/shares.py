"""How the rows of a step are shared among processes: every one gets as many, blank ones included.

Launchers give each process whole batches, and fill the last ones up with rows from the start, which
would then count twice. A blank row has no target, so it adds nothing to the loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler

from foreword.backbone.kinds.base import IGNORED
from foreword.data.encode import Encoded

BLANK = Encoded([0], [IGNORED])
"""A row without a target."""


class FilledUp(Sampler[int]):
    """The rows in another sampler's order, then blank ones until all batches of all processes are full.

    Args:
        order: Sampler of the rows.
        rows_at_once: Rows of one forward pass, over all processes.
        blank: Index of the blank row.
    """

    def __init__(self, order: Sampler[int], rows_at_once: int, blank: int) -> None:
        self.order = order
        self.rows_at_once = rows_at_once
        self.blank = blank

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch begins; the Trainer does."""
        self.order.set_epoch(epoch)  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return -(-len(self.order) // self.rows_at_once) * self.rows_at_once  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[int]:
        yield from self.order
        yield from [self.blank] * (len(self) - len(self.order))  # type: ignore[arg-type]


def batches(rows: Sequence[Encoded], size: int, index: int, count: int) -> Iterator[list[Encoded]]:
    """One process's share of rows, in batches; every process gets equally many.

    Args:
        rows: All rows.
        size: Rows of a batch.
        index: Which of the processes this is.
        count: Number of processes.
    """
    for first in range(0, len(rows), size * count):
        mine = list(rows[first + index * size : first + (index + 1) * size])
        yield mine or [BLANK]
