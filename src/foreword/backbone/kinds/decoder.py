"""Decoders: one stack, in which no token sees later ones."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from foreword.attention.frame import AttentionCall
from foreword.backbone.kinds.base import IGNORED, Inputs, Kind, with_positions


class Decoder(Kind):
    """Causal language models."""

    name = "decoder"
    auto = AutoModelForCausalLM
    pooling = "last"

    def inputs(self, model: PreTrainedModel, ids_BT: Tensor, mask_BT: Tensor) -> Inputs:
        """Token ids, mask and, where taken, positions."""
        return with_positions(model, {"input_ids": ids_BT, "attention_mask": mask_BT})

    def supervised(
        self, model: PreTrainedModel, batch: Mapping[str, Tensor]
    ) -> tuple[Inputs, Tensor]:
        """A token's logits predict the next one."""
        following_BT = nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)
        return self.read(batch), following_BT

    def hidden(self, model: PreTrainedModel, inputs: Inputs) -> Tensor:
        """Without a cache, which nothing would read."""
        return super().hidden(model, {**inputs, "use_cache": False})  # type: ignore[dict-item]

    def stack(self, call: AttentionCall, inputs: Inputs) -> str:
        """There is one."""
        return "decoder"
