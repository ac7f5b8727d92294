"""Drawing tokens: what is kept, how often each comes, and what reproduces."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from foreword.engine.request import Sampling
from foreword.engine.slots.sampler import Draw, _kept, logprobs_of, sample

CPU = torch.device("cpu")
LOGITS = torch.tensor([[1.0, 3.0, 2.0, -1.0, 0.0]])


def draws(count: int, **options: object) -> list[int]:
    draw = Draw.begin(Sampling(**options), CPU)  # type: ignore[arg-type]
    return [sample(LOGITS, [draw])[0] for _ in range(count)]


def kept(top_k: int, top_p: float) -> set[int]:
    return set(_kept(LOGITS[0], top_k, top_p).isfinite().nonzero()[:, 0].tolist())


@pytest.mark.parametrize("temperature", [0.0, 1e-320, 1e-40, 9e-6])
@pytest.mark.parametrize("top_p", [1.0, 0.5])
def test_without_temperature_the_likeliest_is_taken(temperature: float, top_p: float) -> None:
    """Logits divided by a temperature near 0 are infinite, and some other token was taken."""
    assert draws(5, temperature=temperature, top_p=top_p) == [1] * 5


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_come_as_often_as_the_softmax_says(temperature: float) -> None:
    found = Counter(draws(4000, temperature=temperature, seed=0))
    expected = torch.softmax(LOGITS[0] / temperature, dim=-1)
    for token in range(5):
        assert found[token] / 4000 == pytest.approx(float(expected[token]), abs=0.025)


def test_what_top_k_and_top_p_keep() -> None:
    probabilities = torch.softmax(LOGITS[0], dim=-1)  # 1 and 2 together 0.87
    assert float(probabilities[1] + probabilities[2]) == pytest.approx(0.87, abs=0.01)
    assert kept(0, 1.0) == {0, 1, 2, 3, 4}
    assert kept(2, 1.0) == {1, 2}
    assert kept(99, 1.0) == {0, 1, 2, 3, 4}
    assert kept(0, 0.5) == {1}
    assert kept(0, 0.8) == {1, 2}
    assert kept(0, 0.95) == {0, 1, 2}
    assert kept(1, 0.95) == {1}


def test_top_p_looks_further_where_the_candidates_are_too_few() -> None:
    flat = torch.zeros(5000)
    assert int(_kept(flat, 0, 0.9).isfinite().sum()) == pytest.approx(4500, abs=2)


def test_the_seed_decides() -> None:
    assert draws(20, seed=3) == draws(20, seed=3) != draws(20, seed=4)


def test_each_row_is_drawn_under_its_own_options() -> None:
    rows = [
        Draw.begin(Sampling(temperature=0.0), CPU),
        Draw.begin(Sampling(temperature=0.0, logit_bias={3: 100.0}), CPU),
        Draw.begin(Sampling(temperature=0.0, presence_penalty=5.0), CPU),
    ]
    tokens = [sample(LOGITS.expand(3, -1), rows) for _ in range(3)]
    assert [one[0] for one in tokens] == [1, 1, 1]
    assert [one[1] for one in tokens] == [3, 3, 3]
    assert [one[2] for one in tokens] == [1, 2, 0]
    assert torch.equal(LOGITS, torch.tensor([[1.0, 3.0, 2.0, -1.0, 0.0]]))


def test_log_probabilities_sum_to_one() -> None:
    told = logprobs_of(LOGITS[0], 4, top=5)
    assert sum(torch.tensor([value for _, value in told.top]).exp()) == pytest.approx(1.0)
    assert [token for token, _ in told.top] == [1, 2, 0, 4, 3]
    assert told.logprob == dict(told.top)[4]
