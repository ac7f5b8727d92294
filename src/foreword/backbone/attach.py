"""Attach a prefix to a model, and take it off again."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel

from foreword.attention.bound import bound_to
from foreword.backbone.backbone import Backbone
from foreword.backbone.fit import check_geometry, check_range, check_weights, refuse_mixture
from foreword.backbone.measured import attaching, detaching, measure
from foreword.backbone.probe import family_of
from foreword.prefix import Prefix, prefixes_of
from foreword.weights.fingerprint import weights_fingerprint
from foreword.weights.own import unwrapped


def attach(
    model: PreTrainedModel | Backbone,
    prefix: Prefix | Sequence[Prefix | None],
    *,
    strict: bool = False,
) -> nn.Module:
    """Turn a transformers model into a prefixed one. Its class stays as it is.

    From here on every forward pass, `generate` and gradient attends to the prefix. Attaching again
    replaces the prefix; `detach` restores the model exactly.

    Args:
        model: A decoder, encoder or encoder-decoder of transformers, a `PeftModel` around one, or a
            `Backbone`.
        prefix: One prefix for every row, or a sequence with one prefix (or None) per row.
        strict: Refuse other weights of the same geometry instead of warning.

    Returns:
        The model itself.

    Raises:
        UnsupportedModel: The family, or its attention implementation, cannot carry a prefix; or a
            `PeftModel` has virtual tokens of its own.
        MismatchError: The prefix does not fit the model.

    Examples:
        >>> foreword.attach(model, prefix)  # doctest: +SKIP
        >>> model.generate(**inputs)  # doctest: +SKIP
    """
    given: nn.Module = model.model if isinstance(model, Backbone) else model
    every = prefixes_of(prefix)
    with attaching(given) as attachment:
        for one in every:
            if one is not None:
                refuse_mixture(one)
                check_fit(model, one, strict=strict)
        bound = bound_to(prefix, measure(attachment.model).sites)
        attachment.hold(bound)
    return given


def check_fit(model: PreTrainedModel | Backbone, prefix: Prefix, *, strict: bool = False) -> None:
    """Check whether the prefix fits the model; see `Backbone.check`, without a tokenizer for a model."""
    if isinstance(model, Backbone):
        model.check(prefix, strict=strict)
        return
    inner = unwrapped(model)
    check_geometry(prefix, measure(inner).sites, family_of(inner))
    check_range(prefix, inner.dtype, family_of(inner))
    if prefix.meta.fingerprint:
        whole = len(prefix.sites) == len(measure(inner).sites)
        check_weights(prefix, weights_fingerprint(inner), family_of(inner), strict, whole=whole)


def detach(model: PreTrainedModel | Backbone) -> nn.Module:
    """Restore a model that `attach` was called on, bit for bit.

    Args:
        model: The model, its `PeftModel` or its `Backbone`. Without a prefix attached it is left alone.

    Returns:
        The model itself.

    Raises:
        BusyError: Another thread is in a forward pass of the model, or a block of `Backbone.attached`
            is open.
    """
    given: nn.Module = model.model if isinstance(model, Backbone) else model
    detaching(unwrapped(given))
    return given
