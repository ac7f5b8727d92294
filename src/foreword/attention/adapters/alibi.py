"""ALiBi (Press et al., 2022): bloom, mpt and falcon, whose scores carry a bias by distance.

Virtual token j of a prefix of length L stands at j - L, before the text's position 0, and its bias is
that of its own distance to the query, as if it were a token there. Zero would put it at the text's
first position, on top of it. A softmax does not change when all of a row's biases move by the same
amount, so only differences between columns matter.

Shapes: B batch, H heads, P prefix length, Q queries, K keys of the call, J = P + K.
"""

from __future__ import annotations

import copy
import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn

from foreword.attention.adapters.base import Adapter, Call
from foreword.attention.bound import SiteTensors
from foreword.attention.frame import Frame
from foreword.attention.masks import join_columns


class Bloom(Adapter):
    """The bias of column c is slope * (c's position in its own row), from a table of positions."""

    relative = True

    def widen(self, call: Call, frame: Frame, site: SiteTensors) -> None:
        """Mask (B, 1, Q, J) and bias (B * H, 1, J)."""
        super().widen(call, frame, site)
        alibi = call["alibi"]
        heads = self._heads
        call["alibi"] = frame.once(
            alibi, ("alibi", site.length_R), lambda: self._joined_bias(alibi, heads, frame, site)
        )

    @property
    def _heads(self) -> int:
        heads: Any = self.module.num_heads
        return int(heads)

    def _joined_bias(self, alibi: Tensor, heads: int, frame: Frame, site: SiteTensors) -> Tensor:
        own_BH1K = alibi.view(-1, heads, 1, alibi.shape[-1])
        prefix_BH1P = self.bias(frame.places(site, alibi.device), heads, alibi.dtype)
        prefix_BH1P = prefix_BH1P.expand(own_BH1K.shape[0], -1, -1, -1)
        return torch.cat([prefix_BH1P, own_BH1K], dim=-1).flatten(0, 1)

    def bias(self, place_BP: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
        """The modelling file's own bias at places before the text: (B or 1, H, 1, P).

        Its table is made for positions from 0 on. The bias is odd in the position, so that of -d is
        the table's at d with its sign changed.
        """
        build = inspect.unwrap(type(self.module).forward).__globals__["build_alibi_tensor"]
        distance_BP = (-place_BP).clamp(min=0)
        ones = torch.ones(1, place_BP.shape[1] + 1, dtype=torch.long, device=place_BP.device)
        table_HP: Tensor = build(ones, heads, dtype)[:, 0]
        return -table_HP[:, distance_BP].transpose(0, 1)[:, :, None]


class Falcon(Bloom):
    """With ALiBi the mask carries the bias as well; without, positions are rotary.

    The module looks at its config's implementation to see whether it calls SDPA, so it gets a copy of
    its config that names the kernel that the model had. (With ALiBi its two paths differ: the eager
    one adds the bias twice.)
    """

    def __init__(self, module: nn.Module) -> None:
        config: Any = module.config
        self._config = config
        self.relative = bool(config.alibi)
        module.config = copy.copy(config)
        super().__init__(module)

    def remove(self) -> None:
        """Leave the module as it was found."""
        super().remove()
        self.module.config = self._config

    def widen(self, call: Call, frame: Frame, site: SiteTensors) -> None:
        """Mask (B, 1 or H, Q, J) and, with ALiBi, bias (B * H, 1, J)."""
        if call["alibi"] is None:
            Adapter.widen(self, call, frame, site)
            return
        mask = call["attention_mask"]
        super().widen(call, frame, site)
        call["attention_mask"] = frame.once(
            mask, ("biased", site.length_R), lambda: self._biased(mask, frame, site)
        )

    def _biased(self, mask_BHQK: Tensor, frame: Frame, site: SiteTensors) -> Tensor:
        """A mask that has the scaled bias where a column is seen, as the model makes it."""
        seen_BHQP = frame.columns(site, mask_BHQK.shape[2], mask_BHQK.device)
        batch, heads, queries = mask_BHQK.shape[:3]
        bias_BH1P = self.bias(frame.places(site, mask_BHQK.device), heads, mask_BHQK.dtype)
        dim: Any = self.module.head_dim
        hidden = torch.finfo(mask_BHQK.dtype).min
        columns_BHQP = (bias_BH1P / math.sqrt(dim)).masked_fill(~seen_BHQP, hidden)
        return torch.cat([columns_BHQP.expand(batch, heads, queries, -1), mask_BHQK], dim=-1)


class Mpt(Adapter):
    """The bias of column c is slope * (c - J + 1): by column, and the same for every row.

    So the columns' order is all that tells distance. In a row with left padding the prefix must stand
    right in front of the first token, behind the padding: a prefix in front of the padding would be
    that much too far away. Columns that nobody sees (of a shorter prefix) go to its other side.
    """

    cache = "past_key_values"
    relative = True

    def widen(self, call: Call, frame: Frame, site: SiteTensors) -> None:
        """Mask (B, 1, Q, J), True where hidden, and bias (H, 1, J)."""
        mask, bias = call["attention_mask"], call["position_bias"]

        def hidden() -> Tensor:
            joined = join_columns(frame.columns(site, mask.shape[2], mask.device), ~mask)
            order_BJ = self._order(frame, site, mask)
            return ~torch.take_along_dim(joined, order_BJ[:, None, None], dim=-1)

        def joined_bias() -> Tensor:
            # Made anew: the model's own ends at max_seq_len columns, which need not hold the prefix.
            slope_H11 = -bias[:, :, -2:-1]
            joined = mask.shape[-1] + site.key_RHPD.shape[2]
            biased: Tensor = slope_H11 * torch.arange(1 - joined, 1, device=bias.device)
            return biased

        call["attention_mask"] = frame.once(mask, ("hidden", site.length_R), hidden)
        call["position_bias"] = frame.once(bias, ("joined", site.length_R), joined_bias)

    def arranged(self, joined: Tensor, frame: Frame, site: SiteTensors, mask: Tensor) -> Tensor:
        """Keys or values with each row's prefix next to its text."""
        return torch.take_along_dim(joined, self._order(frame, site, mask)[:, None, :, None], dim=2)

    def _order(self, frame: Frame, site: SiteTensors, mask_B1QK: Tensor) -> Tensor:
        """Which joined column comes where, by row: padding, prefix, text. (B, J)."""
        tag = ("order", site.length_R)
        return frame.once(mask_B1QK, tag, lambda: _order(frame, site, mask_B1QK))


def _order(frame: Frame, site: SiteTensors, mask_B1QK: Tensor) -> Tensor:
    width, keys = site.key_RHPD.shape[2], mask_B1QK.shape[-1]
    # The last query sees all tokens of its row: what it does not see at the left is padding.
    padding_B1 = (~mask_B1QK[:, 0, -1]).int().argmax(dim=-1, keepdim=True)
    length_B1 = -frame.places(site, mask_B1QK.device)[:, :1]
    column_J = torch.arange(width + keys, device=mask_B1QK.device)
    inside_BJ = (column_J - padding_B1 + length_B1) % width
    before_text_BJ = torch.where(column_J < padding_B1, column_J + width, inside_BJ)
    return torch.where(column_J < padding_B1 + width, before_text_BJ, column_J)
