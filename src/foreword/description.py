"""What the description of a prefix may say: sites, policies, recipe, and what its head labels.

Nothing here needs PyTorch, so that files are listed and settings checked without it.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import reprlib
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from foreword.arguments import check_count, check_fields, check_text, expect
from foreword.errors import PrefixError

Positions = Literal["free", "offset"]
WindowPolicy = Literal["visible", "windowed"]
Bos = Literal["prefix", "input", "none"]
Softmax = Literal["joint", "own"]
Combination = Literal["attention", "logits", "control"]
HeadTask = Literal["classify", "tag", "answer", "regress", "multilabel"]
Pooling = Literal["mean", "first", "last"]

POSITIONS: tuple[Positions, ...] = ("free", "offset")
WINDOWS: tuple[WindowPolicy, ...] = ("visible", "windowed")
BOS: tuple[Bos, ...] = ("prefix", "input", "none")
SOFTMAX: tuple[Softmax, ...] = ("joint", "own")
COMBINATIONS: tuple[Combination, ...] = get_args(Combination)
MAX_PIECES = 64
"""How many pieces a prefix may have."""
_POLICIES: dict[str, tuple[str, ...]] = {
    "positions": POSITIONS,
    "windows": WINDOWS,
    "bos": BOS,
    "softmax": SOFTMAX,
}
MAX_DEPTH = 64
"""How deep lists and objects may nest in a recipe or in what training measured."""

HEAD_TASKS: tuple[HeadTask, ...] = get_args(HeadTask)
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
POOLED: tuple[HeadTask, ...] = ("classify", "regress", "multilabel")
"""Tasks in which one vector stands for a row."""
LATER: tuple[HeadTask, ...] = ("regress", "multilabel")
"""Tasks that the first versions of the file format with a head did not know."""
MAX_LABEL = 256
"""Longest label, in characters."""
_NO_TEXT = frozenset({"Cc", "Cs", "Co", "Zl", "Zp"})
_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Embeddings, overrides and isolates of direction, which can make text read as another."""
SPAN = ("start", "end")
"""Labels of a head that answers: where an answer starts, and where it ends."""
VALUE = ("value",)
"""What the one output of a head that measures stands for."""


@dataclass(frozen=True)
class Site:
    """One attention call of a backbone, as the probe measured it.

    Attributes:
        name: The module's name in the model, such as ``model.layers.0.self_attn``.
        stack: Which part of the model it belongs to: ``decoder``, ``encoder`` or ``cross``.
        layer: Running number within its stack, from 0, in call order.
        kv_heads: Number of key/value heads in the call.
        key_dim: Dimension of one key.
        value_dim: Dimension of one value.
        window: Tokens that a query sees, itself included, or None without a limit.

    Raises:
        PrefixError: A field is of another type.
    """

    name: str
    stack: str
    layer: int
    kv_heads: int
    key_dim: int
    value_dim: int
    window: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, PrefixError)

    @property
    def label(self) -> str:
        """The site's name in files: ``decoder.0``."""
        return f"{self.stack}.{self.layer}"

    @property
    def geometry(self) -> tuple[str, int, int, int, int, int | None]:
        """What two backbones must share for a prefix to fit both; names of modules may differ."""
        return (
            self.stack,
            self.layer,
            self.kv_heads,
            self.key_dim,
            self.value_dim,
            self.window,
        )


@dataclass(frozen=True)
class Piece:
    """A run of a prefix's virtual tokens that has a name, and a strength of its own.

    Attributes:
        name: What it is called, at most `MAX_LABEL` characters as a label has them; may be empty.
        length: Number of its virtual tokens.
        strength: How much it is attended to: at 0 not at all, at 1 as it was trained, finite; of a
            mixture of logits its weight.

    Raises:
        PrefixError: A field is of another type or out of its range.
    """

    name: str
    length: int
    strength: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self, PrefixError)
        if self.name and not is_label(self.name):
            raise PrefixError(
                f"the name of a piece is at most {MAX_LABEL} printable characters; found "
                f"{reprlib.repr(self.name)}"
            )
        check_count("the length of a piece", self.length, PrefixError)
        if not math.isfinite(self.strength):
            raise PrefixError(f"the strength of a piece must be finite; found {self.strength}")
        object.__setattr__(self, "strength", self.strength + 0.0)  # -0.0 would be a second zero


@dataclass(frozen=True)
class PrefixMeta:
    """What a prefix needs to know about itself to be used as it was trained.

    Attributes:
        backbone: Name or path that the backbone was loaded by.
        family: The backbone's model type, such as ``llama``.
        revision: Hub revision of the backbone, if known.
        fingerprint: Digest of a sample of the backbone's weights.
        tokenizer: Digest of the tokenizer's behaviour, or empty without one.
        positions: ``free``: the prefix takes no positions and text starts at 0;
            ``offset``: the prefix lies at 0..P-1 and text starts at P.
        windows: ``visible``: a sliding window never drops the prefix; ``windowed``: it does, as it
            would drop text.
        bos: ``prefix``: the prefix carries the BOS and inputs add none; ``input``: inputs add their
            own; ``none``: this tokenizer adds none.
        softmax: ``joint``: queries share one softmax between prefix and text; ``own``: the prefix has
            a softmax of its own, and what it gives is added to the text's (Zhang et al., 2023).
        recipe: How the prefix was made and how its inputs are built (templates, initialisation,
            settings): JSON values, kept as a copy in JSON's own types.
        training: What training measured, JSON values, with the digest of the data under ``data``.
        parents: Content digests of prefixes that this one was made from.
        pieces: What its virtual tokens are, one run after the other; none for a plain prefix, all of
            which is at full strength.
        combination: What the pieces are together. ``attention``: all of them stand in front of the
            text, each at its strength; ``logits``: each is a prefix of its own, and what they predict
            is mixed by their weights; ``control``: the first is for every request, and each of the
            others, named ``attribute=value``, for those that select it.

    Raises:
        PrefixError: A field is of another type, or a policy is unknown, or pieces and combination do
            not go together.
    """

    backbone: str = ""
    family: str = ""
    revision: str | None = None
    fingerprint: str = ""
    tokenizer: str = ""
    positions: Positions = "free"
    windows: WindowPolicy = "visible"
    bos: Bos = "none"
    softmax: Softmax = "joint"
    recipe: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    parents: tuple[str, ...] = ()
    pieces: tuple[Piece, ...] = ()
    combination: Combination = "attention"

    def __post_init__(self) -> None:
        check_fields(self, PrefixError)
        for parent in self.parents:
            check_text("a digest among parents", parent, PrefixError)
        for name, allowed in _POLICIES.items():
            found = getattr(self, name)
            if found not in allowed:
                raise PrefixError(
                    f"{name} policy {reprlib.repr(found)} is unknown; use one of {allowed}"
                )
        check_pieces(self.pieces, self.combination)
        for name in ("recipe", "training"):
            object.__setattr__(self, name, plain_json(getattr(self, name)))

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON values.

        Of a prefix without pieces there is no word of any, nor of a joint softmax: digests are older
        than both, and stay what they were.
        """
        fields = dataclasses.asdict(self)
        if self.pieces:
            fields["pieces"] = [dataclasses.asdict(piece) for piece in self.pieces]
            return fields
        del fields["pieces"], fields["combination"]
        if self.softmax == "joint":
            del fields["softmax"]
        return fields


def check_pieces(pieces: tuple[Piece, ...], combination: str) -> None:
    """Check that pieces are what their combination needs.

    Raises:
        PrefixError: They are not.
    """
    for piece in pieces:
        expect("a piece", piece, Piece, "a Piece", PrefixError)
    if combination not in COMBINATIONS:
        raise PrefixError(
            f"combination {reprlib.repr(combination)} is unknown; use one of {COMBINATIONS}"
        )
    if len(pieces) > MAX_PIECES:
        raise PrefixError(f"a prefix has at most {MAX_PIECES} pieces; found {len(pieces)}")
    if not pieces and combination != "attention":
        raise PrefixError(
            f"combination {combination!r} is of pieces, and there are none; name them with pieces=..."
        )
    if combination == "control":
        _check_control(pieces)


def _check_control(pieces: tuple[Piece, ...]) -> None:
    """Check that pieces are a shared one and those of attributes' values."""
    names = [piece.name for piece in pieces]
    if len(names) < 2:
        raise PrefixError(
            "combination 'control' needs a shared piece and one for each value of an attribute; found "
            f"{len(names)} in all"
        )
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise PrefixError(f"combination 'control' has two pieces named {reprlib.repr(twice)}")
    for name in names[1:]:
        attribute, _, value = name.partition("=")
        if not (attribute and value):
            raise PrefixError(
                "each piece of combination 'control' but the first is named attribute=value; found "
                f"{reprlib.repr(name)}"
            )


def check_head(
    task: str, labels: tuple[str, ...], pooling: str | None, *, pair: bool = False
) -> None:
    """Check that a head's task, labels, pooling and inputs go together.

    Raises:
        PrefixError: They do not.
    """
    if task not in HEAD_TASKS:
        raise PrefixError(
            f"a head's task is one of {', '.join(HEAD_TASKS)}; found {reprlib.repr(task)}"
        )
    if task == "answer" and labels != SPAN:
        raise PrefixError(
            f"a head that answers has the labels {SPAN}; found {reprlib.repr(labels)}"
        )
    if task == "regress" and labels != VALUE:
        raise PrefixError(
            f"a head that measures has the labels {VALUE}; found {reprlib.repr(labels)}"
        )
    for label in labels:
        if not is_label(label):
            raise PrefixError(
                f"a label is 1 to {MAX_LABEL} printable characters; found {reprlib.repr(label)}"
            )
    if (len(labels) < 2 and task != "regress") or len(set(labels)) != len(labels):
        raise PrefixError(f"a head needs at least two labels, all different; found {len(labels)}")
    expected = POOLINGS if task in POOLED else (None,)
    if pooling not in expected:
        raise PrefixError(
            f"a head for {task!r} has a pooling among {expected}; found {reprlib.repr(pooling)}"
        )
    if pair and task not in POOLED:
        raise PrefixError(
            f"a head that reads pairs of texts classifies them or measures them; found one for {task!r}"
        )


def check_scale(task: str, mean: object, deviation: object) -> None:
    """Check that a head that measures, and no other, says what its output stands for.

    Raises:
        PrefixError: It does not.
    """
    if task != "regress":
        if (mean, deviation) != (None, None):
            raise PrefixError(f"a head for {task!r} has no mean and no deviation")
        return
    if not (type(mean) is float and math.isfinite(mean)):
        raise PrefixError(f"a head that measures has a finite mean; found {reprlib.repr(mean)}")
    if not (type(deviation) is float and 0 < deviation < math.inf):
        raise PrefixError(
            f"a head that measures has a deviation above 0; found {reprlib.repr(deviation)}"
        )


def is_label(text: object) -> bool:
    """Whether something can be the name of a class, in training as in a file.

    Names of all scripts can, with their joiners and spaces of every width. Control characters,
    surrogates, private characters, line breaks and what turns the direction of other text cannot.
    """
    if not (isinstance(text, str) and 0 < len(text) <= MAX_LABEL):
        return False
    return not any(unicodedata.category(c) in _NO_TEXT or c in _TURNING for c in text)


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and no spaces: equal values give equal bytes.

    Raises:
        PrefixError: A value is not JSON, NaN and infinity included.
    """
    try:
        text = json.dumps(
            value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )
        return text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise PrefixError(f"the prefix's meta must hold JSON values only: {error}") from error


def plain_json(value: Any) -> Any:
    """A copy in JSON's own types (tuples become lists), so that a round trip changes nothing.

    Raises:
        PrefixError: The value is not JSON, or nests deeper than `MAX_DEPTH`.
    """
    plain = json.loads(canonical_json(value))
    if nesting(plain) > MAX_DEPTH:
        raise PrefixError(f"the prefix's meta nests deeper than {MAX_DEPTH} levels")
    return plain


def nesting(value: Any) -> int:
    """How many levels of lists and objects a JSON value has; found without recursion."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, list | dict)]:
        depth += 1
        inside = (item.values() if isinstance(item, dict) else item for item in level)
        level = list(itertools.chain.from_iterable(inside))
    return depth
