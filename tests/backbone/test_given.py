"""What is given as a model: it works, or one error of ours names what came and what would do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

import foreword
from foreword.errors import UnsupportedModel
from tests.conftest import byte_tokenizer, tiny_model

ROW = torch.tensor([[17, 60, 4, 99, 201, 33, 8, 120]])
TEXT = [5, 6, 7]
BODY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
EYE = {**BODY, "image_size": 16, "patch_size": 4}
READER = {**BODY, "vocab_size": 97, "max_position_embeddings": 64}
EAR = {
    **BODY,
    "conv_dim": (32, 32),
    "conv_stride": (2, 2),
    "conv_kernel": (3, 3),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}
WRITER = {
    "vocab_size": 97,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "num_mel_bins": 8,
    "max_source_positions": 20,
    "max_target_positions": 40,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Each test compiles anew."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(ROW).logits
    return found


def composite() -> PreTrainedModel:
    eye, reader = transformers.ViTConfig(**EYE), transformers.BertConfig(**READER)
    both = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(eye, reader)
    return transformers.VisionTextDualEncoderModel(both)


def captioning() -> PreTrainedModel:
    eye = transformers.ViTConfig(**EYE)
    writer = transformers.BertConfig(**READER, is_decoder=True, add_cross_attention=True)
    made = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(eye, writer)
    return transformers.VisionEncoderDecoderModel(made)


OTHER_SENSES: dict[str, tuple[str, Callable[[], PreTrainedModel]]] = {
    "vit": ("no table of token", lambda: transformers.ViTModel(transformers.ViTConfig(**EYE))),
    "siglip": (
        "does not run on a few tokens",
        lambda: transformers.SiglipModel(
            transformers.SiglipConfig(text_config=READER, vision_config=EYE)
        ),
    ),
    "vision-text-dual-encoder": ("no table of token", composite),
    "vision-encoder-decoder": ("does not run on a few tokens", captioning),
    "whisper": (
        "does not run on a few tokens",
        lambda: transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**WRITER)),
    ),
    "wav2vec2": (
        "no table of token",
        lambda: transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(**EAR)),
    ),
}


@pytest.mark.parametrize("name", OTHER_SENSES)
def test_a_model_that_reads_no_text_alone_is_refused_by_name(name: str) -> None:
    reason, build = OTHER_SENSES[name]
    model = build().eval()
    prefix = foreword.Backbone(tiny_model()).capture(TEXT)
    told = f"'{name}'.*{reason}.*give the language model inside"
    for call in (foreword.Backbone, lambda one: foreword.attach(one, prefix)):
        with pytest.raises(UnsupportedModel, match=told):
            call(model)
    assert not any(module._forward_pre_hooks for module in model.modules())


def pipeline_of() -> Any:
    return transformers.pipeline("text-generation", model=tiny_model(), tokenizer=byte_tokenizer())


NO_MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "a name": (lambda: "gpt2", r"'gpt2'. Load it first: foreword.load"),
    "None": (lambda: None, "found None"),
    "a pipeline": (pipeline_of, r"a TextGenerationPipeline. It holds one: give its .model"),
    "a wrapper": (lambda: nn.DataParallel(tiny_model()), "a DataParallel.*give its .module"),
    "another module": (lambda: nn.Linear(2, 2), "a Linear"),
    "a tokenizer": (byte_tokenizer, "Tokenizer|TokenizersBackend"),
    "a config": (lambda: tiny_model().config, "a LlamaConfig"),
    "a class": (lambda: transformers.LlamaForCausalLM, "LM'>"),
}


@pytest.mark.parametrize("what", NO_MODELS)
@pytest.mark.parametrize("verb", ["Backbone", "attach", "attach_trainable", "detach"])
def test_what_is_no_model_is_named(verb: str, what: str) -> None:
    build, told = NO_MODELS[what]
    given = build()
    prefix = foreword.Backbone(tiny_model()).capture(TEXT)
    arguments = (given, prefix) if verb.startswith("attach") else (given,)
    with pytest.raises(UnsupportedModel, match=told):
        getattr(foreword, verb)(*arguments)


@pytest.mark.parametrize("ran", [False, True])
def test_a_compiled_model_carries_a_prefix(ran: bool) -> None:
    """Through the compiled one and the one behind it, whether it was compiled before or not yet."""
    model = tiny_model()
    bare = logits(model)
    compiled = torch.compile(model, backend="eager")
    if ran:
        torch.testing.assert_close(logits(compiled), bare, rtol=1e-5, atol=1e-5)
    prefix = foreword.Backbone(compiled).capture(TEXT)
    foreword.attach(model, prefix)
    wanted = logits(model)
    foreword.detach(model)
    assert foreword.attach(compiled, prefix) is compiled
    assert torch.equal(logits(model), wanted)
    torch.testing.assert_close(logits(compiled), wanted, rtol=1e-5, atol=1e-5)
    foreword.detach(compiled)
    torch.testing.assert_close(logits(compiled), bare, rtol=1e-5, atol=1e-5)
    assert torch.equal(logits(model), bare)
    foreword.attach(compiled, prefix)
    torch.testing.assert_close(logits(compiled), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("task", ["SEQ_CLS", "FEATURE_EXTRACTION", "SEQ_2_SEQ_LM", "mixed"])
def test_a_peft_model_of_any_task_is_the_model_inside(task: str) -> None:
    model = tiny_model()
    lora = peft.LoraConfig(target_modules=["q_proj"])
    if task == "mixed":
        given: Any = peft.PeftMixedModel(model, lora)
    else:
        lora.task_type = task
        given = peft.PeftModel(model, lora)
    backbone = foreword.Backbone(given)
    assert backbone.model is model
    prefix = backbone.capture(TEXT)
    bare = logits(model)
    foreword.attach(given, prefix)
    wanted = logits(model)
    assert float((wanted - bare).abs().max()) > 1e-3
    foreword.detach(given)
    assert torch.equal(logits(model), bare)
