"""IA3 (Liu et al. 2022, arXiv 2205.05638), by the peft library: learned scales inside frozen layers.

Keys and values are scaled, and what goes into the last product of each MLP.
"""

from __future__ import annotations

from dataclasses import dataclass

from foreword.backbone import Backbone
from foreword.errors import TrainingError
from foreword.methods.added import Added, PeftStart
from foreword.methods.base import Method, Rows
from foreword.methods.heads import new_head
from foreword.methods.layers import linear_layers
from foreword.objectives.settings import DataSettings

KEY_AND_VALUE = (
    *("k_proj", "v_proj", "key", "value", "k", "v", "k_lin", "v_lin", "key_proj", "value_proj"),
    *("c_attn", "qkv_proj", "query_key_value", "Wqkv", "qkv"),
)
"""Names of the layers that make keys and values, alone or in one product with the queries."""


@dataclass(frozen=True)
class IA3Settings(DataSettings):
    """IA3, on the rows that the data settings read; it has no sizes to choose."""


class IA3Method(Method[IA3Settings, Added]):
    """Scales that start at one."""

    name = "ia3"

    def start(
        self, backbone: Backbone, settings: IA3Settings, rows: Rows
    ) -> PeftStart[IA3Settings]:
        """The scales of keys, values and the inside of each MLP.

        Raises:
            TrainingError: The backbone has none of these layers.
        """
        from peft import IA3Config

        layers = list(linear_layers(backbone.model))
        attention = [
            one.name
            for one in layers
            if one.attention and one.name.rpartition(".")[2] in KEY_AND_VALUE
        ]
        last = {one.layer: one.name for one in layers if one.attention is None}
        if not attention or not last:
            raise TrainingError(
                f"the backbone {backbone.name or backbone.family!r} has no linear layers that IA3 "
                "scales; load it without quantisation, or choose another method"
            )
        feedforward = list(last.values())
        config = IA3Config(
            target_modules=[*attention, *feedforward], feedforward_modules=feedforward
        )
        return PeftStart(backbone, settings, config, new_head(backbone, settings, rows))
