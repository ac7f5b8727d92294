"""`foreword import`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cyclopts import Parameter

from foreword.cli.console import note, say, working
from foreword.cli.options import BackboneOptions, StoreOptions
from foreword.errors import BackboneError, NameTaken
from foreword.reach import check_path
from foreword.store import taken

if TYPE_CHECKING:
    from foreword.peft import PeftConfig


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ImportArguments:
    """What to call it."""

    name: str
    """Name of the prefix in the store."""

    overwrite: bool = False
    """Replace a prefix of that name."""


def import_(
    folder: Path,
    /,
    *,
    arguments: ImportArguments,
    backbone: BackboneOptions = BackboneOptions(),  # noqa: B008
    store: StoreOptions = StoreOptions(),  # noqa: B008
) -> None:
    """Put a PEFT checkpoint of prefix tuning (PREFIX_TUNING, CARTRIDGE) into the store.

    Without --backbone the model is the one that the checkpoint names.

    Parameters
    ----------
    folder
        Folder with adapter_config.json and adapter_model.safetensors.
    """
    place = store.open()
    if not arguments.overwrite and arguments.name in place:
        raise NameTaken(taken(arguments.name, place.folder))
    from foreword.peft import import_peft, read_config

    config = read_config(folder)
    with working("loading the backbone"):
        loaded = _chosen(backbone, config, folder).load()
    prefix = import_peft(folder, loaded)
    path = place.save(arguments.name, prefix, overwrite=arguments.overwrite)
    say(
        f"{arguments.name}: {config.kind}, {prefix.length} virtual tokens, "
        f"{prefix.parameters:,} parameters, on {loaded.name}",
    )
    note(f"saved to {path}")


def _chosen(options: BackboneOptions, config: PeftConfig, folder: Path) -> BackboneOptions:
    """The options, with the model that the checkpoint names where none is given."""
    if options.backbone is not None:
        return options
    if config.base is None:
        raise BackboneError(f"{folder} does not name its base model; name it with --backbone")
    check_path(config.base, "the checkpoint names it. Say where it is now: --backbone FOLDER")
    revision = options.revision or config.revision
    return dataclasses.replace(options, backbone=config.base, revision=revision)
