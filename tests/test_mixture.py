"""The value `Mixture`: its branches, its digest, what it refuses, and the sum of log-probabilities."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import foreword
from foreword.errors import DataError, PrefixError
from foreword.mixture import Mixture, combined, opened, plain_or_mixed
from foreword.prefix import Prefix

NONE = -torch.inf


@pytest.fixture
def two(tiny: foreword.Backbone) -> tuple[Prefix, Prefix]:
    return tiny.capture("one text"), tiny.capture("another")


def test_its_branches_add_up_to_one(two: tuple[Prefix, Prefix]) -> None:
    a, b = two
    mixture = foreword.Mixture(((1.5, a), (-0.25, b), (0.5, a)))
    assert [(one.coefficient, one.under) for one in mixture.branches] == [
        (2.0, a),
        (-0.25, b),
        (-0.75, None),
    ]
    assert mixture.coefficients == (2.0, -0.25, -0.75)
    assert mixture.prefix is a
    assert Mixture([[0.25, a], [0.75, b]]).coefficients == (0.25, 0.75)  # type: ignore[arg-type]


def test_weights_may_be_numbers_of_numpy(two: tuple[Prefix, Prefix]) -> None:
    a, b = two
    mixture = Mixture(((np.float32(0.5), a), (np.float64(0.25), b)))  # type: ignore[arg-type]
    assert mixture.coefficients == (0.5, 0.25, 0.25)


def test_a_mixture_of_one_branch_is_that_branch(two: tuple[Prefix, Prefix]) -> None:
    a, b = two
    assert plain_or_mixed(Mixture(((0, b), (1, a)))) is a
    assert plain_or_mixed(Mixture(((0.5, a), (0.5, a)))) is a
    assert plain_or_mixed(Mixture(((0.0, a),))) is None
    assert plain_or_mixed(a) is a
    assert plain_or_mixed(None) is None
    mixture = Mixture(((0.5, a),))
    assert plain_or_mixed(mixture) is mixture
    with pytest.raises(PrefixError, match="prefix must be a Prefix"):
        plain_or_mixed("a")


def test_a_prefix_may_stand_for_a_mixture(two: tuple[Prefix, Prefix]) -> None:
    a, b = two
    stands = foreword.concat(a.strength(1.5), b.strength(-0.25), combination="logits")
    found = Mixture.of(stands)
    assert found is Mixture.of(stands) is opened(stands)
    assert found.coefficients == (1.5, -0.25, -0.25)
    for (_, part), prefix in zip(found.parts, two, strict=True):
        assert not part.meta.pieces
        for own, expected in zip(part.tensors, prefix.tensors, strict=True):
            assert torch.equal(own, expected)
    assert Mixture.of(stands.strength(0.5)).coefficients == (0.75, -0.125, 0.375)
    assert plain_or_mixed(Mixture.of(a)) is a
    assert opened(a) is a
    with pytest.raises(PrefixError, match="prefix must be a Prefix"):
        Mixture.of("a")  # type: ignore[arg-type]


def test_a_mixture_in_a_mixture_is_its_pieces(two: tuple[Prefix, Prefix]) -> None:
    a, b = two
    stands = foreword.concat(a.strength(1.5), b.strength(-0.25), combination="logits")
    found = Mixture(((0.5, stands), (2.0, b)))
    pieces = Mixture.of(stands).parts
    assert found.parts == ((0.75, pieces[0][1]), (-0.125, pieces[1][1]), (2.0, b))
    assert Mixture(((1.0, stands),)).parts == pieces
    with pytest.raises(DataError, match="weight must be a finite number; found 'x'"):
        Mixture((("x", stands),))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="at most 8 prefixes; found 9"):
        Mixture(((0.1, stands),) * 4 + ((0.1, a),))


def test_a_stored_mixture_is_led_by_the_prefix_that_leads_the_live_one(
    two: tuple[Prefix, Prefix],
) -> None:
    a, b = (
        one.with_meta(recipe={"prompt": f"{name} {{x}}", "target": "{y}"})
        for name, one in zip("ab", two, strict=True)
    )
    for weights, leading in (((0.0, 0.5), "b"), ((0.5, 0.5), "a"), ((0.0, 0.0), "a")):
        stands = foreword.concat(
            *(one.strength(weight) for one, weight in zip((a, b), weights, strict=True)),
            combination="logits",
        )
        assert stands.meta.recipe["prompt"] == f"{leading} {{x}}"
        live = Mixture(tuple(zip(weights, (a, b), strict=True))).prefix
        held = Mixture.of(stands).prefix
        assert (live is None) == (held is None)
        if live is not None and held is not None:
            assert held.meta.recipe["prompt"] == live.meta.recipe["prompt"]


def test_its_digest_tells_weights_prefixes_and_their_order_apart(
    two: tuple[Prefix, Prefix],
) -> None:
    a, b = two
    every = [((1, a), (0.5, b)), ((0.5, b), (1, a)), ((1, a), (0.25, b)), ((1, a),), ((0.5, a),)]
    assert len({Mixture(parts).digest for parts in every}) == len(every)
    assert Mixture(every[0]).digest == Mixture(((1.0, a), (0.5, b))).digest
    assert a.digest not in {Mixture(parts).digest for parts in every}


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        (lambda a: (), DataError, "at least one prefix; found none"),
        (lambda a: a, DataError, "parts must be pairs of a weight and a Prefix"),
        (
            lambda a: (a,),
            DataError,
            r"parts must be pairs .*\(\(1.0, a\), \(-0.5, b\)\); found Prefix",
        ),
        (lambda a: ((1, a, 2),), DataError, "parts must be pairs"),
        (lambda a: ((1, "a"),), PrefixError, "a mixture's prefix must be a Prefix.*load_prefix"),
        (lambda a: ((a, 1),), PrefixError, "a mixture's prefix must be a Prefix"),
        (lambda a: (("1", a),), DataError, "weight must be a finite number; found '1'"),
        (lambda a: ((float("nan"), a),), DataError, "weight must be a finite number; found nan"),
        (lambda a: ((0.1, a),) * 9, DataError, "at most 8 prefixes; found 9"),
    ],
)
def test_what_is_no_mixture_is_refused(
    two: tuple[Prefix, Prefix],
    parts: Callable[[Prefix], Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        Mixture(parts(two[0]))


def test_where_no_mixture_is_taken_it_is_refused_by_name(
    tiny: foreword.Backbone, two: tuple[Prefix, Prefix]
) -> None:
    mixture: Any = Mixture(((0.5, two[0]),))
    for call in (
        lambda: foreword.attach(tiny.model, mixture),
        lambda: foreword.save_prefix(mixture, "mixture.safetensors"),
        lambda: foreword.predict(tiny, ["x"], mixture),
        lambda: tiny.check(mixture),
    ):
        with pytest.raises(PrefixError, match="prefix must be a Prefix.*found .*Mixture"):
            call()


def test_log_probabilities_are_added_as_they_count() -> None:
    one, two = torch.randn(2, 3, 11).log_softmax(dim=-1)
    found = combined((one, two), (1.5, -0.5))
    torch.testing.assert_close(found, 1.5 * one - 0.5 * two)
    torch.testing.assert_close(combined(iter([one]), (2.0,)), 2 * one)
    with pytest.raises(ValueError, match="shorter"):
        combined((one,), (1.0, 2.0))


def test_a_token_that_a_branch_rules_out_stays_out() -> None:
    """With a negative coefficient it would be all that is ever chosen, or no number."""
    one = torch.tensor([0.5, 0.25, 0.25, 0.0]).log()
    two = torch.tensor([0.5, 0.5, 0.0, 0.0]).log()
    expected = [1.5 * one[0] - 0.5 * two[0], 1.5 * one[1] - 0.5 * two[1], NONE, NONE]
    assert combined((one, two), (1.5, -0.5)).tolist() == pytest.approx([float(e) for e in expected])
