"""Prefixes that a verb is given by name, at a strength, or as an expression of several names."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from foreword.branches import check_finite
from foreword.cli.console import working
from foreword.cli.options import BackboneOptions
from foreword.errors import DataError, ServeError
from foreword.expressions import Expression, Mode, as_expression, looked_up
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

    mode: Mode | None = None
    """How the prefixes of an expression are put together, as in foreword compose; default: logits.
    Refused where there is one prefix alone, or a part of one, which is the same in every mode."""

    def __post_init__(self) -> None:
        check_finite("--strength", self.strength)

    @property
    def way(self) -> Mode:
        """The mode."""
        return self.mode or "logits"

    def check(self, name: str | None) -> None:
        """Check that a mode was given where it means something alone.

        Args:
            name: A name or an expression; None where a router chooses.

        Raises:
            DataError: There is nothing to put together.
            ExpressionError: The expression is wrong.
        """
        if self.mode is None:
            return
        expression = None if name is None else as_expression(name)
        if expression is None or expression.operand is not None:
            one = "a router chooses one of them" if name is None else f"{name!r} is one alone"
            raise DataError(
                f"--mode {self.mode} puts several prefixes together, and {one}; leave it out"
            )


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
    if composing.strength != 1:
        frozen = "" if composing.strength else "; --no-prefix is the frozen model on both"
        raise ServeError(
            f"--strength {composing.strength:g} is for Foreword's own engine (--engine embedded), and "
            f"vLLM's attention knows of no strength but 1{frozen}"
        )
    expression = as_expression(name)
    if expression is not None:
        raise ServeError(
            f"{name!r} is for Foreword's own engine (--engine embedded), and vLLM serves prefixes as "
            f"they are stored: {_saved(expression, composing.way)}"
        )


def _saved(expression: Expression, mode: Mode) -> str:
    """What prefix to save in the place of an expression, so that vLLM serves it."""
    save = f'foreword compose "{expression}"'
    if expression.operand is not None:
        return f"save it, {save} --name NAME"
    weighs = any(term.weight != 1 for term in expression.terms)
    if mode == "sum" or (mode in ("concat", "cascade") and not weighs):
        return f"save it, {save} --mode {mode} --name NAME"
    lacking = "mixtures of logits" if mode == "logits" else "strengths, which weights are here"
    other = f"A sum is another thing, and can be saved: {save} --mode sum --name NAME"
    return f"it has no {lacking}. {other}"


def loaded(
    store: PrefixStore, name: str, composing: Composing, options: BackboneOptions
) -> tuple[Prefix | Mixture, Backbone]:
    """What a name or an expression stands for, at its strength, and its backbone."""
    from foreword.compose import compose, mixture_of

    expression, mode = as_expression(name), composing.way
    first = store.load(name if expression is None else expression.names[0])
    if mode == "cascade" and expression is not None and options.dtype == "auto":
        options = dataclasses.replace(options, dtype="float32")
    with working("loading the backbone"):
        backbone = options.load(first)
    if expression is None:
        return first.strength(composing.strength), backbone
    if mode == "logits" and expression.operand is None:
        return mixture_of(expression, store.load, strength=composing.strength), backbone
    made = compose(expression, store.load, mode=mode, backbone=backbone, store=store)
    return made.strength(composing.strength), backbone
