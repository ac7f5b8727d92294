"""What is trained. A parameterisation materialises to a `Prefix` and is gone after training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import nn

from foreword.prefix import Prefix


class Parameterization(nn.Module, ABC):
    """Trainable numbers that stand for a prefix, in float32."""

    @abstractmethod
    def materialise(self) -> Prefix:
        """The prefix that the numbers stand for now, with gradients into them."""


class DirectParameterization(Parameterization):
    """The keys and values themselves, each divided by its site's scale.

    One learning rate then suits every layer: a step of 0.01 moves a key by 1% of the size that keys
    have in its layer.

    Args:
        start: Where training starts, float32.
        key_scales: One positive number per site.
        value_scales: One positive number per site.
    """

    def __init__(
        self, start: Prefix, key_scales: Sequence[float], value_scales: Sequence[float]
    ) -> None:
        super().__init__()
        self.sites = start.sites
        self.meta = start.meta
        self.key_scales = list(key_scales)
        self.value_scales = list(value_scales)
        self.keys = _parameters(start.keys, self.key_scales)
        self.values = _parameters(start.values, self.value_scales)

    def materialise(self) -> Prefix:
        """Per site key (H, P, D) and value (H, P, E): scale times parameter."""
        keys = zip(self.keys, self.key_scales, strict=True)
        values = zip(self.values, self.value_scales, strict=True)
        return Prefix(
            self.sites,
            tuple(parameter * scale for parameter, scale in keys),
            tuple(parameter * scale for parameter, scale in values),
            self.meta,
        )


def _parameters(tensors: Sequence[torch.Tensor], scales: Sequence[float]) -> nn.ParameterList:
    return nn.ParameterList(
        nn.Parameter((tensor.detach().float() / scale).contiguous())
        for tensor, scale in zip(tensors, scales, strict=True)
    )
