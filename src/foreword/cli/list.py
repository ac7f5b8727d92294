"""`foreword list`."""

from __future__ import annotations

from foreword.cli.console import note, out, table
from foreword.cli.options import StoreOptions
from foreword.errors import FormatError


def list_(*, store: StoreOptions = StoreOptions()) -> None:  # noqa: B008
    """List the prefixes in the store."""
    place = store.open()
    made = table("", "name", "length", "parameters", "bytes", "backbone", "digest")
    count = 0
    for name in place:
        count += 1
        try:
            found = place.outline(name)
        except FormatError as error:
            made.add_row(name, "", "", "", "damaged", "")
            note(str(error))
            continue
        size = place.path(name).stat().st_size
        figures = (f"{found.length}", f"{found.parameters:,}", f"{size:,}")
        made.add_row(name, *figures, found.meta.backbone, found.digest[:12])
    if count:
        out.print(made)
    note(f"{count} {'prefix' if count == 1 else 'prefixes'} in {place.folder}")
