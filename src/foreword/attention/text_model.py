"""The language model inside a model that also sees or hears: where its text is placed.

Such a model may count positions by a rule of its own (Qwen-VL: three for each token, by where it is in
an image). So it is left to count, and what it hands to its language model is moved by the prefix's
offset. Where it hands over none, the text's own positions are, as in a model of text alone.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from foreword.attention.frame import Frame
from foreword.attention.positions import moved
from foreword.attention.signature import parameters_of

POSITIONS = "position_ids"


def text_model_of(model: PreTrainedModel) -> PreTrainedModel | None:
    """The language model inside a model of several modalities; None where the model is one itself."""
    if getattr(model.config, "is_encoder_decoder", False):
        return None
    text = model.config.get_text_config()
    if text is model.config:
        return None
    for module in model.modules():
        is_text = isinstance(module, PreTrainedModel) and module.config is text
        if is_text and POSITIONS in parameters_of(type(module)):
            return module
    return None


def placed_in(
    frame: Frame, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """A call of the language model inside, with its text moved by the offsets of the pass."""
    given = kwargs.get(POSITIONS)
    if given is None or (frame.bound is not None and given.dim() == 2):
        # By a rule of the model's own (PaliGemma) they may start at 1, or count padding.
        given = frame.text_positions_BQ
    if given is None:
        return None
    return args, {**kwargs, POSITIONS: moved(given, frame.batch, frame.text_offsets)}
