"""A PeftModel with virtual tokens of its own is no model for a prefix to join: they were ignored."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from torch import nn

import foreword
from foreword.errors import UnsupportedModel
from tests.peft.reference import PEFTS_OWN, backbone_of, model_of, tokens

pytestmark = PEFTS_OWN
LENGTH: dict[str, Any] = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 3}
CONFIGS = {
    "PREFIX_TUNING": peft.PrefixTuningConfig(**LENGTH),
    "PROMPT_TUNING": peft.PromptTuningConfig(**LENGTH),
    "P_TUNING": peft.PromptEncoderConfig(**LENGTH, encoder_hidden_size=8),
}


def of_peft(kind: str) -> nn.Module:
    return peft.get_peft_model(model_of("llama"), CONFIGS[kind])


@pytest.mark.parametrize("kind", CONFIGS)
def test_it_is_refused_by_name_with_what_to_do(kind: str) -> None:
    prefix = backbone_of("llama").capture([1, 2, 3])
    model = of_peft(kind)
    said = rf"virtual tokens of its own \(adapter 'default', {kind}\)"
    with pytest.raises(UnsupportedModel, match=said) as error:
        foreword.Backbone(model)  # type: ignore[arg-type]
    assert "give model.get_base_model()" in str(error.value)
    is_imported = "foreword.import_peft(folder, backbone)" in str(error.value)
    assert is_imported == (kind == "PREFIX_TUNING")
    with pytest.raises(UnsupportedModel, match=said):
        foreword.attach(model, prefix)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedModel, match=said):
        foreword.attach_trainable(model, prefix)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_it_is_refused_behind_torch_compile() -> None:
    model = torch.compile(of_peft("PREFIX_TUNING"))
    with pytest.raises(UnsupportedModel, match="virtual tokens of its own"):
        foreword.Backbone(model)  # type: ignore[arg-type]


def test_the_model_inside_takes_a_prefix_as_the_message_says() -> None:
    row = tokens(4, rows=1)
    prefix = backbone_of("llama").capture([1, 2, 3])
    plain, inside = model_of("llama"), of_peft("PREFIX_TUNING").get_base_model()
    with torch.no_grad():
        expected = foreword.attach(plain, prefix)(row).logits
        assert torch.equal(foreword.attach(inside, prefix)(row).logits, expected)


def test_what_was_attached_before_can_be_taken_off() -> None:
    """PEFT may wrap a model that carries a prefix of ours; detach still restores it."""
    plain = model_of("llama")
    foreword.attach(plain, backbone_of("llama").capture([1, 2, 3]))
    model = peft.get_peft_model(plain, CONFIGS["PROMPT_TUNING"])
    foreword.detach(model)
    row = tokens(4, rows=1)
    with torch.no_grad():
        assert torch.equal(plain(row).logits, model_of("llama")(row).logits)
