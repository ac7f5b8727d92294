"""LoRA (Hu et al. 2021, arXiv 2106.09685), by the peft library: W + scale * B A; B is zero at first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from foreword.backbone import Backbone
from foreword.errors import TrainingError
from foreword.methods.added import Added, PeftStart, peft_library
from foreword.methods.base import Method, Rows
from foreword.methods.heads import new_head
from foreword.methods.layers import Targets, chosen_layers, is_transposed
from foreword.objectives.settings import DataSettings, check_counts, check_words

_CHOICES = {"targets": get_args(Targets)}


@dataclass(frozen=True, kw_only=True)
class LoraSettings(DataSettings):
    """A LoRA, on the rows that the data settings read.

    Raises:
        TrainingError: A number is out of range, or a word is none of its choices.
        DataError: A template is ill-formed.
    """

    rank: int = 8
    """Rank of each added product."""

    alpha: float | None = None
    """Numerator of the scale, alpha over rank; default: twice the rank."""

    targets: Targets = "all-linear"
    """Which linear layers get one: those of queries and values, all of attention, those of the MLP, or
    all of these."""

    rslora: bool = False
    """Divide alpha by the root of the rank (Kalajdzievski 2023, arXiv 2312.03732), not by the rank."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_words(self, _CHOICES)
        check_counts(self, "rank")
        if self.alpha is not None and not 0 < self.alpha < float("inf"):
            raise TrainingError(f"alpha must be above 0; found {self.alpha}")


class LoraMethod(Method[LoraSettings, Added]):
    """Products of two thin matrices beside frozen linear layers."""

    name = "lora"
    settings = LoraSettings

    def start(
        self, backbone: Backbone, settings: LoraSettings, rows: Rows
    ) -> PeftStart[LoraSettings]:
        """The layers beside those that the settings choose.

        Raises:
            TrainingError: The backbone has none of these.
        """
        peft = peft_library()
        layers = chosen_layers(backbone, settings.targets)
        config = peft.LoraConfig(
            r=settings.rank,
            lora_alpha=2 * settings.rank if settings.alpha is None else settings.alpha,
            use_rslora=settings.rslora,
            target_modules=layers,
            lora_dropout=0.0,
            bias="none",
            fan_in_fan_out=is_transposed(backbone, layers),
        )
        head = new_head(backbone, settings, rows)
        return PeftStart(backbone, settings, config, layers, head)
