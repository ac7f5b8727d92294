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
OTHERWISE = 2**30
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
        sizes = _sizes if logits_NV.device.type == "cpu" else _fused_sizes
        for part in _chunks(logits_NV):
            size_N[part], best_C = sizes(logits_NV[part], targets_N[part])
            hit_N[part] = best_C == targets_N[part]
        ctx.save_for_backward(logits_NV, targets_N, size_N)
        ctx.mark_non_differentiable(hit_N)
        return size_N - _chosen(logits_NV, targets_N), hit_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor, _: Any) -> tuple[Tensor, None]:
        logits_NV, targets_N, size_N = ctx.saved_tensors
        grad_NV = torch.empty_like(logits_NV)
        gradient = _gradient if logits_NV.device.type == "cpu" else _fused_gradient
        for part in _chunks(logits_NV):
            grad_NV[part] = gradient(logits_NV[part], targets_N[part], size_N[part], grad_N[part])
        return grad_NV, None


def _chosen(logits_CV: Tensor, targets_C: Tensor) -> Tensor:
    return logits_CV.gather(1, targets_C[:, None])[:, 0].float()


def _sizes(logits_CV: Tensor, targets_C: Tensor) -> tuple[Tensor, Tensor]:
    """The log of the sum of exponentials, float32, and the likeliest token."""
    chunk_CV = logits_CV.float()
    return chunk_CV.logsumexp(dim=-1), chunk_CV.argmax(dim=-1)


def _gradient(logits_CV: Tensor, targets_C: Tensor, size_C: Tensor, grad_C: Tensor) -> Tensor:
    chunk_CV = (logits_CV.float() - size_C[:, None]).exp_()
    chunk_CV[torch.arange(len(chunk_CV), device=chunk_CV.device), targets_C] -= 1
    return chunk_CV.mul_(grad_C[:, None])


def _fused_sizes(logits_CV: Tensor, targets_C: Tensor) -> tuple[Tensor, Tensor]:
    """`_sizes` in fewer passes over memory, where one kernel reads a dtype and sums in another."""
    logprobs_CV = torch.log_softmax(logits_CV, dim=-1, dtype=torch.float32)
    size_C = _chosen(logits_CV, targets_C) - _chosen(logprobs_CV, targets_C)
    return size_C, logits_CV.argmax(dim=-1)


def _fused_gradient(logits_CV: Tensor, targets_C: Tensor, size_C: Tensor, grad_C: Tensor) -> Tensor:
    """`_gradient` in fewer passes; that of the target itself is subtracted before it is rounded."""
    grad_CV = torch.softmax(logits_CV, dim=-1).mul_(grad_C[:, None])
    own_C = torch.expm1(_chosen(logits_CV, targets_C) - size_C) * grad_C
    grad_CV[torch.arange(len(own_C), device=own_C.device), targets_C] = own_C.to(grad_CV.dtype)
    return grad_CV


def _chunks(logits_NV: Tensor) -> list[slice]:
    count, vocabulary = logits_NV.shape
    size = max(1, CHUNK_BYTES.get(logits_NV.device.type, OTHERWISE) // (4 * vocabulary))
    return [slice(first, first + size) for first in range(0, count, size)]
