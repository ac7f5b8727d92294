"""Negative log-likelihood of target tokens from their logits, a few rows of logits at a time.

The plain form makes the logits three times over in float32 (converted, log-softmax, gradient). Here
float32 exists for one chunk only, in either direction.

Shapes: N target tokens, V vocabulary, C tokens of a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_BYTES = {"cpu": 2**22}
"""Float32 bytes of a chunk by device type: on a CPU, what stays in its caches."""
OTHERWISE = 2**28
"""Float32 bytes of a chunk on other devices, where a kernel's launch costs more than memory."""


def token_nll(logits_NV: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """NLL of each target in nats (float32), and whether it is the most likely token (bool).

    Args:
        logits_NV: In any floating dtype. Their gradient has the same.
        targets_N: Token ids, int64.
    """
    result: tuple[Tensor, Tensor] = _TokenNLL.apply(logits_NV, targets_N)  # type: ignore[no-untyped-call]
    return result


class _TokenNLL(torch.autograd.Function):
    """-log softmax(logits)[target]; its gradient is softmax(logits) - onehot(target)."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
        size_N = torch.empty(len(targets_N), dtype=torch.float32, device=logits_NV.device)
        hit_N = torch.empty(len(targets_N), dtype=torch.bool, device=logits_NV.device)
        for part in _chunks(logits_NV):
            chunk_CV = logits_NV[part].float()
            torch.logsumexp(chunk_CV, dim=-1, out=size_N[part])
            hit_N[part] = chunk_CV.argmax(dim=-1) == targets_N[part]
        chosen_N = logits_NV.gather(1, targets_N[:, None])[:, 0].float()
        ctx.save_for_backward(logits_NV, targets_N, size_N)
        ctx.mark_non_differentiable(hit_N)
        return size_N - chosen_N, hit_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor, _: Any) -> tuple[Tensor, None]:
        logits_NV, targets_N, size_N = ctx.saved_tensors
        grad_NV = torch.empty_like(logits_NV)
        for part in _chunks(logits_NV):
            chunk_CV = (logits_NV[part].float() - size_N[part, None]).exp_()
            chunk_CV[torch.arange(len(chunk_CV), device=chunk_CV.device), targets_N[part]] -= 1
            grad_NV[part] = chunk_CV.mul_(grad_N[part, None])
        return grad_NV, None


def _chunks(logits_NV: Tensor) -> list[slice]:
    count, vocabulary = logits_NV.shape
    size = max(1, CHUNK_BYTES.get(logits_NV.device.type, OTHERWISE) // (4 * vocabulary))
    return [slice(first, first + size) for first in range(0, count, size)]
