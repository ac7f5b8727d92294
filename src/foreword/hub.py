"""Prefixes to and from repositories on the Hugging Face Hub.

A repository holds ``prefix.safetensors``, the ordinary file, and ``README.md``, its card. Nothing
that is downloaded is run or unpickled: the file is read as any prefix file is.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, ModelInfo
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from foreword import format as prefix_file
from foreword.arguments import check_text
from foreword.card import card, checked_repo
from foreword.errors import ForewordError, FormatError, HubError
from foreword.evaluate.scores import scores_of
from foreword.prefix import Prefix, check_prefix
from foreword.version import __version__

FILE = "prefix.safetensors"
CARD = "README.md"
_OURS = {FILE, CARD, ".gitattributes"}


def push(
    prefix: Prefix,
    repo_id: str,
    *,
    private: bool = False,
    license: str | None = None,
    metrics: Mapping[str, Any] | None = None,
    token: str | None = None,
    endpoint: str | None = None,
) -> str:
    """Put a prefix and its card into a repository on the Hub, in one commit.

    Args:
        prefix: The prefix.
        repo_id: The repository, ``OWNER/NAME``; made if there is none.
        private: Make it a private one.
        license: The prefix's licence as the Hub spells it, such as ``apache-2.0``.
        metrics: Figures for the card: `Evaluation.as_json` of this prefix.
        token: The Hub's token; by default that of ``HF_TOKEN`` or of a login.
        endpoint: The Hub's address; by default ``HF_ENDPOINT`` or the public one.

    Returns:
        The repository's address.

    Raises:
        HubError: The Hub cannot be reached or refuses, or the repository holds something else.
        DataError: The metrics are not this prefix's.
        PrefixError: The prefix cannot be saved.

    Examples:
        >>> foreword.push(prefix, "me/restaurants", license="mit")  # doctest: +SKIP
        'https://huggingface.co/me/restaurants'
    """
    check_prefix(prefix)
    scores = None if metrics is None else scores_of(metrics, prefix)
    text = card(prefix, repo_id, license=license, scores=scores)
    api = _api(token, endpoint)
    with tempfile.TemporaryDirectory(prefix="foreword-") as folder:
        file = Path(folder) / FILE
        prefix_file.save(prefix, file)
        with _asking(f"push to {repo_id}", api):
            seen = _seen(api, repo_id)
            if seen is None:
                api.create_repo(repo_id, private=private or None)
            else:
                _refuse_other_repo(seen, repo_id, private)
        _commit(api, repo_id, prefix, {FILE: str(file), CARD: text.encode()}, seen)
    return f"{api.endpoint}/{repo_id}"


def pull(
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
) -> Prefix:
    """Get a prefix from a repository on the Hub; its file is checked as any other.

    Args:
        repo_id: The repository, ``OWNER/NAME``.
        revision: Branch, tag or commit; by default the main branch.
        token: The Hub's token; by default that of ``HF_TOKEN`` or of a login.
        endpoint: The Hub's address; by default ``HF_ENDPOINT`` or the public one.

    Returns:
        The prefix. To keep it: ``PrefixStore().save(name, prefix)``.

    Raises:
        HubError: The Hub cannot be reached or refuses, or the repository holds no prefix.
        FormatError: What was downloaded is damaged or is not a prefix.

    Examples:
        >>> prefix = foreword.pull("me/restaurants")  # doctest: +SKIP
    """
    _ = checked_repo(repo_id)
    if revision is not None:
        check_text("revision", revision, HubError)
    api = _api(token, endpoint)
    with tempfile.TemporaryDirectory(prefix="foreword-") as folder, _asking(f"pull {repo_id}", api):
        info = api.model_info(repo_id, revision=revision)
        if FILE not in _files(info):
            raise HubError(
                f"{repo_id} holds no {FILE}, so it is not a prefix of Foreword; check the name"
            )
        at = info.sha or revision
        path = api.hf_hub_download(repo_id, FILE, revision=at, local_dir=folder)
        try:
            return prefix_file.load(path)
        except FormatError as error:
            said = str(error).removeprefix(f"{path}: ")  # the copy is gone in a moment
            raise type(error)(f"{FILE} of {repo_id}: {said}") from error


def _api(token: str | None, endpoint: str | None) -> HfApi:
    for what, value in {"token": token, "endpoint": endpoint}.items():
        if value is not None:
            check_text(what, value, HubError)
    return HfApi(
        endpoint=endpoint, token=token, library_name="foreword", library_version=__version__
    )


def _seen(api: HfApi, repo_id: str) -> ModelInfo | None:
    """What the repository is now, or None where there is none (that this token may see)."""
    try:
        return api.model_info(repo_id)
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        return None


def _files(info: ModelInfo) -> set[str]:
    return {entry.rfilename for entry in info.siblings or ()}


def _refuse_other_repo(info: ModelInfo, repo_id: str, private: bool) -> None:
    """Check that an existing repository is one of ours, or empty, and as private as asked for."""
    files = _files(info)
    others = sorted(files - _OURS)
    if others and FILE not in files:
        raise HubError(
            f"{repo_id} exists and holds something else ({_shown(others[0])}); choose another name"
        )
    if private and info.private is False:
        raise HubError(
            f"{repo_id} exists and is public; make it private in its settings on the Hub, or drop "
            "--private (private=True)"
        )


def _commit(
    api: HfApi,
    repo_id: str,
    prefix: Prefix,
    files: Mapping[str, str | bytes],
    seen: ModelInfo | None,
) -> None:
    """Add the files in one commit, on top of what was seen."""
    added = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=f) for name, f in files.items()]
    try:
        with _asking(f"push to {repo_id}", api):
            api.create_commit(
                repo_id,
                added,
                commit_message=f"Prefix {prefix.digest[:12]}, pushed by Foreword {__version__}",
                parent_commit=seen.sha if seen is not None else None,
            )
    except HubError as error:
        if seen is not None:
            raise
        raise HubError(
            f"{error}. The repository was made and is empty; push again"
        ) from error.__cause__


@contextmanager
def _asking(doing: str, api: HfApi) -> Iterator[None]:
    """Turn whatever goes wrong between us and the Hub into one message.

    The client's errors have no common root: HTTP, sockets, Xet's own and plain ValueError among them.
    """
    try:
        yield
    except ForewordError:
        raise
    except Exception as error:
        raise HubError(f"cannot {doing}: {_why(error, str(api.endpoint))}") from error


def _why(error: BaseException, endpoint: str) -> str:
    """The first cause that says something, in words, with the remedy."""
    for one in _chain(error):
        if isinstance(one, OfflineModeIsEnabled):
            return "offline mode is on; unset HF_HUB_OFFLINE (and TRANSFORMERS_OFFLINE)"
        if isinstance(one, GatedRepoError):
            return "access to it is restricted; ask for it on the repository's page"
        if isinstance(one, RepositoryNotFoundError):
            return (
                "there is no such repository, or it is private and your token may not see it; check "
                "the name, or log in (hf auth login) or set HF_TOKEN"
            )
        if isinstance(one, RevisionNotFoundError):
            return "it has no such revision; give a branch, a tag or a commit"
        if isinstance(one, HfHubHTTPError):
            return _answered(one.response.status_code, one.server_message or "", endpoint)
    innermost = list(_chain(error))[-1]
    words = _shown(str(innermost) or type(innermost).__name__).rstrip(".")
    if isinstance(error, ValueError):
        return f"{endpoint} did not accept it or is not a Hub: {words}"
    return f"{endpoint} was not reached: {words}. Check the network, and HF_ENDPOINT if you set it"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _answered(status: int, message: str, endpoint: str) -> str:
    """What the Hub's refusal means."""
    said = f" ({_shown(message)})" if message else ""
    if status == 401:
        return (
            f"you are not logged in, or the token is not valid{said}; run hf auth login, or set "
            "HF_TOKEN"
        )
    if status == 403:
        return f"your token may not do this{said}; use one that may write there"
    if status in (409, 412):
        return f"it was changed at the same time{said}; do it again"
    if status == 429 or status >= 500:
        return f"{endpoint} answered {status}{said}; try again later"
    return f"{endpoint} answered {status}{said}"


def _shown(text: str) -> str:
    """Words of a server on one line, without control characters."""
    flat = " ".join(text.split())
    return "".join(c for c in flat if c.isprintable())[:300]
