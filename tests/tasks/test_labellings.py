"""What each task makes of rows and of logits, and how it is scored."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score

from foreword.backbone.kinds.base import IGNORED
from foreword.data import Task
from foreword.errors import DataError
from foreword.tasks import LABELLINGS, Answered, Classified, Reader, Tagged
from foreword.tasks.answer import f1, normalised
from tests.tasks.models import ANSWER, CLASSIFY, TAG, marking_tokenizer

classify, tag, answer = LABELLINGS["classify"], LABELLINGS["tag"], LABELLINGS["answer"]
TEXTS, TAGS, SQUAD = Task("{text}", "{label}"), Task("{tokens}", "{tags}"), Task()


def reader(limit: int = 120) -> Reader:
    return Reader(marking_tokenizer(), True, "none", limit)


# -- labels ------------------------------------------------------------------------------------------


def test_labels_are_in_an_order_that_rows_do_not_change() -> None:
    assert classify.labels(TEXTS, CLASSIFY) == classify.labels(TEXTS, CLASSIFY[::-1])
    numbers = [{"text": "", "label": label} for label in (10, 9, -1, 100)]
    assert classify.labels(TEXTS, numbers) == ("-1", "9", "10", "100")
    assert tag.labels(TAGS, TAG) == ("O", "B-person", "B-place")
    assert answer.labels(SQUAD, ANSWER) == ("start", "end")


def test_numbers_of_one_size_are_in_order_too() -> None:
    """Python's hash seed ordered them, so a run and its resumption could disagree."""
    twins = [{"text": "", "label": label} for label in ("1", "01", "001", "0", "00", "-0", "2")]
    labels = classify.labels(TEXTS, twins)
    assert labels == ("-0", "0", "00", "001", "01", "1", "2")


def test_one_label_alone_is_refused() -> None:
    with pytest.raises(DataError, match="all rows have the label 'a'"):
        classify.labels(TEXTS, [{"text": "x", "label": "a"}] * 3)
    with pytest.raises(DataError, match="fewer than two"):
        tag.labels(TAGS, [{"tokens": ["a"], "tags": ["O"]}])


# -- targets -----------------------------------------------------------------------------------------


def test_a_row_has_the_number_of_its_label() -> None:
    labels = classify.labels(TEXTS, CLASSIFY)
    seen = classify.labelled(reader(), TEXTS, labels, CLASSIFY)
    assert [row.labels for row in seen.encoded] == [[1]] * 6 + [[0]] * 6
    assert seen.report.rows == 12
    with pytest.raises(DataError, match="row 1: its label 'odd' is not among those of the head"):
        classify.labelled(reader(), TEXTS, labels, [{"text": "x", "label": "odd"}])


def test_a_word_has_its_tag_at_its_first_token() -> None:
    row = {"tokens": ["Bär", "", "é", "x", "Ümläut"], "tags": list("ABCDE")}
    encoded = tag.labelled(reader(), TAGS, list("ABCDE"), [row]).encoded
    text = "Bär  é x Ümläut"
    assert len(encoded[0].input_ids) == len(text.encode()) + 2
    firsts = {1 + len(text[: text.index(word)].encode()): word for word in ("Bär", "é", "x", "Ü")}
    found = {place: label for place, label in enumerate(encoded[0].labels) if label != IGNORED}
    assert set(found) == set(firsts)
    assert [found[place] for place in sorted(found)] == [0, 2, 3, 4]


def test_words_that_were_cut_off_have_no_tag_and_are_said_to_be_outside() -> None:
    row = {"tokens": ["abc", "def", "ghi"], "tags": ["A", "O", "A"]}
    seen = tag.labelled(reader(8), TAGS, ["O", "A"], [row])
    encoded, report = seen.encoded, seen.report
    assert [label for label in encoded[0].labels if label != IGNORED] == [1, 0]
    assert (report.truncated_rows, report.truncated_tokens) == (1, 5)
    readings = tag.read(reader(8), TAGS, row)
    logits = torch.tensor([0.0, 1.0]).expand(8, 2)
    assert tag.predicted(TAGS, ["O", "A"], row, readings, [logits]).tags == ["A", "A", "O"]


def test_an_answer_is_its_first_and_last_token() -> None:
    encoded = answer.labelled(reader(), SQUAD, ("start", "end"), ANSWER).encoded
    tokenizer = marking_tokenizer()
    for row, one in zip(ANSWER, encoded, strict=True):
        start, end = one.labels
        assert tokenizer.decode(one.input_ids[start : end + 1]) == row["answers"]["text"][0]


def test_windows_without_the_whole_answer_point_to_the_first_token() -> None:
    row = {"question": "Who?", "context": "a" * 50 + "Otto" + "b" * 50}
    row |= {"answers": ["Otto"], "answer_start": 50}  # type: ignore[dict-item]
    readings = answer.read(reader(40), SQUAD, row)
    targets = answer.targets(SQUAD, ("start", "end"), row, readings)
    assert len(targets) > 2
    whole = 0
    for one, (start, end) in zip(readings, targets, strict=True):
        seen = [span for span in one.spans if span is not None]
        if seen[0][0] <= 50 and seen[-1][1] >= 54:
            assert (one.spans[start], one.spans[end]) == ((50, 51), (53, 54))
            whole += 1
        else:
            assert (start, end) == (0, 0)
    assert 0 < whole < len(targets)


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        ("classify", {"text": "x"}, "row 1 has no column 'label'"),
        ("classify", {"text": "x", "label": 0.5}, "row 1: column 'label': found the number 0.5"),
        ("classify", {"text": "x", "label": float("nan")}, "no value in column 'label'"),
        ("classify", {"text": "x", "label": ["x"]}, "row 1: column 'label': found a list"),
        ("classify", {"text": b"x", "label": "a"}, "row 1: column 'text': found bytes"),
        ("tag", {"tokens": ["a"], "tags": [None]}, "row 1: tag 1: there is no value"),
        ("tag", {"tokens": ["a", "b"], "tags": ["O", ["x"]]}, "row 1: tag 2: found a list"),
        ("tag", {"tokens": "a b", "tags": ["O"]}, "row 1: its words are 'a b', expected a list"),
        ("tag", {"tokens": "a b", "tags": ["O"]}, "expected a list of texts"),
        ("tag", {"tokens": ["a", "b"], "tags": ["O"]}, "row 1 has 2 words and 1 tags"),
        ("tag", {"tokens": ["a"], "tags": "O"}, "expected a list with one for each word"),
        ("answer", {"question": "x"}, "needs text in the column 'context'"),
        ("answer", {"question": "x", "context": "y"}, "answering needs answers"),
        (
            "answer",
            {"question": "x", "context": "yes", "answers": "no", "answer_start": 1},
            "its answer 'no' does not stand at character 1",
        ),
    ],
)
def test_rows_that_cannot_be_used_are_refused(task: Any, row: dict[str, Any], message: str) -> None:
    labelling = LABELLINGS[task]
    with pytest.raises(DataError, match=message):
        labelling.columns(labelling.templates or Task(), [row])


@pytest.mark.parametrize("templates", [Task("{tokens} {x}", "{tags}"), Task("{a}", "{b} ")])
def test_templates_that_tags_cannot_have_are_refused(templates: Task) -> None:
    with pytest.raises(DataError, match="names one column of lists"):
        tag.columns(templates, TAG)


def test_answering_takes_no_templates() -> None:
    with pytest.raises(DataError, match="takes no templates"):
        answer.columns(TEXTS, ANSWER)


def test_answers_are_read_as_squad_and_side_by_side() -> None:
    row = {"question": "q", "context": "Ada and Otto"}
    for answers in (
        {"answers": {"text": ["Otto", "Ada"], "answer_start": [8, 0]}},
        {"answers": ["Otto", "Ada"], "answer_start": [8, 0]},
        {"answers": "Otto", "answer_start": 8},
    ):
        assert answer.gold(SQUAD, {**row, **answers})[0] == "Otto"


# -- scores ------------------------------------------------------------------------------------------


def test_accuracy_and_macro_f1_are_those_of_scikit_learn() -> None:
    said, right = list("aabbbcad"), list("abbbccaa")
    found = classify.measured([Classified(label, {}) for label in said], right)
    assert found["accuracy"] == pytest.approx(100 * accuracy_score(right, said))
    macro = f1_score(right, said, average="macro", zero_division=0)
    assert found["macro_f1"] == pytest.approx(100 * macro)


def test_entities_count_when_kind_and_extent_are_right() -> None:
    right = [["B-x", "I-x", "O", "B-y"], ["O", "B-x"]]
    said = [["B-x", "I-x", "O", "B-x"], ["B-y", "B-x"]]
    found = tag.measured([Tagged([], tags) for tags in said], right)
    assert found["precision"] == pytest.approx(100 * 2 / 4)
    assert found["recall"] == pytest.approx(100 * 2 / 3)
    assert found["f1"] == pytest.approx(100 * 4 / 7)
    assert found["accuracy"] == pytest.approx(100 * 4 / 6)


ENTITY = {
    "IOB": ["B-per", "I-per", "O", "B-org"],
    "IOBES": ["B-per", "E-per", "O", "S-org"],
    "BILOU": ["B-per", "L-per", "O", "U-org"],
    "BMES": ["B-per", "E-per", "O", "S-org"],
    "BMEWO": ["B-per", "E-per", "O", "W-org"],
    "IO": ["I-per", "I-per", "O", "I-org"],
    "kinds": ["per", "per", "O", "org"],
    "after": ["per-B", "per-I", "O", "org-B"],
}
"""A person of two words and an organisation, spelled in every way."""


@pytest.mark.parametrize("way", ENTITY)
def test_entities_are_found_in_every_spelling_of_tags(way: str) -> None:
    """With kinds alone, an organisation that was missed left F1 at 100."""
    right = ENTITY[way]
    missed, cut = [*right[:3], "O"], [right[0], "O", *right[2:]]
    for said, precision, recall in ((right, 1, 1), (missed, 1, 0.5), (cut, 0.5, 0.5)):
        found = tag.measured([Tagged([], list(said))], [right], right)
        assert found["precision"] == pytest.approx(100 * precision)
        assert found["recall"] == pytest.approx(100 * recall)
        wanted = 100 * 2 * precision * recall / (precision + recall)
        assert found["f1"] == pytest.approx(wanted)
    assert tag.remarks(right) == []


def test_neighbours_of_one_kind_are_two_entities_where_tags_can_say_so() -> None:
    """BILOU's L and U were taken for kinds of words that go on."""
    for way, (first, second) in {
        "IOB": ("B-per", "B-per"),
        "IOBES": ("S-per", "S-per"),
        "BILOU": ("U-per", "U-per"),
        "single words": ("S-per", "S-per"),
    }.items():
        labels = [*ENTITY.get(way, ["O"]), first]
        right, said = [first, second], [first, "O"]
        found = tag.measured([Tagged([], said)], [right], labels)
        assert (found["precision"], found["recall"]) == (100, 50), way


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        (("0", "1", "2"), "the tag '0' is a number, which says nothing of entities"),
        (("DET", "NOUN", "VERB"), "no tag is 'O'"),
        (("O", "B-per", "per"), "the tags 'B-per' and 'per' follow no scheme"),
        (("O", "B-per", "I-per", "L-per", "S-per"), "follow no scheme"),
        (("O", "B-"), "follow no scheme"),
    ],
)
def test_tags_that_spell_no_entities_have_figures_of_words_alone(
    labels: tuple[str, ...], why: str
) -> None:
    """A data set's numbers of classes had F1 0 where all was right."""
    found = tag.measured([Tagged([], list(labels))], [list(labels)], labels)
    assert found == {"accuracy": 100.0}
    assert why in tag.remarks(labels)[0]


def test_rows_without_entities_in_which_none_is_said_are_right() -> None:
    found = tag.measured([Tagged([], ["O", "O"])], [["O", "O"]], ["O", "B-per"])
    assert found == dict.fromkeys(("f1", "precision", "recall", "accuracy"), 100.0)
    found = tag.measured([Tagged([], ["O", "B-per"])], [["O", "O"]], ["O", "B-per"])
    assert (found["f1"], found["precision"], found["recall"]) == (0, 0, 0)


def test_answers_without_spaces_are_compared_by_character() -> None:
    """A Chinese answer was one word, so all but the exact one had F1 0."""
    assert f1("北京大学", "北京") == pytest.approx(2 / 3)
    assert f1("the Denver Broncos", "Denver") == pytest.approx(2 / 3)


def test_answers_are_compared_as_squad_compares_them() -> None:
    """Without case, articles and punctuation; F1 over words; the best of several answers."""
    assert normalised("The  Broncos!") == "broncos"
    assert f1("the Denver Broncos", "Broncos") == pytest.approx(2 / 3)
    assert f1("", "x") == 0
    said = [Answered("The Broncos", 0, 0.0), Answered("gold paint", 0, 0.0)]
    found = answer.measured(said, [["a dog", "broncos"], ["gold"]])
    assert found == {"exact_match": 50.0, "f1": pytest.approx(100 * (1 + 2 / 3) / 2)}


def test_the_best_answer_lies_in_the_context_and_ends_after_its_start() -> None:
    row = ANSWER[0]
    readings = answer.read(reader(), SQUAD, row)
    size = len(readings[0].ids)
    logits = torch.zeros(size, 2)
    logits[2] = 9.0  # a token of the question
    place = next(i for i, span in enumerate(readings[0].spans) if span == (3, 4))
    logits[place, 0], logits[place + 3, 1], logits[place - 2, 1] = 5.0, 4.0, 4.5
    found = answer.predicted(SQUAD, ("start", "end"), row, readings, [logits])
    assert found == Answered("Rome", 3, 9.0)


def test_the_best_answer_of_all_windows_wins() -> None:
    context = "".join(map(chr, range(33, 110)))
    row = {"question": "q", "context": context}
    readings = answer.read(reader(40), SQUAD, row)
    logits = [torch.zeros(len(one.ids), 2) for one in readings]
    logits[-1][-3] = 3.0
    found = answer.predicted(SQUAD, ("start", "end"), row, readings, logits)
    assert found == Answered(context[-2], len(context) - 2, 6.0)


# -- malformed answers -------------------------------------------------------------------------------

PLACE = ANSWER[0]["answers"]["answer_start"][0]


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (
            {"text": ["Ada"], "answer_start": [float(PLACE)]},
            r"must be a whole number; found \d+\.0",
        ),
        ({"text": ["Ada"], "answer_start": float(PLACE)}, "must be a whole number"),
        ({"text": ["Ada"], "answer_start": [str(PLACE)]}, r"must be a whole number; found '\d+'"),
        ({"text": ["Ada"], "answer_start": [None]}, "must be a whole number; found None"),
        ({"text": ["Ada"], "answer_start": [True]}, "must be a whole number; found True"),
        ({"text": ["Ada"], "answer_start": []}, "1 texts and 0 starts"),
        ({"text": ["Ada", "Ulm"], "answer_start": [PLACE]}, "2 texts and 1 starts"),
        ({"text": ["Ada"], "answer_start": [PLACE, 1]}, "1 texts and 2 starts"),
        ({"text": [5], "answer_start": [PLACE]}, "its answer must be text; found 5"),
        ({"text": [""], "answer_start": [PLACE]}, "does not stand at character"),
        ({"text": [], "answer_start": []}, "answering needs answers"),
        (None, "answering needs answers"),
        ("Ada", "answering needs answers"),
    ],
)
def test_malformed_answers_are_refused_with_their_row(answers: Any, message: str) -> None:
    """Of two texts with one start the second was lost in silence; others raised what Python raises."""
    rows = [ANSWER[1], {**ANSWER[0], "answers": answers}]
    with pytest.raises(DataError, match=f"row 2: .*{message}"):
        answer.columns(SQUAD, rows)


def test_an_answer_is_not_looked_for_from_the_end() -> None:
    """-10 was a place to Python: it counted from the end of the context."""
    context = ANSWER[0]["context"]
    place = context.index("Ada") - len(context)
    row = {**ANSWER[0], "answers": {"text": ["Ada"], "answer_start": [place]}}
    assert context[place : place + 3] == "Ada"
    with pytest.raises(DataError, match=r"row 1: .*must be at least 0; found -\d+"):
        answer.columns(SQUAD, [row])


def test_an_input_that_nests_without_end_is_no_question() -> None:
    with pytest.raises(DataError, match="an input is a JSON object"):
        answer.given(SQUAD, "[" * 100_000)
