"""Every error that Foreword raises on purpose.

The tree, which is also what a caller can catch::

    ForewordError
    ├── FormatError            a prefix file is not what the format says
    │   ├── TruncatedFile      the file ends before its header says so
    │   ├── CorruptFile        header or contents were altered (digest, JSON, sizes)
    │   └── UnsupportedVersion written by a newer format version
    ├── PrefixError            a prefix value is ill-formed (shape, dtype, not finite)
    ├── MismatchError          a prefix does not fit this backbone or tokenizer
    ├── UnsupportedModel       a model, or a way to run it, that cannot carry a prefix
    ├── BypassError            an attention call did not go through the prefix
    ├── BusyError              another thread is at work on the model
    ├── RowsError              prefixes per row do not match the batch
    ├── CacheError             a key-value cache belongs to another prefix
    ├── BackboneError          a backbone cannot be found or loaded
    ├── DataError              rows, columns, templates or lengths are wrong
    │   ├── ExpressionError    an expression of prefixes is not what the grammar says
    │   └── TooLong            a request comes to more tokens than there is room for
    ├── TrainingError          training cannot start, resume or go on
    ├── StoreError             a name is not allowed; the disk refused
    │   ├── NameTaken          there is a prefix of this name already
    │   └── NameUnknown        there is none
    ├── ServeError             an engine takes no requests, or a server would be open to anybody
    └── HubError               the Hub cannot be reached, refused, or holds something else

Each message names the thing, what was expected, what was found and the remedy.
"""

from typing import Self


class ForewordError(Exception):
    """Root of the tree: anything that Foreword refuses.

    Args:
        said: The message.
        remedy: Its end, where that is something to do in Python.
        command: What it ends with instead where a command fails; None: no other.
    """

    def __init__(self, said: object = "", remedy: str = "", *, command: str | None = None) -> None:
        super().__init__(f"{said}{remedy}")
        self._said, self._remedy, self._command = said, remedy, command

    def about(self, what: object) -> Self:
        """The same error, which begins with what it is about."""
        made = type(self).__new__(type(self))  # constructors of subclasses differ
        made.__dict__.update(self.__dict__, _said=f"{what}: {self._said}")
        made.args = (f"{made._said}{made._remedy}",)
        return made

    @property
    def for_commands(self) -> str:
        """The message with the remedy that the command line has."""
        return str(self) if self._command is None else f"{self._said}{self._command}"


class FormatError(ForewordError):
    """A prefix file does not follow the format."""


class TruncatedFile(FormatError):
    """The file ends before the place that its header promises."""


class CorruptFile(FormatError):
    """The file's bytes do not agree with its header or digest."""


class UnsupportedVersion(FormatError):
    """The file was written by a newer version of the format."""


class PrefixError(ForewordError):
    """A prefix value is ill-formed."""


class MismatchError(ForewordError):
    """A prefix does not fit the backbone or the tokenizer."""


class UnsupportedModel(ForewordError):
    """A model, or a way of running it, cannot carry a prefix."""


class BypassError(ForewordError):
    """A forward pass ran without the prefix that is attached."""


class BusyError(ForewordError):
    """What was asked cannot be done while another thread is at work on the model."""


class RowsError(ForewordError):
    """The number of per-row prefixes does not match the batch."""


class CacheError(ForewordError):
    """A key-value cache was filled under another prefix."""


class BackboneError(ForewordError):
    """A backbone cannot be found or loaded."""


class DataError(ForewordError):
    """The data, a column, a template or a length is wrong."""


class ExpressionError(DataError):
    """An expression of prefixes is not what the grammar says."""


class TooLong(DataError):
    """A request comes to more tokens than the context or the engine has room for."""


class TrainingError(ForewordError):
    """Training cannot start, resume or go on."""


class StoreError(ForewordError):
    """The store cannot do what was asked."""


class NameTaken(StoreError):
    """A name is in use, and what has it may not be replaced."""


class NameUnknown(StoreError):
    """There is no prefix of this name."""


class ServeError(ForewordError):
    """An engine takes no requests, or a server would be open to anybody."""


class HubError(ForewordError):
    """The Hub cannot be reached, refused, or holds something else."""


class Notice(UserWarning):
    """A warning that a command prints once, however often it is given."""


WRITES_NONE = (
    "this prefix carries a head for {!r}, so it labels text and writes none; use predict, or "
    "prefix.with_head(None) for its keys and values alone"
)
"""What is said where text is wanted of a prefix that labels."""

LABELS_NONE = (
    "this prefix has no head, so it writes text and labels nothing; use generate, or train one "
    "with the task classify, tag, answer, regress or multilabel"
)
"""What is said where labels are wanted of a prefix that writes."""


def first_line(error: BaseException) -> str:
    """The first line of what an error says; the name of its kind, if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
