"""How many tokens a model has places for: measured where it looks places up in a table.

A config's number is the table's rows, of which some families leave out the first ones: RoBERTa and its
kin count from behind their padding token, so that 514 rows hold 512 tokens. T5's number is no limit at
all: it has biases by distance, and they reach as far as one likes.

Shapes: T = 8 tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from foreword.attention.attachment import Attachment
from foreword.backbone.kinds import Kind

TOKENS = 8
UNLIMITED = 2**31
"""What stands for no limit."""


class _Lookups(TorchFunctionMode):
    """Notes how many tokens each table of positions holds that is looked into in the block."""

    def __init__(self) -> None:
        super().__init__()
        self.rooms: list[int] = []

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is nn.functional.embedding:
            self._note(*args[:2])
        return function(*args, **(kwargs or {}))

    def _note(self, ids: Tensor, table: Tensor) -> None:
        """Only positions count up: the run's tokens are all the same."""
        if not ids.dim() or ids.shape[-1] != TOKENS:
            return
        ids_T = ids.reshape(-1, TOKENS)[0].tolist()
        if ids_T == list(range(ids_T[0], ids_T[0] + TOKENS)):
            self.rooms.append(int(table.shape[0]) - ids_T[0])


def looked_up(model: PreTrainedModel, kind: Kind, device: torch.device) -> int | None:
    """Tokens that the shortest of a model's tables of positions holds; None without a table.

    Args:
        model: The model, in evaluation mode and without a prefix.
        kind: Its kind.
        device: Where inputs go.
    """
    # Padding would not be counted, and MPNet's is 1 whatever its config says.
    padding = getattr(model.config, "pad_token_id", None)
    ids_BT = torch.full((1, TOKENS), 3 if padding == 2 else 2, device=device)
    with torch.no_grad(), _Lookups() as lookups:
        model(**kind.inputs(model, ids_BT, torch.ones_like(ids_BT)))
    return min(lookups.rooms, default=None)


def context_of(model: PreTrainedModel, attachment: Attachment, found: int | None) -> int:
    """Most tokens that a model was made for.

    Args:
        model: The model.
        attachment: Its attachment, which knows of biases by distance.
        found: What `looked_up` found.
    """
    if found is not None:
        return found
    if attachment.known.biases:
        return UNLIMITED
    every = (model.config, model.config.get_text_config(decoder=True))
    for config in every:
        for name in ("max_position_embeddings", "n_positions"):
            if size := getattr(config, name, None):
                return int(size)
    return UNLIMITED
