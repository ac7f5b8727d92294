"""Rows from jsonl, json, csv, tsv, parquet, a `datasets` name, or the sets that ship with Foreword."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any

from foreword.arguments import check_text
from foreword.data.given import Data, given_rows
from foreword.data.strict_json import loaded, refuse_repeats
from foreword.errors import DataError, first_line
from foreword.files import NOT_FETCHED, POINTER, is_pointer, reason
from foreword.reach import out_of_reach

Row = dict[str, Any]

SHIPPED = {
    "foreword/e2e:train": "e2e/train.jsonl",
    "foreword/e2e:heldout": "e2e/heldout.jsonl",
    "foreword/neutral:text": "neutral/text.jsonl",
    "foreword/neutral:instructions": "neutral/instructions.jsonl",
}
"""Sets inside the package, by name their files: E2E restaurant data and neutral text; see LICENSE.md of
each folder."""

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
"""What a data set's name can look like; everything else is a path."""


_QUOTED = re.compile(r'"[^"]*"')


def read_rows(source: Data) -> list[Row]:
    """All rows of a source, in order.

    Args:
        source: A path ending in .jsonl, .json, .csv, .tsv or .parquet; a shipped set such as
            ``foreword/e2e:train``; or ``name[:split]`` of the `datasets` library (split ``train``
            by default). Or the rows themselves, as `Data` has them. A .csv whose header has no comma
            is read by the semicolons, or else the tabs, that stand between its columns.

    Raises:
        DataError: There is no such source, a line cannot be read, or it has no rows.
    """
    if not isinstance(source, str | os.PathLike):
        return [dict(row) for row in rows_of(source)]
    name = os.fspath(source)
    check_text("a source of rows", name, DataError)
    rows = list(_open(name))
    if not rows:
        raise DataError(f"{name} has no rows; expected at least one")
    return rows


def rows_of(data: Data) -> list[Mapping[str, Any]]:
    """Rows as they are given, or read from a source.

    Raises:
        DataError: There are none, or the source cannot be read.
    """
    if isinstance(data, str | os.PathLike):
        return [*read_rows(data)]
    rows = given_rows(data)
    if not rows:
        raise DataError("the data has no rows; expected at least one")
    return rows


def is_of_rows(path: str) -> bool:
    """Whether a path is one that rows are read from, by its ending."""
    return Path(path).suffix.lower() in _READERS


def is_named(source: str) -> bool:
    """Whether a source is the name of a set of the datasets library, and no file nor shipped set.

    Raises:
        DataError: It can be neither.
    """
    path = Path(source)
    if source in SHIPPED or os.path.isfile(path) or os.path.isdir(path):
        return False
    near = _near(path)
    is_path = path.suffix.lower() in _READERS or not _HUB_NAME.fullmatch(source.partition(":")[0])
    if is_path:
        raise DataError(f"{source}: there is no such file; {near or 'check the path'}")
    if near and "/" not in source:
        raise DataError(
            f"{source}: there is no such file; {near} A data set of the Hub is owner/name"
        )
    return True


def _open(source: str) -> Iterator[Row]:
    if is_named(source):
        return _from_datasets(source)
    if source in SHIPPED:
        shipped = resources.files("foreword.data") / SHIPPED[source]
        return _jsonl(source, shipped.read_text(encoding="utf-8").split("\n"))
    path = Path(source)
    expected = f"expected a file ending in {', '.join(sorted(_READERS))}"
    if os.path.isdir(path):
        raise DataError(f"{source} is a folder; {expected}")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{source}: {expected}; found {path.suffix!r}")
    _check_fetched(path)
    return reader(path)


def _near(path: Path) -> str:
    """A question after files of rows beside a path whose names are like its own, if there are any."""
    stem = path.stem if path.suffix.lower() in _READERS else path.name
    try:
        files = sorted(f for f in path.parent.iterdir() if f.suffix.lower() in _READERS)
    except (OSError, ValueError):
        return ""
    stems = get_close_matches(stem, {f.stem: None for f in files})
    names = [str(f) for f in files if f.stem in stems]
    return f"did you mean {' or '.join(names)}?" if names else ""


def _check_fetched(path: Path) -> None:
    """Refuse a file that Git LFS has not fetched: read as CSV, it would be rows of nonsense."""
    try:
        with path.open("rb") as file:
            begin = file.read(len(POINTER))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {reason(error)}") from error
    if is_pointer(begin):
        raise DataError(f"{path}: {NOT_FETCHED}")


def _read_jsonl(path: Path) -> Iterator[Row]:
    # Not splitlines(), which would also split at characters that JSON strings may hold, as U+2028.
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    return _jsonl(str(path), lines)


def _jsonl(source: str, lines: list[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = loaded(line)
        except ValueError as error:
            raise DataError(f"{source}, line {number}: not JSON: {error}") from error
        except DataError as error:
            raise DataError(f"{source}, line {number}: {error}") from error
        if not isinstance(row, dict):
            kind = type(row).__name__
            raise DataError(f"{source}, line {number}: expected a JSON object, found a {kind}")
        yield row


def _read_json(path: Path) -> Iterator[Row]:
    try:
        rows = loaded(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, DataError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: expected a JSON list of objects; one object per line is .jsonl")
    yield from rows


def _read_csv(path: Path) -> Iterator[Row]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            between = "\t" if path.suffix.lower() == ".tsv" else _separator(file.readline())
            file.seek(0)
            reader = csv.DictReader(file, delimiter=between, strict=True)
            refuse_repeats(list(reader.fieldnames or []), f"{path}: its header")
            for row in reader:
                if None in row or None in row.values():
                    raise DataError(
                        f"{path}, line {reader.line_num}: its number of fields is not the header's"
                    )
                yield dict(row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV: {error}") from error


def _separator(header: str) -> str:
    """What stands between columns: a comma, or what a header without one has outside of quotes.

    Programs whose language writes decimals with a comma write semicolons, under the same ending.
    """
    bare = _QUOTED.sub("", header)
    return next((mark for mark in ",;\t" if mark in bare), ",")


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        refuse_repeats(pyarrow.parquet.read_schema(path).names, f"{path}: its table")
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {error}") from error
    yield from rows


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}


@contextmanager
def _offline(config: Any, is_out_of_reach: bool) -> Iterator[None]:
    """In a block, the datasets library looks into its cache alone if the Hub is out of reach."""
    before = config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = before or is_out_of_reach
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before


def _from_datasets(source: str) -> Iterator[Row]:
    import datasets

    name, _, split = source.partition(":")
    is_lost = out_of_reach()
    try:
        with _offline(datasets.config, is_lost):
            loaded = datasets.load_dataset(name, split=split or "train")
    except Exception as error:  # the library raises many kinds, of its own and of the Hub's client
        said = first_line(error)
        if is_lost and isinstance(error, ConnectionError):
            said = "the Hub does not answer, and its cache has no copy. Check the name, and the network"
        raise DataError(
            f"{source!r} is neither a file, nor a shipped set ({', '.join(SHIPPED)}), nor a data "
            f"set that the datasets library can load: {said}"
        ) from error
    yield from loaded
