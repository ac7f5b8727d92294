"""Inputs of several verbs: a text, a file of them, or lines on standard input."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest

from foreword.cli.inputs import InputOptions
from foreword.cli.main import main
from foreword.errors import DataError

GOLDEN = Path(__file__).parents[1] / "golden"

LINES = ["a\u2028b", "c\u2029d\u0085e", "f\x0cg\x0bh\x1ci", "j\rk", "last"]
"""Each is one input, whatever str.splitlines says."""


def from_file(content: bytes, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    file = folder / "inputs.txt"
    file.write_bytes(content)
    return list(InputOptions(file=str(file)).read(None))


def from_standard_input(
    content: bytes, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> list[object]:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content), encoding="latin-1"))
    return list(InputOptions().read(None))


BOTH = pytest.mark.parametrize("read", [from_file, from_standard_input])


@BOTH
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_line_is_one_input(
    read, end: str, mark: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """U+2028, form feeds and the like made two inputs of one, and a BOM stood in the first."""
    content = mark + end.join([*LINES, "", "  ", ""]).encode()
    assert read(content, tmp_path, monkeypatch) == LINES


@BOTH
def test_bytes_that_are_no_text_are_refused(
    read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=r"cannot read inputs from .*utf-8"):
        read(b"caf\xe9", tmp_path, monkeypatch)


@BOTH
def test_no_inputs_are_refused(read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="there are no inputs"):
        read(b"\xef\xbb\xbf\n \n", tmp_path, monkeypatch)


@pytest.mark.parametrize("verb", ["generate", "predict"])
@pytest.mark.parametrize("name", ["test.csv", "lines.TXT", "rows.jsonl", "t.tsv", "a.parquet"])
def test_a_file_in_the_place_of_a_text_is_refused(
    verb: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    """Train and evaluate take a file there; here its name was answered, as if it were the text."""
    monkeypatch.setenv("FOREWORD_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "store").mkdir()
    golden = GOLDEN / ("v1.safetensors" if verb == "generate" else "v4.safetensors")
    shutil.copy(golden, tmp_path / "store" / "food.safetensors")
    (tmp_path / name).write_text("text\nnice\n")
    assert main([verb, "food", name]) == 1
    said = " ".join(capfd.readouterr().err.split())
    wanted = (
        f"{name} is a file, and a text was expected here; to answer what it holds: --input {name}"
    )
    assert wanted in said


@pytest.mark.parametrize(
    "text", ["no.csv", "see notes.md", "folder.csv", "a\0.csv", "x" * 5000 + ".txt"]
)
def test_what_is_no_file_of_inputs_is_a_text(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "see notes.md").touch()
    assert InputOptions().read(text) == [text]


def test_an_option_that_a_file_of_options_sets_twice_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The second won."""
    (tmp_path / "run.yaml").write_text("name: food\nlr: 0.1\nsteps: 3\nlr: 0.2\n")
    code = main(["train", "rows.jsonl", "--config", str(tmp_path / "run.yaml")])
    assert (code, "run.yaml has 'lr' twice" in capfd.readouterr().err) == (1, True)
