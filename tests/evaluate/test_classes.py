"""Figures of each class: those of scikit-learn, and labels that a head never saw."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

import foreword
from foreword.cli.main import main
from foreword.errors import DataError
from foreword.evaluate.classes import confusion
from foreword.store import PrefixStore
from tests.tasks.conftest import encoder, trained  # noqa: F401  (fixtures)
from tests.tasks.models import CLASSIFY, TAG, save_folder

Trained = Callable[[str], foreword.Prefix]


def test_classes_and_matrix_are_those_of_scikit_learn() -> None:
    said, right, labels = list("aabbbcad"), list("abbbccaa"), list("abcde")
    found = confusion(said, right, labels)
    assert [list(row) for row in found.counts] == confusion_matrix(
        right, said, labels=labels
    ).tolist()
    wanted = precision_recall_fscore_support(right, said, labels=labels, zero_division=0)
    for place, one in enumerate(found.classes):
        precision, recall, f1, support = (figures[place] for figures in wanted)
        assert one.label == labels[place]
        assert (one.precision, one.recall) == pytest.approx((100 * precision, 100 * recall))
        assert (one.f1, one.support) == (pytest.approx(100 * f1), support)


def test_an_unseen_label_is_counted_and_wrong(
    encoder: foreword.Backbone,  # noqa: F811
    trained: Trained,  # noqa: F811
) -> None:
    prefix = trained("classify")
    whole = foreword.evaluate(encoder, prefix, CLASSIFY, base=False)
    rows = [*CLASSIFY, {"text": "odd film", "label": "odd"}]
    found = foreword.evaluate(encoder, prefix, rows, base=False)
    assert isinstance(found, foreword.LabelEvaluation)
    assert isinstance(whole, foreword.LabelEvaluation)
    assert (found.unseen, whole.unseen) == ({"odd": 1}, {})
    assert found.rows == 13
    assert found.prefix["nll"] == pytest.approx(whole.prefix["nll"], rel=1e-4)
    assert found.prefix["accuracy"] == pytest.approx(whole.prefix["accuracy"] * 12 / 13)
    assert [one.support for one in found.classes] == [6, 6, 1]
    assert found.classes[2].recall == 0
    assert found.confusion is not None
    assert found.confusion.labels == ("bad", "good", "odd")
    assert sum(map(sum, found.confusion.counts)) == 13
    assert found.remarks == [
        "the head does not know these labels of rows: 'odd' (1); they count as wrong and are left out "
        "of the NLL"
    ]
    shown = json.loads(json.dumps(found.as_json()))
    assert shown["unseen"] == {"odd": 1}
    assert shown["classes"][0]["label"] == "bad"
    assert shown["confusion"]["counts"][2][2] == 0


def test_an_unseen_tag_too(
    encoder: foreword.Backbone,  # noqa: F811
    trained: Trained,  # noqa: F811
) -> None:
    rows = [*TAG, {"tokens": ["Ada", "sits"], "tags": ["B-person", "B-verb"]}]
    found = foreword.evaluate(encoder, trained("tag"), rows, base=False)
    assert isinstance(found, foreword.LabelEvaluation)
    assert (found.unseen, found.confusion, found.classes) == ({"B-verb": 1}, None, ())


def test_rows_of_another_task_are_still_refused(
    encoder: foreword.Backbone,  # noqa: F811
    trained: Trained,  # noqa: F811
) -> None:
    rows = [{"text": "x", "label": "odd"}, {"text": "y", "label": "even"}]
    with pytest.raises(DataError, match="row 1: its label 'odd' is not among those of the head"):
        foreword.evaluate(encoder, trained("classify"), rows)


def test_the_command_shows_both(
    encoder: foreword.Backbone,  # noqa: F811
    trained: Trained,  # noqa: F811
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    save_folder(encoder, tmp_path / "model")
    PrefixStore(tmp_path / "store").save("mood", trained("classify"))
    rows = [*CLASSIFY, {"text": "odd film", "label": "odd"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    where = ("--store", str(tmp_path / "store"), "--backbone", str(tmp_path / "model"))
    command = ["evaluate", "mood", str(tmp_path / "rows.jsonl"), *where, "--dtype", "float32"]
    assert main(command) == 0
    out, err = capfd.readouterr()
    assert "precision %" in out
    assert "said, by what is right" in out
    assert "'odd' (1); they count as wrong" in err
