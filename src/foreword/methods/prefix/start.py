"""Where a prefix starts. The largest lever of all: the keys and values of a text beat noise by far.

Shapes: H key/value heads, P prefix length, D key dimension, E value dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from foreword.backbone import Backbone
from foreword.errors import MismatchError, PrefixError
from foreword.methods.prefix.control import Values, with_captured, with_made
from foreword.methods.prefix.demonstrations import demonstration_tokens
from foreword.methods.prefix.settings import ATTRIBUTE_LENGTH, LENGTH, NEUTRAL_TEXT, PrefixSettings
from foreword.methods.prefix.subset import chosen
from foreword.methods.prefix.transfer import transferred
from foreword.objectives.settings import MOST_SEED
from foreword.prefix import Positions, Prefix, rms
from foreword.store import PrefixStore

NOISE = 0.02
"""Standard deviation of a noise start, far below real keys (RMS about 2) so that little is broken."""

LEAST_SCALE = 1e-6
"""A site whose keys or values are all zero is scaled by this."""


def start(
    backbone: Backbone,
    settings: PrefixSettings,
    rows: Sequence[Mapping[str, Any]] = (),
    store: PrefixStore | None = None,
    values: Values | None = None,
) -> Prefix:
    """The prefix that training starts from, in float32, with the backbone's meta.

    Args:
        backbone: The backbone.
        settings: What training does.
        rows: Training rows, which demonstrations are taken from.
        store: Where a prefix that ``init`` names is looked up; by default the user's store.
        values: By attribute its values, each of which gets a piece; none without attributes.
    """
    ids: list[int] | None = None
    if settings.starts_from_prefix:
        made = transferred(backbone, settings, store or PrefixStore())
    elif settings.init in _FILLED:
        made = _filled(backbone, settings, settings.length or LENGTH)
    else:
        ids = _tokens(backbone, settings, rows)
        made = backbone.capture(ids, _capture_policy(backbone, settings))
    if values:
        made = _with_values(backbone, settings, made, ids, values)
    made = _restricted(backbone, made.to(torch.float32), settings)
    if settings.parameterization == "gated":
        made = _under_own_softmax(backbone, made, settings)
    return made if settings.windows is None else made.with_meta(windows=settings.windows)


def _restricted(backbone: Backbone, made: Prefix, settings: PrefixSettings) -> Prefix:
    """The start at the sites that the settings choose."""
    labels = chosen(backbone.sites, settings.layers, settings.sites)
    if settings.layers is None and settings.sites is None:
        return made  # a prefix to start from keeps the sites that it has
    try:
        return made.only(labels)
    except PrefixError as error:
        raise MismatchError(
            f"the prefix to start from, {settings.init!r}, is not on all of the chosen layers: {error}"
        ) from error


def _under_own_softmax(backbone: Backbone, made: Prefix, settings: PrefixSettings) -> Prefix:
    """Gates start closed: where positions are added to embeddings, the text must start at 0 too."""
    absolute = backbone.positions == "offset"
    positions = settings.positions or ("free" if absolute else made.meta.positions)
    return made.with_meta(softmax="own", positions=positions)


def _capture_policy(backbone: Backbone, settings: PrefixSettings) -> Positions | None:
    """The policy that a text is captured under; a gated one need not be exact on every backbone."""
    if settings.parameterization == "gated" and backbone.positions == "offset":
        return "offset"
    return settings.positions


def text_tokens(backbone: Backbone, text: str, length: int) -> list[int]:
    """The text's tokens, repeated until they fill the prefix and cut after `length`."""
    ids = backbone.tokens(text)
    return (ids * -(-length // len(ids)))[:length]


def _tokens(
    backbone: Backbone, settings: PrefixSettings, rows: Sequence[Mapping[str, Any]]
) -> list[int]:
    """The tokens whose keys and values are the start."""
    length = settings.length or LENGTH
    if settings.init == "demonstrations":
        return demonstration_tokens(backbone, rows, settings.templates, length, settings.seed)
    if settings.init == "vocab":
        size = int(backbone.model.get_input_embeddings().weight.shape[0])
        drawn: list[int] = torch.randint(size, (length,), generator=_generator(settings)).tolist()
        return drawn
    return text_tokens(backbone, settings.init_text or NEUTRAL_TEXT, length)


def _with_values(
    backbone: Backbone,
    settings: PrefixSettings,
    made: Prefix,
    ids: Sequence[int] | None,
    values: Values,
) -> Prefix:
    """The start with a piece for each value: its text, or for noise and zeros more of the same.

    Args:
        backbone: The backbone.
        settings: What training does.
        made: The start of the shared piece.
        ids: The tokens that it was captured of, if it was.
        values: By attribute its values.
    """
    length = settings.attribute_length or ATTRIBUTE_LENGTH
    if settings.init in _FILLED:
        other = replace(settings, seed=(settings.seed + 1) % MOST_SEED)  # other noise than in front
        count = sum(map(len, values.values()))
        return with_made(made, _filled(backbone, other, count * length), values)
    behind = ids or text_tokens(backbone, NEUTRAL_TEXT, made.length)
    return with_captured(backbone, made, behind, values, length, own=ids is not None)


_FILLED = {"noise": NOISE, "zeros": 0.0}
"""By start that no text is captured for, the standard deviation of its numbers."""


def _filled(backbone: Backbone, settings: PrefixSettings, length: int) -> Prefix:
    generator, size = _generator(settings), _FILLED[settings.init]

    def made(shape: tuple[int, int, int]) -> Tensor:
        if not size:
            return torch.zeros(shape, dtype=torch.float32)
        return torch.randn(shape, generator=generator, dtype=torch.float32) * size

    keys = tuple(made((site.kv_heads, length, site.key_dim)) for site in backbone.sites)
    values = tuple(made((site.kv_heads, length, site.value_dim)) for site in backbone.sites)
    meta = backbone.meta(positions=settings.positions or backbone.positions)
    return Prefix(backbone.sites, keys, values, meta)


def _generator(settings: PrefixSettings) -> torch.Generator:
    return torch.Generator().manual_seed(settings.seed)


def scales(backbone: Backbone, prefix: Prefix) -> tuple[list[float], list[float]]:
    """RMS of each site's keys, and of its values, on the neutral text: the size of a natural step."""
    ids = text_tokens(backbone, NEUTRAL_TEXT, max(prefix.meta.in_front(prefix.length), 8))
    policy = prefix.meta.positions if backbone.positions == "free" else "offset"
    natural = backbone.capture(ids, policy).only([site.label for site in prefix.sites])
    keys = [max(rms(key), LEAST_SCALE) for key in natural.keys]
    values = [max(rms(value), LEAST_SCALE) for value in natural.values]
    return keys, values
