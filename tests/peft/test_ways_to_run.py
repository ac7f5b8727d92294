"""The guide's table: ways to run in which PEFT fails, with the same prefix here.

PEFT's failures are those of PEFT 0.21.2 on transformers 5.23; with 5.16 its static cache works.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, PrefixTuningConfig, get_peft_model

import foreword
from foreword.prefix import Prefix
from tests.oracle.checks import checkpoint_activations
from tests.peft.reference import PEFTS_OWN, apart, backbone_of, checkpoint, greedy, model_of, tokens

pytestmark = [
    PEFTS_OWN,
    pytest.mark.filterwarnings("ignore:.*cache.*compil:UserWarning"),
]
EXACT = 1e-5


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return checkpoint(model_of("llama"), tmp_path / "peft")


@pytest.fixture
def prefix(folder: Path) -> Prefix:
    return foreword.import_peft(folder, backbone_of("llama"))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"cache_implementation": "static"}, AttributeError),
        ({"prefill_chunk_size": 4}, RuntimeError),
        ({"use_cache": False}, RuntimeError),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else value.__name__,
)
def test_generation(
    options: dict[str, Any], error: type[Exception], folder: Path, prefix: Prefix
) -> None:
    ids = tokens(9)
    arguments = {**greedy(ids), **options}
    with pytest.raises(error):
        PeftModel.from_pretrained(model_of("llama"), folder).generate(input_ids=ids, **arguments)
    plain = PeftModel.from_pretrained(model_of("llama"), folder)
    expected = plain.generate(input_ids=ids, **greedy(ids))
    model = model_of("llama")
    foreword.attach(model, prefix)
    assert torch.equal(model.generate(ids, **arguments), expected)


def test_another_prefix_per_row(folder: Path, prefix: Prefix, tmp_path: Path) -> None:
    ids = tokens(9)
    model = PeftModel.from_pretrained(model_of("llama"), folder)
    model.load_adapter(folder, "other")
    names = ["default", "other"]
    with pytest.raises(ValueError, match="adapter_names"):
        model.generate(input_ids=ids, adapter_names=names, **greedy(ids))
    longer = checkpoint(model_of("llama"), tmp_path / "longer", num_virtual_tokens=8)
    backbone = backbone_of("llama")
    both = [prefix, foreword.import_peft(longer, backbone)]
    with backbone.attached(both):
        found = backbone.model.generate(ids, **greedy(ids))
    for row, place in enumerate((folder, longer)):
        alone = PeftModel.from_pretrained(model_of("llama"), place)
        expected = alone.generate(input_ids=ids[row : row + 1], **greedy(ids[row : row + 1]))
        assert torch.equal(found[row], expected[0])


def test_gradient_checkpointing(prefix: Prefix) -> None:
    model = model_of("llama")
    checkpoint_activations(model, enable=True)
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    with pytest.raises(ValueError, match="does not work with gradient checkpointing"):
        get_peft_model(model, config)
    ids = tokens(9)
    gradients = []
    for enable in (False, True):
        backbone = backbone_of("llama")
        checkpoint_activations(backbone.model, enable=enable)
        backbone.model.train()
        leaves = tuple(key.clone().requires_grad_() for key in prefix.keys)
        live = Prefix(prefix.sites, leaves, prefix.values, prefix.meta)
        with backbone.attached(live):
            loss = backbone.model(ids, labels=ids, use_cache=False).loss
            gradients.append(torch.autograd.grad(loss, leaves))
    for checkpointed, plain in zip(*gradients, strict=True):
        assert float(plain.abs().max()) > 0
        assert torch.allclose(checkpointed, plain, rtol=0, atol=1e-6)


def test_left_padding(folder: Path, prefix: Prefix) -> None:
    ids = tokens(9)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    model = PeftModel.from_pretrained(model_of("llama"), folder)
    backbone = backbone_of("llama")
    with torch.no_grad():
        alone = model(ids[1:, 4:]).logits[0]
        assert apart(model(ids, attention_mask=mask).logits[1, 4:], alone) > 1e-3
        with backbone.attached(prefix):
            found = backbone.model(ids, attention_mask=mask).logits[1, 4:]
    assert apart(found, alone) <= EXACT
