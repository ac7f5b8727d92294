"""`CompositionReport`: what a composition, its parts and joint training can do, as files carry it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from foreword.arithmetic.record import COMPOSITION
from foreword.errors import DataError
from foreword.evaluate.labels import Figure, figures_of
from foreword.evaluate.metrics import Tokenisation
from foreword.evaluate.run import figures_under
from foreword.evaluate.scores import figures_named, tokenisation_of
from foreword.head import HEAD_TASKS
from foreword.prefix import Prefix

REPORT = "report"
"""Name of the report in the record of a composition."""

TEXT = "text"
"""The task of prefixes without a head."""

Role = Literal["base", "part", "composition", "joint"]
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True)
class ModelFigures:
    """One line of a report.

    Attributes:
        role: ``base``: the frozen model (of prefixes with a head, with the head alone); ``part``: an
            operand by itself at full strength; ``composition``; ``joint``: a prefix trained for the
            task, which says how much could be reached.
        name: What it is called.
        digest: The prefix's digest, of the composition without a report; empty for the frozen model,
            and for the joint prefix, which is not kept.
        figures: By name the figures of `Metrics`, or of the head's task, without seconds.
    """

    role: Role
    name: str
    digest: str
    figures: Mapping[str, float]


@dataclass(frozen=True)
class CompositionReport:
    """What a composition can do, and what its parts and a jointly trained prefix can.

    Attributes:
        models: The frozen model, the parts, the composition, and the jointly trained prefix if there is
            one.
        rows: Rows scored.
        inputs: Distinct inputs.
        data: Name of the set; of a file without its folders.
        joint: How the joint prefix was trained: ``data``, the digest of its rows, ``rows`` and
            ``steps``; None where there is none.
        task: ``text``, or what the head does.
        tokenisation: What counts as a word in figures over words.
    """

    models: tuple[ModelFigures, ...]
    rows: int
    inputs: int
    data: str = ""
    joint: Mapping[str, Any] | None = None
    task: str = TEXT
    tokenisation: Tokenisation = field(default_factory=Tokenisation)

    @property
    def figures(self) -> tuple[Figure, ...]:
        """The figures that all models have, as tables show them: label, name, format."""
        return tuple(
            figure
            for figure in _figures_of(self.task, self.tokenisation)
            if all(figure[1] in model.figures for model in self.models)
        )

    @property
    def about(self) -> str:
        """In words what it is on, and whether there is a joint prefix."""
        on = f"{self.inputs} inputs and {self.rows} rows of {self.data or 'rows'}"
        if self.joint is None:
            return f"{on}; no prefix was trained jointly, so there is no upper bound"
        return (
            f"{on}; the joint prefix took {self.joint['steps']} steps on {self.joint['rows']} rows"
        )

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self)


def report_of(prefix: Prefix) -> CompositionReport | None:
    """The report that a composition carries; None if it has none, or what it has is not one.

    It is None as well where the report is on another prefix: where tensors or meta changed since, as by
    ``prefix.strength(0.5)``.
    """
    report = _carried(prefix)
    return report if report is not None and is_report_on(report, prefix) else None


def is_report_on(report: CompositionReport, composed: Prefix) -> bool:
    """Whether the composition that a report has is this one, by its digest without a report."""
    digests = [model.digest for model in report.models if model.role == "composition"]
    return digests == [without_report(composed).digest]


def without_report(composed: Prefix) -> Prefix:
    """The composition without what its record has for a report."""
    recipe = composed.meta.recipe
    record = recipe.get(COMPOSITION)
    if not isinstance(record, dict) or REPORT not in record:
        return composed
    record = {name: value for name, value in record.items() if name != REPORT}
    return composed.with_meta(recipe={**recipe, COMPOSITION: record})


def recipe_of(prefix: Prefix) -> dict[str, Any]:
    """The prefix's recipe without the report, which is shown as a table if it is on this prefix."""
    shown = prefix if _carried(prefix) is None else without_report(prefix)
    return dict(shown.meta.recipe)


def _carried(prefix: Prefix) -> CompositionReport | None:
    """The report in the record of a composition, whatever prefix it is on; None if it is none."""
    record = prefix.meta.recipe.get(COMPOSITION)
    found = record.get(REPORT) if isinstance(record, dict) else None
    try:
        return _read(found) if isinstance(found, dict) else None
    except (DataError, KeyError, TypeError, AttributeError):
        return None


def _figures_of(task: str, tokenisation: Tokenisation) -> tuple[Figure, ...]:
    every = figures_under(tokenisation) if task == TEXT else figures_of(task)  # type: ignore[arg-type]
    return tuple(figure for figure in every if figure[1] != "seconds")


def _read(found: Mapping[str, Any]) -> CompositionReport:
    """A report as JSON values, once it is seen to be one.

    Raises:
        DataError: It is not, as KeyError and TypeError say too.
    """
    task, words = found["task"], tokenisation_of(found["tokenisation"])
    joint, counts = found["joint"], [found["rows"], found["inputs"]]
    is_joint = isinstance(joint, dict) and {type(joint["steps"]), type(joint["rows"])} == {int}
    fits = (
        (task == TEXT or task in HEAD_TASKS)
        and isinstance(found["data"], str)
        and all(type(count) is int for count in counts)
        and (joint is None or is_joint)
        and isinstance(found["models"], list)
        and bool(found["models"])
    )
    if not fits:
        raise DataError("the report is not one of a composition")
    known = _figures_of(task, words)
    models = tuple(_read_model(one, known) for one in found["models"])
    return CompositionReport(models, counts[0], counts[1], found["data"], joint, task, words)


def _read_model(found: Mapping[str, Any], known: Sequence[Figure]) -> ModelFigures:
    there = tuple(figure for figure in known if figure[1] in found["figures"])
    figures = figures_named("figures", found["figures"], there)
    role, name, digest = found["role"], found["name"], found["digest"]
    if role not in ROLES or not (isinstance(name, str) and isinstance(digest, str)):
        raise DataError("the report has a model without role, name and digest")
    return ModelFigures(role, name, digest, figures)
