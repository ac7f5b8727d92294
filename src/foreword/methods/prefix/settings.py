"""`PrefixSettings`: what a prefix is, where it starts, and what of it is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from foreword.arguments import check_count
from foreword.description import POSITIONS, WINDOWS, Positions, WindowPolicy
from foreword.errors import TrainingError
from foreword.methods.prefix.subset import check_layers
from foreword.objectives.settings import DataSettings, check_counts, check_share, check_words

INIT_WORDS = ("text", "demonstrations", "vocab", "noise", "zeros")
"""Starts that have a word of their own; any other is the name or the file of a prefix."""

Parameterizing = Literal["direct", "mlp", "gated"]

LENGTH = 16
"""Prefix length where neither the settings nor the prefix to start from say one."""

ATTRIBUTE_LENGTH = 4
"""Virtual tokens of an attribute's value where the settings do not say."""

MLP_WIDTH = 512
"""Width of the MLP where the settings do not say one."""

NEUTRAL_TEXT = "Read the input below with care and write the output that belongs to it."
"""Start of a prefix whose task is not described."""


_CHOICES: dict[str, tuple[str, ...]] = {
    "parameterization": get_args(Parameterizing),
    "positions": POSITIONS,
    "windows": WINDOWS,
}


@dataclass(frozen=True, kw_only=True)
class PrefixSettings(DataSettings):
    """What a prefix is trained as, on the rows that the data settings read.

    Raises:
        TrainingError: A number is out of range, or two settings exclude each other.
        DataError: A template is ill-formed.
    """

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

    attribute_length: int | None = None
    """Virtual tokens for each value of an attribute, only with attributes; default: 4."""

    positions: Positions | None = None
    """Position policy, free or offset; default: the one under which text is exact on the backbone."""

    windows: WindowPolicy | None = None
    """Whether sliding windows leave the prefix visible or treat it as text (windowed); default: as
    the prefix to start from, else visible."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_words(self, _CHOICES)
        check_counts(self, "length", "mlp_width", "attribute_length")
        check_count("frozen", self.frozen, TrainingError, least=0)
        check_share(self, "dropout")
        if self.layers is not None:
            check_layers(self.layers)
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

    def as_json(self) -> dict[str, Any]:
        """As `DataSettings`; tokens of values are only there with attributes."""
        fields = super().as_json()
        if self.attributes is None:
            del fields["attribute_length"]
        return fields

    @property
    def starts_from_prefix(self) -> bool:
        """Whether ``init`` names a prefix."""
        return self.init not in INIT_WORDS
