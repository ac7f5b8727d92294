"""A start from another prefix, by its name in a store or by its file."""

from __future__ import annotations

import dataclasses

from foreword import format as prefix_file
from foreword.backbone import Backbone
from foreword.errors import StoreError, TrainingError
from foreword.prefix import Prefix
from foreword.store import PrefixStore
from foreword.train.settings import INIT_WORDS, TrainSettings


def transferred(backbone: Backbone, settings: TrainSettings, store: PrefixStore) -> Prefix:
    """The prefix that ``init`` names, as a start on this backbone; its parent is on record.

    Raises:
        StoreError: There is no prefix of that name.
        FormatError: Its file cannot be read.
        MismatchError: It does not fit the backbone.
        TrainingError: The settings ask for another length or policy than it has.
    """
    found = _named(settings.init, store)
    backbone.check(found)
    _refuse_other(settings, found)
    meta = backbone.meta(
        positions=found.meta.positions,
        windows=found.meta.windows,
        bos=found.meta.bos,
        softmax=found.meta.softmax,
        parents=(found.digest,),
    )
    return dataclasses.replace(found, meta=meta)


def _named(name: str, store: PrefixStore) -> Prefix:
    if name.endswith(prefix_file.SUFFIX):
        return prefix_file.load(name)
    try:
        return store.load(name)
    except StoreError as error:
        raise StoreError(
            f"init {name!r} is neither one of {', '.join(INIT_WORDS)} nor a prefix: {error}"
        ) from error


def _refuse_other(settings: TrainSettings, found: Prefix) -> None:
    """A start keeps what it has: nothing is cut, padded or read in another way in silence."""
    pairs = {
        "length": (settings.length, found.length),
        "positions": (settings.positions, found.meta.positions),
        "windows": (settings.windows, found.meta.windows),
    }
    for name, (wanted, has) in pairs.items():
        if wanted is not None and wanted != has:
            raise TrainingError(
                f"the prefix to start from, {settings.init!r}, has {name} {has!r}, and the settings "
                f"say {wanted!r}; leave {name} out, or give {has!r}"
            )
    if settings.parameterization == "gated" and found.meta.softmax == "own":
        raise TrainingError(
            f"the prefix to start from, {settings.init!r}, was gated already, and new gates of zero "
            "would take away what it learned; train it on with parameterization 'direct'"
        )
