"""`Router`: for an input the prefix whose training inputs it is most like, to the frozen model.

Shapes: N texts, K prefixes, D hidden size.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_of
from safetensors.torch import save as bytes_of
from torch import Tensor

from foreword.arguments import check_count, check_fields, check_text, expect, path_of, shown
from foreword.backbone import Backbone
from foreword.backbone.given import check_backbone
from foreword.data.each import of_each
from foreword.data.inputs import Inputs, texts_of
from foreword.data.template import columns
from foreword.data.values import in_column, text_of
from foreword.errors import CorruptFile, DataError, FormatError, MismatchError, StoreError
from foreword.files import is_pointer, reason, write_whole
from foreword.options import BATCH
from foreword.outline import short
from foreword.predict import features
from foreword.prefix import canonical_json

FORMAT = "foreword-router"
"""What the file of a router says it is."""

VERSION = 1

SHRINKAGE = 0.5
"""How much of the covariance within prefixes is taken from its diagonal; see docs/measured.md."""

_ILL_FORMED = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What reading JSON that says anything may raise."""

_TYPES: dict[str, tuple[Any, str]] = {
    "format": (str, "text"),
    "version": (int, "a whole number"),
    "names": (list, "a list"),
    "texts": (list, "a list"),
    "fingerprint": (str, "text"),
    "backbone": (str, "text"),
    "revision": (str | None, "text or null"),
}
"""By field of what a file says of its router the type, and what that is called."""

LEAST = 2
"""Texts of each prefix, at the least."""


@dataclass(frozen=True)
class Routed:
    """Where one input goes.

    Attributes:
        name: The prefix whose training inputs it is most like.
        scores: By prefix the logarithm of its posterior probability, if features were
            normally distributed with one covariance. They are not, and the best one's is too near to 0.
    """

    name: str
    scores: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Router:
    """Chooses a prefix for an input by the frozen model's features: means of its last hidden states.

    A linear discriminant (Fisher, 1936): the prefix whose mean of training inputs is nearest, in units
    of the covariance within prefixes, half of which is taken from its diagonal (Friedman, 1989).
    Each prefix is as likely as any other beforehand.

    Attributes:
        names: The prefixes' names.
        weight: Float32 (K, D).
        bias: Float32 (K,).
        fingerprint: Digest of the weights of the backbone whose features were measured.
        backbone: Its name.
        revision: Its revision on the Hub, if known.
        texts: By prefix the number of its texts.

    Raises:
        DataError: Shapes do not fit the names, or a number is not finite.

    Examples:
        >>> router = Router.fit(backbone, {"e2e": mrs, "trec": questions})  # doctest: +SKIP
        >>> router.route(backbone, ["What is an atom ?"])[0].name  # doctest: +SKIP
        'trec'
    """

    names: tuple[str, ...]
    weight: Tensor = field(repr=False)
    bias: Tensor = field(repr=False)
    fingerprint: str = ""
    backbone: str = ""
    revision: str | None = None
    texts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self, DataError)
        count = len(self.names)
        for name, texts in zip(self.names, self.texts, strict=False):
            check_text("the name of a prefix", name, DataError)
            check_count("the number of its texts", texts, DataError, least=LEAST)
        if count < 2 or len(set(self.names)) != count:
            raise DataError(f"a router chooses among at least two names; found {list(self.names)}")
        shapes = (tuple(self.weight.shape), tuple(self.bias.shape), len(self.texts))
        if self.weight.ndim != 2 or shapes != ((count, self.weight.shape[1]), (count,), count):
            raise DataError(
                f"a router of {count} prefixes has a weight of ({count}, hidden size), a bias of "
                f"({count},) and as many counts of texts; found {shapes}"
            )
        for name, tensor in (("weight", self.weight), ("bias", self.bias)):
            if tensor.dtype != torch.float32 or not bool(torch.isfinite(tensor).all()):
                raise DataError(f"the {name} of a router is finite and float32; it is not")

    @classmethod
    def fit(
        cls, backbone: Backbone, inputs: Mapping[str, Inputs], *, batch_size: int = BATCH
    ) -> Router:
        """Measure what each prefix's training inputs are like.

        Args:
            backbone: The backbone, a decoder or an encoder; left as it was found.
            inputs: By prefix texts that it is for, at least two, as users give them: without the
                template around them. `inputs_in` takes them from training rows; a JSON object is read
                as `as_routed` says. Some hundreds of each are better than some tens.
            batch_size: Texts in one batch.

        Raises:
            DataError: There are not two prefixes, or not two texts of one, or one is no text.
            UnsupportedModel: The backbone is an encoder-decoder.
        """
        check_backbone(backbone)
        expect("inputs", inputs, Mapping, "texts by the name of a prefix", DataError)
        if len(inputs) < 2:
            raise DataError(f"a router chooses among at least two prefixes; found {len(inputs)}")
        every = {name: _texts(name, given) for name, given in inputs.items()}
        found = [
            features(backbone, texts, pooling="mean", batch_size=batch_size).double()
            for texts in every.values()
        ]
        weight_KD, bias_K = discriminant(found)
        return cls(
            tuple(every),
            weight_KD.float(),
            bias_K.float(),
            backbone.fingerprint,
            backbone.name,
            backbone.revision,
            tuple(map(len, every.values())),
        )

    def route(self, backbone: Backbone, texts: Inputs, *, batch_size: int = BATCH) -> list[Routed]:
        """The prefix for each input.

        Args:
            backbone: The backbone that the router was fitted on.
            texts: Texts, as users give them; of a JSON object the values, see `as_routed`.
            batch_size: Texts in one batch.

        Raises:
            DataError: There are no texts, or one is none.
            MismatchError: The backbone has other weights.
        """
        self.check(backbone)
        routed = _as_routed(texts)
        return self.scored(features(backbone, routed, pooling="mean", batch_size=batch_size))

    def check(self, backbone: Backbone) -> None:
        """Check whether a backbone's features are those that the router was fitted on.

        Raises:
            MismatchError: They are not.
        """
        check_backbone(backbone)
        if self.fingerprint != backbone.fingerprint:
            raise MismatchError(
                f"the router was fitted on {self.backbone!r} with weights {self.fingerprint[:12]}; "
                f"{backbone.name!r} has {backbone.fingerprint[:12]}, whose features are others. Use "
                "that backbone, or fit a router on this one"
            )
        if self.weight.shape[1] != backbone.width:
            raise MismatchError(
                f"the router is for features of {self.weight.shape[1]} numbers; those of "
                f"{backbone.name!r} have {backbone.width}. Fit a router on this backbone"
            )

    def scored(self, features_ND: Tensor) -> list[Routed]:
        """The prefix for each input whose features are known.

        Args:
            features_ND: What `foreword.features` gives with ``pooling="mean"`` of the inputs, which are
                first read as `as_routed` says.
        """
        weight_KD, bias_K = self._doubled
        logits_NK = features_ND.double() @ weight_KD.T + bias_K
        scores_NK = logits_NK.log_softmax(dim=1)
        best = scores_NK.argmax(dim=1).tolist()
        return [
            Routed(self.names[index], dict(zip(self.names, row, strict=True)))
            for index, row in zip(best, scores_NK.tolist(), strict=True)
        ]

    @cached_property
    def _doubled(self) -> tuple[Tensor, Tensor]:
        """Weight and bias in float64, converted once and not for each input."""
        return self.weight.double(), self.bias.double()

    def accuracy(
        self, backbone: Backbone, inputs: Mapping[str, Inputs], *, batch_size: int = BATCH
    ) -> dict[str, float]:
        """By prefix the share of its inputs, best held-out ones, that are routed to it, 0 to 100.

        Raises:
            DataError: There is no prefix of a name, or there are no texts.
            MismatchError: The backbone has other weights.
        """
        expect("inputs", inputs, Mapping, "texts by the name of a prefix", DataError)
        for name in inputs:
            if name not in self.names:
                raise DataError(
                    f"the router does not know {shown(name)}; it knows {', '.join(self.names)}"
                )
        found = {}
        for name, texts in inputs.items():
            routed = self.route(backbone, texts, batch_size=batch_size)
            found[name] = 100 * sum(one.name == name for one in routed) / len(routed)
        return found

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write the router to one .safetensors file, whole or not at all.

        Raises:
            NameTaken: Something is at `path`, and `overwrite` is not set.
            StoreError: The disk refuses.
        """
        where = Path(path_of("path", path, StoreError))
        about = {
            "format": FORMAT,
            "version": VERSION,
            "names": self.names,
            "texts": self.texts,
            "fingerprint": self.fingerprint,
            "backbone": self.backbone,
            "revision": self.revision,
        }
        tensors = {"weight": self.weight.contiguous(), "bias": self.bias.contiguous()}
        content = bytes_of(tensors, {FORMAT: canonical_json(about).decode()})
        write_whole(where, content, overwrite=overwrite)
        return where

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Router:
        """Read a router.

        Raises:
            StoreError: The file cannot be read.
            FormatError: It is no router's, or damaged.
        """
        where = path_of("path", path, StoreError)
        try:
            content = Path(where).read_bytes()
        except (OSError, ValueError) as error:
            raise StoreError(f"cannot read the router {where}: {reason(error)}") from error
        try:
            return _read(content)
        except FormatError as error:
            raise type(error)(f"{where}: {error}") from error
        except (DataError, SafetensorError, *_ILL_FORMED) as error:
            raise CorruptFile(f"{where} is damaged: {error}") from error


def inputs_in(rows: Sequence[Mapping[str, Any]], prompt: str) -> list[str]:
    """What users would give of training rows: the columns that a template names, without the template.

    Args:
        rows: The rows.
        prompt: The template, as in a prefix's ``recipe["prompt"]``. Of several columns each begins a
            line.

    Raises:
        DataError: The template names no column, or a row has no text in one.
    """
    names = list(dict.fromkeys(columns(prompt)))
    if not names:
        raise DataError(f"the template {prompt!r} names no column; write one in braces: '{{text}}'")
    return of_each(rows, lambda row: "\n".join(_value(row, name) for name in names), "row")


def as_routed(text: str) -> str:
    """What is routed of a text that a user gives: of a JSON object its values, each on a line.

    Such an object stands for several columns, and its values are written as `inputs_in` writes those of
    a training row. They stay in the object's order, for the template is known only after routing: give
    them in the template's. A text that is no object, or has a value that no template could write, is
    routed as it is.
    """
    if not text.lstrip().startswith("{"):
        return text
    try:
        row = json.loads(text)
        return "\n".join(map(text_of, row.values())) if row else text
    except (ValueError, RecursionError, DataError):
        return text


def discriminant(groups: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Weight (K, D) and bias (K,) of the linear discriminant of groups of vectors (N, D), float64.

    The score of x for a group with mean m is x' C m - m' C m / 2, where C is the inverse of the
    covariance within groups, half of it replaced by its diagonal. The largest is the nearest mean.
    """
    mean_KD = torch.stack([group_ND.mean(dim=0) for group_ND in groups])
    within_ND = torch.cat([group_ND - group_ND.mean(dim=0) for group_ND in groups])
    covariance_DD = within_ND.T @ within_ND / max(len(within_ND) - len(groups), 1)
    variance_D = covariance_DD.diagonal()
    # A feature that never varies would have any weight.
    variance_D = variance_D.clamp(min=max(float(variance_D.max()) * 1e-9, 1e-12))
    shrunk_DD = (1 - SHRINKAGE) * covariance_DD + SHRINKAGE * torch.diag(variance_D)
    weight_KD = torch.linalg.solve(shrunk_DD, mean_KD.T).T
    return weight_KD, -(weight_KD * mean_KD).sum(dim=1) / 2


def _texts(name: str, given: Inputs) -> list[str]:
    texts = _as_routed(given)
    check_count(f"the number of texts of {name!a}", len(texts), DataError, least=LEAST)
    return texts


def _as_routed(given: Inputs) -> list[str]:
    return [as_routed(one) for one in texts_of(given) if isinstance(one, str)]


def _value(row: Mapping[str, Any], name: str) -> str:
    if name not in row:
        raise DataError(f"there is no column {name!r}; the columns are: {', '.join(map(str, row))}")
    return in_column(row, name, text_of)


def _check_about(about: Any) -> None:
    """Check that what a file says of its router has every field, each of its type, and no other.

    Raises:
        FormatError: It is of another format or version.
        CorruptFile: It is damaged.
    """
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise FormatError(f"it is no router's; expected the format {FORMAT!r}")
    version = about.get("version")
    if type(version) is not int or version != VERSION:
        raise FormatError(
            f"its version is {shown(version)}, and {VERSION} is known; use a newer Foreword"
        )
    for name in sorted(set(about) ^ _TYPES.keys()):
        state = "an unknown" if name in about else "no"
        raise CorruptFile(f"it has {state} {short(name)}; expected exactly {sorted(_TYPES)}")
    for name, (kind, said) in _TYPES.items():
        if not isinstance(about[name], kind):
            raise CorruptFile(f"its {name} is {short(about[name])}, expected {said}")


def _read(content: bytes) -> Router:
    """The router that a file's bytes are.

    Raises:
        FormatError: They are no router's, or damaged.
        DataError: They are damaged, as other errors say too.
    """
    if is_pointer(content):
        raise FormatError("it is a pointer of Git LFS and not the file itself")
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    said = header.get("__metadata__", {}).get(FORMAT) if isinstance(header, dict) else None
    if said is None:
        raise FormatError(f"it is no router's; expected {FORMAT} in its metadata")
    about = json.loads(said)
    _check_about(about)
    tensors = tensors_of(content)
    if set(tensors) != {"weight", "bias"}:
        raise CorruptFile(
            f"its tensors are {short(sorted(tensors))}, expected weight and bias alone"
        )
    return Router(
        tuple(about["names"]),
        tensors["weight"],
        tensors["bias"],
        about["fingerprint"],
        about["backbone"],
        about["revision"],
        tuple(about["texts"]),
    )
