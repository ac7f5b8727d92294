"""Families and ways of running that cannot carry a prefix are refused by name, and left as found."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel

import foreword
from foreword.attention.attachment import Attachment
from foreword.errors import UnsupportedModel
from tests.conftest import tiny_model
from tests.oracle import checks
from tests.oracle.families import BY_NAME

_TINY = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "n_layer": 2,
    "num_attention_heads": 4,
    "n_head": 4,
    "intermediate_size": 48,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS = {
    "mamba": {**_TINY, "state_size": 4},
    "mamba2": {**_TINY, "state_size": 8, "num_heads": 4, "head_dim": 16, "n_groups": 1},
    "rwkv": {**_TINY, "attention_hidden_size": 32},
    "deberta-v2": _TINY,
}
REASONS = {
    "mamba": "has no attention",
    "mamba2": "has no attention",
    "rwkv": "has no attention",
    "deepseek_v32": "its sparse attention mask is skipped under any implementation but its own",
    "glm_moe_dsa": "its sparse attention mask is skipped under any implementation but its own",
    "llama4": "it has a vision tower (planned); its language model alone is served (llama4_text)",
    "llama4_text, window policy `windowed`": "the borders between its chunks would move",
    "deberta-v2": "does not call attention through transformers' AttentionInterface",
}
"""What docs/families.md says about them."""


def build(family: str) -> PreTrainedModel:
    config = AutoConfig.for_model(family, **CONFIGS[family])
    auto = AutoModel if family == "deberta-v2" else AutoModelForCausalLM
    torch.manual_seed(0)
    return auto.from_config(config).eval()


@pytest.mark.parametrize("family", CONFIGS)
def test_family_is_refused_by_name_and_left_as_it_was(family: str) -> None:
    model = build(family)
    before = model.config._attn_implementation
    with pytest.raises(UnsupportedModel, match=family):
        foreword.Backbone(model)
    assert model.config._attn_implementation == before
    assert "generate" not in model.__dict__
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_switch_that_changes_logits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import foreword.attention.call

    real = foreword.attention.call.kernel_of

    def wrong(attention: type, base: str) -> object:
        def kernel(*args: object, **kwargs: object) -> object:
            out, weights = real(attention, base)(*args, **kwargs)
            return out * 1.01, weights

        return kernel

    monkeypatch.setattr("foreword.attention.call.kernel_of", wrong)
    model = tiny_model()
    with pytest.raises(UnsupportedModel, match="changes its logits"):
        foreword.Backbone(model)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("kernel", ["flex_attention", "flash_attention_2", "paged|eager"])
def test_other_kernels_are_refused_by_name(kernel: str) -> None:
    model = tiny_model()
    model.config._attn_implementation_internal = kernel
    with pytest.raises(UnsupportedModel, match=kernel.replace("|", r"\|")):
        Attachment(model)
    assert model.config._attn_implementation == kernel


def test_a_config_shared_with_an_attached_model_is_refused() -> None:
    first = tiny_model()
    second = type(first)(first.config).eval()
    foreword.attach(first, foreword.Backbone(first).capture([5, 6, 7]))
    with pytest.raises(UnsupportedModel, match="shared"):
        foreword.attach(second, foreword.Backbone(first).capture([5, 6, 7]))


def test_windowed_prefixes_are_refused_where_attention_is_chunked() -> None:
    case = checks.case(BY_NAME["llama4_text"])
    prefix = case.prefix().with_meta(windows="windowed")
    with pytest.raises(UnsupportedModel, match="chunks"), case.backbone.attached(prefix):
        pass
    with pytest.raises(UnsupportedModel, match="visible"):
        foreword.attach(case.model, prefix)
    assert case.model.config._attn_implementation == "sdpa"
