"""What is data on standard output is what was made, character by character."""

from __future__ import annotations

import io
import json
from importlib import import_module
from pathlib import Path

import pytest
import torch
from rich.console import Console
from rich.text import Text

import foreword
from foreword.cli import console, progress
from foreword.cli.console import err, out, say, table, visible
from foreword.cli.main import main
from foreword.errors import DataError
from foreword.head import Head
from foreword.store import PrefixStore

ODD = "8:100:2\ta\rb [bold]c[/bold] [/] :smile: \x0c\u2028\u0085 " + "long " * 60 + "日本語 end"
"""Names of emoji, markup, tabs, carriage returns, other line breaks, and more than a line's width."""


@pytest.fixture
def place(
    tiny: foreword.Backbone, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A store with a prefix that writes and one that labels, both of a tiny backbone."""
    monkeypatch.setenv("FOREWORD_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.chdir(tmp_path)
    prefix = tiny.capture("<s>abc").with_meta(backbone=str(tiny_folder))
    labels = ("8:100:2", "a [red]b[/red]")
    head = Head("classify", labels, "last", torch.zeros(2, 32), torch.tensor([1.0, 0.0]))
    store = PrefixStore()
    store.save("writes", prefix)
    store.save(
        "labels", prefix.with_head(head).with_meta(recipe={"prompt": "{t}", "target": "{l}"})
    )
    return tmp_path


def test_a_list_has_each_task_and_whole_names_where_it_is_no_terminal(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A terminal of 60 columns shortens them; a pipe used to be cut at 80."""
    store, name = PrefixStore(), "a-long-name-" * 8
    backbone = "/models/" + "deep/" * 30
    store.save(name, store.load("writes").with_meta(backbone=backbone))
    assert main(["list"]) == 0
    lines = capfd.readouterr().out.splitlines()
    rows = {
        cells[0]: cells
        for cells in ([*map(str.strip, line.split("│")[1:])] for line in lines)
        if cells
    }
    assert rows[name][1] == rows["writes"][1] == "text"
    assert rows["labels"][1] == "classify"
    assert rows[name][5] == backbone
    assert rows[name][6] == store.load(name).digest[:12]


def test_a_list_on_a_terminal_keeps_to_its_width(
    place: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    PrefixStore().save("a-long-name-" * 8, PrefixStore().load("writes"))
    monkeypatch.setattr("foreword.cli.console.out", Console(force_terminal=True, width=60))
    assert main(["list"]) == 0
    shown = Text.from_ansi(capfd.readouterr().out).plain
    assert {len(line) for line in shown.splitlines()} == {60}


@pytest.mark.parametrize(
    ("width", "left_out"),
    [(91, set()), (90, {"digest"}), (76, {"digest"}), (75, {"digest", "bytes"})],
)
def test_a_list_gives_name_and_backbone_the_room_first(
    tiny: foreword.Backbone,
    tmp_path: Path,
    width: int,
    left_out: set[str],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On 80 columns the backbone was cut, while digest and bytes had room."""
    monkeypatch.setenv("FOREWORD_STORE", str(tmp_path))
    backbone = "smollm2-135m-instruct"
    PrefixStore().save("restaurants", tiny.capture("<s>abc").with_meta(backbone=backbone))
    monkeypatch.setattr("foreword.cli.console.out", Console(force_terminal=True, width=width))
    assert main(["list"]) == 0
    shown = Text.from_ansi(capfd.readouterr().out).plain
    assert "restaurants" in shown
    assert backbone in shown
    columns = {"name", "task", "length", "parameters", "bytes", "backbone", "digest"}
    assert {name for name in columns if name in shown} == columns - left_out


def test_a_list_in_json_has_everything(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    store = PrefixStore()
    store.path("broken").write_bytes(b"no prefix")
    assert main(["list", "--json"]) == 0
    broken, labels, writes = json.loads(capfd.readouterr().out)
    assert set(broken) == {"name", "error"}
    assert broken["name"] == "broken"
    assert "broken.safetensors" in broken["error"]
    prefix = store.load("labels")
    assert labels == {
        "name": "labels",
        "task": "classify",
        "length": prefix.length,
        "parameters": prefix.parameters,
        "bytes": store.path("labels").stat().st_size,
        "backbone": prefix.meta.backbone,
        "digest": prefix.digest,
    }
    assert (writes["name"], writes["task"]) == ("writes", "text")


def test_a_list_of_nothing_in_json_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FOREWORD_STORE", str(tmp_path / "none"))
    assert main(["list", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == []


def test_text_is_written_as_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    """`8:100:2` became an emoji between 8 and 2; tabs and carriage returns vanished."""
    say(ODD)
    assert capfd.readouterr().out == ODD + "\n"


def test_generated_text_is_printed_as_it_is(
    place: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = import_module("foreword.generate")
    found = [[module.Generated(ODD, "stop")]]
    monkeypatch.setattr(module, "generated", lambda *_, **__: found)
    assert main(["generate", "writes", "x"]) == 0
    assert capfd.readouterr().out == ODD + "\n"


def test_labels_are_printed_as_they_are(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "labels", "x"]) == 0
    assert capfd.readouterr().out == "8:100:2  0.731\n"
    assert main(["predict", "labels", "x", "--json"]) == 0
    assert set(json.loads(capfd.readouterr().out)["probabilities"]) == {"8:100:2", "a [red]b[/red]"}
    assert main(["inspect", "labels"]) == 0
    assert "2 labels (8:100:2, a [red]b[/red])" in capfd.readouterr().out


def test_an_evaluation_is_printed_as_it_is(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = [{"input": f"8:100:2 {ODD[:40]}", "output": "[bold]x[/bold] :smile:"}]
    (place / "rows.jsonl").write_text(json.dumps(rows[0]) + "\n")
    words = ["evaluate", "writes", "rows.jsonl", "--json", "--max-new-tokens", "2", "--no-base"]
    assert main(words) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["prompts"] == [rows[0]["input"]]
    assert found["references"] == [[rows[0]["output"]]]


def test_tables_and_notes_hold_no_markup(capfd: pytest.CaptureFixture[str]) -> None:
    made = table("", "name")
    made.add_row("/models/[red]x[/red]:100:")
    out.print(made)
    err.print("error: [red]x[/red] :100:")
    printed = capfd.readouterr()
    assert "/models/[red]x[/red]:100:" in printed.out
    assert printed.err == "error: [red]x[/red] :100:\n"


def test_control_characters_of_a_file_do_not_reach_the_terminal() -> None:
    assert visible("a\x1b[31mb\u00a0\n") == "a\\x1b[31mb\u00a0\\n"


def test_a_character_that_the_output_cannot_hold_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", stream)
    with pytest.raises(DataError, match=r"standard output is ascii, .*set PYTHONIOENCODING"):
        say("café")


@pytest.mark.parametrize("terminal", [True, False])
def test_each_part_of_an_evaluation_is_shown(
    monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    shown = io.StringIO()
    console_ = Console(file=shown, force_terminal=terminal, width=100)
    monkeypatch.setattr(progress, "err", console_)
    monkeypatch.setattr(console, "err", console_)
    seconds = iter([0.0, 0.0, 5.0, 12.0, 30.0, 40.0, 44.0])
    if not terminal:
        monkeypatch.setattr("foreword.cli.progress.time.monotonic", lambda: next(seconds))
    with progress.parts() as tell:
        for done in (0, 8, 16, 64):
            tell("scoring", done, 64)
        for done in (0, 9):
            tell("generating", done, 9)
    lines = shown.getvalue()
    if terminal:
        assert "scoring 64/64" in lines
        assert "generating 9/9" in lines
    else:
        assert lines.splitlines() == [
            "scoring: 16/64, 36 s left",
            "scoring: 64 in 30 s",
            "generating: 9 in 4 s",
        ]
