"""Training over an 8-bit backbone: what it learns, where the prefix serves, how a run goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainingArguments

import foreword
from foreword.errors import TrainingError
from foreword.methods.prefix.start import start
from tests.train.test_run import SETTINGS, Interrupt, Rows, changed, equal, nll


@pytest.fixture
def int8(tiny_folder: Path) -> foreword.Backbone:
    return foreword.load(str(tiny_folder), dtype="float32", quantize="int8")


@pytest.fixture
def plain(tiny_folder: Path) -> foreword.Backbone:
    return foreword.load(str(tiny_folder), dtype="float32")


def test_training_lowers_the_nll_on_both_backbones_whichever_it_trained_on(
    int8: foreword.Backbone, plain: foreword.Backbone, rows: Rows
) -> None:
    settings = changed(steps=30, lr=0.3, checkpoint_every=30)
    on_int8, on_plain = (foreword.train(b, rows, settings).prefix for b in (int8, plain))
    for backbone in (int8, plain):
        before = nll(backbone, start(backbone, SETTINGS), rows)
        for prefix in (on_int8, on_plain):
            backbone.check(prefix, strict=True)
            assert nll(backbone, prefix, rows) < before - 0.3
    assert not equal(on_int8, on_plain)
    assert on_int8.meta.training["quantization"] == "int8"
    assert on_plain.meta.training["quantization"] is None
    assert on_int8.meta.fingerprint == on_plain.meta.fingerprint


def test_training_leaves_the_rounded_weights_alone(int8: foreword.Backbone, rows: Rows) -> None:
    def numbers() -> list[torch.Tensor]:
        every = (getattr(p, "qdata", p) for p in int8.model.parameters())
        return [tensor.clone() for tensor in every]

    before = numbers()
    foreword.train(int8, rows, changed(steps=3))
    assert all(map(torch.equal, before, numbers()))
    assert "_foreword_attachment" not in int8.model.__dict__


def test_the_first_loss_is_the_nll_of_the_start(int8: foreword.Backbone, rows: Rows) -> None:
    result = foreword.train(int8, rows, changed(batch_size=12, steps=1))
    wanted = nll(int8, start(int8, SETTINGS), rows)
    assert result.history[0]["loss"] == pytest.approx(wanted, rel=1e-4)


def test_gradient_checkpointing_trains_the_same_prefix(int8: foreword.Backbone, rows: Rows) -> None:
    whole = foreword.train(int8, rows, changed(steps=4)).prefix
    thrifty = foreword.train(int8, rows, changed(steps=4, gradient_checkpointing=True)).prefix
    pairs = zip((*whole.keys, *whole.values), (*thrifty.keys, *thrifty.values), strict=True)
    for one, two in pairs:
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_a_killed_run_goes_on_to_the_same_prefix(
    int8: foreword.Backbone, plain: foreword.Backbone, rows: Rows, tmp_path: Path
) -> None:
    wanted = foreword.train(int8, rows, SETTINGS, folder=tmp_path / "whole").prefix
    cut = tmp_path / "cut"
    with pytest.raises(SystemExit):
        foreword.train(int8, rows, SETTINGS, folder=cut, callbacks=[Interrupt(6, SystemExit())])
    with pytest.raises(TrainingError, match="another backbone"):
        foreword.train(plain, rows, SETTINGS, folder=cut, resume=True)
    assert equal(foreword.train(int8, rows, SETTINGS, folder=cut, resume=True).prefix, wanted)


def test_a_folder_of_8_bit_weights_trains_the_same_prefix(
    int8: foreword.Backbone, rows: Rows, tmp_path: Path
) -> None:
    int8.model.save_pretrained(tmp_path / "rounded")
    int8.tokenizer.save_pretrained(tmp_path / "rounded")
    again = foreword.load(str(tmp_path / "rounded"), dtype="float32")
    one, two = (foreword.train(b, rows, changed(steps=3)).prefix for b in (int8, again))
    assert equal(one, two)
    assert two.meta.training["quantization"] == "int8"
    foreword.attach_trainable(again.model, again.capture("food[Thai]"))
    with pytest.raises(ValueError, match="purely quantized"):
        Trainer(again.model, TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"))
    foreword.detach(again)


def test_transformers_trainer_does_what_a_loop_of_ones_own_does(
    int8: foreword.Backbone, tmp_path: Path
) -> None:
    ids = list(range(40, 48))
    first = int8.capture("food[Thai]")
    wanted = by_hand(int8, first, torch.tensor([ids]))
    trained = foreword.attach_trainable(int8.model, first)
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=STEPS,
        learning_rate=0.1,
        weight_decay=0.0,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        per_device_train_batch_size=1,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    rows = [{"input_ids": ids, "labels": ids}] * STEPS
    trainer = Trainer(int8.model, arguments, train_dataset=rows)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses == pytest.approx(wanted, rel=1e-4)
    assert losses[-1] < losses[0] - 0.2
    assert trained.prefix().length == first.length
    foreword.detach(int8)


STEPS = 12


def by_hand(backbone: foreword.Backbone, first: foreword.Prefix, ids: torch.Tensor) -> list[float]:
    """Losses of a plain loop over the same row; every parameter must get a gradient."""
    trained = foreword.attach_trainable(backbone.model, first)
    parameters = list(trained.parameterization.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.0)
    losses = []
    for _ in range(STEPS):
        loss = backbone.model(ids, labels=ids).loss
        optimiser.zero_grad()
        loss.backward()
        assert all(float(parameter.grad.abs().max()) > 0 for parameter in parameters)
        optimiser.step()
        losses.append(float(loss.detach()))
    foreword.detach(backbone)
    return losses
