"""The reparameterisation by an MLP (Li and Liang, "Prefix-Tuning", ACL 2021, section 4.3).

Shapes: H key/value heads, P prefix length, F frozen tokens of it, M width of the MLP, D key dimension,
E value dimension, N = sum over sites of H * (D + E).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from foreword.methods.prefix.parameterization import Constants, Parameterization
from foreword.prefix import Prefix


class MLPParameterization(Parameterization):
    """Start plus what an MLP makes of one trained embedding per virtual token.

    The output layer starts at zero, so training starts exactly at the start. What the MLP gives is
    counted in units of the site's scale, and both matrices are divided by M, so that one step of the
    optimiser moves a key about as far as it does without the MLP, whatever M is. P * M + M * M + M +
    (M + 1) * N numbers train, P without the F frozen tokens.

    Args:
        start: Where training starts, float32.
        key_scales: One positive number per site.
        value_scales: One positive number per site.
        frozen: First virtual tokens F that stay as they are, bit for bit.
        width: M.
        seed: Seed of embeddings and first matrix.
    """

    def __init__(
        self,
        start: Prefix,
        key_scales: Sequence[float],
        value_scales: Sequence[float],
        *,
        frozen: int = 0,
        width: int = 512,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.origin = start
        self.scales = [*key_scales, *value_scales]
        tensors = (*start.keys, *start.values)
        self.frozen = Constants([tensor[:, :frozen] for tensor in tensors])
        self.start = Constants([tensor[:, frozen:] for tensor in tensors])
        self.shapes = [(int(tensor.shape[0]), int(tensor.shape[2])) for tensor in tensors]
        outputs = sum(heads * dim for heads, dim in self.shapes)
        generator = torch.Generator().manual_seed(seed)
        normal = torch.randn(width, width, generator=generator, dtype=torch.float32) * math.sqrt(
            width
        )
        tokens = torch.randn(start.length - frozen, width, generator=generator, dtype=torch.float32)
        self.width = width
        self.embeddings = nn.Parameter(tokens)
        self.inner = nn.Parameter(normal)
        self.inner_bias = nn.Parameter(torch.zeros(width, dtype=torch.float32))
        self.outer = nn.Parameter(torch.zeros(outputs, width, dtype=torch.float32))
        self.outer_bias = nn.Parameter(torch.zeros(outputs, dtype=torch.float32))

    def materialise(self) -> Prefix:
        """Per site key (H, P, D) and value (H, P, E), computed once; the rest as at the start."""
        hidden_PM = torch.tanh(self.embeddings @ self.inner.T / self.width + self.inner_bias)
        moved_PN = hidden_PM @ self.outer.T / self.width + self.outer_bias
        sizes = [heads * dim for heads, dim in self.shapes]
        parts = zip(
            torch.split(moved_PN, sizes, dim=1), self.shapes, self.scales, self.start, strict=True
        )
        made = self.frozen.before(
            [start + scale * _heads_first(part, shape) for part, shape, scale, start in parts]
        )
        count = len(self.origin.sites)
        return dataclasses.replace(self.origin, keys=made[:count], values=made[count:])


def _heads_first(part_Pn: Tensor, heads_dim: tuple[int, int]) -> Tensor:
    """(P, H * D) as (H, P, D)."""
    return part_Pn.view(part_Pn.shape[0], *heads_dim).transpose(0, 1)
