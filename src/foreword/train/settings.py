"""`TrainSettings`: everything that decides what training does."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal, get_args

from foreword.arguments import check_count, check_fields
from foreword.data.template import Task
from foreword.description import (
    POOLINGS,
    POSITIONS,
    WINDOWS,
    Pooling,
    Positions,
    WindowPolicy,
    is_label,
)
from foreword.errors import TrainingError
from foreword.train.foreign import knowing_others, task_meant
from foreword.train.subset import check_layers

INIT_WORDS = ("text", "demonstrations", "vocab", "noise", "zeros")
"""Starts that have a word of their own; any other is the name or the file of a prefix."""

Parameterizing = Literal["direct", "mlp", "gated"]
Optimizer = Literal["soap", "adamw"]
TaskName = Literal["causal", "seq2seq", "classify", "tag", "answer", "regress", "multilabel"]
ClassWeights = Literal["balanced"]
Reporting = Literal["none", "tensorboard", "wandb"]

_CHOICES: dict[str, tuple[str, ...]] = {
    "parameterization": get_args(Parameterizing),
    "optimizer": get_args(Optimizer),
    "task": get_args(TaskName),
    "pooling": POOLINGS,
    "class_weights": get_args(ClassWeights),
    "report_to": get_args(Reporting),
    "positions": POSITIONS,
    "windows": WINDOWS,
}
"""What the words among the settings may be. The command line checks them too, Python does not."""

_COUNTS = (
    *("length", "mlp_width", "steps", "early_stop", "max_length"),
    *("batch_size", "accumulate", "checkpoint_every", "attribute_length"),
)
"""Settings that count something, from 1."""

MOST_SEED = 2**32 - 1
"""Largest seed that NumPy's generator takes, which transformers seeds too."""

LENGTH = 16
"""Prefix length where neither the settings nor the prefix to start from say one."""

ATTRIBUTE_LENGTH = 4
"""Virtual tokens of an attribute's value where the settings do not say."""

MLP_WIDTH = 512
"""Width of the MLP where the settings do not say one."""

NEUTRAL_TEXT = "Read the input below with care and write the output that belongs to it."
"""Start of a prefix whose task is not described."""


@knowing_others
@dataclass(frozen=True)
class TrainSettings:
    """What training does. The defaults are the recipe that was measured best so far.

    Raises:
        TrainingError: A number is out of range, or an argument is named as in another library.
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

    length: int | None = None
    """Prefix length P, in virtual tokens; default: that of the prefix to start from, else 16. Of
    demonstrations, as many as fit whole are taken, so that the prefix may be shorter."""

    parameterization: Parameterizing = "direct"
    """What is trained: the keys and values; an MLP that makes them and is gone afterwards; keys and
    values under a softmax of their own with gates that start closed, so at the base model."""

    mlp_width: int | None = None
    """Width of the MLP, only with parameterization mlp; default: 512."""

    init: str = "text"
    """Where the prefix starts: text, keys and values of a text; demonstrations, of training rows;
    vocab, of random vocabulary tokens; noise, small; zeros. Any other word is the name of a prefix in
    the store, or its .safetensors file, to go on from."""

    init_text: str | None = None
    """The text to start from: best a description of the task. It is repeated until it fills the
    prefix and cut after P tokens. Default: a neutral sentence."""

    frozen: int = 0
    """First virtual tokens that stay as they start, such as 1 for the attention sink of a text."""

    layers: str | None = None
    """Layers that get a prefix, counted from 0: numbers, ranges and ends with commas between, such
    as 0-9,20 or last:8; default: all."""

    sites: str | None = None
    """Parts of the model that get a prefix, with commas between, such as decoder; default: all."""

    dropout: float = 0.0
    """Probability that a virtual token is hidden in a forward pass of training; frozen ones never
    are."""

    optimizer: Optimizer = "soap"
    """What takes the steps: soap, which is Adam in the axes of the gradients' covariance, or adamw,
    without weight decay."""

    lr: float = 0.06
    """Peak learning rate, in units of each layer's own key and value size (RMS), and of a head's."""

    epochs: float = 3.0
    """Passes over the data, unless steps is given."""

    steps: int | None = None
    """Optimiser steps, instead of epochs."""

    batch_size: int = 8
    """Rows in one forward pass."""

    accumulate: int = 1
    """Forward passes per optimiser step."""

    group_by_length: bool = True
    """Put rows of like length into the same step, so that less time goes into padding."""

    warmup: float = 0.1
    """Share of the steps over which the learning rate rises to its peak; then it falls to zero."""

    early_stop: int | None = None
    """Stop after so many evaluations without a better one. Needs evaluation data."""

    checkpoint_every: int = 50
    """Steps between checkpoints, and between evaluations where there is evaluation data."""

    max_length: int | None = None
    """Most tokens of prompt and target together; default: the backbone's context less P."""

    gradient_checkpointing: bool = False
    """Trade time for memory: compute each layer again in the backward pass."""

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

    attribute_length: int | None = None
    """Virtual tokens for each value of an attribute, only with attributes; default: 4."""

    positions: Positions | None = None
    """Position policy, free or offset; default: the one under which text is exact on the backbone."""

    windows: WindowPolicy | None = None
    """Whether sliding windows leave the prefix visible or treat it as text (windowed); default: as
    the prefix to start from, else visible."""

    seed: int = 0
    """Seed of the order of rows, of noise and of vocabulary samples."""

    report_to: Reporting = "none"
    """Where the loss is logged, beside the terminal: tensorboard writes to runs/ in the working
    directory, or to TENSORBOARD_LOGGING_DIR; wandb to the project foreword, or to WANDB_PROJECT."""

    def __post_init__(self) -> None:
        check_fields(self, TrainingError)
        _ = self.templates
        for name, choices in _CHOICES.items():
            self._one_of(name, choices)
        check_count("frozen", self.frozen, TrainingError, least=0)
        check_count("seed", self.seed, TrainingError, least=0, most=MOST_SEED)
        for name in _COUNTS:
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), TrainingError)
        for name in ("lr", "epochs"):
            if not 0 < getattr(self, name) < float("inf"):
                raise TrainingError(f"{name} must be above 0; found {getattr(self, name)}")
        for name in ("warmup", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise TrainingError(
                    f"{name} must be at least 0 and below 1; found {getattr(self, name)}"
                )
        if self.layers is not None:
            check_layers(self.layers)
        _ = self.attribute_names
        if self.attribute_length is not None and self.attributes is None:
            raise TrainingError(
                "attribute_length is only used with attributes, and none are named. Drop it, or name "
                "columns"
            )
        if self.init_text is not None and self.init != "text":
            raise TrainingError(
                f"init_text is only used with init='text'; found init={self.init!r}. Drop one of both"
            )
        if self.mlp_width is not None and self.parameterization != "mlp":
            raise TrainingError(
                f"mlp_width is only used with parameterization='mlp'; found "
                f"parameterization={self.parameterization!r}. Drop one of both"
            )
        if self.parameterization == "gated" and self.init == "zeros":
            raise TrainingError(
                "gated with init='zeros' cannot learn: gates and values of zero have no gradient; "
                "choose another init"
            )

    def _one_of(self, name: str, choices: tuple[str, ...]) -> None:
        found = getattr(self, name)
        if found is not None and found not in choices:
            also = task_meant(str(getattr(found, "value", found))) if name == "task" else ""
            raise TrainingError(
                f"{name} must be one of {', '.join(choices)}; found {found!r}{also and '. '}{also}"
            )

    def check_evaluation(self, *, is_given: bool) -> None:
        """Check that there is evaluation data if the settings need it.

        Raises:
            TrainingError: They do, and there is none.
        """
        if self.early_stop is not None and not is_given:
            raise TrainingError("early_stop needs evaluation data (--eval)")

    @property
    def starts_from_prefix(self) -> bool:
        """Whether ``init`` names a prefix."""
        return self.init not in INIT_WORDS

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

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON values; there is no word of pairs or of attributes where there are none."""
        fields = dataclasses.asdict(self)
        if self.pair is None:
            del fields["pair"]
        if self.attributes is None:
            del fields["attributes"], fields["attribute_length"]
        return fields
