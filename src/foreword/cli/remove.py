"""`foreword remove`."""

from __future__ import annotations

import shutil

from foreword.cli.console import note
from foreword.cli.options import StoreOptions
from foreword.cli.train import run_folder


def remove(name: str, /, *, store: StoreOptions = StoreOptions()) -> None:  # noqa: B008
    """Delete a prefix from the store, with what is left of a run under its name.

    Parameters
    ----------
    name
        Name of the prefix in the store.
    """
    place = store.open()
    place.remove(name)
    shutil.rmtree(run_folder(place, name), ignore_errors=True)
    note(f"removed {name} from {place.folder}")
