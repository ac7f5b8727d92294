"""`Kind`: what decoders, encoders and encoder-decoders differ in.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor
from transformers import PreTrainedModel

from foreword.attention.frame import AttentionCall
from foreword.attention.signature import parameters_of
from foreword.errors import UnsupportedModel
from foreword.head import Pooling

KindName = Literal["decoder", "encoder", "encoder-decoder"]
Inputs = dict[str, Tensor]

IGNORED = -100
"""Label of a token that is not predicted, as in transformers."""


READ = ("input_ids", "attention_mask", "token_type_ids")
"""What a model reads of a batch of texts."""


class Kind(ABC):
    """One kind of transformer."""

    name: KindName
    auto: Any
    """The class of transformers that loads one."""
    pooling: Pooling
    """Which vector stands for a row that is classified, unless another is asked for."""

    @abstractmethod
    def inputs(self, model: PreTrainedModel, ids_BT: Tensor, mask_BT: Tensor) -> Inputs:
        """What to call the model with, so that all of its stacks see these tokens."""

    def probe(self, model: PreTrainedModel, ids_BT: Tensor, mask_BT: Tensor) -> Inputs:
        """Such inputs that tell its stacks apart."""
        return self.inputs(model, ids_BT, mask_BT)

    def seen(self, inputs: Inputs) -> Tensor:
        """Which of the output's positions are real tokens', boolean (B, T)."""
        return inputs["attention_mask"].bool()

    def read(self, batch: Mapping[str, Tensor]) -> Inputs:
        """What to call the model with, so that it reads a batch of rows padded on the right."""
        return {name: batch[name] for name in READ if name in batch}

    def supervised(
        self, model: PreTrainedModel, batch: Mapping[str, Tensor]
    ) -> tuple[Inputs, Tensor]:
        """What to call the model with to score labels, and the label (B, T) of each logit's position.

        Args:
            model: The model.
            batch: Rows padded on the right; ``labels`` are tokens to predict, `IGNORED` elsewhere.

        Raises:
            UnsupportedModel: This kind predicts no tokens.
        """
        raise UnsupportedModel(f"an {self.name} predicts no text, so it cannot be scored on any")

    def hidden(self, model: PreTrainedModel, inputs: Inputs) -> Tensor:
        """The last hidden state of each token (B, T, D), which a head looks at.

        Args:
            model: The model.
            inputs: What `read` gives.

        Raises:
            UnsupportedModel: This kind carries no head.
        """
        output: Tensor = model.base_model(**inputs)[0]
        return output

    @abstractmethod
    def stack(self, call: AttentionCall, inputs: Inputs) -> str:
        """The stack that an attention call of a probe belongs to."""


def with_positions(model: PreTrainedModel, inputs: Inputs) -> Inputs:
    """The inputs with position_ids, where the model takes any: padding moves no token."""
    if "position_ids" not in parameters_of(type(model)):
        return inputs
    counted: Any = inputs["attention_mask"].cumsum(-1) - 1
    return {**inputs, "position_ids": counted.clamp(min=0)}
