"""Linear layers over torchao's 8-bit weights: less memory in training, less time in decoding.

torchao widens the weights for a product in plain operations, so that autograd keeps every widened
matrix until the backward pass: a training step would hold the 8-bit weights and the wide ones. Here
the backward pass widens them again. For the few rows of a decoding step, widening takes longer than
the product; there PyTorch's CPU kernel for bfloat16 by 8 bits reads the weights as they are.

Shapes: X any leading dimensions, R rows, I input features, O output features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from foreword.fallbacks import note_fallback
from foreword.weights.stored import is_quantised

FEW = 8
"""Most rows that PyTorch's kernel takes: with 64 it was half as fast as widening, with 8 faster."""

BLOCK = 32
"""That kernel goes past the end of matrices whose sizes are no multiple of its blocks."""


class Int8Linear(nn.Linear):
    """A frozen linear layer whose weight is torchao's ``Int8Tensor`` with one scale per row."""

    def forward(self, input: Tensor) -> Tensor:
        """The same product as torchao's, (X, I) -> (X, O), in the input's dtype."""
        if torch.is_grad_enabled() and input.requires_grad:
            product: Tensor = _Product.apply(  # type: ignore[no-untyped-call]
                input, self.weight, self.bias
            )
            return product
        if self._few(input):
            return self._unwidened(input)
        return super().forward(input)

    def _few(self, input_XI: Tensor) -> bool:
        """Whether the kernel that needs no wide weights can take the input, and is the faster one."""
        features = self.in_features
        return (
            input_XI.dtype == torch.bfloat16
            and input_XI.device.type == "cpu"
            and 0 < input_XI.numel() <= FEW * features
            and features % BLOCK == self.out_features % BLOCK == 0
        )

    def _unwidened(self, input_XI: Tensor) -> Tensor:
        weight: Any = self.weight
        input_RI = input_XI.reshape(-1, self.in_features).contiguous()
        scale_O = weight.scale.flatten().to(input_XI.dtype)
        output_RO = torch._weight_int8pack_mm(input_RI, weight.qdata, scale_O)
        output_XO = output_RO.reshape(*input_XI.shape[:-1], self.out_features)
        return output_XO if self.bias is None else output_XO + self.bias


class _Product(torch.autograd.Function):
    """``input @ (scale * numbers).T``, differentiable in the input."""

    @staticmethod
    def forward(ctx: Any, input_XI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        # not save_for_backward: frozen weights need no hook that offloads or recomputes activations
        ctx.weight_OI = weight_OI
        return nn.functional.linear(input_XI, weight_OI, bias_O)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        grad_XO, weight_OI = grads[0], ctx.weight_OI
        scaled_XO = grad_XO * weight_OI.scale.flatten().to(grad_XO.dtype)
        return scaled_XO @ weight_OI.qdata.to(grad_XO.dtype), None, None


def save_memory(model: nn.Module) -> None:
    """Give a model's plain linear layers over 8-bit weights a backward pass that widens them anew.

    Only the class of the layers changes, to a subclass: names, weights and saved files do not.
    """
    for module in model.modules():
        if type(module) is not nn.Linear or not is_quantised(module.weight):
            continue
        if not _one_scale_per_row(module.weight):
            note_fallback(
                "layers of 8 bits that keep little in training",
                f"{type(module.weight).__name__} is not rounded by rows alone, so torchao's own run",
            )
            continue
        module.__class__ = Int8Linear
        if module.in_features % BLOCK or module.out_features % BLOCK:
            note_fallback(
                "products of few rows with 8-bit weights as they are",
                f"a layer's sizes are no multiples of {BLOCK}, so its weights are widened",
            )


def _one_scale_per_row(weight_OI: Tensor) -> bool:
    """Whether the weight is rounded to 8 bits by rows, and its input is not rounded."""
    from torchao.quantization import Int8Tensor

    return (
        isinstance(weight_OI, Int8Tensor)
        and weight_OI.scale.numel() == weight_OI.shape[0]
        and weight_OI.act_quant_kwargs is None
        and weight_OI.act_pre_scale is None
    )
