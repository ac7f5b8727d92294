"""`foreword backbones`."""

from __future__ import annotations

from foreword.cli.console import say, show, table
from foreword.weights import embedded


def backbones() -> None:
    """List the backbones that need no download, and the families that the tests verify."""
    from foreword.backbone import verified_families

    converted = (embedded.converted_folder() / "config.json").is_file()
    state = "ready" if converted else "made on first use"
    if not converted and embedded.gguf_file() is None:
        state = f"needs: {embedded.INSTALL}"
    made = table("Embedded", "name", "what", "state")
    made.add_row(embedded.NAME, embedded.NOTE, state)
    show(made)
    columns = ("family", "kind", "positions", "kernel", "verdict")
    families = table("Families that the oracle verifies", *columns)
    for row in verified_families():
        families.add_row(*(row[column] for column in columns))
    show(families)
    say("Any model of these families works: a local folder, or a name on the Hub.")
