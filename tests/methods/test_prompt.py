"""Prompt tuning and P-tuning of decoders against peft used by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PromptEncoderConfig, PromptTuningConfig, TaskType, get_peft_model

import foreword
from foreword.errors import DataError, TrainingError
from foreword.methods.prompt import PromptMethod, PromptSettings, PTuningMethod, PTuningSettings
from foreword.train.fit import fit
from foreword.train.settings import LoopSettings
from tests.conftest import MEMORY, byte_tokenizer, tiny_model
from tests.methods.by_hand import IDS, LOOP, TEXT, batch_of, train
from tests.peft.reference import PEFTS_OWN
from tests.tasks.models import ROWS as LABELLED
from tests.train.test_run import StopAt

LENGTH = 5
METHODS: dict[str, tuple[Any, Any]] = {
    "prompt-tuning": (PromptMethod(), PromptSettings(**TEXT, length=LENGTH, init="vocab")),
    "p-tuning": (PTuningMethod(), PTuningSettings(**TEXT, length=LENGTH, width=24)),
}

Backbone = foreword.Backbone


def by_hand(name: str, seed: int = 0) -> tuple[Any, torch.Tensor]:
    """A PeftModel that plain PyTorch trained on the same batch, and its virtual embeddings (P, D)."""
    backbone = Backbone(tiny_model(), byte_tokenizer())
    method, settings = METHODS[name]
    batch = batch_of(backbone, method, settings)
    torch.manual_seed(seed)
    if name == "prompt-tuning":
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(258, (LENGTH,), generator=generator)
        config: Any = PromptTuningConfig(num_virtual_tokens=LENGTH, task_type=TaskType.CAUSAL_LM)
        model = get_peft_model(backbone.model, config)
        embedding: Any = model.prompt_encoder["default"]
        embedding.embedding.weight.data = (
            backbone.model.get_input_embeddings()(ids).detach().clone()
        )
    else:
        config = PromptEncoderConfig(
            num_virtual_tokens=LENGTH, encoder_hidden_size=24, task_type=TaskType.CAUSAL_LM
        )
        model = get_peft_model(backbone.model, config)
    model.eval()
    parameters = [p for p in model.parameters() if p.requires_grad]
    train(parameters, lambda ids, mask: model(ids, mask).logits[:, LENGTH:], batch)
    encoder: Any = model.prompt_encoder["default"]
    with torch.no_grad():
        return model, encoder(torch.arange(LENGTH)[None])[0]


@PEFTS_OWN
@pytest.mark.parametrize("name", METHODS)
def test_training_is_that_of_peft_used_by_hand(tiny: Backbone, name: str) -> None:
    method, settings = METHODS[name]
    found = fit(tiny, MEMORY, method, settings, LOOP)
    model, embeddings_PD = by_hand(name)
    torch.testing.assert_close(found.value.embeddings_PD, embeddings_PD, rtol=1e-4, atol=1e-5)
    with torch.no_grad(), found.start.applied(found.value) as applied:
        with applied.backbone.attached(applied.prefix):
            mine = applied.backbone.model(IDS).logits
        theirs = model(IDS).logits[:, LENGTH:]
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_a_killed_run_goes_on_to_the_same_bits(tiny: Backbone, tmp_path: Path, name: str) -> None:
    method, settings = METHODS[name]
    loop = LoopSettings(optimizer="soap", lr=0.01, steps=6, checkpoint_every=2)
    whole = fit(tiny, MEMORY, method, settings, loop).value
    fit(tiny, MEMORY, method, settings, loop, folder=tmp_path, callbacks=[StopAt(3)])
    again = fit(tiny, MEMORY, method, settings, loop, folder=tmp_path, resume=True).value
    assert torch.equal(again.embeddings_PD, whole.embeddings_PD)


def test_the_best_evaluation_is_kept_and_read_again(tiny: Backbone, tmp_path: Path) -> None:
    """What is learned makes other targets less likely, so that the first evaluation is the best."""
    others = [{"mr": row["mr"], "ref": "#" * 9} for row in MEMORY[:4]]
    loop = LoopSettings(optimizer="adamw", lr=0.1, steps=4, checkpoint_every=1, warmup=0.0)
    method, settings = METHODS["prompt-tuning"]
    found = fit(tiny, MEMORY, method, settings, loop, evaluation=others, folder=tmp_path)
    losses = [one["eval_loss"] for one in found.history if "eval_loss" in one]
    assert losses.index(min(losses)) < len(losses) - 1
    evaluated = foreword.evaluate(
        tiny,
        found.value.prefix.with_meta(recipe=settings.as_json()),
        others,
        base=False,
        options=foreword.GenerateOptions(max_new_tokens=1),
    )
    assert isinstance(evaluated, foreword.Evaluation)
    assert evaluated.prefix.nll == pytest.approx(min(losses), rel=1e-4)


def test_a_head_is_trained_beside_it(tiny: Backbone) -> None:
    settings = PromptSettings(task="classify", length=LENGTH)
    loop = LoopSettings(optimizer="adamw", lr=0.003, steps=30, batch_size=12)
    found = fit(tiny, LABELLED["classify"], PromptMethod(), settings, loop)
    head = found.value.prefix.head
    assert head is not None
    assert head.weight.any()
    losses = [one["loss"] for one in found.history if "loss" in one]
    assert losses[-1] < 0.8 * losses[0]
    assert found.value.numbers == found.start.numbers == LENGTH * 32 + head.weight.numel() + 2


def test_what_is_trained_is_counted(tiny: Backbone) -> None:
    counts = {}
    for name, (method, settings) in METHODS.items():
        found = fit(tiny, MEMORY, method, settings, LOOP)
        counts[name] = found.training["trained_parameters"]
        assert found.value.numbers == LENGTH * 32
    mlp = 32 * 24 + 24 + 24 * 24 + 24 + 24 * 32 + 32
    assert counts == {"prompt-tuning": LENGTH * 32, "p-tuning": LENGTH * 32 + mlp}


def test_settings_are_checked(tiny: Backbone) -> None:
    with pytest.raises(TrainingError, match="length must be"):
        PromptSettings(**TEXT, length=0)
    with pytest.raises(TrainingError, match="init must be one of text, vocab"):
        PromptSettings(**TEXT, init="noise")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="leaves"):
        fit(tiny, MEMORY, PromptMethod(), PromptSettings(**TEXT, length=255), LOOP)
