"""Where a prefix starts. The largest lever of all (DESIGN: text beats noise by far).

Shapes: H key/value heads, P prefix length, D key dimension, E value dimension.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from foreword.backbone import Backbone
from foreword.prefix import Prefix, rms
from foreword.train.settings import NEUTRAL_TEXT, TrainSettings

NOISE = 0.02
"""Standard deviation of a noise start, far below real keys (RMS about 2) so that little is broken."""

LEAST_SCALE = 1e-6
"""A site whose keys or values are all zero is scaled by this."""


def start(backbone: Backbone, settings: TrainSettings) -> Prefix:
    """The prefix that training starts from, in float32, with the backbone's meta."""
    made = _STARTS[settings.init](backbone, settings).to(torch.float32)
    return made.with_meta(windows=settings.windows)


def text_tokens(backbone: Backbone, text: str, length: int) -> list[int]:
    """The text's tokens, repeated until they fill the prefix and cut after `length`."""
    ids = backbone.tokens(text)
    return (ids * -(-length // len(ids)))[:length]


def _from_text(backbone: Backbone, settings: TrainSettings) -> Prefix:
    ids = text_tokens(backbone, settings.init_text or NEUTRAL_TEXT, settings.length)
    return backbone.capture(ids, settings.positions)


def _from_vocabulary(backbone: Backbone, settings: TrainSettings) -> Prefix:
    size = int(backbone.model.get_input_embeddings().weight.shape[0])
    ids = torch.randint(size, (settings.length,), generator=_generator(settings))
    return backbone.capture(ids.tolist(), settings.positions)


def _from_noise(backbone: Backbone, settings: TrainSettings) -> Prefix:
    generator = _generator(settings)
    return _filled(
        backbone, settings, lambda *shape: torch.randn(*shape, generator=generator) * NOISE
    )


def _from_zeros(backbone: Backbone, settings: TrainSettings) -> Prefix:
    return _filled(backbone, settings, torch.zeros)


def _filled(backbone: Backbone, settings: TrainSettings, make: Callable[..., Tensor]) -> Prefix:
    length = settings.length
    keys = tuple(make(site.kv_heads, length, site.key_dim) for site in backbone.sites)
    values = tuple(make(site.kv_heads, length, site.value_dim) for site in backbone.sites)
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
    natural = backbone.capture(ids, prefix.meta.positions)
    keys = [max(rms(key), LEAST_SCALE) for key in natural.keys]
    values = [max(rms(value), LEAST_SCALE) for value in natural.values]
    return keys, values
