"""`foreword list`."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from cyclopts import Parameter
from rich.table import Table

from foreword.cli.console import fits, note, say, show, table, visible
from foreword.cli.options import StoreOptions
from foreword.errors import FormatError
from foreword.store import PrefixStore

COLUMNS = ("name", "task", "length", "parameters", "bytes", "backbone", "digest")
LEFT_OUT: tuple[Collection[str], ...] = ((), ("digest",), ("digest", "bytes"))
"""What a terminal without the room goes without, tried in this order: names are not cut for figures."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ListArguments:
    """How the list is shown."""

    as_json: Annotated[bool, Parameter(name="--json")] = False
    """Print a JSON list instead, an object for each prefix: name, task, length, parameters, bytes,
    backbone and digest; of a damaged file name and error."""


def list_(
    *,
    arguments: ListArguments = ListArguments(),
    store: StoreOptions = StoreOptions(),  # noqa: B008
) -> None:
    """List the prefixes in the store: name, task, size, backbone, digest.

    The task is what the prefix's head does, or text for one without a head.
    """
    place = store.open()
    entries = [_entry(place, name) for name in place]
    if arguments.as_json:
        say(json.dumps(entries, ensure_ascii=False, indent=1))
        return
    for entry in entries:
        if "error" in entry:
            note(entry["error"])
    if entries:
        show(_fitting([_row(entry) for entry in entries]))
    note(f"{len(entries)} {'prefix' if len(entries) == 1 else 'prefixes'} in {place.folder}")


def _entry(place: PrefixStore, name: str) -> dict[str, Any]:
    """What the header of a prefix's file says, or what is wrong with it."""
    try:
        found = place.outline(name)
    except FormatError as error:
        return {"name": name, "error": str(error)}
    return {
        "name": name,
        "task": "text" if found.head is None else found.head["task"],
        "length": found.length,
        "parameters": found.parameters,
        "bytes": place.path(name).stat().st_size,
        "backbone": found.meta.backbone,
        "digest": found.digest,
    }


def _row(entry: Mapping[str, Any]) -> dict[str, str]:
    """A prefix for people."""
    if "error" in entry:
        return {"name": entry["name"], "backbone": "damaged"}
    return {
        **{name: entry[name] for name in ("name", "task")},
        **{name: f"{entry[name]:,}" for name in ("length", "parameters", "bytes")},
        "backbone": visible(entry["backbone"]),
        "digest": entry["digest"][:12],
    }


def _fitting(rows: Sequence[Mapping[str, str]]) -> Table:
    """The rows with all columns that there is room for."""
    for left_out in LEFT_OUT:
        columns = [name for name in COLUMNS if name not in left_out]
        made = table("", *columns)
        for row in rows:
            made.add_row(*(row.get(name, "") for name in columns))
        if fits(made):
            break
    return made
