"""gptj and codegen, which look their rotary positions up in a table that starts at 0.

A text captured for the policy `free` is run at positions before 0. While keys are being observed the
module sees a table that goes on, behind its end, with the positions before 0: sines are odd, cosines
even. (Without it gptj fails, and codegen takes the table's end instead, in silence.)

Shapes: N positions of the table, F frequencies.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foreword.attention.adapters.base import Adapter, Call
from foreword.attention.frame import Frame
from foreword.errors import UnsupportedModel


class RotaryTable(Adapter):
    """Rotary positions from a buffer (N, 2F): sines, then cosines."""

    changes_module = True

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self._own: Tensor | None = None

    def prepare(self, call: Call, frame: Frame) -> None:
        """Let an observed call have positions before 0."""
        self.restore()
        if frame.observer is None or int(call["position_ids"].min()) >= 0:
            return
        own = self.module.embed_positions
        assert isinstance(own, Tensor)
        if int(call["position_ids"].min()) <= -len(own):
            raise UnsupportedModel(
                f"{type(self.module).__name__} has a table of {len(own)} rotary positions, so a text "
                f"of at most {len(own) - 1} tokens can stand before position 0; found "
                f"{-int(call['position_ids'].min())}. Shorten the text"
            )
        self._own = own
        self.module._buffers["embed_positions"] = table = both_ways(own)
        call["position_ids"] = call["position_ids"] % len(table)

    def restore(self) -> None:
        """Give the module its own table back."""
        if self._own is not None:
            self.module._buffers["embed_positions"] = self._own
            self._own = None

    def remove(self) -> None:
        """Leave the module as it was found, even after a call that Ctrl-C cut off."""
        super().remove()
        self.restore()


def both_ways(table_NF: Tensor) -> Tensor:
    """A table (2N - 1, 2F) whose row p % (2N - 1) holds position p, for p in -(N - 1)..N - 1."""
    sine_NF, cosine_NF = table_NF[1:].flip(0).chunk(2, dim=-1)
    return torch.cat([table_NF, torch.cat([-sine_NF, cosine_NF], dim=-1)])
