"""Parameterisations: where they start, what trains, what is frozen, dropped, and resumed."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import foreword
from foreword.errors import TrainingError
from foreword.head import Head
from foreword.methods.prefix.build import parameterise
from foreword.methods.prefix.dropout import PrefixDropout
from foreword.methods.prefix.gated import GatedParameterization
from foreword.methods.prefix.mlp import MLPParameterization
from foreword.methods.prefix.parameterization import DirectParameterization, Parameterization
from foreword.methods.prefix.start import scales, start
from foreword.methods.prefix.trainable import in_own_units
from tests.backbone.test_attach import close, ids, logits
from tests.conftest import byte_tokenizer, tiny_model
from tests.oracle.families import BY_NAME
from tests.train.test_run import Interrupt, changed, equal, nll

Rows = list[dict[str, str]]
KINDS = ("direct", "mlp", "gated")
GATED = {"parameterization": "gated"}


def tensors(prefix: foreword.Prefix) -> tuple[Tensor, ...]:
    return (*prefix.keys, *prefix.values)


def size_of(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# -- where they start --------------------------------------------------------------------------------


def test_an_mlp_starts_exactly_at_the_start(tiny: foreword.Backbone) -> None:
    settings = changed(parameterization="mlp", frozen=2)
    begun = start(tiny, settings)
    made = parameterise(tiny, begun, settings).materialise()
    assert equal(made, begun)
    assert made.meta == begun.meta


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_is_no_key_or_value_is_the_starts(tiny: foreword.Backbone, kind: str) -> None:
    """An MLP or gates by themselves dropped the head, which then neither trained nor was saved."""
    settings = changed(parameterization=kind)
    head = Head("classify", ("a", "b"), "last", torch.ones(2, 32), torch.ones(2))
    begun = start(tiny, settings).with_meta(recipe={"mine": 1}).with_head(head)
    sizes = [1.0] * len(begun.sites)
    direct = DirectParameterization(begun, sizes, sizes)
    made: dict[str, Parameterization] = {
        "direct": direct,
        "mlp": MLPParameterization(begun, sizes, sizes, width=4),
        "gated": GatedParameterization(direct) if kind == "gated" else direct,
    }
    found = made[kind].materialise()
    assert found.head is head
    assert (found.meta, found.sites) == (begun.meta, begun.sites)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_gates_start_at_the_base_model_bit_for_bit(family: str) -> None:
    """Also where positions are added to embeddings: there a text start lies at 0..P-1, and text too."""
    spec = BY_NAME[family]
    spec = dataclasses.replace(spec, config={**spec.config, "vocab_size": 258})
    backbone = foreword.Backbone(spec.build(), byte_tokenizer())
    row = ids(20)[0]
    wanted = logits(backbone.model, row)
    settings = changed(**GATED, frozen=1)
    begun = start(backbone, settings)
    made = parameterise(backbone, begun, settings).materialise()
    assert (made.meta.softmax, made.meta.positions) == ("own", "free")
    assert all(map(torch.equal, made.keys[0][:, :1], begun.keys[0][:, :1]))
    with backbone.attached(made):
        assert torch.equal(logits(backbone.model, row), wanted)


def test_what_is_trained_is_counted(tiny: foreword.Backbone) -> None:
    """Three sites of two key/value heads with keys and values of dimension 12: N = 144."""
    settings = changed(frozen=2)
    begun = start(tiny, settings)
    assert size_of(parameterise(tiny, begun, settings)) == 4 * 144
    gated = changed(frozen=2, **GATED)
    assert size_of(parameterise(tiny, start(tiny, gated), gated)) == 4 * 144 + 3 * 2
    mlp = changed(frozen=2, parameterization="mlp", mlp_width=32)
    assert size_of(parameterise(tiny, begun, mlp)) == 4 * 32 + 32 * 32 + 32 + 33 * 144
    wide = parameterise(tiny, begun, changed(parameterization="mlp"))
    assert isinstance(wide, MLPParameterization)
    assert wide.width == 512


def test_the_mlp_is_the_formula(tiny: foreword.Backbone) -> None:
    """Site 1's values of head 1: start + scale * (tanh(E W1 + b1) W2 + b2), in their own columns."""
    begun = start(tiny, changed())
    mlp = MLPParameterization(begun, *scales(tiny, begun), frozen=1, width=8, seed=3)
    with torch.no_grad():
        for parameter in mlp.parameters():
            parameter.copy_(torch.randn_like(parameter))
    made = mlp.materialise()
    hidden = torch.tanh(mlp.embeddings @ (mlp.inner / 8).T + mlp.inner_bias)
    columns = slice(3 * 24 + 24 + 12, 3 * 24 + 24 + 24)
    moved = hidden @ (mlp.outer[columns] / 8).T + mlp.outer_bias[columns]
    wanted = begun.values[1][1, 1:] + scales(tiny, begun)[1][1] * moved
    torch.testing.assert_close(made.values[1][1, 1:], wanted)
    assert torch.equal(made.values[1][:, :1], begun.values[1][:, :1])


def test_gates_multiply_the_values_of_their_head(tiny: foreword.Backbone) -> None:
    settings = changed(**GATED)
    begun = start(tiny, settings)
    gated = parameterise(tiny, begun, settings)
    assert isinstance(gated, GatedParameterization)
    with torch.no_grad():
        gated.gates[2].copy_(torch.tensor([0.5, -2.0]))
    made = gated.materialise()
    torch.testing.assert_close(made.values[2][0], begun.values[2][0] * math.tanh(0.5))
    torch.testing.assert_close(made.values[2][1], begun.values[2][1] * math.tanh(-2))
    torch.testing.assert_close(made.keys[2], begun.keys[2])
    assert not made.values[1].any()


def test_gradients_of_gates_are_those_of_finite_differences(tiny: foreword.Backbone) -> None:
    settings = changed(**GATED)
    gated = parameterise(tiny, start(tiny, settings), settings)
    assert isinstance(gated, GatedParameterization)
    (row,) = ids(9)

    def loss() -> Tensor:
        with tiny.attached(gated.materialise()):
            return tiny.model(row[None], use_cache=False).logits.logsumexp(-1).mean()

    (gradient,) = torch.autograd.grad(loss(), [gated.gates[1]])
    with torch.no_grad():
        for head in range(2):
            step = torch.zeros(2)
            step[head] = 0.02
            gated.gates[1] += step
            above = loss()
            gated.gates[1] -= 2 * step
            below = loss()
            gated.gates[1] += step
            measured = float(above - below) / 0.04
            assert float(gradient[head]) == pytest.approx(measured, rel=0.05, abs=2e-4)
    assert float(gradient.abs().max()) > 1e-3


# -- training ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mlp", "gated"])
def test_training_lowers_the_nll_and_gives_an_ordinary_prefix(
    tiny: foreword.Backbone, rows: Rows, kind: str, tmp_path: Path
) -> None:
    settings = changed(parameterization=kind, steps=40, lr=0.1, frozen=1, layers="1-2", dropout=0.1)
    begun = start(tiny, settings)
    result = foreword.train(tiny, rows, settings)
    foreword.save_prefix(result.prefix, tmp_path / "p.safetensors")
    found = foreword.load_prefix(tmp_path / "p.safetensors")
    before = parameterise(tiny, begun, settings).materialise()
    assert nll(tiny, found, rows) < nll(tiny, before, rows) - 0.3
    assert [site.label for site in found.sites] == ["decoder.1", "decoder.2"]
    assert found.meta.softmax == ("own" if kind == "gated" else "joint")
    assert found.meta.recipe["parameterization"] == kind
    assert found.meta.training["trained_parameters"] == size_of(parameterise(tiny, begun, settings))
    assert all(map(torch.equal, (k[:, 0] for k in found.keys), (k[:, 0] for k in begun.keys)))


def test_frozen_tokens_stay_and_the_others_do_not(tiny: foreword.Backbone, rows: Rows) -> None:
    settings = changed(frozen=2, steps=3)
    begun = start(tiny, settings)
    found = foreword.train(tiny, rows, settings).prefix
    for old, new in zip(tensors(begun), tensors(found), strict=True):
        assert torch.equal(old[:, :2], new[:, :2])
        assert bool((old[:, 2:] != new[:, 2:]).any(dim=(0, 2)).all())


@pytest.mark.parametrize("kind", ["mlp", "gated"])
def test_a_resumed_run_ends_with_the_undisturbed_prefix_bit_for_bit(
    tiny: foreword.Backbone, rows: Rows, tmp_path: Path, kind: str
) -> None:
    """With dropout, and an evaluation between that must not drop or draw anything."""
    settings = changed(
        parameterization=kind, dropout=0.3, frozen=1, steps=8, accumulate=2, checkpoint_every=3
    )
    how = {"evaluation": rows[:4]}
    whole = foreword.train(tiny, rows, settings, folder=tmp_path / "whole", **how)
    cut = tmp_path / "cut"
    with pytest.raises(SystemExit):
        foreword.train(
            tiny, rows, settings, folder=cut, callbacks=[Interrupt(5, SystemExit())], **how
        )
    resumed = foreword.train(tiny, rows, settings, folder=cut, resume=True, **how)
    assert equal(resumed.prefix, whole.prefix)
    assert resumed.history == whole.history
    without = foreword.train(tiny, rows, changed(**{**settings.as_json(), "dropout": 0.0}), **how)
    assert not equal(without.prefix, whole.prefix)


def test_gradient_checkpointing_drops_the_same_tokens(tiny: foreword.Backbone, rows: Rows) -> None:
    how = {"dropout": 0.4, "steps": 3, **GATED}
    plain = foreword.train(tiny, rows, changed(**how)).prefix
    thrifty = foreword.train(tiny, rows, changed(**how, gradient_checkpointing=True)).prefix
    for one, two in zip(tensors(plain), tensors(thrifty), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


# -- dropout -----------------------------------------------------------------------------------------


def test_dropout_hides_at_its_rate_and_never_the_frozen() -> None:
    dropout = PrefixDropout(0.25, frozen=2, seed=0)
    drawn = torch.tensor([dropout(12) for _ in range(400)])
    assert bool(drawn[:, :2].all())
    assert float(drawn[:, 2:].float().mean()) == pytest.approx(0.75, abs=0.02)
    again = PrefixDropout(0.25, frozen=2, seed=0)
    again.load_state_dict({"passes": torch.tensor(7)})
    assert again(12) == drawn[7].tolist()
    assert PrefixDropout(0.25, frozen=2, seed=1)(12) != drawn[0].tolist()
    dropout.eval()
    assert dropout(12) is None
    assert PrefixDropout(0.0, frozen=0, seed=0)(12) is None


@pytest.mark.parametrize("softmax", ["joint", "own"])
def test_a_hidden_token_is_as_one_that_is_not_there(
    tiny: foreword.Backbone, softmax: foreword.prefix.Softmax
) -> None:
    from foreword.attention.bound import bind

    text, row = ids(5, 9)
    whole = tiny.capture(text.tolist()).with_meta(softmax=softmax)
    kept = [True, False, True, True, False]
    places = [0, 2, 3]
    fewer = foreword.Prefix(
        whole.sites,
        tuple(key[:, places] for key in whole.keys),
        tuple(value[:, places] for value in whole.values),
        whole.meta,
    )
    with tiny.attached(fewer):
        wanted = logits(tiny.model, row)
    with tiny.attached(None) as attachment:
        plain = logits(tiny.model, row)
        with attachment.using(bind(whole, tiny.sites, kept=kept)):
            assert close(logits(tiny.model, row), wanted)
        with attachment.using(bind(whole, tiny.sites, kept=[False] * 5)):
            assert close(logits(tiny.model, row), plain)
    assert not close(wanted, plain)


# -- refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"frozen": -1}, "frozen must be at least 0"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1"),
        ({"dropout": -0.1}, "dropout"),
        ({"layers": "a"}, "layers 'a': cannot read 'a'"),
        ({"mlp_width": 8}, "mlp_width is only used with parameterization='mlp'"),
        ({"parameterization": "mlp", "mlp_width": 0}, "mlp_width must be at least 1"),
        ({"init": "zeros", **GATED}, "cannot learn"),
    ],
)
def test_settings_that_make_no_sense_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        changed(**fields)


def test_a_prefix_that_is_frozen_whole_is_refused(tiny: foreword.Backbone, rows: Rows) -> None:
    with pytest.raises(TrainingError, match="frozen=6 leaves nothing to train of a prefix of 6"):
        foreword.train(tiny, rows, changed(frozen=6))
    with pytest.raises(TrainingError, match="there is no 3"):
        foreword.train(tiny, rows, changed(layers="3"))
    with pytest.raises(TrainingError, match="no stack 'encoder'"):
        foreword.train(tiny, rows, changed(sites="encoder"))


def test_a_zero_free_bfloat16_backbone_trains_gates_too(rows: Rows) -> None:
    half = foreword.Backbone(tiny_model().to(torch.bfloat16), byte_tokenizer(), name="tiny")
    result = foreword.train(half, rows, changed(**GATED, steps=20, lr=0.1))
    losses = [entry["loss"] for entry in result.history]
    assert sum(losses[-5:]) < sum(losses[:5]) - 0.5
    assert result.prefix.dtype == torch.float32


def test_gates_over_a_shared_softmax_are_refused(tiny: foreword.Backbone) -> None:
    with pytest.raises(TrainingError, match="softmax of its own"):
        GatedParameterization(in_own_units(tiny.capture([5, 6])))
