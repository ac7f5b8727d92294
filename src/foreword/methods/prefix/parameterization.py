"""What is trained. A parameterisation materialises to a `Prefix` and is gone after training.

Shapes: H key/value heads, P prefix length, F frozen tokens of it, D key dimension, E value dimension.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from foreword.prefix import Prefix


class Parameterization(nn.Module, ABC):
    """Trainable numbers that stand for a prefix, in float32."""

    @abstractmethod
    def materialise(self) -> Prefix:
        """The prefix that the numbers stand for now, with gradients into them."""


class Constants(nn.Module):
    """Tensors that move to the device with their module, train not, and are in no checkpoint."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        super().__init__()
        for index, tensor in enumerate(tensors):
            self.register_buffer(str(index), tensor.detach().float().clone(), persistent=False)

    def __iter__(self) -> Iterator[Tensor]:
        return self.buffers()

    def before(self, trained: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Each of these (H, F, D) in front of its trained one (H, P - F, D)."""
        pairs = zip(self, trained, strict=True)
        return tuple(torch.cat([own, other], dim=1) for own, other in pairs)


class DirectParameterization(Parameterization):
    """The keys and values themselves, each divided by its site's scale.

    One learning rate then suits every layer: a step of 0.01 moves a key by 1% of the size that keys
    have in its layer.

    Args:
        start: Where training starts, float32.
        key_scales: One positive number per site.
        value_scales: One positive number per site.
        frozen: First virtual tokens F that stay as they are, bit for bit.
    """

    def __init__(
        self,
        start: Prefix,
        key_scales: Sequence[float],
        value_scales: Sequence[float],
        frozen: int = 0,
    ) -> None:
        super().__init__()
        self.origin = start
        self.key_scales = list(key_scales)
        self.value_scales = list(value_scales)
        self.frozen_keys = Constants([key[:, :frozen] for key in start.keys])
        self.frozen_values = Constants([value[:, :frozen] for value in start.values])
        self.keys = _parameters([key[:, frozen:] for key in start.keys], self.key_scales)
        self.values = _parameters([value[:, frozen:] for value in start.values], self.value_scales)

    def materialise(self) -> Prefix:
        """Per site key (H, P, D) and value (H, P, E): scale times parameter; the rest as it was."""
        keys = zip(self.keys, self.key_scales, strict=True)
        values = zip(self.values, self.value_scales, strict=True)
        return dataclasses.replace(
            self.origin,
            keys=self.frozen_keys.before([parameter * scale for parameter, scale in keys]),
            values=self.frozen_values.before([parameter * scale for parameter, scale in values]),
        )


def _parameters(tensors: Sequence[Tensor], scales: Sequence[float]) -> nn.ParameterList:
    return nn.ParameterList(
        nn.Parameter((tensor.detach().float() / scale).contiguous())
        for tensor, scale in zip(tensors, scales, strict=True)
    )
