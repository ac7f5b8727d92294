"""The chunked NLL against PyTorch's cross-entropy, values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from foreword.objectives import nll
from foreword.objectives.nll import token_nll

TARGETS, VOCABULARY = 37, 101


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("chunk", [1, 8, TARGETS, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_equal_cross_entropy(
    monkeypatch: pytest.MonkeyPatch, chunk: int, dtype: torch.dtype, fused: bool
) -> None:
    if fused:  # what a GPU runs
        monkeypatch.setattr(nll, "_sizes", nll._fused_sizes)
        monkeypatch.setattr(nll, "_gradient", nll._fused_gradient)
    monkeypatch.setitem(nll.CHUNK_BYTES, "cpu", 4 * VOCABULARY * chunk)
    torch.manual_seed(0)
    logits = (3 * torch.randn(TARGETS, VOCABULARY)).to(dtype).requires_grad_()
    targets = torch.randint(VOCABULARY, (TARGETS,))
    weights = torch.rand(TARGETS)
    own, hits = token_nll(logits, targets)
    (gradient,) = torch.autograd.grad((own * weights).sum(), logits)
    expected = nn.functional.cross_entropy(logits.float(), targets, reduction="none")
    (wanted,) = torch.autograd.grad((expected * weights).sum(), logits)
    torch.testing.assert_close(own, expected, atol=1e-5, rtol=1e-5)
    tight = dtype == torch.float32
    torch.testing.assert_close(
        gradient, wanted, atol=1e-6 if tight else 1e-3, rtol=1e-5 if tight else 1e-2
    )
    assert gradient.dtype == dtype
    assert hits.tolist() == (logits.argmax(-1) == targets).tolist()


def test_large_logits_stay_finite() -> None:
    logits = torch.tensor([[3e4, -3e4, 0.0]], requires_grad=True)
    own, _ = token_nll(logits, torch.tensor([1]))
    (gradient,) = torch.autograd.grad(own.sum(), logits)
    assert own.tolist() == [6e4]
    assert torch.isfinite(gradient).all()


def test_the_logits_are_left_as_they_were() -> None:
    logits = torch.randn(5, 7, requires_grad=True)
    before = logits.detach().clone()
    token_nll(logits, torch.zeros(5, dtype=torch.long))[0].sum().backward()
    assert torch.equal(logits, before)


def test_no_targets_give_nothing() -> None:
    own, hits = token_nll(torch.randn(0, 7), torch.zeros(0, dtype=torch.long))
    assert own.shape == hits.shape == (0,)
