"""Our implementation's name in the config of a model without a prefix: it runs as the base one does.

Libraries load a second model under the first one's implementation: TRL's reference models did, and
were refused with advice that did not apply.
"""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import foreword
from foreword.errors import UnsupportedModel
from tests.conftest import tiny_model

ROW = torch.tensor([[17, 60, 4, 99, 201, 33, 8, 120]])


def logits(model: PreTrainedModel, **changes: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(ROW, **changes).logits
    return found


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_a_model_that_is_loaded_under_the_name_is_the_base_one(kernel: str, tmp_path: Path) -> None:
    model = tiny_model()
    model.set_attn_implementation(kernel)
    model.save_pretrained(tmp_path)
    bare = logits(model)
    prefix = foreword.Backbone(model).capture([5, 6, 7])
    foreword.attach(model, prefix)
    wanted = logits(model)
    name = model.config._attn_implementation
    assert name == f"foreword_{kernel}"
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=name)
    torch.testing.assert_close(logits(reference), bare, rtol=1e-5, atol=1e-5)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1]])
    with torch.no_grad():
        short = reference(ROW[:, 2:]).logits
    padded = logits(reference, attention_mask=mask)[:, 2:]
    torch.testing.assert_close(padded, short, rtol=1e-5, atol=1e-5)
    foreword.attach(reference, prefix)  # and it can carry a prefix of its own
    torch.testing.assert_close(logits(reference), wanted, rtol=1e-5, atol=1e-5)
    foreword.detach(reference)
    assert reference.config._attn_implementation == kernel
    foreword.detach(model)
    assert torch.equal(logits(model), bare)


def test_a_copied_config_is_free_and_a_shared_one_is_not() -> None:
    model = tiny_model()
    foreword.attach(model, foreword.Backbone(model).capture([5, 6, 7]))
    free = type(model)(copy.deepcopy(model.config)).eval()
    foreword.Backbone(free)
    twin = copy.deepcopy(model)
    for owner in (model, twin):
        with pytest.raises(UnsupportedModel, match="shared"):
            foreword.Backbone(type(model)(owner.config).eval())
    config = model.config
    foreword.detach(model)
    foreword.Backbone(type(model)(config).eval())


def test_a_saved_model_does_not_name_it(tmp_path: Path) -> None:
    model = tiny_model()
    foreword.attach(model, foreword.Backbone(model).capture([5, 6, 7]))
    model.save_pretrained(tmp_path)
    assert "foreword" not in (tmp_path / "config.json").read_text()
