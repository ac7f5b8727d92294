"""Several labels for each text or pair: learned, scored, kept, and refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support
from transformers import BertForSequenceClassification, TrainerCallback

import foreword
from foreword.backbone.kinds.base import IGNORED
from foreword.card import card
from foreword.cli.main import main
from foreword.cli.predict import line
from foreword.data import Encoded, Task
from foreword.data.collate import Collator
from foreword.data.grouping import GroupedByLength
from foreword.errors import DataError, PrefixError, TrainingError
from foreword.evaluate.classes import label_figures
from foreword.evaluate.scores import scores_of
from foreword.head import Head
from foreword.objectives.first_look import DoubtfulData
from foreword.objectives.supervised import head_scores
from foreword.objectives.task import for_task
from foreword.predict import predict
from foreword.tasks import LABELLINGS, Multilabelled
from foreword.train.shares import BLANK
from foreword.train.trainer import LearnerTrainer
from tests.tasks.models import CLASSIFY, TAG, save_folder, tiny_encoder

multilabel = LABELLINGS["multilabel"]
LISTS = Task("{text}", "{labels}")
KINDS = {
    "fine": ["good"],
    "lovely": ["good", "warm"],
    "great": ["warm"],
    "dull": [],
    "awful": ["bad"],
}
ROWS = [
    {
        "text": row["text"],
        "labels": [*KINDS.get(row["text"].split()[0], []), row["text"].split()[1]],
    }
    for row in CLASSIFY
]
ROWS += [{"text": "nothing at all", "labels": []}] * 2
LABELS = ("bad", "film", "food", "good", "warm")
PAIRS = [
    {"text": a["text"], "text_pair": b["text"], "labels": sorted({*a["labels"], *b["labels"]})}
    for a, b in zip(ROWS, ROWS[3:], strict=False)
]
SETTINGS = foreword.TrainSettings(length=6, steps=200, batch_size=7, lr=0.2)


def changed(**fields: object) -> foreword.TrainSettings:
    return foreword.TrainSettings(**{**SETTINGS.as_json(), **fields})


@pytest.fixture(scope="module")
def result() -> foreword.TrainResult:
    """Training on texts with kinds and places."""
    return foreword.train(tiny_encoder(), ROWS, SETTINGS)


@pytest.fixture(scope="module")
def trained(result: foreword.TrainResult) -> foreword.Prefix:
    """Its prefix."""
    return result.prefix


def labelled(*lists: Sequence[str]) -> list[Multilabelled]:
    return [Multilabelled(tuple(own), {}) for own in lists]


# -- figures -----------------------------------------------------------------------------------------

SAID = [["a", "b"], ["a"], [], ["c"], [], ["d", "a"]]
RIGHT = [["b", "a"], ["b"], [], ["a", "c"], ["e"], ["d"]]


def held(lists: Sequence[Sequence[str]]) -> np.ndarray[Any, Any]:
    return np.array([[label in own for label in "abcde"] for own in lists])


def test_figures_are_those_of_scikit_learn() -> None:
    found = multilabel.measured(labelled(*SAID), RIGHT)
    said, right = held(SAID), held(RIGHT)
    for kind in ("micro", "macro"):
        wanted = f1_score(right, said, average=kind, zero_division=0)
        assert found[f"{kind}_f1"] == pytest.approx(100 * wanted)
    assert found["exact_match"] == pytest.approx(100 * accuracy_score(right, said))


def test_figures_of_each_label_are_those_of_scikit_learn() -> None:
    found = label_figures(SAID, RIGHT, "abcdef")
    wanted = precision_recall_fscore_support(held(RIGHT), held(SAID), zero_division=0)
    for place, one in enumerate(found[:5]):
        precision, recall, f1, support = (figures[place] for figures in wanted)
        assert (one.label, one.support) == ("abcde"[place], support)
        assert one.said == sum(one.label in own for own in SAID)
        assert (one.precision, one.recall, one.f1) == pytest.approx(
            (100 * precision, 100 * recall, 100 * f1)
        )
    assert (found[5].f1, found[5].support, found[5].said) == (0, 0, 0)


def test_rows_without_any_label_are_right_if_none_is_said() -> None:
    found = multilabel.measured(labelled([], []), [[], []])
    assert found == {"micro_f1": 0, "macro_f1": 0, "exact_match": 100}


# -- what is learned ---------------------------------------------------------------------------------


def test_labels_are_learned(result: foreword.TrainResult) -> None:
    backbone, head = tiny_encoder(), result.prefix.head
    assert head is not None
    assert (head.task, head.labels, head.pooling) == ("multilabel", LABELS, "mean")
    assert result.first_look == (
        "multilabel, 14 rows, 5 labels: bad, film, food, good, warm; row 1 is read as "
        "'<s>fine film</s>' with the labels ['good', 'film']"
    )
    losses = [entry["loss"] for entry in result.history]
    assert losses[0] == pytest.approx(np.log(2), rel=1e-5)  # a head of zeros: one half everywhere
    assert losses[-1] < 0.3 * losses[0]
    found = foreword.evaluate(backbone, result.prefix, ROWS)
    assert isinstance(found, foreword.LabelEvaluation)
    assert found.base is not None
    assert found.prefix["micro_f1"] > max(90, found.base["micro_f1"])
    assert found.prefix["exact_match"] > 80
    assert found.prefix["nll"] < found.base["nll"]
    assert predict(backbone, ROWS, result.prefix) == found.predictions
    assert [one.label for one in found.classes] == list(LABELS)
    assert [one.support for one in found.classes] == [2, 6, 6, 4, 4]


def test_logits_and_loss_are_those_of_transformers_own_head() -> None:
    """The linear layer of `BertForSequenceClassification`, and the loss that it takes for several."""
    backbone = tiny_encoder()
    prefix = foreword.train(backbone, ROWS, changed(steps=9, pooling="first")).prefix
    assert prefix.head is not None
    config = type(backbone.model.config)(**backbone.model.config.to_dict())
    config.num_labels = len(LABELS)
    own = BertForSequenceClassification(config).eval()
    own.classifier.load_state_dict(dict(zip(("weight", "bias"), prefix.head.tensors, strict=True)))
    said = predict(backbone, ROWS, prefix)
    losses = []
    for row, one in zip(ROWS, said, strict=True):
        with backbone.attached(prefix), torch.no_grad():
            first_D = backbone.model(torch.tensor([backbone.tokens(row["text"])]))[0][0, 0]
            logits_L = own.classifier(first_D)
        assert isinstance(one, Multilabelled)
        assert list(one.probabilities.values()) == pytest.approx(
            logits_L.sigmoid().tolist(), abs=1e-5
        )
        assert one.labels == tuple(
            label for label, logit in zip(LABELS, logits_L, strict=True) if logit > 0
        )
        wanted_L = torch.tensor([float(label in row["labels"]) for label in LABELS])
        losses.append(float(torch.nn.BCEWithLogitsLoss()(logits_L, wanted_L)))
    found = foreword.evaluate(backbone, prefix, ROWS, base=False)
    assert isinstance(found, foreword.LabelEvaluation)
    assert found.prefix["nll"] == pytest.approx(np.mean(losses), rel=1e-4)


def test_the_loss_is_the_binary_cross_entropy() -> None:
    head = Head("multilabel", LABELS[:3], "mean", torch.zeros(3, 4), torch.zeros(3))
    logits = torch.randn(3, 3, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([[1, 0, 1], [0, 0, 0], [IGNORED] * 3])
    scores = head_scores(head, logits, labels, torch.ones(3, 2))
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(
        logits[:2], labels[:2].float(), reduction="none"
    )
    assert torch.equal(scores.nll_N, wanted.flatten())
    assert scores.row_N.tolist() == [0, 0, 0, 1, 1, 1]
    assert scores.hit_N.tolist() == ((logits[:2] > 0) == labels[:2].bool()).flatten().tolist()


def test_rows_that_fill_a_batch_up_have_no_targets() -> None:
    head = Head("multilabel", LABELS[:3], "mean", torch.zeros(3, 4), torch.zeros(3))
    for rows in ([BLANK], [Encoded([1], [0, 0, 0]), BLANK]):
        batch = Collator(0)(rows)
        scores = head_scores(head, torch.zeros(len(rows), 3), batch["labels"], torch.ones(1, 1))
        assert len(scores.nll_N) == 3 * (len(rows) - 1)


def test_rows_alone_are_labelled_as_in_a_batch(trained: foreword.Prefix) -> None:
    backbone = tiny_encoder()
    together = predict(backbone, ROWS, trained)
    for row, one in zip(ROWS, together, strict=True):
        alone = predict(backbone, row["text"], trained)[0]
        assert isinstance(alone, Multilabelled)
        assert isinstance(one, Multilabelled)
        assert alone.labels == one.labels
        assert list(alone.probabilities.values()) == pytest.approx(
            list(one.probabilities.values()), abs=1e-5
        )


def test_rows_are_as_long_as_their_tokens_however_many_labels_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Labels stand where those of tokens do, and would make all rows as long as there are labels."""
    given: list[list[int]] = []

    def spied(lengths: list[int], *args: Any) -> GroupedByLength:
        given.append(lengths)
        return GroupedByLength(lengths, *args)

    module = sys.modules[LearnerTrainer.__module__]
    monkeypatch.setattr(module, "GroupedByLength", spied)
    rows = [{**row, "labels": [f"kind {n}", *row["labels"]]} for n, row in enumerate(ROWS)]
    backbone = tiny_encoder()
    foreword.train(backbone, rows, changed(steps=1))
    assert given[0] == [len(backbone.tokens(row["text"])) for row in rows]
    assert max(given[0]) < 5 + len(rows)


def test_a_step_in_parts_is_the_step_of_the_whole() -> None:
    """The mean is over all labels of the step's rows, however many passes they take."""
    whole, parts = (
        foreword.train(tiny_encoder(), ROWS, changed(steps=4, **sizes)).history
        for sizes in ({"batch_size": 14}, {"batch_size": 4, "accumulate": 4})
    )
    assert [one["loss"] for one in whole] == pytest.approx([one["loss"] for one in parts], rel=1e-5)
    assert whole[3]["loss"] < whole[2]["loss"] < whole[1]["loss"]


def test_a_resumed_run_ends_as_the_undisturbed_one(tmp_path: Path) -> None:
    more = {"steps": 6, "checkpoint_every": 3}
    whole = foreword.train(tiny_encoder(), ROWS, changed(**more), evaluation=ROWS).prefix
    folder = tmp_path / "run"

    class Killed(TrainerCallback):  # type: ignore[misc]
        """Stands for a kill in the fourth step."""

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 4:
                raise MemoryError

    with pytest.raises(MemoryError):
        foreword.train(
            tiny_encoder(),
            ROWS,
            changed(**more),
            evaluation=ROWS,
            folder=folder,
            callbacks=[Killed()],
        )
    again = foreword.train(
        tiny_encoder(), ROWS, changed(**more), evaluation=ROWS, folder=folder, resume=True
    ).prefix
    assert all(torch.equal(a, b) for a, b in zip(whole.tensors, again.tensors, strict=True))


def test_pairs_are_labelled_and_a_decoder_labels(tiny: foreword.Backbone) -> None:
    for backbone in (tiny, tiny_encoder()):
        prefix = foreword.train(backbone, PAIRS, changed(steps=3)).prefix
        assert prefix.head is not None
        assert (prefix.head.task, prefix.head.pair) == ("multilabel", True)
        assert len(predict(backbone, PAIRS, prefix)) == len(PAIRS)
        assert prefix.meta.recipe["pair"] == "{text_pair}"


def test_a_head_that_knows_the_labels_goes_on(trained: foreword.Prefix, tmp_path: Path) -> None:
    foreword.save_prefix(trained, tmp_path / "p.safetensors")
    fewer = [row for row in ROWS if "bad" not in row["labels"]]
    more = changed(steps=1, init=str(tmp_path / "p.safetensors"), lr=1e-9)
    found = foreword.train(tiny_encoder(), fewer, more).prefix.head
    assert found is not None
    assert trained.head is not None
    assert found.labels == LABELS
    assert torch.allclose(found.weight, trained.head.weight, atol=1e-6)


# -- what is picked ----------------------------------------------------------------------------------


def test_the_task_is_picked_by_lists_or_asked_for(tiny: foreword.Backbone) -> None:
    encoder = tiny_encoder()
    single = [{"text": row["text"], "label": row["labels"]} for row in ROWS]
    for backbone in (encoder, tiny):
        settings = for_task(backbone, SETTINGS, ROWS)
        assert (settings.task, settings.target) == ("multilabel", "{labels}")
        settings = for_task(backbone, SETTINGS, single)
        assert (settings.task, settings.target) == ("multilabel", "{label}")
        assert for_task(backbone, changed(task="multilabel"), ROWS).target == "{labels}"
    named = changed(prompt="{text}", target="{labels}")
    assert for_task(encoder, named, ROWS).task == "multilabel"
    paired = changed(prompt="{text}", target="{labels}", pair="{text_pair}")
    assert for_task(encoder, paired, PAIRS).task == "multilabel"
    assert for_task(tiny, named, ROWS).task == "causal"
    tags = changed(prompt="{tokens}", target="{tags}")
    assert for_task(encoder, tags, TAG).task == "tag"
    assert for_task(encoder, SETTINGS, CLASSIFY).task == "classify"


def test_labels_are_names_numbers_and_said_once() -> None:
    rows = [{"text": "x", "labels": (10, 9, 10)}, {"text": "y", "labels": []}]
    assert multilabel.labels(LISTS, rows) == ("9", "10")
    assert multilabel.gold(LISTS, rows[0]) == ["10", "9"]
    assert multilabel.targets(LISTS, ("9", "10", "11"), rows[0], []) == [[1, 1, 0]]
    assert multilabel.targets(LISTS, ("9", "10"), rows[1], []) == [[0, 0]]


# -- evaluation of labels that the head does not know ------------------------------------------------


def test_an_unseen_label_is_counted_and_missed(trained: foreword.Prefix) -> None:
    backbone = tiny_encoder()
    whole = foreword.evaluate(backbone, trained, ROWS, base=False)
    rows = [{**ROWS[0], "labels": [*ROWS[0]["labels"], "odd"]}, *ROWS[1:]]
    found = foreword.evaluate(backbone, trained, rows, base=False)
    assert isinstance(found, foreword.LabelEvaluation)
    assert isinstance(whole, foreword.LabelEvaluation)
    assert found.unseen == {"odd": 1}
    assert found.prefix["nll"] == whole.prefix["nll"]
    assert found.prefix["micro_f1"] < whole.prefix["micro_f1"]
    odd = found.classes[-1]
    assert (odd.label, odd.support, odd.recall) == ("odd", 1, 0)
    assert "the head does not know these labels of rows: 'odd' (1)" in found.remarks[0]
    shown = json.loads(json.dumps(found.as_json()))
    assert shown["classes"][-1]["said"] == 0
    assert shown["confusion"] is None
    alone = [{"text": "x", "labels": ["odd"]}]
    with pytest.raises(DataError, match="its label 'odd' is not among those of the head"):
        foreword.evaluate(backbone, trained, alone)


# -- files and the command line ----------------------------------------------------------------------


def test_a_file_gives_the_head_back(trained: foreword.Prefix, tmp_path: Path) -> None:
    foreword.save_prefix(trained, tmp_path / "p.safetensors")
    loaded = foreword.load_prefix(tmp_path / "p.safetensors")
    assert b'"version":"5"' in (tmp_path / "p.safetensors").read_bytes()
    assert loaded.digest == trained.digest
    assert predict(tiny_encoder(), ROWS, loaded) == predict(tiny_encoder(), ROWS, trained)


def test_what_is_printed_of_a_row() -> None:
    shares = {"a": 0.9, "b": 0.25, "c": 0.5005}
    assert line(Multilabelled(("a", "c"), shares)) == "a  0.900, c  0.500"
    assert line(Multilabelled((), shares)) == "-"


def test_the_command_line_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FOREWORD_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("COLUMNS", "200")
    save_folder(tiny_encoder(), tmp_path / "model")
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, ROWS)))
    sizes = ["--length", "6", "--steps", "200", "--batch-size", "7", "--lr", "0.2"]
    model = ["--backbone", str(tmp_path / "model"), "--dtype", "float32"]
    assert main(["train", str(data), "--name", "topics", *sizes, *model]) == 0
    assert "multilabel, 14 rows, 5 labels: bad, film, food, good, warm" in capfd.readouterr().err
    assert main(["predict", "topics", "lovely food", "--dtype", "float32"]) == 0
    shown = capfd.readouterr().out.split(", ")
    assert [one.split()[0] for one in shown] == ["food", "good", "warm"]
    assert main(["predict", "topics", "lovely food", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["labels"] == ["food", "good", "warm"]
    assert list(found["probabilities"]) == list(LABELS)
    assert main(["evaluate", "topics", str(data)]) == 0
    shown_table = capfd.readouterr().out
    for word in ("micro F1 %", "macro F1 %", "exact match %", "NLL per label", "rows said"):
        assert word in shown_table
    assert main(["evaluate", "topics", str(data), "--json"]) == 0
    prefix = foreword.PrefixStore(tmp_path / "store").load("topics")
    shown_card = card(
        prefix, "me/topics", scores=scores_of(json.loads(capfd.readouterr().out), prefix)
    )
    assert "micro F1 %" in shown_card
    assert "pipeline_tag: text-classification" in shown_card
    assert "type: f1\n      value: 100" in shown_card
    assert main(["inspect", "topics"]) == 0
    assert "multilabel: 5 labels (bad, film, food, good, warm), from the mean" in (
        capfd.readouterr().out
    )


# -- what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("good", "row 1: column 'labels': found 'good', expected a list of labels"),
        ('["good"]', "expected a list of labels"),
        ({"good": 1}, "expected a list of labels"),
        (["good", " "], "row 1: column 'labels', label 2: its label ' ' is empty"),
        ([None], "row 1: column 'labels', label 1: there is no value"),
        ([float("nan")], "label 1: there is no value"),
        ([0.5], "label 1: found the number 0.5"),
        ([["good"]], "label 1: found a list"),
        (None, "row 1 has no value in column 'labels'"),
    ],
)
def test_what_is_no_list_of_labels_is_refused(value: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        multilabel.columns(LISTS, [{"text": "x", "labels": value}])


def test_rows_without_two_labels_and_templates_with_more_are_refused() -> None:
    encoder = tiny_encoder()
    with pytest.raises(DataError, match="the lists of all rows in column 'labels' are empty"):
        foreword.train(encoder, [{"text": "x", "labels": []}] * 3, SETTINGS)
    with pytest.raises(DataError, match="the one label 'a'.*learned by task 'classify'"):
        foreword.train(encoder, [{"text": "x", "labels": n * ["a"]} for n in (0, 1)], SETTINGS)
    settings = changed(task="multilabel", prompt="{text}", target="{labels} of it")
    with pytest.raises(DataError, match="names one column of lists, such as {labels}; found"):
        foreword.train(encoder, ROWS, settings)


def test_a_list_is_no_class_and_says_of_what_it_is() -> None:
    rows = [{"text": "x", "label": ["a", "b"]}]
    with pytest.raises(DataError, match=r"row 1: column 'label': found a list.*--task multilabel"):
        foreword.train(tiny_encoder(), rows, changed(task="classify"))


def test_class_weights_are_those_of_one_class_for_each_row() -> None:
    with pytest.raises(
        TrainingError, match="class_weights is only used with task='classify'; found"
    ):
        foreword.train(tiny_encoder(), ROWS, changed(class_weights="balanced"))


def test_labels_of_a_row_of_their_own_look_like_text() -> None:
    rows = [{"text": "x", "labels": [f"word {n}", f"other {n}"]} for n in range(20)]
    with pytest.raises(DataError, match="20 rows have 40 different labels.*--task multilabel"):
        foreword.train(tiny_encoder(), rows, changed(steps=1))


def test_labels_that_look_alike_are_doubtful_and_an_empty_list_is_not() -> None:
    with pytest.warns(DoubtfulData, match="'Good', 'good' differ by spaces or case") as warned:
        foreword.train(
            tiny_encoder(), [*ROWS, {"text": "so", "labels": ["Good"]}], changed(steps=1)
        )
    assert len(warned) == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"labels": ("a",)}, "needs at least two labels, all different; found 1"),
        ({"labels": ("a", "a")}, "needs at least two labels, all different; found 2"),
        ({"labels": ("a", "b", "c")}, r"needs a weight \(labels, hidden size\)"),
        ({"mean": 1.0, "deviation": 1.0}, "a head for 'multilabel' has no mean"),
        ({"pooling": None}, "has a pooling among"),
    ],
)
def test_a_head_for_several_labels_is_whole(fields: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "task": "multilabel",
        "labels": ("a", "b"),
        "pooling": "mean",
        "weight": torch.zeros(2, 4),
        "bias": torch.zeros(2),
    }
    Head(**good)
    with pytest.raises(PrefixError, match=message):
        Head(**{**good, **fields})
