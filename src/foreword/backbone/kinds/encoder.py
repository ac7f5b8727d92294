"""Encoders: one stack, in which tokens see each other."""

from __future__ import annotations

from torch import Tensor
from transformers import AutoModel, PreTrainedModel

from foreword.attention.frame import AttentionCall
from foreword.backbone.kinds.base import Inputs, Kind


class Encoder(Kind):
    """Models that give one vector per token."""

    name = "encoder"
    auto = AutoModel
    pooling = "mean"

    def inputs(self, model: PreTrainedModel, ids_BT: Tensor, mask_BT: Tensor) -> Inputs:
        """Token ids and mask; a model counts its positions by a rule of its own."""
        return {"input_ids": ids_BT, "attention_mask": mask_BT}

    def stack(self, call: AttentionCall, inputs: Inputs) -> str:
        """There is one."""
        return "encoder"
