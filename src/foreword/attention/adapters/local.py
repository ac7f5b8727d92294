"""gpt_neo, whose modules keep their causal mask, with or without a window, in a buffer of their own.

The buffer is square, and is cut by the number of keys: with a prefix it would drop virtual tokens by
window (whatever the prefix's policy), count padding between them and the text, and end early. So the
call's mask takes over the buffer's window, and the module sees a buffer that hides nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from foreword.attention.adapters.base import Adapter, Call, queries_of
from foreword.attention.bound import SiteTensors
from foreword.attention.frame import Frame


class GptNeo(Adapter):
    """Global and local layers."""

    changes_module = True

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self._own: Tensor | None = None

    @property
    def window(self) -> int | None:
        """The window of a local layer."""
        config: Any = self.module.config
        return int(config.window_size) if self.module.attention_type == "local" else None

    def widen(self, call: Call, frame: Frame, site: SiteTensors) -> None:
        """Mask (B, 1, Q, J), with the module's window."""
        mask, queries, own = call["attention_mask"], queries_of(call), self._buffer()
        if self.window is not None:
            hidden = torch.finfo(mask.dtype).min
            end = mask.shape[-1]

            def windowed() -> Tensor:
                near_11QK = own[:, :, end - queries : end, :end]
                masked: Tensor = mask.masked_fill(~near_11QK.to(mask.device), hidden)
                return masked

            call["attention_mask"] = frame.once(mask, "near", windowed)
        super().widen(call, frame, site)
        joined = call["attention_mask"].shape[-1]
        self._own = own
        self._set_buffer(torch.ones_like(own[:, :, :1, :1]).expand(1, 1, joined, joined))

    def restore(self) -> None:
        """Give the module its own buffer back."""
        if self._own is not None:
            self._set_buffer(self._own)
            self._own = None

    def remove(self) -> None:
        """Leave the module as it was found, even after a call that Ctrl-C cut off."""
        super().remove()
        self.restore()

    def _buffer(self) -> Tensor:
        self.restore()
        buffer: Any = self.module.bias
        assert isinstance(buffer, Tensor)
        return buffer

    def _set_buffer(self, buffer: Tensor) -> None:
        self.module._buffers["bias"] = buffer
