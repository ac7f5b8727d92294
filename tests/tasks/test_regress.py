"""Regression: numbers of texts and of pairs, learned, scored, kept, and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import foreword
from foreword.backbone.kinds.base import IGNORED
from foreword.card import card
from foreword.cli.main import main
from foreword.data import Encoded, Task
from foreword.data.collate import Collator
from foreword.errors import DataError, PrefixError
from foreword.evaluate.scores import scores_of
from foreword.head import Head
from foreword.objectives.supervised import head_scores
from foreword.objectives.task import for_task
from foreword.predict import predict
from foreword.tasks import LABELLINGS, Measured
from foreword.tasks.correlation import pearson, ranks, spearman
from foreword.train.shares import BLANK
from tests.tasks.models import CLASSIFY, save_folder, tiny_encoder

regress = LABELLINGS["regress"]
TEXTS = Task("{text}", "{label}")
STARS = {"fine": 4.5, "lovely": 5.0, "great": 4.0, "dull": 2.0, "awful": 1.0, "poor": 1.5}
ROWS = [{"text": row["text"], "label": STARS[row["text"].split()[0]]} for row in CLASSIFY]
SETTINGS = foreword.TrainSettings(length=6, steps=200, batch_size=6, lr=0.1)


def changed(**fields: object) -> foreword.TrainSettings:
    return foreword.TrainSettings(**{**SETTINGS.as_json(), **fields})


@pytest.fixture(scope="module")
def trained() -> foreword.Prefix:
    """A prefix that gives texts their stars."""
    return foreword.train(tiny_encoder(), ROWS, SETTINGS).prefix


# -- figures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "right", "r", "rho"),
    [
        # scipy.stats.pearsonr and spearmanr
        ([1, 2, 3, 4, 5], [2, 1, 4, 3, 7], 0.824163383692134, 0.7999999999999999),
        ([1, 2, 2, 3, 10], [1, 1, 2, 5, 4], 0.5735889896121864, 0.8157894736842105),
        ([0.5, 0.5, -2, 7], [3, 1, 2, 0], -0.73744167546939, -0.6324555320336759),
        ([1e200, 2e200, 3e200], [3, 2, 1], -1, -1),
    ],
)
def test_correlations_are_those_of_scipy(
    said: list[float], right: list[float], r: float, rho: float
) -> None:
    assert pearson(said, right) == pytest.approx(r, abs=1e-9)
    assert spearman(said, right) == pytest.approx(rho, abs=1e-9)


def test_equal_numbers_share_the_mean_of_their_ranks() -> None:
    found = ranks(torch.tensor([3.0, 1.0, 3.0, 3.0, 2.0]))
    assert found.tolist() == [4.0, 1.0, 4.0, 4.0, 2.0]


def test_what_is_the_same_everywhere_orders_nothing() -> None:
    assert pearson([0.1, 0.1, 0.1], [1, 2, 3]) == spearman([1, 2, 3], [2, 2, 2]) == 0


def test_squared_errors_are_averaged() -> None:
    found = regress.measured([Measured(1.0), Measured(2.0)], [2.0, 4.0])
    assert found["mse"] == 2.5
    assert found["pearson"] == pytest.approx(1)


# -- what is learned ---------------------------------------------------------------------------------


def test_numbers_are_learned_and_given_on_their_own_scale(trained: foreword.Prefix) -> None:
    backbone, head = tiny_encoder(), trained.head
    assert head is not None
    values = [row["label"] for row in ROWS]
    assert head.mean == pytest.approx(np.mean(values))
    assert head.deviation == pytest.approx(np.std(values))
    found = foreword.evaluate(backbone, trained, ROWS)
    assert isinstance(found, foreword.LabelEvaluation)
    assert found.base is not None
    assert found.prefix["pearson"] > 0.9
    assert found.prefix["mse"] < found.base["mse"]
    assert found.prefix["spearman"] > 0.9
    assert found.prefix["loss"] == pytest.approx(found.prefix["mse"] / head.deviation**2, rel=1e-4)
    said = predict(backbone, ROWS, trained)
    assert said == found.predictions
    errors = [(one.value - value) ** 2 for one, value in zip(said, values, strict=True)]
    assert found.prefix["mse"] == pytest.approx(np.mean(errors))


def test_a_number_is_what_transformers_own_pass_gives(trained: foreword.Prefix) -> None:
    backbone, head = tiny_encoder(), trained.head
    assert head is not None
    assert head.mean is not None
    assert head.deviation is not None
    for row, one in zip(ROWS, predict(backbone, ROWS, trained), strict=True):
        ids = torch.tensor([backbone.tokens(row["text"])])
        with backbone.attached(trained), torch.no_grad():
            states = backbone.model(ids)[0][0]
        output = torch.nn.functional.linear(states.mean(0), head.weight, head.bias)
        assert isinstance(one, Measured)
        assert one.value == pytest.approx(head.mean + head.deviation * float(output), abs=1e-4)


def test_the_first_loss_is_one_whatever_the_scale_is() -> None:
    """A head of zeros says the mean of rows whose errors are measured in their deviation."""
    for factor in (1e-6, 1.0, 1e6):
        rows = [{**row, "label": row["label"] * factor} for row in ROWS]
        result = foreword.train(
            tiny_encoder(), rows, changed(task="regress", steps=1, batch_size=12)
        )
        assert result.history[0]["loss"] == pytest.approx(1, rel=1e-3)


def test_the_loss_is_the_squared_error() -> None:
    head = Head("regress", ("value",), "mean", torch.zeros(1, 4), torch.zeros(1), False, 3.0, 2.0)
    outputs, labels = torch.tensor([[0.5], [0.0], [9.0]]), torch.tensor([[5.0], [3.0], [IGNORED]])
    scores = head_scores(head, outputs, labels, torch.ones(3, 2))
    assert scores.nll_N.tolist() == [0.25, 0.0]
    assert scores.row_N.tolist() == [0, 1]


def test_a_number_that_means_no_target_is_one_all_the_same() -> None:
    row = {"text": "x", "label": float(IGNORED)}
    target = regress.targets(TEXTS, ("value",), row, [])
    batch = Collator(0)([Encoded([1], target[0]), BLANK])
    assert batch["labels"].dtype == torch.float32
    assert (batch["labels"] != IGNORED).tolist() == [[True], [False]]
    assert float(batch["labels"][0]) == pytest.approx(IGNORED, rel=1e-6)


def test_the_task_is_picked_by_a_fraction_or_asked_for(tiny: foreword.Backbone) -> None:
    encoder = tiny_encoder()
    whole = [{**row, "label": int(row["label"])} for row in ROWS]
    floats = [{**row, "label": float(row["label"])} for row in whole]
    for backbone in (encoder, tiny):
        assert for_task(backbone, SETTINGS, ROWS).task == "regress"
        assert for_task(backbone, SETTINGS, whole).task == "classify"
        assert for_task(backbone, SETTINGS, floats).task == "classify"
        assert for_task(backbone, changed(task="regress"), whole).task == "regress"
    assert for_task(encoder, changed(prompt="{text}", target="{label}"), ROWS).task == "regress"
    texts = [{**row, "label": str(row["label"])} for row in ROWS]
    assert for_task(encoder, SETTINGS, texts).task == "regress"  # as a .csv has them
    assert for_task(encoder, SETTINGS, [*texts, {**ROWS[0], "label": "none"}]).task == "classify"
    assert for_task(encoder, changed(task="classify"), texts).task == "classify"
    asked = foreword.train(encoder, texts, changed(task="regress", steps=1)).prefix
    assert asked.head is not None
    assert asked.head.mean == pytest.approx(3)


def test_pairs_are_measured_and_a_decoder_measures(tiny: foreword.Backbone) -> None:
    pairs = [{"text": "a", "text_pair": row["text"], "label": row["label"]} for row in ROWS]
    for backbone in (tiny, tiny_encoder()):
        prefix = foreword.train(backbone, pairs, changed(steps=3)).prefix
        assert prefix.head is not None
        assert (prefix.head.task, prefix.head.pair) == ("regress", True)
        assert len(predict(backbone, pairs, prefix)) == len(pairs)


def test_a_resumed_run_ends_as_the_undisturbed_one(tmp_path: Path) -> None:
    more = {"steps": 6, "checkpoint_every": 3}
    whole = foreword.train(tiny_encoder(), ROWS, changed(**more), evaluation=ROWS).prefix
    folder = tmp_path / "run"
    foreword.train(tiny_encoder(), ROWS, changed(**more), evaluation=ROWS, folder=folder)
    again = foreword.train(
        tiny_encoder(), ROWS, changed(**more), evaluation=ROWS, folder=folder, resume=True
    ).prefix
    assert all(torch.equal(a, b) for a, b in zip(whole.tensors, again.tensors, strict=True))


# -- files and the command line ----------------------------------------------------------------------


def test_a_file_gives_the_scale_back(trained: foreword.Prefix, tmp_path: Path) -> None:
    foreword.save_prefix(trained, tmp_path / "p.safetensors")
    loaded = foreword.load_prefix(tmp_path / "p.safetensors")
    assert b'"version":"5"' in (tmp_path / "p.safetensors").read_bytes()
    assert loaded.digest == trained.digest
    assert predict(tiny_encoder(), ROWS, loaded) == predict(tiny_encoder(), ROWS, trained)


def test_the_command_line_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FOREWORD_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("COLUMNS", "200")
    backbone = tiny_encoder()
    save_folder(backbone, tmp_path / "model")
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, ROWS)))
    sizes = ["--length", "6", "--steps", "200", "--batch-size", "6", "--lr", "0.1"]
    model = ["--backbone", str(tmp_path / "model"), "--dtype", "float32"]
    train = ["train", str(data), "--name", "stars", "--task", "regress"]
    assert main([*train, *sizes, *model]) == 0
    capfd.readouterr()
    assert main(["predict", "stars", "lovely food", "--dtype", "float32"]) == 0
    assert 4 < float(capfd.readouterr().out) < 6
    assert main(["predict", "stars", "lovely food", "--json"]) == 0
    assert set(json.loads(capfd.readouterr().out)) == {"value"}
    assert main(["evaluate", "stars", str(data)]) == 0
    assert "Spearman rho" in capfd.readouterr().out
    assert main(["evaluate", "stars", str(data), "--json"]) == 0
    prefix = foreword.PrefixStore(tmp_path / "store").load("stars")
    shown = card(prefix, "me/stars", scores=scores_of(json.loads(capfd.readouterr().out), prefix))
    assert "Pearson r" in shown
    assert "squared error in deviations" in shown
    assert main(["inspect", "stars"]) == 0
    assert "regress: a number for texts, around 3 ± " in capfd.readouterr().out


# -- what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("good", "row 1: column 'label': found 'good', expected a number"),
        (True, "found True, expected a number"),
        (float("inf"), "column 'label': found a float, inf"),
        ("nan", "found 'nan', expected a number"),
        (1e16, "found 1e[+]16, expected a number"),
        ([1.0], "column 'label': found a list"),
        (None, "row 1 has no value in column 'label'"),
    ],
)
def test_labels_that_are_no_numbers_are_refused(value: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        regress.columns(TEXTS, [{"text": "x", "label": value}])


def test_rows_with_one_number_and_templates_with_more_are_refused() -> None:
    with pytest.raises(DataError, match="all rows have the number 2.0; regression needs"):
        foreword.train(tiny_encoder(), [{"text": "x", "label": 2}] * 3, changed(task="regress"))
    settings = changed(task="regress", prompt="{text}", target="{label} stars")
    with pytest.raises(DataError, match="names one column of numbers"):
        foreword.train(tiny_encoder(), ROWS, settings)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"labels": ("score",)}, "has the labels"),
        ({"mean": None}, "has a finite mean; found None"),
        ({"mean": float("nan")}, "has a finite mean; found nan"),
        ({"deviation": 0.0}, "a deviation above 0; found 0.0"),
        ({"pooling": None}, "has a pooling among"),
        ({"task": "classify", "labels": ("a", "b")}, "a head for 'classify' has no mean"),
    ],
)
def test_a_head_that_measures_is_whole(fields: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "task": "regress",
        "labels": ("value",),
        "pooling": "mean",
        "weight": torch.zeros(1, 4),
        "bias": torch.zeros(1),
        "mean": 1.0,
        "deviation": 2.0,
    }
    Head(**good)
    with pytest.raises(PrefixError, match=message):
        Head(**{**good, **fields})
