"""transformers' Trainer over `attach_trainable`, against gradient descent through the cache by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

import foreword
from foreword.errors import UnsupportedModel
from foreword.prefix import WindowPolicy
from tests.ways.reference import Way, way
from tests.ways.training import arguments, by_hand, collated, losses_of

HOWS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 3},
    "checkpointed": {"checkpointing": True},
}
CASES: list[tuple[str, WindowPolicy, str]] = [
    *(("llama", "visible", how) for how in HOWS),
    ("gpt2", "visible", "plain"),
    ("gpt2", "visible", "checkpointed"),
    ("mistral", "windowed", "plain"),
    ("mistral", "visible", "checkpointed"),
    ("gemma2", "windowed", "accumulated"),
    ("qwen3", "visible", "plain"),
]


def trainer(case: Way, folder: Path, **how: Any) -> Trainer:
    rows = [{"input_ids": row.tolist()} for row in case.rows]
    return Trainer(case.model, arguments(folder, **how), train_dataset=rows, data_collator=collated)


@pytest.mark.parametrize(("family", "windows", "how"), CASES)
def test_trainer_does_what_is_done_by_hand_through_the_cache(
    family: str, windows: WindowPolicy, how: str, tmp_path: Path
) -> None:
    case = way(family, windows)
    start = case.shared
    wanted, tensors = by_hand(case, start)
    trained = foreword.attach_trainable(case.model, start)
    run = trainer(case, tmp_path, **HOWS[how])
    run.train()
    assert losses_of(run) == pytest.approx(wanted, rel=1e-5)
    assert losses_of(run)[-1] < losses_of(run)[0]
    found = trained.prefix()
    told = zip((*found.keys, *found.values), tensors, (*start.keys, *start.values), strict=True)
    for ours, theirs, before in told:
        learned = theirs - before
        assert float(learned.abs().max()) > 1e-4, "nothing was learned"
        assert float((ours - before - learned).abs().max()) <= 1e-3 * float(learned.abs().max())


def test_the_models_own_parameters_are_as_they_were(tmp_path: Path) -> None:
    """Frozen while the prefix trains; afterwards the model is the one that it was, bit for bit."""
    case = way()
    odd = list(case.model.parameters())[1::2]
    for parameter in odd:
        parameter.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in case.model.state_dict().items()}
    required = [parameter.requires_grad for parameter in case.model.parameters()]
    trained = foreword.attach_trainable(case.model, case.shared)
    learned = {p for p in case.model.parameters() if p.requires_grad}
    assert learned == set(trained.parameterization.parameters())
    trainer(case, tmp_path).train()
    assert foreword.detach(case.model) is case.model
    after = case.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert [parameter.requires_grad for parameter in case.model.parameters()] == required
    assert not hasattr(case.model, "foreword_prefix")
    assert "_foreword_attachment" not in case.model.__dict__


def test_the_finished_prefix_attached_gives_the_logits_that_training_had(tmp_path: Path) -> None:
    case = way("gpt2")
    trained = foreword.attach_trainable(case.model, case.shared)
    trainer(case, tmp_path).train()
    case.model.eval()
    with torch.no_grad():
        live = case.model(case.rows[0][None]).logits
        foreword.attach(case.model, trained.prefix())
        assert not hasattr(case.model, "foreword_prefix")
        torch.testing.assert_close(case.model(case.rows[0][None]).logits, live)
        foreword.attach(case.model, case.shared)
        assert float((case.model(case.rows[0][None]).logits - live).abs().max()) > 1e-3


def test_a_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    """The whole model's state dict is saved, the prefix in it; AdamW's state as well."""
    how: dict[str, Any] = {"optim": "adamw_torch", "learning_rate": 0.01, "save_strategy": "steps"}
    case = way()
    whole = foreword.attach_trainable(case.model, case.shared)
    trainer(case, tmp_path, save_steps=2, max_steps=4, **how).train()
    other = way()
    again = foreword.attach_trainable(other.model, other.shared)
    run = trainer(other, tmp_path, save_steps=2, max_steps=4, **how)
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert len(losses_of(run)) == 4
    for ours, theirs in zip(again.prefix().keys, whole.prefix().keys, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    assert not torch.equal(whole.prefix().keys[0], case.shared.keys[0])


def test_reentrant_checkpointing_is_refused(tmp_path: Path) -> None:
    """It gives no gradient to what a layer does not take as an argument."""
    case = way()
    foreword.attach_trainable(case.model, case.shared)
    run = trainer(case, tmp_path, checkpointing=True)
    new = hasattr(run.args, "activation_checkpointing_kwargs")
    name = f"{'activation' if new else 'gradient'}_checkpointing_kwargs"
    setattr(run.args, name, {"use_reentrant": True})
    with pytest.raises(UnsupportedModel, match="use_reentrant"):
        run.train()
