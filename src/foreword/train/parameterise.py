"""The parameterisation that the settings name, at its start."""

from __future__ import annotations

from foreword.backbone import Backbone
from foreword.errors import TrainingError
from foreword.prefix import Prefix
from foreword.train.gated import GatedParameterization
from foreword.train.initialisation import scales
from foreword.train.mlp import MLPParameterization
from foreword.train.parameterization import DirectParameterization, Parameterization
from foreword.train.settings import MLP_WIDTH, TrainSettings


def parameterise(backbone: Backbone, start: Prefix, settings: TrainSettings) -> Parameterization:
    """What is trained, on the CPU.

    Raises:
        TrainingError: The settings freeze the whole prefix.
    """
    if settings.frozen >= start.length:
        raise TrainingError(
            f"frozen={settings.frozen} leaves nothing to train of a prefix of {start.length} tokens; "
            "freeze fewer or make the prefix longer"
        )
    key_scales, value_scales = scales(backbone, start)
    if settings.parameterization == "mlp":
        return MLPParameterization(
            start,
            key_scales,
            value_scales,
            frozen=settings.frozen,
            width=settings.mlp_width or MLP_WIDTH,
            seed=settings.seed,
        )
    direct = DirectParameterization(start, key_scales, value_scales, settings.frozen)
    return GatedParameterization(direct) if settings.parameterization == "gated" else direct
