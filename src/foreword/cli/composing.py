"""Prefixes that a verb is given by name, at a strength, or as an expression of several names."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from foreword.branches import check_finite
from foreword.cli.console import working
from foreword.cli.options import BackboneOptions
from foreword.errors import ServeError
from foreword.expressions import Mode, as_expression, looked_up
from foreword.outline import Outline
from foreword.store import PrefixStore

if TYPE_CHECKING:
    from foreword.backbone import Backbone
    from foreword.mixture import Mixture
    from foreword.prefix import Prefix


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Composing:
    """How strong a prefix is, and how several are put together."""

    strength: Annotated[float, Parameter(allow_leading_hyphen=True)] = 1.0
    """How far the prefix moves every attention output: 0 is the frozen model, 1 the prefix; more and
    less than that are allowed. Of a mixture in logits all weights are multiplied by it."""

    mode: Mode = "logits"
    """How the prefixes of an expression are put together, as in foreword compose."""

    def __post_init__(self) -> None:
        check_finite("--strength", self.strength)


def outlines_of(store: PrefixStore, name: str, mode: Mode = "logits") -> list[Outline]:
    """What the files say of the prefixes that a name or an expression stands for, the leading one first.

    In a mixture of logits that is the first whose weight is not 0.

    Raises:
        ExpressionError: The expression is wrong.
        NameUnknown: There is no such prefix.
    """
    expression = as_expression(name)
    found = []
    names = (name,) if expression is None else expression.names
    if expression is not None and mode == "logits":
        taken = {term.operand.name for term in expression.terms if term.weight}
        names = tuple(sorted(names, key=lambda one: one not in taken))
    for one in names:
        with looked_up(one):
            found.append(store.outline(one))
    return found


def refuse_composing(name: str, composing: Composing) -> None:
    """Refuse for vLLM what its attention cannot do.

    Raises:
        ServeError: A strength other than 1, or an expression.
    """
    if composing.strength != 1 or as_expression(name) is not None:
        what = f"--strength {composing.strength:g}" if composing.strength != 1 else f"{name!r}"
        raise ServeError(
            f"{what} is for Foreword's own engine (--engine embedded); vLLM serves prefixes as they are "
            "stored: save one with foreword compose, by mode sum, concat or cascade"
        )


def loaded(
    store: PrefixStore, name: str, composing: Composing, options: BackboneOptions
) -> tuple[Prefix | Mixture, Backbone]:
    """What a name or an expression stands for, at its strength, and its backbone."""
    from foreword.compose import compose, mixture_of

    expression = as_expression(name)
    first = store.load(name if expression is None else expression.names[0])
    if composing.mode == "cascade" and expression is not None and options.dtype == "auto":
        options = dataclasses.replace(options, dtype="float32")
    with working("loading the backbone"):
        backbone = options.load(first)
    if expression is None:
        return first.strength(composing.strength), backbone
    if composing.mode == "logits" and expression.operand is None:
        return mixture_of(expression, store.load, strength=composing.strength), backbone
    made = compose(expression, store.load, mode=composing.mode, backbone=backbone, store=store)
    return made.strength(composing.strength), backbone
