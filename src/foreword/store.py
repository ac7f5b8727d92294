"""`PrefixStore`: prefixes by name, one file each, in a folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import platformdirs

from foreword.arguments import did_you_mean, path_of
from foreword.errors import NameTaken, NameUnknown, StoreError
from foreword.files import reason, remove_leftovers, written_whole
from foreword.outline import SUFFIX, Outline, outline_of

if TYPE_CHECKING:
    from foreword.prefix import Prefix

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""What a prefix can be called."""

OPERATOR = re.compile(r"[*+()\[\]]|-\s|^-")
"""What an expression of prefixes has, and a name has not."""

SHOWN = 10
"""Names that an error shows at most."""

Stamp = tuple[int, int, int]
"""Time of change, size and number of a file."""


def default_folder() -> Path:
    """The store's folder: ``FOREWORD_STORE``, else ``prefixes`` in the user's data folder."""
    chosen = os.environ.get("FOREWORD_STORE")
    return Path(chosen) if chosen else Path(platformdirs.user_data_dir("foreword")) / "prefixes"


class PrefixStore:
    """A folder of prefixes.

    Args:
        folder: Where the files are; made when first written to. Default: `default_folder`.

    Examples:
        >>> store = PrefixStore("prefixes")
        >>> "e2e" in store
        False
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        given = default_folder() if folder is None else folder
        self.folder = path_of("folder", given, StoreError)

    def path(self, name: str) -> Path:
        """The file of the prefix called `name`, whether it exists or not.

        Raises:
            StoreError: The name could lead out of the folder, or is not a plain word.
        """
        if not isinstance(name, str) or not NAME.fullmatch(name):
            python, command = _what_expressions_are_for(name)
            raise StoreError(
                f"{name!r} is not a name for a prefix; expected 1 to 128 letters, digits, '.', '_' "
                "and '-', starting with a letter or digit",
                python,
                command=command,
            )
        return self.folder / f"{name}{SUFFIX}"

    def __contains__(self, name: str) -> bool:
        return os.path.isfile(self.path(name))

    def __iter__(self) -> Iterator[str]:
        """Names in alphabetical order.

        Raises:
            StoreError: The folder cannot be read.
        """
        try:
            files = list(self.folder.iterdir())
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            raise StoreError(f"cannot read the folder {self.folder}: {reason(error)}") from error
        stems = {f.stem for f in files if f.suffix == SUFFIX and os.path.isfile(f)}
        yield from sorted(filter(NAME.fullmatch, stems))

    def stamp(self, name: str) -> Stamp:
        """What tells the file of the prefix called `name` from one that replaces it.

        Raises:
            NameUnknown: There is none.
        """
        try:
            found = os.stat(self.path(name))
        except (OSError, ValueError):
            raise NameUnknown(f"no prefix is called {name!r} in {self.folder}") from None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def save(self, name: str, prefix: Prefix, *, overwrite: bool = False) -> Path:
        """Write a prefix under a name, whole or not at all.

        Raises:
            NameTaken: There is one of this name, and `overwrite` is not set.
            StoreError: The disk refuses.
        """
        path = self.path(name)
        if not overwrite and os.path.lexists(path):  # spares the work; the file system decides
            raise NameTaken(taken(name, self.folder))
        from foreword import format as prefix_file

        try:
            prefix_file.save(prefix, path, overwrite=overwrite)
        except NameTaken:
            raise NameTaken(taken(name, self.folder)) from None
        return path

    @contextmanager
    def writing(self, name: str, *, overwrite: bool = False) -> Iterator[BinaryIO]:
        """A file to write and check, which has the name once the block has ended, and not if it raises.

        Raises:
            NameTaken: There is one of this name, and `overwrite` is not set.
            StoreError: The disk refuses.
        """
        path = self.path(name)
        if not overwrite and os.path.lexists(path):
            raise NameTaken(taken(name, self.folder))
        try:
            with written_whole(path, overwrite=overwrite) as file:
                yield file
        except NameTaken:
            raise NameTaken(taken(name, self.folder)) from None

    def clear_leftovers(self) -> None:
        """Delete what writers that were killed left in the folder; files of those that live stay.

        Raises:
            StoreError: The folder cannot be read.
        """
        try:
            remove_leftovers(self.folder, SUFFIX)
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            raise StoreError(f"cannot read the folder {self.folder}: {reason(error)}") from error

    def load(self, name: str) -> Prefix:
        """Read the prefix called `name`.

        Raises:
            NameUnknown: There is none.
            FormatError: Its file is damaged.
        """
        path = self._known(name)
        from foreword import format as prefix_file

        return prefix_file.load(path)

    def outline(self, name: str) -> Outline:
        """What the file of the prefix called `name` says of itself; its tensors are not read.

        Raises:
            NameUnknown: There is none.
            FormatError: Its header is damaged, or the file is not as long as it says.
        """
        return outline_of(self._known(name))

    def remove(self, name: str) -> None:
        """Delete the prefix called `name`.

        Raises:
            NameUnknown: There is none.
            StoreError: It cannot be deleted.
        """
        path = self.path(name)
        try:
            path.unlink()
        except FileNotFoundError:
            raise NameUnknown(self._unknown(name)) from None
        except (OSError, ValueError) as error:
            raise StoreError(f"cannot delete {path}: {reason(error)}") from error

    def _known(self, name: str) -> Path:
        path = self.path(name)
        if not os.path.isfile(path):
            raise NameUnknown(self._unknown(name))
        return path

    def _unknown(self, name: str) -> str:
        names = list(self)
        known = ", ".join(names[:SHOWN]) or "it is empty"
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        near = did_you_mean(name, names)
        return f"no prefix is called {name!r} in {self.folder} ({known}{more}){near}"


def _what_expressions_are_for(name: object) -> tuple[str, str]:
    """What to do in Python, and on the command line, if a name is an expression of several."""
    if not isinstance(name, str) or not OPERATOR.search(name):
        return "", ""
    said = ". Expressions of prefixes are not taken here; "
    return (
        f"{said}foreword.compose makes a prefix of one",
        f"{said}save what it stands for, with foreword compose, and give the name of that",
    )


def taken(name: str, folder: Path) -> str:
    """What to say when a name is in use."""
    return (
        f"a prefix called {name!r} is already in {folder}; choose another name, remove it first "
        f"(foreword remove {name}), or overwrite it (--overwrite)"
    )
