"""Where in vLLM's key-value cache a prefix goes; nothing here needs vLLM.

Layers of one kind form a group, whose blocks a request has a table of. In a group of sliding windows the
blocks that have left the window are none: their places in the table hold the null block. In a group of
recurrent layers a block holds the state of a request.

Shapes: P virtual tokens to write, H key/value heads of this worker, D dimension of a key or a value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foreword.engine.vllm.loaded import Layers
from foreword.engine.vllm.requests import Named

NULL = 0
"""The block that stands for none; all requests have it, so nothing is ever written there."""


@dataclass(frozen=True)
class Group:
    """Layers that share a table of blocks.

    Attributes:
        names: The layers' names.
        block: Tokens of a block.
        window: How many tokens a query sees in them, itself included; None for no limit.
        is_recurrent: Whether they are recurrent layers, and not attention.
    """

    names: tuple[str, ...]
    block: int
    window: int | None = None
    is_recurrent: bool = False


@dataclass(frozen=True)
class Load:
    """Keys and values that a worker shall write before a step.

    Attributes:
        request: The request's name.
        named: The prefix.
        start: First virtual token to write; those before it lie in blocks that are shared.
        length: Prefix length.
        blocks: Per group the request's blocks, from its first token on.
    """

    request: str
    named: Named
    start: int
    length: int
    blocks: tuple[tuple[int, ...], ...]

    def first(self, group: int, block: int) -> int:
        """The first virtual token to write in a group: what has left its window has no block.

        Args:
            group: The group's number.
            block: Tokens of its blocks.
        """
        table = self.blocks[group]
        gone = next((i for i, one in enumerate(table) if one != NULL), len(table))
        return min(self.length, max(self.start, gone * block))

    def written(self, group: int, block: int) -> tuple[int, ...]:
        """The blocks of a group that are written to."""
        first = self.first(group, block)
        return self.blocks[group][first // block : (self.length - 1) // block + 1]

    def slots(self, group: int, block: int) -> Tensor:
        """Where in a group's cache the virtual tokens go, (P,) int64."""
        place_P = torch.arange(self.first(group, block), self.length)
        return torch.tensor(self.blocks[group])[place_P // block] * block + place_P % block


def gathered(
    ready: Sequence[tuple[Load, Layers]], layer: int, firsts: Sequence[int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """What is to be written of a layer's keys and values, (P, H, D), one prefix after the other.

    Args:
        ready: The loads, and their prefixes.
        layer: The layer's number.
        firsts: For each load the first virtual token to write.
        device: Where to.
    """
    rows = [layers[layer] for _, layers in ready]
    spans = [slice(first, load.length) for first, (load, _) in zip(firsts, ready, strict=True)]

    def joined(parts: Sequence[Tensor]) -> Tensor:
        moved = (
            part[span].to(device, non_blocking=True)
            for part, span in zip(parts, spans, strict=True)
        )
        return torch.cat(list(moved))

    return joined([key for key, _ in rows]), joined([value for _, value in rows])
