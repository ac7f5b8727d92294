"""Keys turned on by any number of positions, as the running model turns them: measured, then proven.

vLLM places a prefix at positions 0..P-1 and the text behind it. Keys of a prefix of policy ``free``
were made for a text that starts at 0, so here they are turned on by P, as the text's own are.

Shapes: H key/value heads, T tokens of a test text, P prefix length, D key dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from foreword.backbone.rotate import EXACT, ROUNDED, Rotation, fitted, prove
from foreword.errors import UnsupportedModel

TOO_FAR = 4096
"""Prefixes of policy ``free`` are shorter: further on, sines in float32 are no longer exact enough."""

START = 7
"""Where the test text stands that a turn is proven on; the one that it is measured on stands at 0."""

Run = Callable[[int, int], Sequence[Tensor]]
"""From the first token's position and a seed, which is a text, to what each layer turns (H, T, D).

That is keys, and queries beside them as if they were more heads."""


@dataclass(frozen=True)
class Turning:
    """What a move by 1, 2, 4, ... positions does to the keys of each layer.

    Attributes:
        layers: Per layer a rotation for each power of two, lowest first.
        longest: The furthest move, in positions.
    """

    layers: tuple[tuple[Rotation, ...], ...]
    longest: int

    def turned(self, layer: int, key_HPD: Tensor, by: int) -> Tensor:
        """Keys of a layer, moved on by a number of positions; computed in float64, in their own dtype.

        Raises:
            UnsupportedModel: It is further than was measured.
        """
        if by > self.longest:
            raise UnsupportedModel(
                f"this prefix of {by} virtual tokens has position policy 'free'; here such prefixes "
                f"have at most {self.longest}. Save it under policy 'offset' (Backbone.moved)"
            )
        moved_HPD = key_HPD.double()
        for rotation in joined(self.parts(layer, by)):
            moved_HPD = rotation.turned(moved_HPD)
        return moved_HPD.to(key_HPD)

    def parts(self, layer: int, by: int) -> list[Rotation]:
        """The rotations of a layer that together move by a number of positions."""
        return [one for power, one in enumerate(self.layers[layer]) if by >> power & 1]


def joined(rotations: Sequence[Rotation]) -> list[Rotation]:
    """What several rotations do one after the other, in fewer: those of the same planes add up."""
    whole: list[Rotation] = []
    for one in rotations:
        if whole and one.turns_planes_of(whole[-1]):
            whole[-1] = replace(whole[-1], angle_R=whole[-1].angle_R + one.angle_R)
        elif len(one.first_R):
            whole.append(one)
    return whole


def measured(run: Run, room: int, family: str, dtype: torch.dtype) -> Turning:
    """How a model turns its keys.

    Args:
        run: Runs each attention layer of the model on a text.
        room: Positions that the model has for a move and a test text.
        family: The model's family, for messages.
        dtype: What the model computes in.

    Raises:
        UnsupportedModel: No rotation does it, or there is no room.
    """
    allowed = EXACT if dtype == torch.float32 else ROUNDED
    longest = min(room - START, TOO_FAR - 1)
    if longest < 1:
        raise UnsupportedModel(f"a context of {room} leaves no room for a prefix and a text")
    powers = [2**power for power in range(longest.bit_length())]
    before, shifted = run(0, 0), [run(power, 0) for power in powers]
    layers = tuple(
        tuple(fitted(before[layer], after[layer], allowed / 10) for after in shifted)
        for layer in range(len(before))
    )
    if not any(len(rotation.first_R) for rotations in layers for rotation in rotations):
        raise UnsupportedModel(
            f"attention of family {family!r} does not turn keys by their positions, so they may be told "
            "elsewhere (absolute positions, ALiBi)"
        )
    turning = Turning(layers, longest)
    other = run(START, 1)
    for by in {longest, powers[-1] - 1}:  # in which every power has its part
        moved = [turning.turned(i, key_HTD, by) for i, key_HTD in enumerate(other)]
        prove(moved, run(START + by, 1), "keys", family, allowed)
    return turning
