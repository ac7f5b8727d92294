"""Tables of positions that a model counts by itself: text at an offset.

The decoder behind an encoder (BART, Marian) and the embeddings of an encoder (BERT, RoBERTa) count
positions from the tokens in a cache. A prefix that lies at 0..P-1, as PEFT leaves it in the cache, moves
the text up by P; ours is in no cache, so the positions are raised by P.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from foreword.attention.frame import Frame
from foreword.attention.running import Running
from foreword.attention.signature import parameters_of
from foreword.errors import UnsupportedModel

PAST = "past_key_values_length"
"""The table's argument for the number of tokens before."""


def table_of(model: PreTrainedModel) -> nn.Module | None:
    """What adds positions to an encoder's text, or to that of the decoder behind one."""
    if getattr(model.config, "is_encoder_decoder", False):
        table = getattr(model.get_decoder(), "embed_positions", None)
    else:
        table = getattr(model.base_model, "embeddings", None)
    known = isinstance(table, nn.Module) and PAST in parameters_of(type(table))
    return table if known else None


class PositionTable:
    """The table of one model.

    Args:
        table: The module, see `table_of`: the table itself, or what holds one as position_embeddings.
        running: The forward pass that the model is in.
    """

    def __init__(self, table: nn.Module, running: Running) -> None:
        self.table: Any = table
        self._running = running
        self._names = parameters_of(type(table))
        self._of_encoder = hasattr(table, "position_embeddings")

    @property
    def size(self) -> int | None:
        """Positions that text can stand at; None: any, as of a table that is computed (M2M100)."""
        held = self.table.position_embeddings if self._of_encoder else self.table
        weight = getattr(held, "weight", None)
        if weight is None:
            return None
        before = int(getattr(self.table, "offset", 0))
        if self._of_encoder:
            before = int(getattr(self.table, "padding_idx", -1)) + 1  # RoBERTa counts from there on
        return int(weight.shape[0]) - before

    def hook(self) -> RemovableHandle:
        """Move the text of every pass by the offset that its frame has."""
        handle: RemovableHandle = self.table.register_forward_pre_hook(
            self._before, with_kwargs=True
        )
        return handle

    def text(self, names: Sequence[str], source: Any, decoded: Any) -> Any:
        """Which of a call's texts stands at this table's positions, if any does.

        Args:
            names: Parameters of the module that is called.
            source: What its first stack reads.
            decoded: What a decoder behind an encoder reads.
        """
        if self._of_encoder:
            return source
        return source if "encoder_hidden_states" in names else decoded

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
                "this model counts its positions for all rows alike, and these prefixes would move "
                "their rows by different numbers; run them apart"
            )
        size = self.size
        if size is not None and end + offsets[0] > size:
            raise UnsupportedModel(
                f"this model has {size} positions; prefix and text together need "
                f"{end + offsets[0]}. Shorten the text"
            )
        frame.table_offset = offsets[0]

    def _before(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Raise the positions, or else the count of tokens before."""
        frame = self._running.frame
        offset = 0 if frame is None else frame.table_offset
        call = {**dict(zip(self._names, args, strict=False)), **kwargs}
        name = "position_ids" if call.get("position_ids") is not None else PAST
        call[name] = call.get(name, 0) + offset
        return (), call
