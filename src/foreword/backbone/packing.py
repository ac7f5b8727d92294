"""Weights in the order in which oneDNN's bfloat16 products read them.

A linear layer on a CPU reorders its weight at every call. For a whole prompt that is little beside the
product; for a decoding step of a few rows it is a third of it (benchmarks/LOG.md). Here the weights
are reordered once, each in place of the other form, so that the backbone is still there once.

The operators are those that torch.compile puts into the graphs that it freezes; a torch without them
runs the model as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

ALIKE = 2**-6
"""Largest difference, relative to the largest output, between a packed layer and the layer."""


@contextmanager
def packed(model: nn.Module) -> Iterator[int]:
    """Pack the model's linear layers for the length of a block; yields how many were.

    Only bfloat16 weights on a CPU are, and not those that another module shares (an output layer and
    the embedding): that one reads them as they are. Meanwhile a packed layer's weight has no values,
    and the model gives no gradients.
    """
    uses = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    layers = [
        module
        for module in model.modules()
        if type(module) is nn.Linear and uses[id(module.weight)] == 1 and _can_be_packed(module)
    ]
    done: list[tuple[nn.Linear, Tensor]] = []
    try:
        with torch.no_grad():
            for layer in layers:
                weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach())
                if not _alike(layer, weight):
                    break
                done.append((layer, weight))
                _replace(layer, weight)
        yield len(done)
    finally:
        for layer, weight in done:
            _restore(layer, weight)


def _can_be_packed(layer: nn.Linear) -> bool:
    weight = layer.weight
    return (
        hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and type(weight.data) is torch.Tensor
        and "forward" not in layer.__dict__
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


def _product(weight: Tensor, bias: Tensor | None, inputs: Tensor) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
    return product


def _alike(layer: nn.Linear, weight: Tensor) -> bool:
    """Whether a packed weight gives what the layer gives."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, layer.in_features, generator=generator).bfloat16()
    expected = layer(inputs).float()
    moved = (_product(weight, layer.bias, inputs).float() - expected).abs().max()
    return float(moved) <= ALIKE * float(expected.abs().max())


def _replace(layer: nn.Linear, weight: Tensor) -> None:
    old = layer.weight
    layer.weight = nn.Parameter(torch.empty_like(old, device="meta"), old.requires_grad)
    layer.__dict__["forward"] = partial(_product, weight, layer.bias)


def _restore(layer: nn.Linear, weight: Tensor) -> None:
    del layer.__dict__["forward"]
    # What inference mode made could not be trained behind.
    with torch.inference_mode(False), torch.no_grad():
        layer.weight = nn.Parameter(weight.to_dense().clone(), layer.weight.requires_grad)
