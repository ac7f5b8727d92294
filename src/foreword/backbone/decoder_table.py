"""A decoder behind an encoder that adds a table of positions (BART, Marian): text at an offset.

Such a decoder counts its positions from the tokens in its cache. A prefix that lies at 0..P-1, as PEFT
leaves it in the cache, moves the text up by P; ours is in no cache, so the positions are raised by P.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from foreword.backbone.signature import parameters_of
from foreword.errors import UnsupportedModel
from foreword.frame import Frame, Running

PAST = "past_key_values_length"
"""The table's argument for the number of tokens before."""


def table_of(model: PreTrainedModel) -> nn.Module | None:
    """The table of positions of the decoder behind the model's encoder, if it has one."""
    if not getattr(model.config, "is_encoder_decoder", False):
        return None
    table = getattr(model.get_decoder(), "embed_positions", None)
    known = isinstance(table, nn.Module) and PAST in parameters_of(type(table))
    return table if known else None


class DecoderTable:
    """The table of one model.

    Args:
        table: The module, see `table_of`.
        running: The forward pass that the model is in.
    """

    def __init__(self, table: nn.Module, running: Running) -> None:
        self.table: Any = table
        self._running = running
        self._names = parameters_of(type(table))

    def hook(self) -> RemovableHandle:
        """Move the text of every pass by the offset that its frame has."""
        handle: RemovableHandle = self.table.register_forward_pre_hook(
            self._before, with_kwargs=True
        )
        return handle

    def place(self, frame: Frame, offsets: tuple[int, ...], end: int) -> None:
        """Let a pass's text start at an offset.

        Args:
            frame: The pass.
            offsets: That of each row.
            end: Tokens of the text, cached ones included.

        Raises:
            UnsupportedModel: Rows have different offsets, or the table is too short.
        """
        if len(set(offsets)) > 1:
            raise UnsupportedModel(
                "this model has one position for all rows of its decoder, and these prefixes would "
                "move their rows by different numbers; run them apart"
            )
        size = int(self.table.weight.shape[0]) - int(getattr(self.table, "offset", 0))
        if end + offsets[0] > size:
            raise UnsupportedModel(
                f"this model has {size} positions in its decoder; prefix and text together need "
                f"{end + offsets[0]}. Shorten the text"
            )
        frame.decoder_offset = offsets[0]

    def _before(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Raise the positions, or else the count of tokens before."""
        frame = self._running.frame
        offset = 0 if frame is None else frame.decoder_offset
        call = {**dict(zip(self._names, args, strict=False)), **kwargs}
        name = "position_ids" if call.get("position_ids") is not None else PAST
        call[name] = call.get(name, 0) + offset
        return (), call
