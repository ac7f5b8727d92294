"""`TaskEvaluation`: what lm-eval measured of a prefix, and of the frozen model beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

Samples = Mapping[str, Sequence[Mapping[str, Any]]]
"""By task its documents as lm-eval logs them: requests, responses, figures."""

_ERROR = "_stderr"
_ABOUT = frozenset(("name", "alias", "sample_len", "sample_count"))
"""What lm-eval puts among figures and is none."""


@dataclass(frozen=True)
class Figure:
    """A metric of a task.

    Attributes:
        value: It.
        error: Its standard error, or None where lm-eval gives none.
    """

    value: float
    error: float | None

    def __str__(self) -> str:
        """As tables show it."""
        return f"{self.value:.4f}" + ("" if self.error is None else f" ± {self.error:.4f}")


@dataclass(frozen=True)
class TaskFigures:
    """What one model reached.

    Attributes:
        results: By task, or group, what lm-eval calls its results: by ``metric,filter`` a number, and
            by ``metric_stderr,filter`` its standard error, or ``N/A``.
        cut: Requests that lost tokens from their left, because the context has no room for them.
        samples: By task its documents.
    """

    results: Mapping[str, Mapping[str, Any]]
    cut: int
    samples: Samples = field(repr=False)

    def figures(self) -> Iterator[tuple[str, str, Figure]]:
        """Each task, metric and figure; a metric under a filter is ``metric (filter)``."""
        for task, results in self.results.items():
            for key, value in results.items():
                metric, _, chosen = key.partition(",")
                if key in _ABOUT or metric.endswith(_ERROR) or not _is_number(value):
                    continue
                error = results.get(f"{metric}{_ERROR},{chosen}")
                shown = metric if chosen in ("", "none") else f"{metric} ({chosen})"
                yield task, shown, Figure(value, error if _is_number(error) else None)


@dataclass(frozen=True)
class TaskEvaluation:
    """Prefix and frozen model on tasks of lm-eval.

    Attributes:
        prefix: Figures with the prefix.
        base: Figures of the frozen model alone, or None where it was left out.
        rows: By task the documents that were scored.
        shots: By task the examples in front of each.
        versions: By task its version.
        tasks: What the tasks were asked for by.
        lm_eval: The version of lm-eval.
        chat: Whether requests were turns of a chat.
        backbone: Name of the backbone.
        same_weights: Whether its weights are those that the prefix was made on.
        digest: Content digest of the prefix.
    """

    prefix: TaskFigures
    base: TaskFigures | None
    rows: Mapping[str, int]
    shots: Mapping[str, int]
    versions: Mapping[str, Any]
    tasks: str
    lm_eval: str
    chat: bool
    backbone: str
    same_weights: bool
    digest: str

    def as_json(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self), default=_plain))
        return plain


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _plain(value: object) -> Any:
    """A number of NumPy, or what else a task's documents hold, for JSON."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return [*value] if isinstance(value, set | frozenset) else str(value)
