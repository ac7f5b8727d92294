"""`compare`: methods on one backbone and one set of rows, each given the same chance."""

from __future__ import annotations

import datetime
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from foreword.arguments import check_count, expect
from foreword.backbone import Backbone
from foreword.backbone.given import check_backbone
from foreword.compare.costs import latency
from foreword.compare.quality import Judge, frozen_one
from foreword.compare.result import Comparison, Latency, Seed, Side
from foreword.compare.split import Split, split
from foreword.compare.store import Runs
from foreword.compare.trials import OPTIMIZERS, Chosen, Trials
from foreword.compare.verdict import verdict
from foreword.data import rows_of
from foreword.data.given import Data, name_of
from foreword.errors import ForewordError, StoreError, TrainingError, first_line
from foreword.evaluate.scores import dataset_of
from foreword.head import HEAD_TASKS
from foreword.methods.base import Applied, Traits
from foreword.methods.heads import new_head
from foreword.methods.prefix.settings import LENGTH, NEUTRAL_TEXT, PrefixSettings
from foreword.methods.prefix.start import start as prefix_start
from foreword.methods.prefix.start import text_tokens
from foreword.methods.registry import OWN, known_methods, within
from foreword.objectives.encode import InFront, spread
from foreword.objectives.settings import DataSettings
from foreword.objectives.task import for_task
from foreword.train.fit import fit
from foreword.train.settings import LoopSettings
from foreword.version import __version__

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

EXAMPLES = 512
"""Tokens of the examples that are shown in context, at most; never more than half of the context."""

TASKS = 100
"""Tasks whose memory is counted."""

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What a comparison will do.

    Attributes:
        steps: Steps of each training.
        trainings: How many there will be, as far as can be told.
        seconds: How long that takes, likewise.
        wanted: The seconds that were allowed.
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
        methods: Names of methods, and words for what is not trained.
        budget: Most numbers that a method may train; default: those of a prefix of 16.
        minutes: Time that all of it may take, which decides the steps.
        steps: Steps of each training, instead.
        seeds: Trainings that count for each method.
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
    batch_size: int = 8
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        for name in ("budget", "steps", "seeds", "batch_size", "max_new_tokens"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), TrainingError)
        if not 0 < self.minutes < float("inf"):
            raise TrainingError(f"minutes must be above 0; found {self.minutes}")
        known = [*known_methods(), *UNTRAINED]
        for method in self.methods:
            if method not in known:
                raise TrainingError(
                    f"there is no method {method!r}; those known are {', '.join(known)}"
                )
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise TrainingError("methods must name at least one method, and each once")


def compare(
    backbone: Backbone,
    data: Data,
    settings: DataSettings,
    asked: Asked,
    *,
    folder: Path,
    test: Data | None = None,
    command: str = "",
    planned: Callable[[Plan], None] = lambda plan: None,
    tell: Tell = lambda what: None,
) -> Comparison:
    """Train each method at its best rate, and measure all of them on the same rows.

    Both optimisers are tried for every method, each at rates that are doubled or halved until the best
    on held-out rows lies between two that are worse; the better optimiser at its best rate is then
    trained with each seed and measured on test rows.

    Args:
        backbone: The backbone, left as it was found.
        data: Rows, or where to read them.
        settings: How they are read.
        asked: What is compared.
        folder: Where finished runs are kept: what is there is not made again.
        test: Rows to test on; by default some are set aside.
        command: The command line, for the report.
        planned: Told what will be done, before it begins.
        tell: Told of each run before it begins.

    Raises:
        DataError: Rows or templates are wrong, or there are too few.
        TrainingError: What is asked for does not go together.
        StoreError: The folder cannot be written to.
    """
    check_backbone(backbone)
    expect("settings", settings, DataSettings, "DataSettings", TrainingError)
    return _Comparing(backbone, data, settings, asked, folder, test, command, tell).all(planned)


class _Comparing:
    """A comparison under way."""

    def __init__(
        self,
        backbone: Backbone,
        data: Data,
        settings: DataSettings,
        asked: Asked,
        folder: Path,
        test: Data | None,
        command: str,
        tell: Tell,
    ) -> None:
        self.backbone = backbone
        self.asked = asked
        self.folder = folder
        self.command = command
        self.tell = tell
        rows = rows_of(data)
        self.settings = for_task(backbone, settings, rows)
        tested = None if test is None else spread(rows_of(test), self.settings)
        self.split: Split = split(spread(rows, self.settings), self.settings, tested)
        self.name = dataset_of(name_of(data))
        self.runs = Runs(folder / "runs.jsonl")
        self.headed = self.settings.task in HEAD_TASKS
        self.judge = Judge(backbone, self.settings, self._like(), asked.max_new_tokens)
        self.known = known_methods()
        self.sized: dict[str, Any] = {}
        self.failed: dict[str, str] = {}
        self._size_all()

    @property
    def trained(self) -> list[str]:
        """Names of what is trained and can be."""
        return [name for name in self.asked.methods if name in self.sized]

    def all(self, planned: Callable[[Plan], None]) -> Comparison:
        """Plan, train, measure, and say what came of it."""
        plan = self._plan()
        planned(plan)
        loop = self._loop(plan.steps)
        sides = tuple(self._side(name, loop) for name in self.asked.methods)
        metric = self.judge.metric
        return Comparison(
            backbone={
                "name": self.backbone.name,
                "family": self.backbone.family,
                "kind": self.backbone.kind,
                "dtype": str(self.backbone.dtype).removeprefix("torch."),
                "parameters": self.backbone.parameters,
            },
            data={
                "name": self.name,
                **{part: len(getattr(self.split, part)) for part in ("train", "held", "test")},
            },
            task=str(self.settings.task),
            metric=metric,
            steps=plan.steps,
            sides=sides,
            machine=machine(self.backbone),
            made=datetime.datetime.now(datetime.UTC).date().isoformat(),
            version=__version__,
            command=self.command,
            budget=self.budget,
            equal=EQUAL,
            unequal=tuple(self._unequal(sides)),
            verdict=verdict(sides, metric),
        )

    # -- before it begins --------------------------------------------------------------------------

    def _like(self) -> Any:
        """A prefix as long as any that stands in front of rows, with templates."""
        length = max(LENGTH, self._examples if "in-context" in self.asked.methods else 0)
        text = text_tokens(self.backbone, NEUTRAL_TEXT, length)
        made = self.backbone.capture(text)
        return made.with_meta(recipe={"method": "prefix", **self.settings.as_json()})

    @property
    def _examples(self) -> int:
        """Tokens of the examples that are shown in context."""
        return min(EXAMPLES, self.backbone.context // 2)

    def _size_all(self) -> None:
        """The settings of each method within the budget; a method that does not go is failed."""
        data = {name: getattr(self.settings, name) for name in DATA_FIELDS}
        base = DataSettings(**data)
        prefix = OWN["prefix"]
        default = prefix.made(base, length=LENGTH)
        start = prefix.method.start(self.backbone, default, self.split.train)
        self.budget = self.asked.budget or start.trained
        for name in self.asked.methods:
            if name in UNTRAINED:
                continue
            try:
                made = self.known[name].made(base)
                self.sized[name] = within(
                    self.known[name], self.backbone, made, self.split.train, self.budget
                )
            except ForewordError as error:
                self.failed[name] = first_line(error)

    def _loop(self, steps: int) -> LoopSettings:
        return LoopSettings(
            steps=steps, batch_size=self.asked.batch_size, checkpoint_every=max(10, steps // 4)
        )

    def _plan(self) -> Plan:
        """The steps that fit into the time, by a few steps of each method."""
        times = {name: self._seconds_of_a_step(name) for name in self.trained}
        each = {name: seconds for name, seconds in times.items() if seconds is not None}
        rates, seeds = USUAL * len(OPTIMIZERS), self.asked.seeds - 1
        trainings = len(each) * (rates + seeds)
        held, tested = self._seconds_to_measure()
        fixed = len(each) * (rates * held + self.asked.seeds * (held + tested)) + tested
        a_step = sum(each.values()) * (rates + seeds)
        wanted = 60 * self.asked.minutes
        longest = max(FEWEST, LONGEST * len(self.split.train) // self.asked.batch_size)
        steps = self.asked.steps
        if steps is None:
            steps = int(min(longest, max(FEWEST, (wanted - fixed) / a_step))) if each else FEWEST
        return Plan(steps, trainings, fixed + steps * a_step, wanted)

    def _seconds_of_a_step(self, name: str) -> float | None:
        """The time of a training step; None for a method that cannot take one, which is failed."""
        run = {"what": "time", "method": name, "settings": self.sized[name][0].as_json()}
        run |= {"data": self.split.digest, "batch": self.asked.batch_size}
        known = self.runs.find(run)
        if known is not None:
            return float(known["seconds"])
        self.tell(f"{name}, timed")
        try:
            one, more = (self._timed(name, steps) for steps in (1, 3))
        except (ForewordError, RuntimeError) as error:
            self.failed[name] = first_line(error)
            del self.sized[name]
            return None
        return float(self.runs.keep(run, {"seconds": max(1e-3, (more - one) / 2)})["seconds"])

    def _timed(self, name: str, steps: int) -> float:
        method, settings = self.known[name].method, self.sized[name][0]
        loop = replace(self._loop(steps), lr=self.known[name].rates["adamw"], optimizer="adamw")
        return fit(self.backbone, self.split.train, method, settings, loop).seconds

    def _seconds_to_measure(self) -> tuple[float, float]:
        """Times of held-out rows and of test rows, under the frozen model."""
        run = {"what": "measuring", "data": self.split.digest, "of": self.settings.as_json()}
        known = self.runs.find(run)
        if known is None:
            self.tell("measuring, timed")
            frozen = self._under_new_head()
            times = []
            for work in (
                lambda: self.judge.nll(frozen, self.split.held),
                lambda: self.judge.figures(frozen, self.split.test),
            ):
                began = time.perf_counter()
                work()
                times.append(time.perf_counter() - began)
            known = self.runs.keep(run, {"seconds": times})
        held, tested = known["seconds"]
        return held, tested

    def _under_new_head(self) -> Applied:
        """The frozen model, with a head of zeros if the task needs one."""
        head = new_head(self.backbone, self.settings, self.split.train)
        return replace(frozen_one(self.backbone), in_front=InFront(self.backbone.bos, 0, head))

    # -- one side ----------------------------------------------------------------------------------

    def _side(self, name: str, loop: LoopSettings) -> Side:
        """All figures of a method, or why there are none."""
        label = self.known[name].named(self.sized[name][0]) if name in self.sized else name
        if name in self.failed:
            return Side(name, label, failed=self.failed[name])
        try:
            if name in UNTRAINED:
                return self._frozen() if name == "frozen" else self._in_context()
            return self._trained(name, label, loop)
        except StoreError:
            raise
        except (ForewordError, RuntimeError) as error:
            return Side(name, label, failed=first_line(error))

    def _trained(self, name: str, label: str, loop: LoopSettings) -> Side:
        known, (settings, trained) = self.known[name], self.sized[name]
        trials = Trials(
            name,
            known,
            settings,
            self.backbone,
            self.split,
            self.judge,
            self.runs,
            loop,
            self.folder,
            self._command_of,
            self.tell,
        )
        chosen = trials.search()
        trials.forget(chosen)
        first = settings.seed
        seeds = [
            trials.final(chosen.optimizer, chosen.rate, seed)
            for seed in range(first, first + self.asked.seeds)
        ]
        side = Side(
            name=name,
            label=label,
            trained=trained,
            settings=settings.as_json(),
            traits=known.traits,
            optimizer=chosen.optimizer,
            rate=chosen.rate,
            interior=chosen.interior,
            search=chosen.search,
            seeds=tuple(seeds),
        )
        side = self._with_costs(side, trials, chosen)
        trials.forget(chosen)
        return side

    def _with_costs(self, side: Side, trials: Trials, chosen: Chosen) -> Side:
        """A side with its latency and sizes, measured once."""
        start, value = trials.value(chosen)
        run = {"what": "costs", "of": trials.of(chosen), "machine": machine(self.backbone)}
        known = self.runs.find(run)
        if known is None:
            self.tell(f"{side.name}, its latency")
            merged = start.merged(value)
            known = self.runs.keep(
                run,
                {
                    "latency": self._latency(lambda: start.applied(value)),
                    "merged": None if merged is None else self._latency_of(merged),
                },
            )
        merged_times = known["merged"]
        return replace(
            side,
            stored_bytes=trials.stored_bytes(chosen),
            memory_bytes=self._memory(side.name, value),
            latency=_latency(known["latency"]),
            merged=None if merged_times is None else _latency(merged_times),
        )

    def _latency(self, entered: Callable[[], AbstractContextManager[Applied]]) -> dict[str, Any]:
        found = latency(frozen_one(self.backbone), entered)
        return {"prefill": dict(found.prefill), "decode": dict(found.decode)}

    def _latency_of(self, merged: AbstractContextManager[Applied]) -> dict[str, Any]:
        """Of what is entered once, for it takes a copy of the backbone."""
        with merged as applied:
            return self._latency(lambda: nullcontext(applied))

    def _memory(self, name: str, value: Any) -> int:
        """Bytes of the backbone and of what serves many tasks, in the backbone's dtype."""
        weights = self.backbone.weight_bytes
        if name == "full":
            return TASKS * weights
        held = getattr(value, "prefix", value)
        numbers = held.parameters if hasattr(held, "parameters") else held.numbers
        return weights + TASKS * int(numbers) * self.backbone.dtype.itemsize

    # -- what is not trained -----------------------------------------------------------------------

    def _frozen(self) -> Side:
        self._refuse_untrained_head()
        seed = self._measured("frozen", 0, lambda: frozen_one(self.backbone))
        own = Latency({1: 1.0, 32: 1.0}, {1: 1.0, 32: 1.0})
        return Side(
            "frozen",
            "the frozen model",
            traits=Traits(shares_batch=True, merges=True, composes=False, switches_off=True),
            seeds=(seed,),
            latency=own,
            memory_bytes=self.backbone.weight_bytes,
        )

    def _in_context(self) -> Side:
        """As many examples as fit, in front of every input; their keys and values are kept."""
        self._refuse_untrained_head()
        shown = [self._shown(seed) for seed in range(self.asked.seeds)]
        seeds = [
            self._measured("in-context", seed, partial(self._under, prefix))
            for seed, prefix in enumerate(shown)
        ]
        run = {"what": "costs", "of": shown[0].digest, "machine": machine(self.backbone)}
        times = self.runs.find(run) or self.runs.keep(
            run, self._latency(lambda: nullcontext(self._under(shown[0])))
        )
        return Side(
            "in-context",
            f"examples in the context, up to {self._examples} tokens",
            stored_bytes=4 * shown[0].length,
            traits=Traits(shares_batch=True, merges=False, composes=False, switches_off=True),
            seeds=tuple(seeds),
            latency=_latency(times),
            memory_bytes=self._memory("in-context", shown[0]),
        )

    def _shown(self, seed: int) -> Any:
        fields = {name: getattr(self.settings, name) for name in DATA_FIELDS}
        settings = PrefixSettings(
            **{**fields, "seed": seed}, init="demonstrations", length=self._examples
        )
        return prefix_start(self.backbone, settings, self.split.train)

    def _under(self, prefix: Any) -> Applied:
        return Applied(self.backbone, prefix, InFront.of(prefix))

    def _measured(self, name: str, seed: int, applied: Callable[[], Applied]) -> Seed:
        """Figures of what is not trained, measured once."""
        run = {
            "what": "untrained",
            "method": name,
            "seed": seed,
            "settings": self.settings.as_json(),
            "data": self.split.digest,
            "backbone": self.backbone.fingerprint,
            "dtype": str(self.backbone.dtype),
        }
        known = self.runs.find(run)
        if known is None:
            self.tell(f"{name} seed {seed}, tested")
            one = applied()
            known = self.runs.keep(
                run,
                {
                    "held": self.judge.nll(one, self.split.held),
                    "figures": self.judge.figures(one, self.split.test),
                    "forgotten": {} if name == "frozen" else self.judge.forgotten(one),
                },
            )
        return Seed(seed, **known)

    def _refuse_untrained_head(self) -> None:
        if self.headed:
            raise TrainingError(
                f"task {self.settings.task!r} needs a head, and without training there is none"
            )

    # -- what is said ------------------------------------------------------------------------------

    def _command_of(self, run: str) -> str:
        return f"{self.command} --only '{run}'" if self.command else ""

    def _unequal(self, sides: Sequence[Side]) -> list[str]:
        """What could not be the same for all."""
        said = []
        for side in sides:
            if side.trained and abs(side.trained - self.budget) > self.budget / 10:
                said.append(
                    f"{side.label} trains {side.trained:,} numbers, {side.trained / self.budget:.2f} "
                    f"times the budget of {self.budget:,}"
                )
            said += [
                f"{side.label}: the best rate is at the end of those that were tried"
                for _ in [side.interior]
                if not side.interior
            ]
        forgotten = [one for side in sides for seed in side.seeds for one in seed.forgotten]
        if not forgotten:
            said.append("what is forgotten is only measured of models that write text")
        return said


DATA_FIELDS = tuple(DataSettings.__dataclass_fields__)
"""Settings of how rows are read, which every method has."""

EQUAL = (
    "the rows and their order, by the seed",
    "the number of steps, rows of a step, warm-up and the fall of the rate",
    "precision: what is trained is float32, and the backbone is what it is",
    "the search for rates: both optimisers, doubled or halved until the best is interior, one seed",
    "no early stopping, no dropout, no weight decay, gradients clipped at norm 1",
    "how rows are cut, and how texts are written and scored",
)
"""What is the same for every method."""


def machine(backbone: Backbone) -> str:
    """What it was measured on."""
    if backbone.device.type == "cuda":
        return torch.cuda.get_device_name(backbone.device)
    return f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def _latency(given: Mapping[str, Any]) -> Latency:
    """Times as they were kept, whose keys JSON makes texts."""
    return Latency(
        *(
            {int(rows): ratio for rows, ratio in given[name].items()}
            for name in ("prefill", "decode")
        )
    )
