"""Rows from every kind of source, and what is said of those that cannot be read."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import pyarrow
import pyarrow.parquet
import pytest

from foreword.data import read_rows, rows_of
from foreword.errors import DataError

ROWS = [
    {"mr": "name[Zizzi]", "ref": "Zizzi, by the river."},
    {"mr": "name[Café Brazil]", "ref": 'She said "£20", then\nleft.'},
    {"mr": "", "ref": "a line separator \u2028 and a next line \x85 inside"},
]


def write(path: Path, rows: list[dict[str, str]], encoding: str = "utf-8") -> str:
    if path.suffix == ".jsonl":
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        path.write_text("\n".join(lines) + "\n", encoding=encoding)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, ensure_ascii=False), encoding=encoding)
    elif path.suffix in (".csv", ".tsv"):
        between = "," if path.suffix == ".csv" else "\t"
        with path.open("w", encoding=encoding, newline="") as file:
            writer = csv.DictWriter(file, ["mr", "ref"], delimiter=between)
            writer.writeheader()
            writer.writerows(rows)
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return str(path)


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "tsv", "parquet", "JSONL"])
def test_every_format_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows.{suffix}"
    source = write(path.with_suffix(path.suffix.lower()), ROWS)
    Path(source).rename(path)
    assert read_rows(str(path)) == ROWS


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "tsv"])
def test_a_byte_order_mark_is_not_part_of_the_first_row(tmp_path: Path, suffix: str) -> None:
    assert read_rows(write(tmp_path / f"rows.{suffix}", ROWS, "utf-8-sig")) == ROWS


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize(
    ("content", "row"),
    [
        ("text;label\nfine, really;1,5\n", {"text": "fine, really", "label": "1,5"}),
        ('"a, b";label\n"x;y";z\n', {"a, b": "x;y", "label": "z"}),
        ("text\tlabel\nfine, really\tgood\n", {"text": "fine, really", "label": "good"}),
        ("text,a;b\nfine,good\n", {"text": "fine", "a;b": "good"}),
        ('"a;b"\nfine\n', {"a;b": "fine"}),
        ("text\nfine\n", {"text": "fine"}),
    ],
)
def test_a_csv_without_a_comma_in_its_header_has_other_separators(
    tmp_path: Path, content: str, row: dict[str, str], encoding: str
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(content, encoding=encoding)
    assert read_rows(str(path)) == [row]


def test_a_tsv_has_tabs_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    path.write_text("a;b,c\td\n1\t2\n")
    assert read_rows(str(path)) == [{"a;b,c": "1", "d": "2"}]


def test_blank_lines_and_windows_line_ends_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\r\n\r\n{"a": 2}\r\n   \n{"a": 3}')
    assert read_rows(str(path)) == [{"a": 1}, {"a": 2}, {"a": 3}]


BAD = [
    ("rows.jsonl", b'{"a": 1}\n\n{"a": \n', r"rows\.jsonl, line 3: not JSON"),
    (
        "rows.jsonl",
        b'{"a": 1}\n[1, 2]\n',
        r"rows\.jsonl, line 2: expected a JSON object, found a list",
    ),
    ("rows.jsonl", b"", "has no rows"),
    ("rows.jsonl", b"\n \n", "has no rows"),
    ("rows.jsonl", b'{"a": "\xe9"}', "cannot be read as UTF-8"),
    ("rows.json", b'{"a": 1}', "expected a JSON list of objects"),
    ("rows.json", b"[1]", "expected a JSON list of objects"),
    ("rows.json", b"[]", "has no rows"),
    ("rows.json", b"[{]", "cannot be read as JSON"),
    ("rows.json", b'[{"a": "\xe9"}]', "cannot be read as JSON"),
    ("rows.csv", b"", "has no rows"),
    ("rows.csv", b"mr,ref\n", "has no rows"),
    ("rows.csv", b'mr,ref\n"two\nlines",x\na,b,c\n', r"rows\.csv, line 4: its number of fields"),
    ("rows.csv", b"mr,ref\na,b\nc\n", r"rows\.csv, line 3: its number of fields"),
    ("rows.csv", b'mr,ref\na,"never closed\nb,c\n', "cannot be read as CSV"),
    ("rows.csv", b"mr,ref\na,\xe9\n", "cannot be read as CSV"),
    ("rows.csv", b"mr,ref,mr\na,b,c\n", "its header has 'mr' twice"),
    ("rows.csv", b"mr,,ref,\na,b,c,d\n", "its header has '' twice"),
    ("rows.jsonl", b'{"a": 1}\n{"a": 1, "b": 2, "a": 3}\n', "line 2: an object has 'a' twice"),
    ("rows.jsonl", b'{"a": {"b": 1, "b": 2}}\n', "line 1: an object has 'b' twice"),
    ("rows.json", b'[{"a": 1, "a": 3}]', "an object has 'a' twice"),
    ("rows.parquet", b"", "cannot be read as Parquet"),
    ("rows.parquet", b"not parquet at all", "cannot be read as Parquet"),
    ("rows.txt", b"text", r"expected a file ending in \.csv, .*found '\.txt'"),
    ("rows", b"text", r"expected a file ending in \.csv, .*found ''"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD)
def test_a_file_that_cannot_be_read_is_named_with_its_fault(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_rows(str(path))
    assert str(path) in str(caught.value)


def test_a_table_that_has_a_column_twice_is_refused(tmp_path: Path) -> None:
    """It was refused, in the words of another library."""
    path = tmp_path / "rows.parquet"
    columns = [pyarrow.array(["x"]), pyarrow.array(["y"])]
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays(columns, names=["a", "a"]), path)
    with pytest.raises(DataError, match="its table has 'a' twice"):
        read_rows(str(path))


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet", ".txt", ""])
def test_a_path_without_a_file_is_not_looked_for_elsewhere(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "load_dataset", pytest.fail)
    with pytest.raises(DataError, match="there is no such file"):
        read_rows(str(tmp_path / f"missing{suffix}"))


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder"):
        read_rows(str(tmp_path))


def test_the_shipped_sets_are_whole_and_apart() -> None:
    train, heldout = read_rows("foreword/e2e:train"), read_rows("foreword/e2e:heldout")
    assert (len(train), len(heldout)) == (483, 556)
    assert all(set(row) == {"mr", "ref"} and row["ref"].strip() for row in train + heldout)
    assert len({row["mr"] for row in train}) == 483
    assert len({row["mr"] for row in heldout}) == 64
    assert not {row["mr"] for row in heldout} & {row["mr"] for row in train}


@pytest.mark.parametrize(
    ("source", "split"), [("ours/restaurants", "train"), ("ours/restaurants:test", "test")]
)
def test_a_data_set_is_read_by_name_and_split(
    source: str, split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def load_dataset(name: str, split: str) -> Any:
        asked.append((name, split))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read_rows(source) == ROWS
    assert asked == [("ours/restaurants", split)]


def test_an_unknown_name_without_a_network_is_one_clear_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        DataError, match="'nobody/nothing' is neither a file, nor a shipped set"
    ) as e:
        read_rows("nobody/nothing")
    assert "foreword/e2e:train" in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".json", ".parquet"])
def test_a_pointer_of_git_lfs_is_no_data(suffix: str, tmp_path: Path) -> None:
    """As CSV it was two rows, of a column called "version https://git-lfs.github.com/spec/v1"."""
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n")
    with pytest.raises(DataError, match=f"rows{suffix}: it is a pointer of Git LFS"):
        read_rows(str(path))


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_json_that_nests_without_end_is_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows{suffix}"
    path.write_text("[" * 100_000)
    with pytest.raises(DataError, match=f"rows{suffix}.*JSON: it is nested too deeply"):
        read_rows(str(path))


def test_rows_that_are_none_are_refused_with_their_number() -> None:
    with pytest.raises(DataError, match="row 2 is an int, expected a mapping"):
        rows_of([{"a": 1}, 5])  # type: ignore[list-item]
    with pytest.raises(DataError, match="found a NoneType, expected rows"):
        rows_of(None)  # type: ignore[arg-type]
