"""`foreword push`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cyclopts import Parameter

from foreword.cli.console import quiet_libraries, say, working
from foreword.cli.options import StoreOptions
from foreword.data.strict_json import loaded
from foreword.errors import DataError


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class PushArguments:
    """What the repository and its card are to be like."""

    private: bool = False
    """Make the repository a private one."""

    license: str | None = None
    """The prefix's licence as the Hub spells it, such as apache-2.0; not given, the card names none."""

    metrics: Path | None = None
    """File with what "foreword evaluate NAME DATA --json" printed for this prefix, for the card."""


def push(
    name: str,
    repo_id: str,
    /,
    *,
    arguments: PushArguments = PushArguments(),
    store: StoreOptions = StoreOptions(),  # noqa: B008
) -> None:
    """Put a prefix and its model card into a repository on the Hugging Face Hub.

    The token is that of HF_TOKEN or of "hf auth login".

    Parameters
    ----------
    name
        Name of the prefix in the store.
    repo_id
        The repository, OWNER/NAME; made if there is none.
    """
    place = store.open()
    _ = place.outline(name)  # a wrong name is refused before anything large is imported
    metrics = None if arguments.metrics is None else _read(arguments.metrics)
    from foreword.hub import push as push_prefix

    quiet_libraries()
    prefix = place.load(name)
    with working(f"pushing to {repo_id}"):
        address = push_prefix(
            prefix,
            repo_id,
            private=arguments.private,
            license=arguments.license,
            metrics=metrics,
        )
    say(address)


def _read(path: Path) -> Any:
    try:
        return loaded(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"cannot read the metrics in {path}: {error}") from error
