"""`foreword compare` on a tiny backbone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from foreword.cli.main import main
from foreword.compare.result import Comparison
from foreword.train.lock import alone_in

ROWS = [
    {"mr": f"name[{name}], food[{food}]", "ref": f"{name} serves {food} food."}
    for name in ("Zizzi", "Aromi", "Fitzbillies", "Cotto", "Bibimbap", "Wildwood")
    for food in ("Thai", "Greek", "fish", "Indian", "French")
]
QUICK = ["--steps", "2", "--seeds", "1", "--max-new-tokens", "2"]


@pytest.fixture
def command(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    text = ["--prompt", "{mr} ->", "--target", " {ref}"]
    return ["compare", "rows.jsonl", *text, "--backbone", str(tiny_folder), *QUICK]


def test_a_table_figures_and_a_page(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [*command, "--methods", "prefix, frozen", "--output", "found"]
    monkeypatch.setattr("sys.argv", ["foreword", *given])
    assert main(given) == 0
    out, err = capsys.readouterr()
    assert "this will take about 1 minutes: 8 trainings of 2 steps" in err
    assert "prefix tuning" in out
    assert "the frozen model" in out
    found = Comparison.of_json(Path("found/comparison.json").read_text())
    assert [side.name for side in found.sides] == ["prefix", "frozen"]
    assert found.data == {"name": "rows.jsonl", "train": 14, "held": 8, "test": 8}
    assert found.command.startswith("foreword compare rows.jsonl --prompt '{mr} ->'")
    page = Path("found/comparison.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert all(sentence.split(":")[0] in out for sentence in found.verdict)

    assert main([*given, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert [side["name"] for side in again["sides"]] == ["prefix", "frozen"]

    run = found.sides[0].seeds[0].command.partition("--only ")[2].strip("'")
    assert main([*command, "--only", run, "--output", "again"]) == 0
    seed = json.loads(capsys.readouterr().out)
    assert seed["held"] == found.sides[0].seeds[0].held


def test_where_every_method_fails_so_does_the_command(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--methods", "lora+rank=64", "--budget", "50"]) == 1
    out, err = capsys.readouterr()
    assert "failed" in out
    assert "every method failed" in " ".join(err.split())
    assert Path("comparison/comparison.html").is_file()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--methods", "lorra"], "there is no method 'lorra'"),
        (["--attributes", "food"], "leave --attributes out"),
        (["--only", "lora"], "is no run"),
        (["--budget", "0"], "budget must be"),
        (["--test", "none.jsonl"], "none.jsonl"),
    ],
)
def test_what_does_not_go_is_refused_in_one_line(
    command: list[str], more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, *more]) == 1
    assert said in capsys.readouterr().err


def test_columns_are_checked_before_a_backbone_is_loaded(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foreword.cli.options.load", lambda *_, **__: pytest.fail("loaded"))
    wrong = [part.replace("{mr}", "{meaning}") for part in command]
    assert main(wrong) == 1
    assert "meaning" in capsys.readouterr().err


def test_two_comparisons_are_not_made_in_one_folder_at_once(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with alone_in(Path("comparison")):
        assert main(command) == 1
    assert "another comparison is under way in comparison" in capsys.readouterr().err
