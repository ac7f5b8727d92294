"""The parameterisation that the settings name, at its start."""

from __future__ import annotations

from collections.abc import Sequence

from foreword.backbone import Backbone
from foreword.data import Encoded
from foreword.errors import TrainingError
from foreword.methods.heads import scale_of
from foreword.methods.prefix.gated import GatedParameterization
from foreword.methods.prefix.headed import HeadedParameterization
from foreword.methods.prefix.mlp import MLPParameterization
from foreword.methods.prefix.parameterization import DirectParameterization, Parameterization
from foreword.methods.prefix.settings import MLP_WIDTH, PrefixSettings
from foreword.methods.prefix.start import scales
from foreword.prefix import Prefix


def parameterise(
    backbone: Backbone, start: Prefix, settings: PrefixSettings, rows: Sequence[Encoded] = ()
) -> Parameterization:
    """What is trained, on the CPU: keys and values, and the head if the start has one.

    Args:
        backbone: The backbone.
        start: Where training starts.
        settings: What training does.
        rows: Training rows, some of which a head's scale is measured on.

    Raises:
        TrainingError: The settings freeze the whole prefix, or tokens of an attribute's value.
    """
    if start.meta.combination == "control" and settings.frozen > start.meta.pieces[0].length:
        raise TrainingError(
            f"frozen={settings.frozen} is more than the {start.meta.pieces[0].length} tokens that all "
            "rows share, and those of attributes are trained; freeze at most these"
        )
    if settings.frozen >= start.length:
        raise TrainingError(
            f"frozen={settings.frozen} leaves nothing to train of a prefix of {start.length} tokens; "
            "freeze fewer or make the prefix longer"
        )
    made = _keys_and_values(backbone, start, settings)
    if start.head is None:
        return made
    return HeadedParameterization(made, start.head, scale_of(backbone, start, rows))


def _keys_and_values(
    backbone: Backbone, start: Prefix, settings: PrefixSettings
) -> Parameterization:
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
