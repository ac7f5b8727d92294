"""The command line on an encoder: train, predict, evaluate, inspect, and the card."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

import foreword
from foreword.card import card
from foreword.cli.main import main
from foreword.evaluate.scores import scores_of
from foreword.store import PrefixStore
from tests.tasks.models import ANSWER, ROWS, save_folder, tiny_encoder

STEPS = ("--steps", "100", "--batch-size", "6", "--lr", "0.1", "--length", "6")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny encoder, rows of each task, and a store with a prefix for each."""
    folder = tmp_path_factory.mktemp("encoder")
    backbone = tiny_encoder()
    save_folder(backbone, folder / "model")
    for task, rows in ROWS.items():
        lines = [json.dumps(row) for row in rows]
        (folder / f"{task}.jsonl").write_text("\n".join(lines) + "\n")
        arguments = ["train", str(folder / f"{task}.jsonl"), "--name", task, *STEPS]
        store = ("--store", str(folder / "store"))
        model = ("--backbone", str(folder / "model"), "--dtype", "float32")
        assert main([*arguments, *store, *model]) == 0
    return folder


@pytest.fixture
def call(place: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setenv("FOREWORD_STORE", str(place / "store"))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main(arguments)
        return code, *capfd.readouterr()

    return run


def test_each_task_is_predicted_as_in_python(place: Path, call) -> None:
    backbone = foreword.load(str(place / "model"), dtype="float32")
    store = PrefixStore(place / "store")
    asked = json.dumps({name: ANSWER[0][name] for name in ("question", "context")})
    for task, text in (
        ("classify", "lovely food"),
        ("tag", "Ada sits in Rome ."),
        ("answer", asked),
    ):
        found = foreword.predict(backbone, [text], store.load(task))[0]
        code, out, _ = call("predict", task, text, "--dtype", "float32", "--json")
        assert code == 0
        said = json.loads(out)
        assert set(said) == set(found.__dict__)
        for name in {"label", "tags", "text", "start"} & set(said):
            assert said[name] == getattr(found, name)
    code, out, _ = call("predict", "tag", "Ada sits in Rome .", "--dtype", "float32")
    assert (code, out) == (0, "Ada[B-person] sits in Rome[B-place] .\n")
    code, out, _ = call("predict", "classify", "lovely food", "--dtype", "float32")
    label, share = out.split()
    assert label == "good"
    assert 0.5 < float(share) <= 1
    code, out, _ = call("predict", "answer", asked, "--dtype", "float32")
    assert (code, out) == (0, "Ada\n")


def test_a_strength_is_that_of_python(place: Path, call) -> None:
    backbone = foreword.load(str(place / "model"), dtype="float32")
    prefix = PrefixStore(place / "store").load("classify")
    shares = {}
    for strength in (0.0, 0.5, 1.0):
        (found,) = foreword.predict(backbone, ["lovely food"], prefix.strength(strength))
        command = ("predict", "classify", "lovely food", "--json", "--dtype", "float32")
        code, out, _ = call(*command, "--strength", str(strength))
        assert code == 0
        shares[strength] = json.loads(out)["probabilities"]["good"]
        assert shares[strength] == pytest.approx(found.probabilities["good"], abs=1e-6)
    assert len(set(shares.values())) == 3
    code, _, err = call("predict", "classify", "lovely food", "--strength", "nan")
    assert code == 1
    assert "--strength" in err


def test_files_and_lines_are_labelled(place: Path, call, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("lovely food\n\nawful film\n")
    code, out, _ = call("predict", "classify", "--input", str(tmp_path / "texts.txt"))
    assert (code, [line.split()[0] for line in out.splitlines()]) == (0, ["good", "bad"])
    code, out, _ = call("predict", "tag", "--input", str(place / "tag.jsonl"))
    assert (code, len(out.splitlines())) == (0, 6)


def test_features_go_to_a_file(place: Path, call, tmp_path: Path) -> None:
    file = tmp_path / "vectors.safetensors"
    code, out, err = call("predict", "classify", "lovely food", "--features", str(file))
    assert (code, out) == (0, "")
    assert "1 vectors of 32" in err
    assert load_file(file)["features"].shape == (1, 32)
    code, _, err = call(
        "predict", "classify", "--input", str(place / "tag.jsonl"), "--features", str(file)
    )
    assert code == 1
    assert "features are those of texts" in err


@pytest.mark.parametrize(
    ("task", "label"),
    [("classify", "accuracy %"), ("tag", "entity F1 %"), ("answer", "exact match %")],
)
def test_a_head_is_evaluated_with_its_own_figures(task: str, label: str, place: Path, call) -> None:
    code, out, err = call("evaluate", task, str(place / f"{task}.jsonl"), "--dtype", "float32")
    assert code == 0
    assert label in out
    assert "head without prefix" in out
    assert f"{len(ROWS[task])} rows" in err
    code, out, _ = call("evaluate", task, str(place / f"{task}.jsonl"), "--json", "--no-base")
    found = json.loads(out)
    assert (code, found["task"], found["base"]) == (0, task, None)
    assert len(found["predictions"]) == len(ROWS[task])
    prefix = PrefixStore(place / "store").load(task)
    shown = card(prefix, "me/labels", scores=scores_of(found, prefix))
    assert label in shown
    assert "foreword predict labels" in shown
    assert "- head: `" + task in shown
    kinds = {"classify": "text-classification", "tag": "token-classification"}
    assert kinds.get(task, "question-answering") in shown


def test_the_head_is_inspected(call) -> None:
    code, out, _ = call("inspect", "classify")
    assert code == 0
    assert "head          classify: 2 labels (bad, good), from the mean of a row's hidden" in out
    assert "+ a head of 2 x (32 + 1)" in out
    code, out, _ = call("inspect", "tag", "--json")
    assert json.loads(out)["head"]["labels"] == ["O", "B-person", "B-place"]


def test_what_does_not_go_together_is_refused(place: Path, call) -> None:
    code, _, err = call("generate", "classify", "x")
    assert code == 1
    assert "carries a head for 'classify'" in err
    code, _, err = call("export", "classify", str(place / "peft"), "--to", "peft")
    assert code == 1
    assert "this prefix carries a head" in err
    data, model = str(place / "classify.jsonl"), str(place / "model")
    code, _, err = call("train", data, "--name", "new", "--backbone", model, "--task", "seq2seq")
    assert code == 1
    assert "task 'seq2seq' needs an encoder-decoder" in err
