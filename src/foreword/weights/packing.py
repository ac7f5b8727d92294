"""Weights in the order in which oneDNN's bfloat16 products read them.

A linear layer on a CPU reorders its weight at every call. For a whole prompt that is little beside the
product; for a decoding step of a few rows it is a third of it. Layers that read the same inputs
(queries, keys and values; gate and up) are one product, since small ones cost more than they compute
(benchmarks/LOG.md). Here the weights are reordered once, each in place of the other form, so that the
backbone is still there once.

The operators are those that torch.compile puts into the graphs that it freezes; a torch without them
runs the model as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from foreword.errors import first_line
from foreword.fallbacks import note_fallback

PACKED = "packed weights"
"""What `note_fallback` calls them."""

ALIKE = 2**-6
"""Largest difference, relative to the largest output, between a packed layer and the layer."""

WHOLE = 2**-4
"""The same of the whole model, for layers that are one product."""


@contextmanager
def packed(model: nn.Module, run: Callable[[], Tensor] | None = None) -> Iterator[int]:
    """Pack the model's linear layers for the length of a block; yields how many were.

    Only bfloat16 weights on a CPU are, and not those that another module shares (an output layer and
    the embedding): that one reads them as they are. Meanwhile a packed layer's weight has no values,
    and the model gives no gradients.

    Args:
        model: The model.
        run: Gives what the model gives for some inputs. Layers that read one tensor meanwhile become
            one product, if the model then gives the same; without it none do.
    """
    uses = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    layers = [
        module
        for module in model.modules()
        if type(module) is nn.Linear and uses[id(module.weight)] == 1 and _can_be_packed(module)
    ]
    done: list[_Product] = []
    try:
        with torch.no_grad():
            if run is not None and layers:
                before = run()
                _pack(_readers(layers, run), done)
                if (why := _why_not(run, before)) is not None:
                    note_fallback("layers that read the same as one product", why)
                    _restore(done)
            if not done:
                _pack([[layer] for layer in layers], done)
        yield sum(len(product.layers) for product in done)
    finally:
        _restore(done)


def _can_be_packed(layer: nn.Linear) -> bool:
    weight = layer.weight
    is_meant = (
        weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and type(weight.data) is torch.Tensor
        and "forward" not in layer.__dict__
    )
    return is_meant and _are_operators_there()


def _are_operators_there() -> bool:
    """Whether this torch has the operators, and this processor what they compute with."""
    why = None
    if not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        why = f"torch {torch.__version__} has no operators for them, so layers run as they are"
    elif not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        why = "this processor has no bfloat16 products, so layers run as they are"
    if why is not None:
        note_fallback(PACKED, why)
    return why is None


def _readers(layers: Sequence[nn.Linear], run: Callable[[], Tensor]) -> list[list[nn.Linear]]:
    """The layers, those together that read the same tensor, each once."""
    read: list[tuple[nn.Linear, Tensor]] = []

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, nn.Linear)
        read.append((layer, inputs[0]))

    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    calls = Counter(id(layer) for layer, _ in read)
    found: dict[tuple[int, bool], list[nn.Linear]] = {}
    for layer, inputs in read:  # which keeps the inputs: no other has the identity of one
        if calls[id(layer)] == 1:
            found.setdefault((id(inputs), layer.bias is None), []).append(layer)
    rest = [[layer] for layer in layers if calls[id(layer)] != 1]
    return [*found.values(), *rest]


class _Product:
    """Layers that read the same inputs, as one product with a packed weight."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        self.layers = layers
        self.sizes = [layer.out_features for layer in layers]
        whole = torch.cat([layer.weight.detach() for layer in layers])
        self.weight = torch.ops.mkldnn._reorder_linear_weight(whole)
        biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
        self.bias = torch.cat(biases) if biases else None
        self._inputs: Tensor | None = None
        self._parts: list[Tensor] = []

    def __call__(self, inputs: Tensor) -> Tensor:
        """The outputs of all layers, side by side."""
        product = torch.ops.mkldnn._linear_pointwise(inputs, self.weight, self.bias, "none", [], "")
        assert isinstance(product, Tensor)
        return product

    def part(self, index: int, inputs: Tensor) -> Tensor:
        """The outputs of one layer; computed with those of the others when the first one is called."""
        if inputs is not self._inputs:
            self._inputs = inputs
            self._parts = list(torch.split_with_sizes(self(inputs), self.sizes, -1))
        part = self._parts[index]
        if index == len(self.layers) - 1:
            self._inputs, self._parts = None, []
        return part

    def is_right(self) -> bool:
        """Whether it gives what the layers give."""
        generator = torch.Generator().manual_seed(0)
        size = 2, self.layers[0].in_features
        inputs = torch.randn(size, generator=generator).bfloat16()
        return _alike(self(inputs), torch.cat([layer(inputs) for layer in self.layers], -1), ALIKE)

    def take_over(self) -> None:
        """Be what the layers compute with."""
        for index, layer in enumerate(self.layers):
            old = layer.weight
            layer.weight = nn.Parameter(torch.empty_like(old, device="meta"), old.requires_grad)
            alone = len(self.layers) == 1
            layer.__dict__["forward"] = self if alone else partial(self.part, index)

    def hand_back(self) -> None:
        """Give the layers the weights that they had."""
        # What inference mode made could not be trained behind.
        with torch.inference_mode(False), torch.no_grad():
            weights = torch.split_with_sizes(self.weight.to_dense(), self.sizes)
            for layer, weight in zip(self.layers, weights, strict=True):
                del layer.__dict__["forward"]
                layer.weight = nn.Parameter(weight.clone(), layer.weight.requires_grad)


def _pack(groups: Sequence[Sequence[nn.Linear]], done: list[_Product]) -> None:
    """Pack group after group, until one is not right."""
    for layers in groups:
        product = _Product(layers)
        if not product.is_right():
            note_fallback(
                PACKED,
                "a packed layer gave other numbers than the layer, so the rest run as they are",
            )
            return
        done.append(product)
        product.take_over()


def _restore(done: list[_Product]) -> None:
    while done:
        done.pop().hand_back()


def _why_not(run: Callable[[], Tensor], expected: Tensor) -> str | None:
    """Why the model cannot run as it is now, or None if it gives what is expected."""
    try:
        found = run()
    except Exception as error:  # it does with the outputs what it cannot do with parts of a tensor
        return f"the model cannot run so ({first_line(error)}), so each layer is packed alone"
    if _alike(found, expected, WHOLE):
        return None
    return "the model gave other numbers, so each layer is packed alone"


def _alike(found: Tensor, expected: Tensor, allowed: float) -> bool:
    moved = (found.float() - expected.float()).abs().max()
    return float(moved) <= allowed * float(expected.float().abs().max())
