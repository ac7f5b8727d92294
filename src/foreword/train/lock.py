"""One run at a time in a folder."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from foreword.errors import TrainingError
from foreword.files import refused
from foreword.train.ranks import Ranks

LOCK_FILE = ".lock"
"""Held while a run trains or is cleared away, then gone; one that a killed run left holds nothing."""

_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)
"""What file systems say that know no locks; there each checkpoint's identity must do."""


@contextmanager
def alone_in(folder: Path, *, busy: str | None = None) -> Iterator[None]:
    """For a block, no other run is in the folder, which is made if it is not there.

    Args:
        folder: The folder.
        busy: What to say where another is in it.

    Raises:
        TrainingError: Another run is in it.
        StoreError: It cannot be written.
    """
    lock = FileLock(folder / LOCK_FILE, thread_local=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise TrainingError(
            busy
            or f"another run is training in {folder}; wait until it ends, or choose another name "
            "(--name) or folder"
        ) from error
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) not in _NO_LOCKS:
            raise refused(folder, error) from error
    try:
        yield
    finally:
        try:
            # Before it is released: one who waits for a file without a name asks for a new one.
            with suppress(OSError):
                (folder / LOCK_FILE).unlink()
        finally:
            lock.release()


@contextmanager
def together_in(folder: Path, ranks: Ranks) -> Iterator[None]:
    """`alone_in` for the processes of one run, of which the first holds the folder."""
    held = alone_in(folder)
    ranks.first_does(held.__enter__)
    try:
        yield
    finally:
        if ranks.first:
            held.__exit__(None, None, None)
