"""Extractive question answering: where in a context the answer starts, and where it ends.

Rows as in SQuAD (Rajpurkar et al., EMNLP 2016): ``question``, ``context``, and the answers' texts and
first characters, under ``answers`` or side by side. A long context is read in windows.

Shapes: B rows, T tokens; the two labels are start and end.
"""

from __future__ import annotations

import math
import numbers
import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from foreword.arguments import check_count, check_text
from foreword.data.each import of_each
from foreword.data.strict_json import loaded
from foreword.data.template import Task
from foreword.data.words import between_spaces
from foreword.errors import DataError
from foreword.head import SPAN
from foreword.tasks.base import Answered, Labelling, Row
from foreword.tasks.reading import Reader, Reading

STRIDE = 128
"""Tokens that two windows of a context have in common."""
LONGEST = 30
"""Most tokens of an answer."""
ELSEWHERE = 0
"""Token that start and end point to, where a window does not hold the answer: its first."""
BEST = 20
"""Starts, and ends, that a window's best answer is looked for among."""

_ARTICLES = re.compile(r"\b(a|an|the)\b")


class Answer(Labelling):
    """A question, a context, and answers that stand in it."""

    name = "answer"
    templates = None
    figures = (
        ("exact match %", "exact_match", "{:.1f}"),
        ("F1 %", "f1", "{:.1f}"),
    )

    def columns(self, templates: Task, rows: Sequence[Row]) -> None:
        """The columns of SQuAD."""
        if templates.prompt is not None:
            raise DataError(
                "answering reads the columns question, context and answers, and takes no templates"
            )
        of_each(rows, self._check_row, "row")

    def _check_row(self, row: Row) -> None:
        self._check_input(row)
        _answers(row)

    def labels(self, templates: Task, rows: Sequence[Row]) -> tuple[str, ...]:
        """Start and end."""
        return SPAN

    def given(self, templates: Task, text: str) -> Row:
        """A JSON object with question and context."""
        try:
            row = loaded(text)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise DataError(
                'an input is a JSON object such as {"question": "...", "context": "..."}; found '
                f"{text[:60]!r}"
            )
        return row

    def read(self, reader: Reader, templates: Task, row: Row) -> list[Reading]:
        """Question and context, in windows."""
        self._check_input(row)
        return reader.windows(row["question"].strip(), row["context"], STRIDE)

    def targets(
        self, templates: Task, labels: Sequence[str], row: Row, readings: Sequence[Reading]
    ) -> list[list[int]]:
        """The first answer's first and last token, in windows that hold all of it."""
        text, start = _answers(row)[0]
        return [_tokens_of(one, start, start + len(text)) for one in readings]

    def flat(
        self, logits: Tensor, labels: Tensor, mask_BT: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Two targets for each row, among its tokens."""
        shown = logits.masked_fill(~mask_BT.bool()[..., None], -math.inf)
        row_N = torch.arange(len(labels), device=labels.device).repeat_interleave(2)
        return shown.transpose(1, 2).flatten(0, 1), labels.flatten(), row_N

    def predicted(
        self,
        templates: Task,
        labels: Sequence[str],
        row: Row,
        readings: Sequence[Reading],
        logits: Sequence[Tensor],
    ) -> Answered:
        """The likeliest answer of all windows."""
        found = [_best(one, own) for one, own in zip(readings, logits, strict=True)]
        score, start, end = max(found)
        return Answered(row["context"][start:end], start, score)

    def gold(self, templates: Task, row: Row) -> list[str]:
        """The texts of the row's answers."""
        return [text for text, _ in _answers(row)]

    def measured(
        self,
        predictions: Sequence[Answered],
        gold: Sequence[Sequence[str]],
        labels: Sequence[str] = (),
    ) -> dict[str, float]:
        """SQuAD's exact match and F1 over words, of each question's best answer."""
        exact = overlap = 0.0
        for one, answers in zip(predictions, gold, strict=True):
            exact += max(normalised(one.text) == normalised(answer) for answer in answers)
            overlap += max(f1(one.text, answer) for answer in answers)
        return {
            "exact_match": 100 * exact / len(predictions),
            "f1": 100 * overlap / len(predictions),
        }

    def _check_input(self, row: Row) -> None:
        for name in ("question", "context"):
            if not isinstance(row.get(name), str) or not row[name].strip():
                raise DataError(
                    f"answering needs text in the column {name!r}; the columns are: "
                    f"{', '.join(map(str, row)) or 'none'}"
                )


def _answers(row: Row) -> list[tuple[str, int]]:
    """Texts and first characters.

    Raises:
        DataError: There are none, or one does not stand where it should.
    """
    given = row.get("answers")
    texts, starts = given, row.get("answer_start")
    if isinstance(given, dict):
        texts, starts = given.get("text"), given.get("answer_start")
    texts = [texts] if isinstance(texts, str) else texts
    starts = [starts] if isinstance(starts, numbers.Real) else starts
    if not isinstance(texts, list | tuple) or not isinstance(starts, list | tuple) or not texts:
        raise DataError(
            "answering needs answers: their texts, and answer_start, where in the context each begins"
        )
    if len(texts) != len(starts):
        raise DataError(
            f"its answers have {len(texts)} texts and {len(starts)} starts (answer_start); each text "
            "needs the one place where it begins"
        )
    return [_placed(text, start, row["context"]) for text, start in zip(texts, starts, strict=True)]


def _placed(text: Any, start: Any, context: str) -> tuple[str, int]:
    """An answer's text and first character, once it is seen to stand there.

    Raises:
        DataError: It does not, or one of both is nothing of the kind.
    """
    check_text("its answer", text, DataError)
    check_count("where its answer begins (answer_start)", start, DataError, least=0)
    if not text or context[start : start + len(text)] != text:
        raise DataError(f"its answer {text!r} does not stand at character {start} of its context")
    return text, int(start)


def _tokens_of(reading: Reading, start: int, end: int) -> list[int]:
    """First and last token of some characters, or `ELSEWHERE` twice."""
    inside = [
        place
        for place, span in enumerate(reading.spans)
        if span is not None and span[0] < end and span[1] > start
    ]
    if not inside:
        return [ELSEWHERE, ELSEWHERE]
    first, last = reading.spans[inside[0]], reading.spans[inside[-1]]
    assert first is not None
    assert last is not None
    whole = first[0] <= start and last[1] >= end
    return [inside[0], inside[-1]] if whole else [ELSEWHERE, ELSEWHERE]


def _best(reading: Reading, logits_T2: Tensor) -> tuple[float, int, int]:
    """A window's likeliest answer: its score, first character and the one after its last."""
    inside = torch.tensor([span is not None for span in reading.spans])
    starts_T, ends_T = logits_T2.masked_fill(~inside[:, None], -math.inf).unbind(dim=-1)
    count = min(BEST, int(inside.sum()))
    best = (-math.inf, 0, 0)
    for start in starts_T.topk(count).indices.tolist():
        for end in {start, *ends_T.topk(count).indices.tolist()}:
            score = float(starts_T[start] + ends_T[end])
            if 0 <= end - start < LONGEST and score > best[0]:
                best = (score, _edge(reading, start, 0), _edge(reading, end, 1))
    return best


def _edge(reading: Reading, token: int, side: int) -> int:
    span = reading.spans[token]
    assert span is not None
    return span[side]


def normalised(text: str) -> str:
    """Lower case, without punctuation, articles and surplus spaces: what SQuAD compares."""
    bare = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def f1(text: str, answer: str) -> float:
    """Harmonic mean of precision and recall over words; over characters in scripts without spaces."""
    said, right = (between_spaces(normalised(one)) for one in (text, answer))
    if not said or not right:
        return float(said == right)
    shared = sum((Counter(said) & Counter(right)).values())
    return 2 * shared / (len(said) + len(right))
