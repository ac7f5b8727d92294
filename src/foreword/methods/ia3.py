"""IA3 (Liu et al. 2022, arXiv 2205.05638), by the peft library: learned scales inside frozen layers.

Keys and values are scaled, and what goes into the last product of each MLP.
"""

from __future__ import annotations

from dataclasses import dataclass

from foreword.backbone import Backbone
from foreword.errors import TrainingError
from foreword.methods.added import Added, PeftStart, peft_library
from foreword.methods.base import Method, Rows
from foreword.methods.heads import new_head
from foreword.methods.layers import KEY_AND_VALUE, is_transposed, last_layers, linear_layers
from foreword.objectives.settings import DataSettings


@dataclass(frozen=True, kw_only=True)
class IA3Settings(DataSettings):
    """IA3, on the rows that the data settings read; it has no sizes to choose."""


class IA3Method(Method[IA3Settings, Added]):
    """Scales that start at one."""

    name = "ia3"
    settings = IA3Settings

    def start(
        self, backbone: Backbone, settings: IA3Settings, rows: Rows
    ) -> PeftStart[IA3Settings]:
        """The scales of keys, values and the inside of each MLP.

        Raises:
            TrainingError: The backbone has none of these layers.
        """
        peft = peft_library()
        attention = [
            one.name
            for one in linear_layers(backbone.model)
            if one.attention and one.name.rpartition(".")[2] in KEY_AND_VALUE
        ]
        feedforward = [one.name for one in last_layers(backbone)[1]]
        if not attention:
            raise TrainingError(
                f"the backbone {backbone.name or backbone.family!r} has no linear layers that make "
                "keys and values under a name that is known; choose another method"
            )
        config = peft.IA3Config(
            target_modules=[*attention, *feedforward],
            feedforward_modules=feedforward,
            fan_in_fan_out=is_transposed(backbone, attention),
        )
        head = new_head(backbone, settings, rows)
        return PeftStart(backbone, settings, config, [*attention, *feedforward], head)
