"""`foreword export`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cyclopts import Parameter

from foreword.cli.console import note, say, working
from foreword.cli.options import BackboneOptions, StoreOptions


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ExportArguments:
    """Into what."""

    to: Literal["peft"]
    """Format: peft, a folder that PeftModel.from_pretrained loads."""

    overwrite: bool = False
    """Replace the checkpoint that the folder holds."""


def export(
    name: str,
    folder: Path,
    /,
    *,
    arguments: ExportArguments,
    backbone: BackboneOptions = BackboneOptions(),  # noqa: B008
    store: StoreOptions = StoreOptions(),  # noqa: B008
) -> None:
    """Write a prefix as a checkpoint of another library.

    The backbone is loaded, in float32 unless --dtype says otherwise: where the prefix lies is measured
    on it. If AutoPeftModel cannot load the base model by the name that it has here, a note says what to
    load or to set.

    Parameters
    ----------
    name
        Name of the prefix in the store.
    folder
        The folder to write.
    """
    place = store.open()
    _ = place.outline(name)  # a wrong name is refused before anything large is imported
    from foreword.peft import config as config_file
    from foreword.peft import export_peft
    from foreword.peft.base import hint

    prefix = place.load(name)
    dtype = "float32" if backbone.dtype == "auto" else backbone.dtype
    with working("loading the backbone"):
        loaded = dataclasses.replace(backbone, dtype=dtype).load(prefix)
    made = export_peft(prefix, loaded, folder, overwrite=arguments.overwrite)
    say(f"{name}: {prefix.length} virtual tokens, written to {made}")
    config = config_file.decode((made / config_file.NAME).read_bytes())
    if said := hint(config.base):
        note(said)
