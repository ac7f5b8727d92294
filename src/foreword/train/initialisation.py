"""Where a prefix starts. The largest lever of all: the keys and values of a text beat noise by far.

Shapes: H key/value heads, P prefix length, D key dimension, E value dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from foreword.backbone import Backbone
from foreword.errors import MismatchError, PrefixError
from foreword.prefix import Positions, Prefix, rms
from foreword.store import PrefixStore
from foreword.train.demonstrations import demonstration_tokens
from foreword.train.settings import LENGTH, NEUTRAL_TEXT, TrainSettings
from foreword.train.subset import chosen
from foreword.train.transfer import transferred

NOISE = 0.02
"""Standard deviation of a noise start, far below real keys (RMS about 2) so that little is broken."""

LEAST_SCALE = 1e-6
"""A site whose keys or values are all zero is scaled by this."""


def start(
    backbone: Backbone,
    settings: TrainSettings,
    rows: Sequence[Mapping[str, Any]] = (),
    store: PrefixStore | None = None,
) -> Prefix:
    """The prefix that training starts from, in float32, with the backbone's meta.

    Args:
        backbone: The backbone.
        settings: What training does.
        rows: Training rows, which demonstrations are taken from.
        store: Where a prefix that ``init`` names is looked up; by default the user's store.
    """
    if settings.starts_from_prefix:
        made = transferred(backbone, settings, store or PrefixStore())
    elif settings.init == "demonstrations":
        ids = demonstration_tokens(
            backbone, rows, settings.templates, settings.length or LENGTH, settings.seed
        )
        made = backbone.capture(ids, _capture_policy(backbone, settings))
    else:
        made = _STARTS[settings.init](backbone, settings)
    made = _restricted(backbone, made.to(torch.float32), settings)
    if settings.parameterization == "gated":
        made = _under_own_softmax(backbone, made, settings)
    return made if settings.windows is None else made.with_meta(windows=settings.windows)


def _restricted(backbone: Backbone, made: Prefix, settings: TrainSettings) -> Prefix:
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


def _under_own_softmax(backbone: Backbone, made: Prefix, settings: TrainSettings) -> Prefix:
    """Gates start closed: where positions are added to embeddings, the text must start at 0 too."""
    absolute = backbone.positions == "offset"
    positions = settings.positions or ("free" if absolute else made.meta.positions)
    return made.with_meta(softmax="own", positions=positions)


def _capture_policy(backbone: Backbone, settings: TrainSettings) -> Positions | None:
    """The policy that a text is captured under; a gated one need not be exact on every backbone."""
    if settings.parameterization == "gated" and backbone.positions == "offset":
        return "offset"
    return settings.positions


def text_tokens(backbone: Backbone, text: str, length: int) -> list[int]:
    """The text's tokens, repeated until they fill the prefix and cut after `length`."""
    ids = backbone.tokens(text)
    return (ids * -(-length // len(ids)))[:length]


def _from_text(backbone: Backbone, settings: TrainSettings) -> Prefix:
    ids = text_tokens(backbone, settings.init_text or NEUTRAL_TEXT, settings.length or LENGTH)
    return backbone.capture(ids, _capture_policy(backbone, settings))


Shape = tuple[int, int, int]


def _from_vocabulary(backbone: Backbone, settings: TrainSettings) -> Prefix:
    size = int(backbone.model.get_input_embeddings().weight.shape[0])
    ids = torch.randint(size, (settings.length or LENGTH,), generator=_generator(settings))
    return backbone.capture(ids.tolist(), _capture_policy(backbone, settings))


def _from_noise(backbone: Backbone, settings: TrainSettings) -> Prefix:
    generator = _generator(settings)

    def noise(shape: Shape) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float32) * NOISE

    return _filled(backbone, settings, noise)


def _from_zeros(backbone: Backbone, settings: TrainSettings) -> Prefix:
    return _filled(backbone, settings, partial(torch.zeros, dtype=torch.float32))


def _filled(backbone: Backbone, settings: TrainSettings, make: Callable[[Shape], Tensor]) -> Prefix:
    length = settings.length or LENGTH
    keys = tuple(make((site.kv_heads, length, site.key_dim)) for site in backbone.sites)
    values = tuple(make((site.kv_heads, length, site.value_dim)) for site in backbone.sites)
    meta = backbone.meta(positions=settings.positions or backbone.positions)
    return Prefix(backbone.sites, keys, values, meta)


def _generator(settings: TrainSettings) -> torch.Generator:
    return torch.Generator().manual_seed(settings.seed)


_STARTS: dict[str, Callable[[Backbone, TrainSettings], Prefix]] = {
    "text": _from_text,
    "vocab": _from_vocabulary,
    "noise": _from_noise,
    "zeros": _from_zeros,
}


def scales(backbone: Backbone, prefix: Prefix) -> tuple[list[float], list[float]]:
    """RMS of each site's keys, and of its values, on the neutral text: the size of a natural step."""
    ids = text_tokens(backbone, NEUTRAL_TEXT, max(prefix.length, 8))
    policy = prefix.meta.positions if backbone.positions == "free" else "offset"
    natural = backbone.capture(ids, policy).only([site.label for site in prefix.sites])
    keys = [max(rms(key), LEAST_SCALE) for key in natural.keys]
    values = [max(rms(value), LEAST_SCALE) for value in natural.values]
    return keys, values
