"""Zero-initialised gates with a softmax of their own (Zhang et al., "LLaMA-Adapter", 2023, 3.2).

Shapes: H key/value heads, P prefix length, E value dimension.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from foreword.errors import TrainingError
from foreword.methods.prefix.parameterization import DirectParameterization, Parameterization
from foreword.prefix import Prefix


class GatedParameterization(Parameterization):
    """Keys and values with a gate per site and key/value head, which starts closed.

    The prefix attends under a softmax of its own, and tanh(gate) times what that gives is added. So
    training starts exactly at the base model. Materialising multiplies the gates into the values,
    those of frozen tokens too. While a gate is zero, its keys and values have no gradient.

    Args:
        inner: The keys and values; their meta says that the softmax is their own.

    Raises:
        TrainingError: It says that they share the text's.
    """

    def __init__(self, inner: DirectParameterization) -> None:
        super().__init__()
        if inner.origin.meta.softmax != "own":
            raise TrainingError(
                "gates need a prefix with a softmax of its own; found one that shares the text's. "
                "Start from prefix.with_meta(softmax='own')"
            )
        self.inner = inner
        self.gates = nn.ParameterList(
            nn.Parameter(torch.zeros(site.kv_heads, dtype=torch.float32))
            for site in inner.origin.sites
        )

    def materialise(self) -> Prefix:
        """Per site key (H, P, D), and value (H, P, E) times tanh(gate); the rest as inside."""
        made = self.inner.materialise()
        values = zip(made.values, self.gates, strict=True)
        gated = tuple(value * torch.tanh(gate)[:, None, None] for value, gate in values)
        return dataclasses.replace(made, values=gated)
