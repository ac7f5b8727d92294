"""The model's own texts, and the divergence from the frozen model that training makes small on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import foreword
from foreword.errors import TrainingError
from foreword.methods.lora import LoraMethod, LoraSettings
from foreword.methods.prefix.settings import PrefixSettings
from foreword.methods.registry import known_method
from foreword.objectives import own_texts as texts
from foreword.objectives.encode import InFront
from foreword.objectives.own_texts import TEXTS, TOKENS, divergence, own_texts, written
from foreword.train.fit import fit
from foreword.train.settings import LoopSettings
from tests.conftest import MEMORY
from tests.oracle.checks import case
from tests.oracle.families import FAMILIES, Family
from tests.tasks.models import CLASSIFY, tiny_encoder
from tests.train.test_run import Interrupt, Rows, changed, equal

BOS, EOS = 0, 1
MARKS = {BOS, EOS}
"""Tokens of the tiny tokenizer that mark something."""

TEXT: dict[str, Any] = {"prompt": "{mr} ->", "target": " {ref}"}


EVERY = [
    pytest.param(family, id=family.title, marks=() if family.available else pytest.mark.skip)
    for family in FAMILIES
]


def likeliest(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Tokens (..., K), and the logarithms of their probabilities."""
    logprobs, tokens = logits.log_softmax(-1).topk(count)
    return tokens, logprobs


def plain_divergence(frozen: Tensor, trained: Tensor) -> Tensor:
    """KL(frozen || trained) over all tokens."""
    logs = frozen.log_softmax(-1), trained.log_softmax(-1)
    return torch.nn.functional.kl_div(logs[1], logs[0], reduction="none", log_target=True).sum(-1)


# -- the divergence ----------------------------------------------------------------------------------


def test_with_all_tokens_it_is_the_plain_divergence() -> None:
    frozen, trained = torch.randn(2, 3, 5, 11).unbind()
    found = divergence(trained, *likeliest(frozen, 11))
    torch.testing.assert_close(found, plain_divergence(frozen, trained), rtol=1e-4, atol=1e-5)


def test_with_some_tokens_it_is_that_over_these_and_the_rest_and_never_more() -> None:
    frozen, trained = torch.randn(2, 4, 11).unbind()
    tokens, logprobs = likeliest(frozen, 3)
    found = divergence(trained, tokens, logprobs)

    def merged(logits: Tensor) -> Tensor:
        p = logits.softmax(-1)
        some = p.gather(-1, tokens)
        return torch.cat([some, 1 - some.sum(-1, keepdim=True)], dim=-1).log()

    wanted = plain_divergence(merged(frozen), merged(trained))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert bool((found <= plain_divergence(frozen, trained) + 1e-6).all())
    assert bool((found > 0).all())


# -- the texts ---------------------------------------------------------------------------------------


def test_what_is_remembered_is_what_the_model_says_without_a_cache(tiny: foreword.Backbone) -> None:
    ids_NT, tokens_NTK, logprobs_NTK = written(tiny, seed=0)
    assert ids_NT.shape == (TEXTS, TOKENS)
    with torch.no_grad():
        logits_NTV = tiny.model(ids_NT).logits
    wanted = logits_NTV.log_softmax(-1).gather(-1, tokens_NTK)
    torch.testing.assert_close(logprobs_NTK, wanted, rtol=1e-4, atol=1e-4)
    least_NT = logits_NTV.log_softmax(-1).topk(tokens_NTK.shape[-1]).values[..., -1]
    assert bool((logprobs_NTK[..., -1] >= least_NT - 1e-4).all())


@pytest.mark.parametrize("family", EVERY)
def test_every_decoder_writes_what_it_says_without_a_cache(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "TEXTS", 3)
    monkeypatch.setattr(texts, "TOKENS", 9)
    made = case(family)
    ids_NT, tokens_NTK, logprobs_NTK = written(made.backbone, seed=0)
    with torch.no_grad():
        logits_NTV = made.model(ids_NT).logits
    assert ids_NT.shape == (3, 9)
    wanted = logits_NTV.log_softmax(-1).gather(-1, tokens_NTK)
    torch.testing.assert_close(logprobs_NTK, wanted, rtol=0, atol=1e-4)


def test_texts_are_drawn_from_the_model_and_differ_by_the_seed(tiny: foreword.Backbone) -> None:
    ids_NT, tokens_NTK, logprobs_NTK = written(tiny, seed=0)
    assert torch.equal(ids_NT, written(tiny, seed=0)[0])
    assert not torch.equal(ids_NT, written(tiny, seed=1)[0])
    assert len(set(map(tuple, ids_NT.tolist()))) == TEXTS
    assert not MARKS & set(ids_NT[:, 0].tolist())
    # The likeliest token follows about as often as the model says that it does.
    follows = (ids_NT[:, 1:] == tokens_NTK[:, :-1, 0]).float().mean()
    assert float(follows) == pytest.approx(float(logprobs_NTK[..., 0].exp().mean()), abs=0.03)


def test_a_bos_is_read_once_whoever_carries_it(
    tiny: foreword.Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreword.Backbone, "bos", "input")
    made = {
        bos: own_texts(tiny, PrefixSettings(**TEXT, kl=1.0), InFront(bos))
        for bos in ("input", "prefix")
    }
    assert made["input"] is not None
    assert set(made["input"].ids_NT[:, 0].tolist()) == {BOS}
    for bos, skipped in (("input", 0), ("prefix", 1)):
        regularizer = made[bos]
        assert regularizer is not None
        batch = regularizer.batch()
        assert batch["input_ids"].shape[1] == batch["likeliest"].shape[1] == TOKENS - skipped
        first = batch["input_ids"][:, 0] == BOS
        assert bool(first.all()) is (bos == "input")


def test_an_encoder_is_refused_by_name() -> None:
    settings = foreword.TrainSettings(length=2, steps=1, kl=1.0)
    with pytest.raises(
        TrainingError, match=r"kl keeps a model .*takes a decoder.*an encoder\. Leave"
    ):
        foreword.train(tiny_encoder(), CLASSIFY, settings)


@pytest.mark.parametrize("kl", [-1.0, float("inf"), float("nan")])
def test_a_weight_is_a_number_from_0(kl: float) -> None:
    with pytest.raises(TrainingError, match="kl must be at least 0"):
        foreword.TrainSettings(kl=kl)


# -- training ----------------------------------------------------------------------------------------


def test_what_changes_nothing_yet_costs_nothing(tiny: foreword.Backbone, rows: Rows) -> None:
    """A gated prefix starts at the frozen model, from which nothing diverges."""
    plain, kept = (
        foreword.train(tiny, rows, changed(steps=1, parameterization="gated", kl=kl)).history[0]
        for kl in (0.0, 1000.0)
    )
    assert kept["loss"] == pytest.approx(plain["loss"], abs=1e-3)


def test_the_first_loss_has_the_weighted_divergence(tiny: foreword.Backbone, rows: Rows) -> None:
    first = [
        foreword.train(tiny, rows, changed(steps=1, kl=kl)).history[0]["loss"] for kl in (0, 1, 2)
    ]
    assert first[1] - first[0] > 0.01
    assert first[2] - first[0] == pytest.approx(2 * (first[1] - first[0]), rel=1e-3)


def moved(backbone: foreword.Backbone, prefix: foreword.Prefix) -> float:
    """How far the model under a prefix is from itself, on texts that were not trained on."""
    ids_NT, tokens_NTK, logprobs_NTK = written(backbone, seed=99)
    with torch.no_grad(), backbone.attached(prefix):
        logits_NTV = backbone.model(ids_NT).logits
    return float(divergence(logits_NTV, tokens_NTK, logprobs_NTK).mean())


def test_a_prefix_that_is_kept_near_diverges_less(tiny: foreword.Backbone, rows: Rows) -> None:
    far, near = (
        foreword.train(tiny, rows, changed(steps=40, lr=0.3, kl=kl)).prefix for kl in (0.0, 30.0)
    )
    assert moved(tiny, near) < 0.5 * moved(tiny, far)


def test_lora_that_is_kept_near_diverges_less(tiny: foreword.Backbone) -> None:
    loop = LoopSettings(steps=30, batch_size=4, lr=0.02)

    def of(kl: float) -> float:
        settings = LoraSettings(**TEXT, kl=kl)
        fitted = fit(tiny, MEMORY, LoraMethod(), settings, loop)
        texts = written(tiny, seed=99)
        with torch.no_grad(), fitted.start.applied(fitted.value) as applied:
            logits_NTV = applied.backbone.model(texts[0]).logits
        return float(divergence(logits_NTV, *texts[1:]).mean())

    assert of(30.0) < 0.5 * of(0.0)


def test_a_resumed_run_draws_the_texts_that_it_would_have(
    tiny: foreword.Backbone, rows: Rows, tmp_path: Path
) -> None:
    settings = changed(kl=1.0)
    wanted = foreword.train(tiny, rows, settings, folder=tmp_path / "whole").prefix
    given: dict[str, Any] = {"folder": tmp_path / "cut"}
    with pytest.raises(SystemExit):
        foreword.train(tiny, rows, settings, callbacks=[Interrupt(6, SystemExit())], **given)
    assert equal(foreword.train(tiny, rows, settings, resume=True, **given).prefix, wanted)


def test_evaluation_is_the_loss_of_rows_alone(tiny: foreword.Backbone, rows: Rows) -> None:
    history = foreword.train(
        tiny, rows, changed(steps=4, lr=1e-9, batch_size=12, kl=5.0), evaluation=rows
    ).history
    evaluated = next(entry["eval_loss"] for entry in history if "eval_loss" in entry)
    plain = foreword.train(tiny, rows, changed(steps=1, batch_size=12)).history[0]["loss"]
    assert evaluated == pytest.approx(plain, rel=1e-4)


def test_the_recipe_says_it_where_it_is_used(tiny: foreword.Backbone, rows: Rows) -> None:
    assert "kl" not in changed().as_json()
    prefix = foreword.train(tiny, rows, changed(steps=1, kl=0.5)).prefix
    assert prefix.meta.recipe["kl"] == 0.5


def test_any_method_is_compared_under_it() -> None:
    for word in ("prefix+kl=0.5", "lora+kl=0.5+rank=2", "full+kl=0.5"):
        known = known_method(word)
        made = known.made(known.settings(**TEXT))
        assert made.kl == 0.5
        assert "kl=0.5" in known.named(made)
