"""The order of rows in training: rows of like length together, so that little is padded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

POOL = 16
"""Steps whose rows are sorted together. On E2E with 16 rows a step, padding falls from 38% of the real
tokens to 4%; a larger pool saves little more and makes the rows of a step more alike."""


class GroupedByLength(Sampler[int]):
    """Rows of like length in one step, steps in random order.

    Each epoch, rows are drawn into pools, sorted by length there, and cut into steps, which are then
    shuffled. What is too few for a step is taken out before the sorting, so that it is no longer or
    shorter than the rest, and comes last.

    The order depends on the seed and the epoch alone, so that a resumed run goes on with it. All rows
    of an optimiser step stay together, however many forward passes or processes share them.

    Args:
        lengths: Tokens of each row.
        step_rows: Rows of one optimiser step, over all processes and accumulated passes.
        seed: Seed of the drawing.
    """

    def __init__(self, lengths: Sequence[int], step_rows: int, seed: int) -> None:
        self.lengths = lengths
        self.step_rows = step_rows
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch begins; the Trainer does."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        mixed = hashlib.sha256(f"{self.seed} {self.epoch}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(mixed[:4], "little"))
        drawn = torch.randperm(len(self), generator=generator).tolist()
        whole = len(self) // self.step_rows * self.step_rows
        steps = self._steps(drawn[:whole])
        for index in torch.randperm(len(steps), generator=generator).tolist():
            yield from steps[index]
        yield from drawn[whole:]

    def _steps(self, drawn: Sequence[int]) -> list[list[int]]:
        """A whole number of steps, the rows of a pool sorted by length."""
        steps = []
        for first in range(0, len(drawn), POOL * self.step_rows):
            pool = sorted(
                drawn[first : first + POOL * self.step_rows], key=self.lengths.__getitem__
            )
            steps += [pool[i : i + self.step_rows] for i in range(0, len(pool), self.step_rows)]
        return steps
