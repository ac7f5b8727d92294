"""Files that are whole or absent: written under a temporary name, flushed, then renamed."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from foreword.errors import NameTaken, StoreError

if sys.platform != "win32":
    import fcntl

POINTER = b"version https://git-lfs.github.com/spec/"
"""How files begin that Git LFS leaves in the place of large ones."""

NOT_FETCHED = "it is a pointer of Git LFS and not the file itself; fetch that with: git lfs pull"
"""What to say of such a file."""

_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{16}")
"""Names that files have while they are written."""


def write_whole(path: Path, content: bytes, *, overwrite: bool = True) -> None:
    """Put `content` at `path`; a crash at any moment leaves the old file or the new one.

    Raises:
        NameTaken: Something is at `path`, and `overwrite` is not set.
        StoreError: The folder cannot be written, or the disk is full. The old file is untouched.
    """
    with written_whole(path, overwrite=overwrite) as file, refusing(path):
        file.write(content)


@contextlib.contextmanager
def written_whole(path: Path, *, overwrite: bool = True) -> Iterator[BinaryIO]:
    """A file to write and read, which is at `path` once the block has ended, and not if it raises.

    Of several writers that may not overwrite, in any number of threads and processes, one succeeds.

    Raises:
        NameTaken: Something is at `path`, and `overwrite` is not set.
        StoreError: The folder cannot be written, or the disk is full. The old file is untouched.
    """
    aside = path.parent / f".{path.name}.{secrets.token_hex(8)}"
    try:
        with refusing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = _opened(aside)
        with file:
            yield file
            with refusing(path):
                file.flush()
                os.fsync(file.fileno())
                if sys.platform == "win32":
                    file.close()  # what is open cannot be renamed there, nor deleted by another
                _give_name(aside, path, overwrite=overwrite)
                sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError, ValueError):
            os.unlink(aside)


def _opened(aside: Path) -> BinaryIO:
    """A new file of this name, held so that `remove_leftovers` knows that its writer lives."""
    while True:
        # Not mkstemp, whose files only their owner can read.
        file = open(aside, "x+b")  # noqa: SIM115
        if sys.platform != "win32":
            with contextlib.suppress(OSError):  # some network file systems have no locks
                fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # it was taken for a leftover before it was locked


def _give_name(aside: Path, path: Path, *, overwrite: bool) -> None:
    """Rename a file; without `overwrite` only to a name that is free at that very moment."""
    if overwrite:
        os.replace(aside, path)
        return
    try:
        _link(aside, path)
    except FileExistsError as error:
        raise NameTaken(f"cannot write {path}: something is there already") from error


def _link(aside: Path, path: Path) -> None:
    """Give a file a free name.

    Raises:
        FileExistsError: It is not free.
    """
    try:
        os.link(aside, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: an empty file holds the name meanwhile
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        try:
            os.replace(aside, path)
        except BaseException:
            os.unlink(path)
            raise


def remove_leftovers(folder: Path, suffix: str = "") -> None:
    """Delete what writers that were killed left in a folder; files of those that live stay.

    Args:
        folder: The folder.
        suffix: What the names end in that the files were to get.
    """
    for path in folder.iterdir():
        name = path.name.rpartition(".")[0]
        if _LEFTOVER.fullmatch(path.name) and name.endswith(suffix) and path.is_file():
            with contextlib.suppress(OSError):  # another has deleted it, or somebody writes it
                _remove_unless_held(path)


def _remove_unless_held(path: Path) -> None:
    with open(path, "r+b") as file:
        if sys.platform != "win32":
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    if sys.platform == "win32":
        path.unlink()


def is_pointer(content: bytes) -> bool:
    """Whether a file's beginning says that it only points at a file, which Git LFS has not fetched."""
    return content.startswith(POINTER)


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut, where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows cannot open folders
        return
    try:
        with contextlib.suppress(OSError):  # some network file systems cannot sync them
            os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Say of what the system refuses in a block that `path` cannot be written.

    Raises:
        StoreError: With what the system says.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        raise refused(path, error) from error


def refused(path: Path, error: OSError | ValueError) -> StoreError:
    """What to say when the system refuses to write `path`."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(
            f"cannot write {path}: the disk is full. Nothing was lost; free some space or choose "
            "another folder, then do it again"
        )
    return StoreError(f"cannot write {path}: {reason(error)}")


def reason(error: OSError | ValueError) -> str:
    """The system's words without the path; ValueError is what a NUL in a path raises."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def write_folder(
    path: Path, contents: Mapping[str, bytes], *, replaceable: Collection[str] = ()
) -> Path:
    """Put a folder of files at `path`, written aside and then renamed.

    Args:
        path: The folder. It may be there if it is empty, or holds `replaceable` files only.
        contents: Name and bytes of each file.
        replaceable: Names that may be there and are lost.

    Returns:
        The path.

    Raises:
        StoreError: The folder holds something else, or cannot be written; it is untouched.
    """
    aside = path.parent / f".{path.name}.{secrets.token_hex(8)}"
    old = aside.with_name(aside.name + ".old")
    try:
        _check_replaceable(path, replaceable)
        for name, content in contents.items():
            write_whole(aside / name, content)
        if path.exists():
            os.rename(path, old)
        os.rename(aside, path)
        sync_folder(path.parent)
    except (OSError, ValueError) as error:
        raise refused(path, error) from error
    finally:
        with contextlib.suppress(OSError, ValueError):
            _put_back(old, path)
        shutil.rmtree(aside, ignore_errors=True)
    return path


def _put_back(old: Path, path: Path) -> None:
    """Give the old folder its name again if no new one has it, also after Ctrl-C; else remove it."""
    if old.exists() and not path.exists():
        os.rename(old, path)
    shutil.rmtree(old, ignore_errors=True)


def _check_replaceable(path: Path, replaceable: Collection[str]) -> None:
    """Refuse a place where something is that may not be lost."""
    if not os.path.lexists(path):
        return
    if path.is_symlink() or not path.is_dir():
        raise StoreError(f"cannot write the folder {path}: something else is there")
    found = sorted(entry.name for entry in path.iterdir())
    others = [name for name in found if name not in replaceable]
    if not others:
        return
    remedy = (
        f"and {others[0]!r} in it would be lost; choose another folder"
        if replaceable
        else "choose another, or overwrite it (--overwrite)"
    )
    raise StoreError(f"the folder {path} is not empty, {remedy}")
