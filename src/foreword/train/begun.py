"""Where a trained prefix started, recomputed from its recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from foreword.arguments import expect
from foreword.arithmetic.record import COMPOSITION, begun
from foreword.backbone import Backbone
from foreword.backbone.given import check_backbone
from foreword.data import rows_of
from foreword.data.given import Data
from foreword.errors import (
    ForewordError,
    FormatError,
    MismatchError,
    PrefixError,
    StoreError,
    TrainingError,
)
from foreword.head import Head
from foreword.methods.prefix.method import started_from
from foreword.methods.prefix.settings import ATTRIBUTE_LENGTH, LENGTH
from foreword.methods.prefix.start import start
from foreword.objectives.encode import encode, rows_digest, spread
from foreword.prefix import Prefix, check_prefix
from foreword.store import PrefixStore
from foreword.train.settings import TrainSettings

LETTERS = 64
"""Characters of a start's text for each token that may be read: far more than tokens have."""

ONCE = "save the composition with `foreword compose`, and use it by its name"
"""What to do where a start is not recomputed."""

_WITHOUT = (
    "no start is needed by foreword compose --mode concat, cascade or logits, nor by foreword map "
    "--raw"
)
"""What to do on the command line with a prefix whose start is not known."""

_SETTINGS = {field.name for field in dataclasses.fields(TrainSettings)}


def with_start(
    backbone: Backbone,
    prefix: Prefix,
    rows: Data | None = None,
    store: PrefixStore | None = None,
) -> Prefix:
    """The same prefix with its field `start`, which sums of prefixes need, and which no file holds.

    It is recomputed from the recipe, with a few forward passes at most: keys and values of the text that
    training started from, say. For a sum of prefixes, or a slice of one, the recipe says it too.

    Args:
        backbone: The backbone that it was trained on, with the same weights, and in the same dtype: in
            another the start of a text is rounded otherwise.
        prefix: A prefix that `foreword.train` gave, or a sum or slice of such.
        rows: The training rows, where it started from demonstrations; else they are not looked at.
        store: Where a prefix that it started from is looked up; by default the user's store.

    Returns:
        The prefix; itself if it has a start already.

    Raises:
        PrefixError: Its start cannot be recomputed: it was not trained by Foreword, or was put together
            from prefixes with other starts; or rows are missing or others, or a parent is gone.
        DataError: The rows are none that it could have been trained on.
        MismatchError: The backbone has other weights, or the prefix does not fit it.

    Examples:
        >>> formal = foreword.with_start(backbone, foreword.load_prefix(path))  # doctest: +SKIP
        >>> both = formal + foreword.with_start(backbone, polite)  # doctest: +SKIP
    """
    check_backbone(backbone)
    check_prefix(prefix)
    if store is not None:
        expect("store", store, PrefixStore, "a PrefixStore", PrefixError)
    if prefix.start is not None:
        return prefix
    record, settings = _record_of(prefix), _settings_of(prefix)
    _refuse_part(prefix, settings)
    backbone.check(prefix, strict=True)
    given = _rows(settings, rows)
    try:
        first = start(backbone, settings, given, store, prefix.meta.attributes)
    except (StoreError, FormatError, MismatchError, TrainingError) as error:
        raise PrefixError(f"the prefix's start cannot be recomputed: {error}") from error
    _check_parent(settings, first, record["parents"])
    if settings.init == "demonstrations":
        _check_rows(backbone, settings, first, given, record["data"])
    found = _as_it_is_now(backbone, prefix, started_from(first, settings), record["tokens"])
    return dataclasses.replace(prefix, start=found)


def check_recomputable(prefix: Prefix, most: int) -> None:
    """Check that a start can be recomputed from the recipe alone, and what it costs.

    Nothing is computed, and nothing read: a file that says anything costs no more than this.

    Args:
        prefix: The prefix.
        most: Tokens that the backbone may read for it, of all texts together.

    Raises:
        PrefixError: It cannot, as `with_start` says; or it started from demonstrations or from another
            prefix; or it takes more tokens.
    """
    _record_of(prefix)
    settings = _settings_of(prefix)
    _refuse_part(prefix, settings)
    if settings.init == "demonstrations" or settings.starts_from_prefix:
        what = "demonstrations" if settings.init == "demonstrations" else f"{settings.init!r}"
        raise PrefixError(f"it started from {what}, of which its recipe has only the name; {ONCE}")
    known = prefix.meta.attributes
    of_values = len(known) * (settings.attribute_length or ATTRIBUTE_LENGTH)
    texts = 2 + sum(map(len, known.values())) if known else 1
    read = texts * ((settings.length or LENGTH) + of_values)
    if max(read, len(settings.init_text or "") // LETTERS) > most:
        raise PrefixError(
            f"its start takes {read} tokens to recompute, from a text of "
            f"{len(settings.init_text or '')} characters; at most {most} are read here. Instead {ONCE}"
        )


def _record_of(prefix: Prefix) -> Mapping[str, Any]:
    """What the start is recomputed from, beside the recipe.

    Raises:
        PrefixError: The recipe does not say it.
    """
    record = begun(prefix.meta, prefix.length)
    if record is not None:
        return record
    if COMPOSITION in prefix.meta.recipe:
        raise PrefixError(
            "the start of this prefix cannot be recomputed: it was put together from prefixes whose "
            "starts differ or lie apart. ",
            "Recompute the start of each of them, and put them together again",
            command=f"Name those prefixes in its place; {_WITHOUT}",
        )
    raise PrefixError(
        "the start of this prefix cannot be recomputed: its recipe does not say how it was trained, as "
        "that of a captured or imported prefix does not. ",
        "Use a.interpolate(b, t), which needs no start, or give its start: "
        "dataclasses.replace(prefix, start=...)",
        command=_WITHOUT[0].upper() + _WITHOUT[1:],
    )


def _settings_of(prefix: Prefix) -> TrainSettings:
    """What training did, as the recipe says it; settings that are not known here are left out."""
    fields = {name: value for name, value in prefix.meta.recipe.items() if name in _SETTINGS}
    try:
        return TrainSettings(**fields)
    except (ForewordError, TypeError) as error:  # a file's recipe may say anything
        raise PrefixError(
            f"the start of this prefix cannot be recomputed: its recipe is no set of settings: {error}"
        ) from error


def _refuse_part(prefix: Prefix, settings: TrainSettings) -> None:
    """Check that a prefix that was trained with attributes has a piece for each of their values."""
    if settings.attributes is not None and not prefix.meta.attributes:
        raise PrefixError(
            "the start of this prefix cannot be recomputed: it is a part of one that was trained with "
            "attributes. ",
            "Recompute the start of that one, and take the part of it",
            command="Name that one, and the part of it, as in task[sentiment=positive]",
        )


def _rows(settings: TrainSettings, rows: Data | None) -> list[Mapping[str, Any]]:
    """The rows that demonstrations are taken from; none where nothing is."""
    if settings.init != "demonstrations":
        return []
    if rows is None:
        raise PrefixError(
            "this prefix started from demonstrations, so its start cannot be recomputed without the "
            "training rows: ",
            "with_start(backbone, prefix, rows)",
            command="give them to foreword compose or foreword map (--data)",
        )
    return spread(rows_of(rows), settings)


def _check_rows(
    backbone: Backbone,
    settings: TrainSettings,
    first: Prefix,
    rows: list[Mapping[str, Any]],
    digest: str | None,
) -> None:
    """Check that rows are those that were trained on."""
    if digest is not None and rows_digest(encode(backbone, rows, settings, first)[0]) != digest:
        raise PrefixError(
            "the rows are not those that the prefix was trained on (they have another digest), so its "
            "start cannot be recomputed from them; give the training rows, all of them in order"
        )


def _check_parent(settings: TrainSettings, first: Prefix, parents: list[str]) -> None:
    """Check that the prefix that ``init`` names is still the one that training started from."""
    if not settings.starts_from_prefix:
        return
    found = first.meta.parents[0]
    if not parents or parents[0] != found:
        told = parents[0][:12] if parents else "unknown"
        raise PrefixError(
            f"the start of this prefix cannot be recomputed: {settings.init!r} is another prefix now "
            f"(digest {found[:12]}) than the one that training started from ({told}). Give a store "
            "that has it under this name"
        )


def _as_it_is_now(backbone: Backbone, prefix: Prefix, first: Prefix, tokens: list[int]) -> Prefix:
    """A start at the prefix's sites, virtual tokens and positions, with a head like its own.

    Raises:
        PrefixError: It is not the start of such a prefix.
    """
    labels = [site.label for site in prefix.sites]
    has = {site.label for site in first.sites}
    whole = COMPOSITION not in prefix.meta.recipe
    if not set(labels) <= has or first.length < tokens[1] or (whole and first.length > tokens[1]):
        raise PrefixError(
            f"the start that the recipe says has {first.length} virtual tokens at {len(has)} sites, of "
            f"which the prefix has {prefix.length} at {len(labels)}: they are not of one training"
        )
    found = first.with_head(None).only(labels)
    if found.meta.positions != prefix.meta.positions:
        if tokens != [0, found.length]:
            raise PrefixError(
                "the prefix was cut and moved to another position policy, in which order its recipe "
                "does not say, so its start cannot be recomputed; recompute that of the whole first"
            )
        found = backbone.moved(found, prefix.meta.positions)
    found = found[tokens[0] : tokens[1]]
    return found.with_head(_head_at_start(prefix.head, first.head))


def _head_at_start(head: Head | None, first: Head | None) -> Head | None:
    """Where a head started: at the one that the start had for the same labels, else at zero."""
    if head is None:
        return None
    if first is not None and first.describe_all() == head.describe_all():
        return first
    return head.made_of(torch.zeros_like(head.weight), torch.zeros_like(head.bias))
