"""`foreword compose --report`, on a tiny backbone: what the file has, and what a stop leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import foreword
from foreword.compose import compose, operands
from foreword.evaluate import composition
from foreword.evaluate.composition import compose_report, joint_settings, with_report
from foreword.evaluate.reported import report_of
from foreword.store import PrefixStore
from tests.conftest import MEMORY

F32 = ("--dtype", "float32", "--max-new-tokens", "3")
BOTH = ("--report", "dev.jsonl", "--train", "train.jsonl")
TEXT = "0.5*e2e + formal"


@pytest.fixture
def place(composable: Path) -> Path:
    """The folder with tiny-model and prefixes, and rows to report on and to train on."""
    for name, rows in (("dev", MEMORY[8:10]), ("train", MEMORY[:8])):
        (composable / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return composable


def test_the_report_is_that_of_python_and_in_the_file(place: Path, call) -> None:
    joint = ("--train", "train.jsonl", "--steps", "1", "--lr", "0.01")
    command = ("compose", TEXT, "--mode", "concat", "--name", "both", "--report", "dev.jsonl")
    code, out, err = call(*command, *joint, *F32)
    assert code == 0, err
    store, backbone = PrefixStore(), foreword.load("tiny-model", dtype="float32")
    made = compose(TEXT, store.load, mode="concat")
    report = compose_report(
        backbone,
        made,
        operands(TEXT, store.load),
        "dev.jsonl",
        name="both",
        train_rows="train.jsonl",
        settings=joint_settings(made, steps=1, lr=0.01),
        options=foreword.GenerateOptions(max_new_tokens=3),
    )
    assert report_of(store.load("both")) == report
    assert store.load("both").digest == with_report(made, report).digest
    assert report.joint is not None
    assert (report.data, report.joint["steps"], report.joint["rows"]) == ("dev.jsonl", 1, 8)
    assert "2 inputs and 2 rows of dev.jsonl; the joint prefix took 1 steps on 8 rows" in err
    table = {
        line.split("│")[1].strip(): line.split("│")[2].strip()
        for line in out.split("report")[1].splitlines()
        if line.startswith("│")
    }
    wanted = {model.name: f"{model.figures['nll']:.4f}" for model in report.models}
    assert table == wanted
    assert [*wanted] == ["frozen model", "e2e", "formal", "both", "trained jointly"]
    code, out, err = call("inspect", "both")
    assert (code, "trained jointly" in out, "'report'" in out) == (0, True, False)


def test_json(place: Path, call) -> None:
    command = (
        "compose",
        "-e2e",
        "--name",
        "less",
        "--report",
        "dev.jsonl",
        "--limit",
        "1",
        "--json",
    )
    code, out, err = call(*command, *F32)
    assert code == 0, err
    report = report_of(PrefixStore().load("less"))
    assert report is not None
    assert json.loads(out) == json.loads(json.dumps(report.as_json()))
    assert (report.rows, report.joint) == (1, None)
    assert "so there is no upper bound" not in err


@pytest.mark.parametrize("stage", ["evaluate", "train"])
def test_a_stop_keeps_the_composition(
    place: Path, call, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(composition, stage, stopped)
    command = ("compose", "e2e + formal", "--name", "both", "--report", "dev.jsonl")
    code, _, err = call(*command, "--train", "train.jsonl", *F32)
    assert code == 130
    made = PrefixStore().load("both")
    report = report_of(made)
    if stage == "evaluate":
        assert report is None
        assert "both is in the store without its report" in err
    else:
        assert report is not None
        assert [m.role for m in report.models] == ["base", "part", "part", "composition"]
        assert "both is in the store with its report but for the joint prefix" in err
    backbone = foreword.load("tiny-model", dtype="float32")
    live = compose("e2e + formal", PrefixStore().load, backbone=backbone)
    assert made.digest == (live if report is None else with_report(live, report)).digest


@pytest.mark.parametrize("came", ["formal", "e2e + formal"])
def test_another_prefix_that_came_meanwhile_stays(
    place: Path, call, monkeypatch: pytest.MonkeyPatch, came: str
) -> None:
    """Even a composition of the same parents, in another mode."""
    evaluate, other = composition.evaluate, compose(came, PrefixStore().load, mode="concat")

    def meanwhile(*given: object, **how: object) -> object:
        PrefixStore().save("both", other, overwrite=True)
        return evaluate(*given, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(composition, "evaluate", meanwhile)
    command = ("compose", "e2e + formal", "--name", "both", "--report", "dev.jsonl")
    code, _, err = call(*command, *F32)
    assert code == 1
    assert "another prefix has the name 'both'" in err
    assert PrefixStore().load("both").digest == other.digest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["e2e + formal", "--steps", "2"], "give --report DATA too"),
        (["e2e + formal", "--json"], "give --report DATA too"),
        (["e2e + formal", "--report", "dev.jsonl", "--lr", "2"], "give --train ROWS too"),
        (
            ["e2e + formal", *BOTH, "--steps", "2", "--epochs", "1"],
            "give --steps or --epochs, not both",
        ),
        (["e2e", "--report", "dev.jsonl"], "use foreword evaluate e2e"),
        (["e2e + formal", "--report", "none.jsonl"], "none.jsonl"),
    ],
)
def test_what_is_refused(place: Path, call, arguments: list[str], message: str) -> None:
    code, _, err = call("compose", *arguments, "--name", "n")
    assert (code, message in " ".join(err.split())) == (1, True), err
    assert "n" not in PrefixStore()


def test_a_column_that_rows_lack_is_refused_before_anything_is_made(place: Path, call) -> None:
    (place / "odd.jsonl").write_text(json.dumps({"mr": "name[Zizzi]"}))
    code, _, err = call("compose", "-e2e", "--name", "n", "--report", "odd.jsonl")
    assert (code, "no column 'ref'" in err, "n" in PrefixStore()) == (1, True, False)


def test_a_report_is_no_part_of_what_is_composed_next(place: Path, call) -> None:
    command = ("compose", "0.5*e2e", "--name", "half", "--report", "dev.jsonl")
    assert call(*command, *F32)[0] == 0
    code, _, err = call("compose", "2*half", "--name", "again", "--dtype", "float32")
    assert code == 0, err
    assert report_of(PrefixStore().load("again")) is None
    kept = PrefixStore().load("half")
    assert kept.meta.parents == (PrefixStore().load("e2e").digest,)
