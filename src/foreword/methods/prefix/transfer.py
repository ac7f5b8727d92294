"""A start from another prefix, by its name in a store or by its file."""

from __future__ import annotations

import dataclasses

from foreword import format as prefix_file
from foreword.backbone import Backbone
from foreword.methods.prefix.named import named, refuse_other
from foreword.methods.prefix.settings import PrefixSettings
from foreword.prefix import Prefix
from foreword.store import PrefixStore


def transferred(backbone: Backbone, settings: PrefixSettings, store: PrefixStore) -> Prefix:
    """The prefix that ``init`` names, as a start on this backbone; its parent is on record.

    Raises:
        StoreError: There is no prefix of that name.
        FormatError: Its file cannot be read.
        MismatchError: It does not fit the backbone.
        TrainingError: The settings ask for another length or policy than it has.
    """
    found = named(settings.init, prefix_file.load, store.load)
    backbone.check(found)
    refuse_other(settings, found)
    meta = backbone.meta(
        positions=found.meta.positions,
        windows=found.meta.windows,
        bos=found.meta.bos,
        softmax=found.meta.softmax,
        parents=(found.digest,),
    )
    return dataclasses.replace(found, meta=meta)
