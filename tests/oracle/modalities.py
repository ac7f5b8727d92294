"""Tiny random models that see or hear beside reading, each with a call that holds pixels or sound.

Built as transformers builds them, from configs: no processor and no download. Shapes: B = 2 rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

VOCABULARY, PLACEHOLDER, START, END = 120, 100, 102, 103
ROWS, TOKENS, FIRST = 2, 12, 2
"""Rows of a call, tokens of text in each, and where the placeholders of its image begin."""

TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EYE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 4,
}
Call = dict[str, Any]


@dataclass(frozen=True)
class Modal:
    """A model, and a call that holds what it sees or hears.

    Attributes:
        model: The model, in evaluation mode.
        call: Arguments of its forward, with ``input_ids`` (B, T) and ``attention_mask``.
        sensed: The argument that holds pixels or sound.
    """

    model: PreTrainedModel
    call: Call
    sensed: str

    def behind(self, text_P: Tensor) -> Call:
        """The same call with a text in front of every row."""
        longer = dict(self.call)
        for name in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"):
            if name in longer:
                row_P = {"input_ids": text_P, "attention_mask": torch.ones_like(text_P)}
                front_BP = row_P.get(name, torch.zeros_like(text_P)).expand(ROWS, -1)
                longer[name] = torch.cat([front_BP.to(longer[name]), longer[name]], dim=1)
        return longer


def tokens(placeholders: int, first: int = FIRST) -> Tensor:
    """Rows (B, T) of text with the placeholders of an image in it."""
    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(3, 90, (ROWS, TOKENS + placeholders), generator=generator)
    ids_BT[:, first : first + placeholders] = PLACEHOLDER
    return ids_BT


def noise(*shape: int) -> Tensor:
    """Pixels or sound."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def _llava() -> tuple[Any, Call]:
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**TEXT),
        vision_config=transformers.CLIPVisionConfig(**EYE),
        image_token_id=PLACEHOLDER,
        image_token_index=PLACEHOLDER,
    )
    call = {"input_ids": tokens(16), "pixel_values": noise(ROWS, 3, 16, 16)}
    return transformers.LlavaForConditionalGeneration(config), call


def _by_tiles(kind: str) -> tuple[Any, Call]:
    """Idefics3 and SmolVLM."""
    config = getattr(transformers, f"{kind}Config")(
        text_config=transformers.LlamaConfig(**TEXT),
        vision_config=dict(EYE),
        image_token_id=PLACEHOLDER,
        scale_factor=2,
        pad_token_id=0,
    )
    call = {"input_ids": tokens(4), "pixel_values": noise(ROWS, 1, 3, 16, 16)}
    return getattr(transformers, f"{kind}ForConditionalGeneration")(config), call


def _gemma3() -> tuple[Any, Call]:
    layers = ["sliding_attention", "full_attention"]
    config = transformers.Gemma3Config(
        text_config={**TEXT, "sliding_window": 64, "layer_types": layers},
        vision_config=dict(EYE),
        mm_tokens_per_image=4,
        image_token_id=PLACEHOLDER,
        boi_token_index=START,
        eoi_token_index=END,
    )
    ids = tokens(4)
    call = {"input_ids": ids, "pixel_values": noise(ROWS, 3, 16, 16)}
    call["token_type_ids"] = (ids == PLACEHOLDER).long()
    model = transformers.Gemma3ForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight)  # else 0
    return model, call


def _paligemma() -> tuple[Any, Call]:
    config = transformers.PaliGemmaConfig(
        text_config={**TEXT, "model_type": "gemma"},
        vision_config={
            **EYE,
            "projection_dim": 32,
            "model_type": "siglip_vision_model",
            "vision_use_head": False,
        },
        image_token_index=PLACEHOLDER,
        projection_dim=32,
        hidden_size=32,
    )
    ids = tokens(16, first=0)
    call = {"input_ids": ids, "pixel_values": noise(ROWS, 3, 16, 16)}
    call["token_type_ids"] = torch.zeros_like(ids)
    return transformers.PaliGemmaForConditionalGeneration(config), call


def _qwen(kind: str, **eye: Any) -> tuple[Any, Call]:
    """Qwen2-VL, Qwen2.5-VL and Qwen3-VL, which count three positions for each token."""
    rotary = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}
    sizes = {"depth": 2, "hidden_size": 32, "num_heads": 4, "patch_size": 4}
    merged = {"spatial_merge_size": 2, "temporal_patch_size": 2}
    config = getattr(transformers, f"{kind}Config")(
        text_config={**TEXT, "rope_parameters": rotary},
        vision_config={**sizes, **merged, **eye},
        image_token_id=PLACEHOLDER,
        video_token_id=PLACEHOLDER + 1,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )
    ids = tokens(4)
    ids[:, FIRST - 1], ids[:, FIRST + 4] = START, END
    call = {
        "input_ids": ids,
        "pixel_values": noise(ROWS * 16, 3 * 2 * 4 * 4),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * ROWS),
        "mm_token_type_ids": (ids == PLACEHOLDER).int(),
    }
    return getattr(transformers, f"{kind}ForConditionalGeneration")(config), call


def _mllama() -> tuple[Any, Call]:
    rotary = {"rope_type": "default", "rope_theta": 10000.0}
    text = {name: value for name, value in TEXT.items() if name != "head_dim"}
    layers = {"num_hidden_layers": 3, "cross_attention_layers": [1]}
    eye = {name: value for name, value in EYE.items() if name != "num_attention_heads"}
    tiles = {"max_num_tiles": 1, "supported_aspect_ratios": [[1, 1]]}
    deep = {"num_global_layers": 1, "vision_output_dim": 64, "intermediate_layers_indices": [0]}
    config = transformers.MllamaConfig(
        text_config={**text, **layers, "rope_parameters": rotary},
        vision_config={**eye, "attention_heads": 4, **tiles, **deep},
        image_token_index=PLACEHOLDER,
    )
    ids = tokens(1)
    seen = torch.ones(ROWS, ids.shape[1], 1, 1, dtype=torch.long)
    seen[:, :FIRST] = 0
    call = {
        "input_ids": ids,
        "pixel_values": noise(ROWS, 1, 1, 3, 16, 16),
        "aspect_ratio_ids": torch.ones(ROWS, 1, dtype=torch.long),
        "aspect_ratio_mask": torch.ones(ROWS, 1, 1, dtype=torch.long),
        "cross_attention_mask": seen,
    }
    model = transformers.MllamaForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        if name.endswith("_gate"):  # else 0, and the image is not seen
            torch.nn.init.constant_(parameter, 0.5)
    return model, call


def _qwen2_audio() -> tuple[Any, Call]:
    config = transformers.Qwen2AudioConfig(
        text_config={**TEXT, "model_type": "qwen2"},
        audio_config={
            "model_type": "qwen2_audio_encoder",
            "num_mel_bins": 8,
            "encoder_layers": 2,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 48,
            "d_model": 32,
            "max_source_positions": 20,
        },
        audio_token_index=PLACEHOLDER,
    )
    call = {"input_ids": tokens(10), "input_features": noise(ROWS, 8, 40)}
    call["feature_attention_mask"] = torch.ones(ROWS, 40, dtype=torch.long)
    return transformers.Qwen2AudioForConditionalGeneration(config), call


BUILDERS: dict[str, Callable[[], tuple[Any, Call]]] = {
    "llava": _llava,
    "idefics3": lambda: _by_tiles("Idefics3"),
    "smolvlm": lambda: _by_tiles("SmolVLM"),
    "gemma3": _gemma3,
    "paligemma": _paligemma,
    "qwen2_vl": lambda: _qwen("Qwen2VL", embed_dim=32, mlp_ratio=2),
    "qwen2_5_vl": lambda: _qwen(
        "Qwen2_5_VL",
        out_hidden_size=32,
        intermediate_size=48,
        window_size=16,
        fullatt_block_indexes=[1],
    ),
    "qwen3_vl": lambda: _qwen(
        "Qwen3VL",
        out_hidden_size=32,
        intermediate_size=48,
        num_position_embeddings=16,
        deepstack_visual_indexes=[0],
    ),
    "mllama": _mllama,
    "qwen2_audio": _qwen2_audio,
}


def modal(name: str, attention: str | None = None) -> Modal:
    """One of `BUILDERS`, the same each time."""
    torch.manual_seed(0)
    model, call = BUILDERS[name]()
    model.set_attn_implementation(attention or ("eager" if name == "paligemma" else "sdpa"))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
    call["attention_mask"] = torch.ones_like(call["input_ids"])
    sensed = next(name for name in ("pixel_values", "input_features") if name in call)
    return Modal(model.eval().requires_grad_(False), call, sensed)
