"""LoRA (Hu et al. 2021, arXiv 2106.09685), by the peft library: W + scale * B A; B is zero at first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from torch import nn

from foreword.backbone import Backbone
from foreword.errors import TrainingError
from foreword.methods.base import Method, Rows
from foreword.methods.heads import new_head
from foreword.methods.injected import Injected, InjectedStart
from foreword.objectives.settings import DataSettings, check_counts, check_words

Targets = Literal["query-value", "attention", "mlp", "all-linear"]

_CHOICES = {"targets": get_args(Targets)}

QUERY_AND_VALUE = (
    *("q_proj", "v_proj", "query", "value", "q", "v", "q_lin", "v_lin", "query_proj", "value_proj"),
    *("c_attn", "qkv_proj", "query_key_value", "Wqkv", "qkv"),
)
"""Names of the layers that make queries and values, alone or in one product with the keys."""


@dataclass(frozen=True)
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


class LoraMethod(Method[LoraSettings, Injected]):
    """Products of two thin matrices beside frozen linear layers."""

    name = "lora"

    def start(
        self, backbone: Backbone, settings: LoraSettings, rows: Rows
    ) -> InjectedStart[LoraSettings]:
        """The layers beside those that the settings choose.

        Raises:
            TrainingError: The backbone has none of these.
        """
        from peft import LoraConfig

        config = LoraConfig(
            r=settings.rank,
            lora_alpha=2 * settings.rank if settings.alpha is None else settings.alpha,  # type: ignore[arg-type]
            use_rslora=settings.rslora,
            target_modules=linear_layers(backbone, settings.targets),
            lora_dropout=0.0,
            bias="none",
        )
        return InjectedStart(backbone, settings, config, new_head(backbone, settings, rows))


def linear_layers(backbone: Backbone, targets: Targets) -> list[str]:
    """Names of a backbone's linear layers of a kind, within its stacks of layers.

    Raises:
        TrainingError: It has none.
    """
    from transformers.pytorch_utils import Conv1D

    modules = dict(backbone.model.named_modules())
    found = []
    for name, module in modules.items():
        path = name.split(".")
        if not isinstance(module, nn.Linear | Conv1D) or not any(map(str.isdigit, path)):
            continue
        above = (modules[".".join(path[:end])] for end in range(1, len(path)))
        attends = any("attention" in type(one).__name__.lower() for one in above)
        wanted = {
            "query-value": attends and path[-1] in QUERY_AND_VALUE,
            "attention": attends,
            "mlp": not attends,
            "all-linear": True,
        }
        if wanted[targets]:
            found.append(name)
    if not found:
        raise TrainingError(
            f"the backbone {backbone.name or backbone.family!r} has no linear layers for "
            f"targets={targets!r}; choose other targets ({', '.join(get_args(Targets))}), and load it "
            "without quantisation"
        )
    return found
