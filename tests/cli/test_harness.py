"""`foreword evaluate --lm-eval`: tasks of lm-eval on the command line."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import datasets
import pytest

import foreword
from foreword.compose import compose
from foreword.evaluate.harness import evaluate_tasks
from foreword.store import PrefixStore
from tests.cli.conftest import Call
from tests.evaluate.harness.written import CHOICE, ROWS, WRITE, written

if importlib.util.find_spec("lm_eval") is None:
    pytest.skip(
        "lm-eval is not installed: pip install 'foreword[lm-eval]'", allow_module_level=True
    )

F32 = ("--dtype", "float32")


@pytest.fixture(autouse=True)
def place(composable: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with two tasks in it."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", composable / "cache")
    (composable / "tasks").mkdir()
    written(composable / "tasks", "choice", CHOICE)
    written(composable / "tasks", "write", WRITE)
    return composable


def test_json_is_what_the_library_measures(place: Path, call: Call) -> None:
    code, out, err = call("evaluate", "e2e", "--lm-eval", "tasks", *F32, "--json")
    assert code == 0, err
    backbone = foreword.load("tiny-model", dtype="float32")
    wanted = evaluate_tasks(backbone, PrefixStore(place / "store").load("e2e"), "tasks")
    assert json.loads(out) == wanted.as_json()
    lines = [line for line in err.splitlines() if line]
    assert lines[:2] == ["loading the tasks", "loading the backbone"]
    ways = [line.partition(":")[0] for line in lines[2:]]
    assert ways == [
        f"{who}, {what}"
        for who in ("with the prefix", "frozen model")
        for what in ("scoring", "generating")
    ]


def test_a_table_has_each_metric_with_its_error(call: Call) -> None:
    words = ("evaluate", "e2e", "--lm-eval", "tasks/choice.yaml,tasks/write.yaml", *F32)
    code, out, err = call(*words, "--limit", "3")
    assert code == 0, err
    head, *rows = (
        line.split("│" if "│" in line else "┃")
        for line in out.splitlines()
        if "┃" in line or "│" in line
    )
    assert [cell.strip() for cell in head][1:-1] == ["task", "metric", "frozen model", "e2e"]
    cells = [[cell.strip() for cell in row][1:-1] for row in rows]
    assert [row[:2] for row in cells] == [["choice", "acc"], ["write", "exact_match"]]
    assert all("±" in cell for row in cells for cell in row[2:])
    assert "choice: 3 documents, 0 examples in front of each" in err
    code, out, err = call(*words, "--no-base", "--limit", "3")
    assert code == 0, err
    assert "frozen model" not in out + err


def test_an_expression_is_one_prefix(place: Path, call: Call) -> None:
    words = ("--lm-eval", "tasks/choice.yaml", *F32, "--no-base", "--json")
    code, out, err = call("evaluate", "e2e + formal", *words, "--mode", "sum", "--strength", "0.5")
    assert code == 0, err
    store = PrefixStore(place / "store")
    backbone = foreword.load("tiny-model", dtype="float32")
    prefix = compose("e2e + formal", store.load, mode="sum", backbone=backbone, store=store)
    halved = prefix.strength(0.5)
    wanted = evaluate_tasks(backbone, halved, "tasks/choice.yaml", base=False)
    assert json.loads(out)["prefix"]["results"] == wanted.prefix.results
    code, out, err = call("evaluate", "e2e + formal", *words)
    assert (code, out) == (1, "")
    assert "a mixture of logits is 3 passes" in err
    assert "--mode sum" in err


def test_what_does_not_fit_the_context_is_said(place: Path, call: Call) -> None:
    written(place / "tasks", "long", CHOICE, description="so long " * 32)
    code, _, err = call("evaluate", "e2e", "--lm-eval", "tasks/long.yaml", *F32, "--no-base")
    assert code == 0
    requests = sum(len(row["choices"]) for row in ROWS)
    assert f"{requests} requests did not fit the context, and lost tokens from their left" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["e2e"], "there is nothing to evaluate on; give DATA, a file of rows, or --lm-eval TASK"),
        (
            ["e2e", "rows.jsonl", "--lm-eval", "tasks", "--prompt", "{a}", "--max-new-tokens", "4"],
            "leave out DATA (rows.jsonl), --prompt, --max-new-tokens",
        ),
        (["e2e", "--lm-eval", "tasks", "--scored-references", "1"], "out --scored-references"),
        (["e2e", "rows.jsonl", "--chat"], "--chat is of tasks (--lm-eval)"),
        (["e2e", "--lm-eval", "tasks", "--mode", "sum"], "'e2e' is one alone"),
        (["e2e", "--lm-eval", "tsks/choice.yaml"], "there is no file tsks/choice.yaml"),
        (["nobody", "--lm-eval", "tasks"], "no prefix is called 'nobody'"),
    ],
)
def test_what_makes_no_sense_is_refused(call: Call, words: list[str], said: str) -> None:
    code, out, err = call("evaluate", *words)
    assert (code, out) == (1, "")
    assert said in " ".join(err.split())
    assert "loading the backbone" not in err


def test_a_prefix_with_a_head_is_refused(place: Path, call: Call) -> None:
    backbone = foreword.load("tiny-model", dtype="float32")
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
    head = foreword.train(backbone, rows, foreword.TrainSettings(steps=1)).prefix
    PrefixStore(place / "store").save("labels", head)
    code, _, err = call("evaluate", "labels", "--lm-eval", "tasks")
    assert code == 1
    assert "this prefix carries a head for 'classify'" in " ".join(err.split())


def test_a_missing_package_is_one_error(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    code, _, err = call("evaluate", "e2e", "--lm-eval", "tasks")
    assert code == 1
    assert "run: pip install 'foreword[lm-eval]'" in " ".join(err.split())
