"""`foreword map`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from rich.table import Table

from foreword.cli.console import note, say, show, table, visible, working
from foreword.cli.options import BackboneOptions, StoreOptions
from foreword.errors import DataError, FormatError, MismatchError, PrefixError
from foreword.store import PrefixStore

if TYPE_CHECKING:
    from foreword.prefix import Prefix
    from foreword.similarity import Similarity


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class MapArguments:
    """What is compared, and how it is shown."""

    to: str | None = None
    """Name of a prefix, such as one that was trained for a few steps on a new task: list the others, the
    nearest first. That says how alike they are in what they learned, and not which of them training had
    better start from; it can start from any (`train --init`)."""

    image: Path | None = None
    """Draw all of it into this file, .png or .svg: a heat map, and places in a plane."""

    raw: bool = False
    """Compare keys and values as they are, and not what was learned; no backbone is loaded."""

    pooling: Literal["tokens", "mean"] | None = None
    """How virtual tokens are compared: tokens, one by one; mean, their means, whatever their order and
    number. Default: tokens where all prefixes have one length."""

    data: str | None = None
    """Training rows, for prefixes that started from demonstrations."""

    as_json: Annotated[bool, Parameter(name="--json")] = False
    """Print everything as JSON."""


def map_(
    *names: str,
    arguments: MapArguments = MapArguments(),
    backbone: BackboneOptions = BackboneOptions(),  # noqa: B008
    store: StoreOptions = StoreOptions(),  # noqa: B008
) -> None:
    """Show how alike prefixes are in what they learned, and which are nearest to one.

    The numbers are cosines: 1 is the same direction, 0 nothing in common. Prefixes of another backbone
    than the first one's are left out, as are those whose start cannot be computed.

    Parameters
    ----------
    names
        Names of the store; default: all of them.
    """
    place = store.open()
    wanted = _wanted(place, names, arguments.to)
    if arguments.image is not None:
        from foreword.evaluate.picture import picture_format

        picture_format(arguments.image)
    found = _compared(place, wanted, arguments, backbone)
    if arguments.to is not None:
        _ = found.nearest(arguments.to)
    if arguments.image is not None:
        from foreword.evaluate.picture import similarity_map

        similarity_map(found, arguments.image, title=_title(found))
        note(f"a picture of {len(found.names)} prefixes in {arguments.image}")
    if arguments.as_json:
        nearest = None if arguments.to is None else found.nearest(arguments.to)
        say(json.dumps({**found.as_json(), "nearest": nearest}, ensure_ascii=False, indent=1))
        return
    show(_matrix(found) if arguments.to is None else _nearest(found, arguments.to))
    for name, why in found.left_out.items():
        note(visible(f"left out: {name}: {why}"))


def _wanted(store: PrefixStore, names: Sequence[str], to: str | None) -> list[str]:
    """The prefixes that are compared; one that others are compared to comes first."""
    for name in names:
        _ = store.outline(name)
    if to is not None:
        _ = store.outline(to)
    asked = list(names) or list(store)
    wanted = list(dict.fromkeys([*([] if to is None else [to]), *asked]))
    if len(wanted) < 2:
        raise DataError(
            f"prefixes are compared two by two; found {len(wanted)} in {store.folder}. Name two of them"
        )
    return wanted


def _compared(
    store: PrefixStore, names: Sequence[str], arguments: MapArguments, options: BackboneOptions
) -> Similarity:
    """How alike prefixes of the store are; those that cannot be compared are left out."""
    from foreword.similarity import similarity

    left_out: dict[str, str] = {}
    stored: dict[str, Prefix] = {}
    for name in names:
        try:
            stored[name] = store.load(name)
        except FormatError as error:
            left_out[name] = str(error)
    stored = _agreeing(stored, left_out)
    if not arguments.raw:
        stored = _started(store, stored, left_out, arguments.data, options)
    return similarity(stored, raw=arguments.raw, pooling=arguments.pooling, left_out=left_out)


def _agreeing(stored: dict[str, Prefix], left_out: dict[str, str]) -> dict[str, Prefix]:
    """The prefixes that were made for the backbone of the first one, under its policies."""
    from foreword.arithmetic.agreement import check_agreement

    found: dict[str, Prefix] = {}
    for name, prefix in stored.items():
        try:
            check_agreement("a comparison", next(iter(stored.values())), prefix)
            found[name] = prefix
        except PrefixError as error:
            left_out[name] = error.for_commands
    return found


def _started(
    store: PrefixStore,
    stored: dict[str, Prefix],
    left_out: dict[str, str],
    data: str | None,
    options: BackboneOptions,
) -> dict[str, Prefix]:
    """The prefixes with their starts."""
    first = next(iter(stored.values()), None)
    if first is None:
        return {}
    with working("loading the backbone"):
        backbone = options.load(first)
    from foreword.train import with_start

    found: dict[str, Prefix] = {}
    for name, prefix in stored.items():
        try:
            found[name] = with_start(backbone, prefix, data, store)
        except (PrefixError, MismatchError, DataError) as error:
            left_out[name] = error.for_commands
    return found


def _title(found: Similarity) -> str:
    what = "keys and values" if found.raw else "what was learned"
    how = "token by token" if found.pooling == "tokens" else "means over virtual tokens"
    return f"cosine similarity of {what}, {how}"


def _matrix(found: Similarity) -> Table:
    made = table(_title(found), "", *found.names)
    for name, row in zip(found.names, found.matrix, strict=True):
        made.add_row(name, *(f"{number:.3f}" for number in row))
    return made


def _nearest(found: Similarity, to: str) -> Table:
    made = table(_title(found), f"nearest to {to}", "similarity")
    for name, number in found.nearest(to):
        made.add_row(name, f"{number:.3f}")
    return made
