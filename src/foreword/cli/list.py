"""`foreword list`."""

from __future__ import annotations

from foreword.cli.console import note, show, table, visible
from foreword.cli.options import StoreOptions
from foreword.errors import FormatError


def list_(*, store: StoreOptions = StoreOptions()) -> None:  # noqa: B008
    """List the prefixes in the store: name, task, size, backbone, digest.

    The task is what the prefix's head does, or text for one without a head.
    """
    place = store.open()
    made = table("", "name", "task", "length", "parameters", "bytes", "backbone", "digest")
    count = 0
    for name in place:
        count += 1
        try:
            found = place.outline(name)
        except FormatError as error:
            made.add_row(name, "", "", "", "", "damaged", "")
            note(str(error))
            continue
        size = place.path(name).stat().st_size
        task = "text" if found.head is None else found.head["task"]
        figures = (f"{found.length}", f"{found.parameters:,}", f"{size:,}")
        made.add_row(name, task, *figures, visible(found.meta.backbone), found.digest[:12])
    if count:
        show(made)
    note(f"{count} {'prefix' if count == 1 else 'prefixes'} in {place.folder}")
