"""Kinds of transformers: a small file each for what they differ in."""

from __future__ import annotations

from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from foreword.backbone.kinds.base import Kind, KindName
from foreword.backbone.kinds.decoder import Decoder
from foreword.backbone.kinds.encoder import Encoder
from foreword.backbone.kinds.encoder_decoder import EncoderDecoder

__all__ = [
    "DECODER",
    "ENCODER",
    "ENCODER_DECODER",
    "KINDS",
    "Kind",
    "KindName",
    "kind_of",
    "with_article",
]

DECODER, ENCODER, ENCODER_DECODER = Decoder(), Encoder(), EncoderDecoder()
KINDS: dict[KindName, Kind] = {kind.name: kind for kind in (DECODER, ENCODER, ENCODER_DECODER)}


def kind_of(config: PreTrainedConfig) -> Kind:
    """The kind of a model that is not loaded yet; what it really is the probe measures.

    Families that have a masked language model are encoders, unless this one was saved as a causal
    language model.
    """
    if config.is_encoder_decoder:
        return ENCODER_DECODER
    saved = " ".join(config.architectures or ())
    causal = "CausalLM" in saved or "LMHead" in saved or getattr(config, "is_decoder", False)
    is_masked = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return ENCODER if is_masked and not causal else DECODER


def with_article(kind: str) -> str:
    """A kind's name as messages say it: a decoder, an encoder."""
    return f"{'an' if kind[0] == 'e' else 'a'} {kind}"
