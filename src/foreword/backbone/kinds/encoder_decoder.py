"""Encoder-decoders: an encoder, a decoder, and the decoder's attention to the encoder's output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel

from foreword.attention.frame import AttentionCall
from foreword.backbone.kinds.base import Inputs, Kind
from foreword.errors import UnsupportedModel


class EncoderDecoder(Kind):
    """Sequence-to-sequence models."""

    name = "encoder-decoder"
    auto = AutoModelForSeq2SeqLM
    pooling = "last"

    def inputs(self, model: PreTrainedModel, ids_BT: Tensor, mask_BT: Tensor) -> Inputs:
        """The same tokens for both stacks."""
        return {"input_ids": ids_BT, "attention_mask": mask_BT, "decoder_input_ids": ids_BT}

    def probe(self, model: PreTrainedModel, ids_BT: Tensor, mask_BT: Tensor) -> Inputs:
        """One token less for the decoder, by which its calls are known."""
        inputs = self.inputs(model, ids_BT, mask_BT)
        return {**inputs, "decoder_input_ids": ids_BT[:, 1:]}

    def seen(self, inputs: Inputs) -> Tensor:
        """All of the decoder's: no padding is among them."""
        return inputs["decoder_input_ids"] >= 0

    def supervised(
        self, model: PreTrainedModel, batch: Mapping[str, Tensor]
    ) -> tuple[Inputs, Tensor]:
        """The decoder is given the label before the one that it predicts."""
        given: Any = model
        before_BT = given.prepare_decoder_input_ids_from_labels(labels=batch["labels"])
        return {**self.read(batch), "decoder_input_ids": before_BT}, batch["labels"]

    def hidden(self, model: PreTrainedModel, inputs: Inputs) -> Tensor:
        """Not offered: such a model can write its labels."""
        raise UnsupportedModel(
            "an encoder-decoder carries no head here; let it write its labels (task seq2seq)"
        )

    def stack(self, call: AttentionCall, inputs: Inputs) -> str:
        """By how many tokens ask, and how many are asked."""
        own = inputs["decoder_input_ids"].shape[1]
        if call.queries != own:
            return "encoder"
        return "decoder" if call.key_BHKD.shape[2] == own else "cross"
