"""What is compared, and what that will take."""

from __future__ import annotations

from dataclasses import dataclass

from foreword.arguments import check_count
from foreword.errors import TrainingError
from foreword.methods.registry import method_names

METHODS = ("prefix", "lora", "frozen")
"""What is compared where nobody says."""

UNTRAINED = ("frozen", "in-context")
"""Words for what is not trained."""

MINUTES = 15.0
"""Time that a comparison may take where nobody says."""

FEWEST, LONGEST = 10, 3
"""Steps of a training at least, and passes over the rows at most."""

USUAL = 4
"""Rates that a search usually takes."""


@dataclass(frozen=True)
class Plan:
    """What a comparison will do.

    Attributes:
        steps: Steps of each training.
        trainings: How many there will be, as far as can be told.
        seconds: How long that takes, likewise.
        wanted: The seconds that were allowed; infinity where the steps were given.
    """

    steps: int
    trainings: int
    seconds: float
    wanted: float

    def __str__(self) -> str:
        """For people."""
        said = (
            f"about {max(1, round(self.seconds / 60))} minutes: {self.trainings} trainings of "
            f"{self.steps} steps"
        )
        if self.seconds > 1.2 * self.wanted:
            said += f" (more than the {self.wanted / 60:g} allowed: fewer steps would say nothing)"
        return said


@dataclass(frozen=True)
class Asked:
    """What is to be compared, and how.

    Attributes:
        methods: Names of methods, each with settings of its own or without
            (``lora+targets=attention``), and words for what is not trained.
        budget: Most numbers that a method may train; default: those of a prefix of 16, or the
            least that each method needs.
        minutes: Time that all of it may take, which decides the steps.
        steps: Steps of each training, instead.
        seeds: Trainings that count for each method.
        rows: Rows to train on at most, as for a curve over amounts of data.
        batch_size: Rows of a step.
        max_new_tokens: Longest text that is written.

    Raises:
        TrainingError: A number is out of range, or a method is named twice or unknown.
    """

    methods: tuple[str, ...] = METHODS
    budget: int | None = None
    minutes: float = MINUTES
    steps: int | None = None
    seeds: int = 3
    rows: int | None = None
    batch_size: int = 8
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        for name in ("budget", "steps", "seeds", "rows", "batch_size", "max_new_tokens"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), TrainingError)
        if not 0 < self.minutes < float("inf"):
            raise TrainingError(f"minutes must be above 0; found {self.minutes}")
        known = [*method_names(), *UNTRAINED]
        for method in self.methods:
            name, plus, _ = method.partition("+")
            if name not in known or (plus and name in UNTRAINED):
                raise TrainingError(
                    f"there is no method {method!r}; those known are {', '.join(known)}"
                )
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise TrainingError("methods must name at least one method, and each once")
