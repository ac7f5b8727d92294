"""`DataSettings`: what of rows is learned, and the words that settings share."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from foreword.arguments import check_count, check_fields
from foreword.data.template import Task
from foreword.description import POOLINGS, Pooling, is_label
from foreword.errors import TrainingError

TaskName = Literal["causal", "seq2seq", "classify", "tag", "answer", "regress", "multilabel"]
ClassWeights = Literal["balanced"]

MOST_SEED = 2**32 - 1
"""Largest seed that NumPy's generator takes, which transformers seeds too."""

TASK_TYPES = {
    "CAUSAL_LM": "causal",
    "SEQ_2_SEQ_LM": "seq2seq",
    "SEQ_CLS": "classify",
    "TOKEN_CLS": "tag",
    "QUESTION_ANS": "answer",
}
"""By PEFT's task type, the task that is meant."""


def task_meant(given: str) -> str:
    """What to add to the refusal of a task: the one that is meant, if it is a task type of PEFT's."""
    meant = TASK_TYPES.get(given)
    return "" if meant is None else f"PEFT's {given} is called {meant} here"


_CHOICES: dict[str, tuple[str, ...]] = {
    "task": get_args(TaskName),
    "pooling": POOLINGS,
    "class_weights": get_args(ClassWeights),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A part of what training is told; whoever inherits several parts has the fields of all."""

    def __post_init__(self) -> None:
        check_fields(self, TrainingError)

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON values, without those that say nothing new to older versions."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class DataSettings(Settings):
    """Which task rows are read as, by which templates, and how they count.

    Raises:
        TrainingError: A number is out of range, or a word is none of its choices.
        DataError: A template is ill-formed.
    """

    task: TaskName | None = None
    """What is learned: causal or seq2seq, to write text; classify, tag or answer, to label it with a
    head that the prefix carries; regress, to give it a number; multilabel, to give it any number of
    labels. Default: what backbone and data are for; labels that are numbers, some of them with a
    fraction, are learned by regression, lists of labels as several of them."""

    prompt: str | None = None
    """Template of what the model is given; names columns: "{mr} ->". Without templates, rows hold a
    messages column, or what the task's head reads: text, tokens, or question and context."""

    target: str | None = None
    """Template of what the model shall say: " {ref}". The end of sequence is added. Of a head: its
    label, by default "{label}", or "{tags}"; of lists of labels "{labels}", if there is no "{label}"."""

    pair: str | None = None
    """Template of the second text, where pairs of texts are classified or measured: "{hypothesis}". By
    default "{text_pair}" of rows that have this column, where no templates are given."""

    max_length: int | None = None
    """Most tokens of prompt and target together; default: the backbone's context less P."""

    pooling: Pooling | None = None
    """Which vector of a row is classified or measured: the mean of its tokens, the first or the last;
    default: the last of a decoder, else the mean."""

    class_weights: ClassWeights | None = None
    """How much a row counts in the loss of classification: balanced, n / (k * count) for n rows, k
    classes and the rows of its own, so that each class counts alike; default: every row alike. Only
    with task classify, not with several labels (multilabel). Evaluation never weighs."""

    attributes: str | None = None
    """Columns of attributes, with commas between, such as sentiment,length: beside what all rows share,
    the prefix gets a few virtual tokens for each of their values, which only rows with that value see
    (control prefixes). Only where text is written."""

    kl: float = 0.0
    """How much the model is kept near what it was, on texts that the frozen model writes before
    training: the weight, beside the loss of a target token, of the divergence KL(frozen || trained) of
    a token of these. 0 keeps nothing. Only decoders."""

    seed: int = 0
    """Seed of the order of rows, of noise, of vocabulary samples and of the texts for kl."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.templates
        check_words(self, _CHOICES)
        check_counts(self, "max_length")
        if not 0 <= self.kl < float("inf"):
            raise TrainingError(f"kl must be at least 0; found {self.kl}")
        check_count("seed", self.seed, TrainingError, least=0, most=MOST_SEED)
        _ = self.attribute_names

    def as_json(self) -> dict[str, Any]:
        """As `Settings`; there is no word of pairs, attributes or kl where there are none."""
        fields = super().as_json()
        for name in ("pair", "attributes"):
            if fields[name] is None:
                del fields[name]
        if not self.kl:
            del fields["kl"]
        return fields

    @property
    def templates(self) -> Task:
        """The templates as a `Task`."""
        return Task(self.prompt, self.target, self.pair)

    @property
    def attribute_names(self) -> tuple[str, ...]:
        """The columns of attributes, in order.

        Raises:
            TrainingError: One is blank, named twice, or cannot be written before a value.
        """
        if self.attributes is None:
            return ()
        names = tuple(name.strip() for name in self.attributes.split(","))
        if not all(is_label(name) for name in names) or any("=" in name for name in names):
            raise TrainingError(
                f"attributes must be names of columns with commas between, without '='; found "
                f"{self.attributes!r}"
            )
        if len(set(names)) < len(names):
            twice, _ = Counter(names).most_common(1)[0]
            raise TrainingError(f"attributes name the column {twice!r} twice; name each once")
        return names


def check_words(settings: Settings, choices: Mapping[str, tuple[str, ...]]) -> None:
    """Check fields that are one of a few words; the command line checks them too, Python does not.

    Raises:
        TrainingError: One is another word.
    """
    for name, words in choices.items():
        found = getattr(settings, name)
        if found is not None and found not in words:
            also = task_meant(str(getattr(found, "value", found))) if name == "task" else ""
            raise TrainingError(
                f"{name} must be one of {', '.join(words)}; found {found!r}{also and '. '}{also}"
            )


def check_counts(settings: Settings, *names: str) -> None:
    """Check fields that count something, from 1; None counts nothing.

    Raises:
        TrainingError: One is no such number.
    """
    for name in names:
        if getattr(settings, name) is not None:
            check_count(name, getattr(settings, name), TrainingError)


def check_share(settings: Settings, name: str) -> None:
    """Check a field that is at least 0 and below 1.

    Raises:
        TrainingError: It is not.
    """
    if not 0 <= getattr(settings, name) < 1:
        raise TrainingError(
            f"{name} must be at least 0 and below 1; found {getattr(settings, name)}"
        )
