"""Prefix dropout: in training, each forward pass hides some virtual tokens."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn


class PrefixDropout(nn.Module):
    """Draws which virtual tokens a training pass sees: the same ones at every site and in every row.

    A hidden token is masked, not zeroed: nothing attends to it. What is drawn depends on the seed and
    on the number of passes before, which checkpoints hold, so a resumed run draws what it would have.

    Args:
        rate: Probability that a token is hidden.
        frozen: First tokens, which are never hidden.
        seed: Seed of the drawing.
    """

    passes: Tensor

    def __init__(self, rate: float, frozen: int, seed: int) -> None:
        super().__init__()
        self.rate = rate
        self.frozen = frozen
        self.seed = seed
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    def forward(self, length: int) -> list[bool] | None:
        """Which of P tokens are seen; None, all of them, in evaluation and at rate 0."""
        if not self.training or self.rate == 0:
            return None
        # Torch's generator on the CPU looks at 32 bits of a seed only, so both numbers are mixed in.
        mixed = hashlib.sha256(f"{self.seed} {int(self.passes)}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(mixed[:4], "little"))
        self.passes += 1
        drawn = torch.rand(length, generator=generator, dtype=torch.float32) >= self.rate
        drawn[: self.frozen] = True
        return [bool(seen) for seen in drawn]
