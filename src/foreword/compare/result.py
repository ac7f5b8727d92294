"""`Comparison`: what `foreword compare` measured, as values and as JSON.

Losses are in nats per target, times in seconds, sizes in bytes, latencies relative to the frozen model.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from foreword.errors import DataError
from foreword.methods.base import Traits

VERSION = 1
"""Version of the JSON."""


@dataclass(frozen=True)
class Tried:
    """One rate of the search.

    Attributes:
        optimizer: ``adamw`` or ``soap``.
        rate: Peak learning rate.
        loss: NLL on held-out rows; None where training failed.
        command: What runs it again.
    """

    optimizer: str
    rate: float
    loss: float | None
    command: str = ""


@dataclass(frozen=True)
class Seed:
    """One training at the chosen rate, or the one measurement of what is not trained.

    Attributes:
        seed: Of the order of rows, and of what is drawn to start from.
        held: NLL on held-out rows.
        figures: Figures on test rows by name, as `foreword evaluate` gives them, ``nll`` among them.
        forgotten: By neutral set the NLL afterwards less that of the frozen model.
        seconds: Wall time of the steps.
        tokens_per_second: Real tokens that training read.
        peak_bytes: Most memory above that of the loaded backbone; None where it is not known.
        history: Steps and their training losses.
        command: What runs it again.
    """

    seed: int
    held: float
    figures: Mapping[str, float]
    forgotten: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    tokens_per_second: float | None = None
    peak_bytes: int | None = None
    history: tuple[tuple[int, float], ...] = ()
    command: str = ""


@dataclass(frozen=True)
class Latency:
    """Medians of times over those of the frozen model, measured in turns with it.

    Attributes:
        prefill: By number of rows a pass over prompts.
        decode: By number of rows one step of decoding.
    """

    prefill: Mapping[int, float]
    decode: Mapping[int, float]

    def as_json(self) -> dict[str, Any]:
        """As JSON values, whose keys are texts once they are written."""
        return {"prefill": dict(self.prefill), "decode": dict(self.decode)}

    @classmethod
    def of_json(cls, given: Mapping[str, Any]) -> Latency:
        """What `as_json` gave."""
        prefill, decode = (
            {int(rows): ratio for rows, ratio in given[name].items()}
            for name in ("prefill", "decode")
        )
        return cls(prefill, decode)


@dataclass(frozen=True)
class Side:
    """One method.

    Attributes:
        name: Its word on the command line.
        label: What it is, with its size: ``LoRA, all linear layers, rank 3``.
        trained: How many numbers are trained; 0 of what is not trained.
        stored_bytes: What one task takes on the disk.
        settings: The method's own settings.
        traits: What can be done with it; None where that is not known.
        optimizer: The better one; empty where nothing is trained.
        rate: The rate chosen with it.
        interior: Whether that rate lies between two that are worse.
        search: Every rate that was tried.
        seeds: The runs that count.
        latency: Unmerged.
        merged: Merged into the weights, for methods that can be.
        memory_bytes: What 100 tasks take in the memory of a server, the backbone included.
        failed: Why there are no figures, or None.
    """

    name: str
    label: str
    trained: int = 0
    stored_bytes: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    traits: Traits | None = None
    optimizer: str = ""
    rate: float | None = None
    interior: bool = True
    search: tuple[Tried, ...] = ()
    seeds: tuple[Seed, ...] = ()
    latency: Latency | None = None
    merged: Latency | None = None
    memory_bytes: int | None = None
    failed: str | None = None

    def figure(self, name: str) -> tuple[float, float] | None:
        """Mean and standard deviation over the seeds of a figure on test rows; None without one."""
        return _spread([one.figures[name] for one in self.seeds if name in one.figures])

    def forgot(self, name: str) -> tuple[float, float] | None:
        """Mean and standard deviation of what was forgotten of a neutral set; None without it."""
        return _spread([one.forgotten[name] for one in self.seeds if name in one.forgotten])


@dataclass(frozen=True)
class Metric:
    """The figure that decides.

    Attributes:
        name: Its key among the figures.
        label: As tables show it.
        higher: Whether more of it is better.
        form: How it is written.
    """

    name: str
    label: str
    higher: bool
    form: str = "{:.1f}"


@dataclass(frozen=True)
class Comparison:
    """All methods on one backbone and one set of rows.

    Attributes:
        backbone: Name, family, kind, dtype and number of parameters.
        data: Name, numbers of rows to train on, held out and to test on.
        task: What is learned.
        metric: The figure that decides.
        steps: Steps of each training.
        sides: The methods, in the order in which they were asked for.
        machine: Processor, threads, device.
        made: Day, as 2026-11-30.
        version: Of Foreword.
        command: The whole command.
        budget: Most numbers that a method may train, or None.
        equal: What was the same for all.
        unequal: What could not be.
        verdict: What the figures recommend, sentence by sentence.
    """

    backbone: Mapping[str, Any]
    data: Mapping[str, Any]
    task: str
    metric: Metric
    steps: int
    sides: tuple[Side, ...]
    machine: str = ""
    made: str = ""
    version: str = ""
    command: str = ""
    budget: int | None = None
    equal: tuple[str, ...] = ()
    unequal: tuple[str, ...] = ()
    verdict: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {"format": VERSION, **dataclasses.asdict(self)}

    @classmethod
    def of_json(cls, text: str) -> Comparison:
        """What `as_json` gave.

        Raises:
            DataError: It is not that, or of another version.
        """
        try:
            found = json.loads(text)
            if found.pop("format") != VERSION:
                raise DataError(f"the comparison is not of format {VERSION}; compare anew")
            sides = tuple(_side(one) for one in found.pop("sides"))
            metric = Metric(**found.pop("metric"))
            for name in ("equal", "unequal", "verdict"):
                found[name] = tuple(found[name])
            return cls(sides=sides, metric=metric, **found)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"this is no comparison: {error}; compare anew") from error


def _side(given: dict[str, Any]) -> Side:
    """A side from JSON values."""
    own = dict(given)
    traits, search, seeds = own.pop("traits"), own.pop("search"), own.pop("seeds")
    times = (own.pop(name) for name in ("latency", "merged"))
    latency, merged = (None if one is None else Latency.of_json(one) for one in times)
    return Side(
        **own,
        latency=latency,
        merged=merged,
        traits=None if traits is None else Traits(**traits),
        search=tuple(Tried(**one) for one in search),
        seeds=tuple(
            Seed(**{**one, "history": tuple((step, loss) for step, loss in one["history"])})
            for one in seeds
        ),
    )


def _spread(found: list[float]) -> tuple[float, float] | None:
    """Mean and standard deviation; that of one alone is 0."""
    if not found:
        return None
    return statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else 0.0
