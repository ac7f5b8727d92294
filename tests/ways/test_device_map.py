"""Models that accelerate has spread or offloaded: its hooks replace the forward of their modules."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from transformers import AutoModelForCausalLM, PreTrainedModel

import foreword
from foreword.errors import UnsupportedModel
from foreword.weights.placement import input_device
from tests.oracle.checks import EXACT, difference
from tests.ways.reference import Way, agrees, generated, way

SPLIT = {
    "model.embed_tokens": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.layers.2": "cpu",
    "model.norm": "cpu",
    "model.rotary_emb": "cpu",
    "lm_head": "cpu",
}
MAPS: dict[str, Any] = {
    "a name": "cpu",
    "a dictionary": {"": "cpu"},
    "split": SPLIT,
    "embeddings on disk": {**SPLIT, "model.embed_tokens": "disk", "lm_head": "disk"},
}


def loaded(case: Way, folder: Path, how: str) -> PreTrainedModel:
    """The case's model from disk under a device map."""
    case.model.save_pretrained(folder / "model")
    model = AutoModelForCausalLM.from_pretrained(
        folder / "model", device_map=MAPS[how], offload_folder=folder / "offload"
    )
    return model.eval()


@pytest.mark.parametrize("how", MAPS)
@pytest.mark.parametrize("tied", [False, True])
def test_a_device_map_changes_nothing(tmp_path: Path, how: str, tied: bool) -> None:
    case = tied_way() if tied else way()
    prefix = case.shared
    model = loaded(case, tmp_path, how)
    expected = [case.logits(case.texts[0], row) for row in case.rows]
    offloaded = any(parameter.is_meta for parameter in model.parameters())
    assert offloaded == (how in {"split", "embeddings on disk"})
    forwards = [module.forward for module in model.modules()]
    bare = model(input_ids=case.rows[0][None]).logits
    backbone = foreword.Backbone(model)
    captured = backbone.capture(case.texts[0].tolist())
    for ours, theirs in zip(captured.keys, prefix.keys, strict=True):
        torch.testing.assert_close(ours, theirs)
    foreword.attach(model, prefix, strict=True)
    with torch.no_grad():
        found = [model(input_ids=row[None]).logits[0] for row in case.rows]
    assert difference(found, expected) <= EXACT
    out = generated(model, case.rows)
    foreword.detach(model)
    assert agrees(case, [case.texts[0]] * 3, case.rows, out)
    assert [module.forward for module in model.modules()] == forwards
    assert torch.equal(model(input_ids=case.rows[0][None]).logits, bare)


def tied_way() -> Way:
    """Embeddings and head share their weights; offloading parts them."""
    case = way()
    config = case.model.config
    config.tie_word_embeddings = True
    torch.manual_seed(0)
    model = type(case.model)(config).eval()
    return dataclasses.replace(case, backbone=foreword.Backbone(model))


def test_hooks_that_come_after_the_prefix() -> None:
    case = way()
    expected = [case.logits(case.texts[0], row) for row in case.rows]
    foreword.attach(case.model, case.shared)
    cpu_offload(case.model, execution_device=torch.device("cpu"))
    with torch.no_grad():
        found = [case.model(input_ids=row[None]).logits[0] for row in case.rows]
    assert difference(found, expected) <= EXACT
    foreword.detach(case.model)
    with torch.no_grad():
        plain = case.model(input_ids=case.rows[0][None]).logits[0]
    assert difference([plain], [expected[0]]) > 100 * EXACT


def test_training_under_a_device_map(tmp_path: Path) -> None:
    """The prefix's gradients come through layers whose weights are brought in from disk."""
    case = way()
    prefix = case.shared
    gradients = []
    for model in (case.model, loaded(case, tmp_path, "split")):
        trained = foreword.attach_trainable(model, prefix)
        loss = model(input_ids=case.rows[0][None], labels=case.rows[0][None]).loss
        parameters = list(trained.parameterization.parameters())
        gradients.append(torch.autograd.grad(loss, parameters))
        foreword.detach(model)
    for ours, theirs in zip(*gradients, strict=True):
        assert float(theirs.abs().max()) > 0
        torch.testing.assert_close(ours, theirs)


def test_a_model_without_weights_is_refused() -> None:
    case = way()
    with torch.device("meta"):
        empty = type(case.model)(case.model.config)
    with pytest.raises(UnsupportedModel, match="from_pretrained"):
        input_device(empty)
    with pytest.raises(UnsupportedModel, match="no weights"):
        foreword.attach(empty, case.shared)
