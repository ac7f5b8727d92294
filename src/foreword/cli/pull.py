"""`foreword pull`."""

from __future__ import annotations

from dataclasses import dataclass

from cyclopts import Parameter

from foreword.cli.console import quiet_libraries, say, working
from foreword.cli.options import StoreOptions
from foreword.errors import NameTaken
from foreword.store import taken


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class PullArguments:
    """Which prefix, and under which name to keep it."""

    name: str | None = None
    """Name of the prefix in the store; default: the repository's, without its owner."""

    revision: str | None = None
    """Branch, tag or commit on the Hub; default: the main branch."""

    overwrite: bool = False
    """Replace a prefix of this name."""


def pull(
    repo_id: str,
    /,
    *,
    arguments: PullArguments = PullArguments(),
    store: StoreOptions = StoreOptions(),  # noqa: B008
) -> None:
    """Get a prefix from a repository on the Hugging Face Hub and keep it in the store.

    Parameters
    ----------
    repo_id
        The repository, OWNER/NAME.
    """
    place = store.open()
    name = arguments.name or repo_id.rsplit("/", 1)[-1]
    if name in place and not arguments.overwrite:
        raise NameTaken(taken(name, place.folder))
    from foreword.hub import pull as pull_prefix

    quiet_libraries()
    with working(f"pulling {repo_id}"):
        prefix = pull_prefix(repo_id, revision=arguments.revision)
    path = place.save(name, prefix, overwrite=arguments.overwrite)
    say(
        f"{name}: {prefix.parameters:,} parameters for {prefix.meta.backbone} in {path}, digest "
        f"{prefix.digest[:12]}",
    )
