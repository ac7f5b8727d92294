"""`compare`: methods on one backbone and one set of rows, each given the same chance."""

from __future__ import annotations

import datetime
import math
import re
import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from foreword.arguments import expect
from foreword.backbone import Backbone
from foreword.backbone.given import check_backbone
from foreword.compare.costs import ENOUGH, ROWS, latency, machine, memory
from foreword.compare.plan import FEWEST, LONGEST, UNTRAINED, USUAL, Asked, Plan
from foreword.compare.quality import Judge, frozen_one, unknown_labels
from foreword.compare.result import Comparison, Latency, Seed, Side
from foreword.compare.split import Split, known_before, split
from foreword.compare.store import Runs
from foreword.compare.trials import OPTIMIZERS, Chosen, Trials
from foreword.compare.untrained import Untrained, room_of_examples
from foreword.compare.verdict import verdict
from foreword.data import rows_of
from foreword.data.given import Data, name_of
from foreword.errors import ForewordError, StoreError, TrainingError, first_line
from foreword.evaluate.scores import dataset_of
from foreword.head import HEAD_TASKS
from foreword.methods.base import Applied
from foreword.methods.heads import new_head
from foreword.methods.prefix.settings import LENGTH, NEUTRAL_TEXT
from foreword.methods.prefix.start import text_tokens
from foreword.methods.registry import OWN, Known, known_method, least, within
from foreword.objectives.encode import InFront, spread
from foreword.objectives.own_texts import check_kept
from foreword.objectives.settings import DataSettings
from foreword.objectives.task import for_task
from foreword.prefix import Prefix
from foreword.train.fit import fit
from foreword.train.settings import LoopSettings
from foreword.train.trainer import NotFinite
from foreword.version import __version__

Tell = Callable[[str], None]

RUN = re.compile(
    r"(?P<method>.+) (?P<optimizer>soap|adamw) (?P<rate>[0-9]+(\.[0-9]+)?(e[+-]?[0-9]{1,3})?) "
    r"seed (?P<seed>[0-9]{1,10})",
    re.DOTALL,
)
"""What a run is called."""


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


def compare_one(
    backbone: Backbone,
    data: Data,
    settings: DataSettings,
    asked: Asked,
    run: str,
    *,
    folder: Path,
    test: Data | None = None,
    tell: Tell = lambda what: None,
) -> Seed:
    """One training of a comparison, measured on its test rows, by what reports call it.

    The steps must be given, for those of the report were found by the clock.

    Args:
        backbone: The backbone.
        data: The rows of the comparison.
        settings: How they are read.
        asked: As there, with steps.
        run: Such as ``lora soap 0.004 seed 1``.
        folder: Where finished runs are kept.
        test: Rows to test on, if they were given.
        tell: Told of each run before it begins.

    Raises:
        TrainingError: It is not called so or is not trained, or its steps are not given.
    """
    found = RUN.fullmatch(run)
    if found is None or found["method"] in UNTRAINED:
        raise TrainingError(
            f"{run!r} is no run that is trained; expected one such as 'lora soap 0.004 seed 1', as a "
            "report has it"
        )
    if asked.steps is None:
        raise TrainingError(
            "one run needs its number of steps; give steps, as the report says them"
        )
    steps = asked.steps
    if found["method"] not in asked.methods:
        # Those of the comparison stay, for they decide its budget and how texts are cut.
        asked = replace(asked, methods=(found["method"],))
    comparing = _Comparing(backbone, data, settings, asked, folder, test, "", tell)
    if found["method"] in comparing.failed:
        raise TrainingError(comparing.failed[found["method"]])
    trials = comparing.trials(found["method"], steps)
    optimizer: Any = found["optimizer"]
    return trials.final(optimizer, float(found["rate"]), int(found["seed"]))


def _reason(error: Exception) -> str:
    """Why a method has no figures; a package's own code, and libraries, may raise anything."""
    said = first_line(error)
    plain = isinstance(error, ForewordError | RuntimeError) or said == type(error).__name__
    return said if plain else f"{type(error).__name__}: {said}"


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
        check_kept(backbone, self.settings)
        tested = None if test is None else spread(rows_of(test), self.settings)
        every = spread(rows, self.settings)
        self.split: Split = split(every, self.settings, tested, asked.rows)
        self.name = dataset_of(name_of(data))
        self.runs = Runs(folder / "runs.jsonl")
        self.headed = self.settings.task in HEAD_TASKS
        self.judge = Judge(backbone, self.settings, self._like(), asked.max_new_tokens)
        self.known: dict[str, Known] = {}
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
        sides = tuple(self._side(name, plan.steps) for name in self.asked.methods)
        figures = [seed.figures for side in sides for seed in side.seeds]
        metric = self.judge.metric({name for found in figures for name in found})
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
        shown = "in-context" in self.asked.methods
        length = max(LENGTH, room_of_examples(self.backbone) if shown else 0)
        text = text_tokens(self.backbone, NEUTRAL_TEXT, length)
        made = self.backbone.capture(text)
        return made.with_meta(recipe={"method": "prefix", **self.settings.as_json()})

    def _size_all(self) -> None:
        """The settings of each method within the budget; a method that does not go is failed."""
        data = {name: getattr(self.settings, name) for name in DATA_FIELDS}
        base = DataSettings(**data)
        prefix = OWN["prefix"]
        default = prefix.made(base, length=LENGTH)
        start = prefix.method.start(self.backbone, default, self.split.train)
        least = {name: found for name in self.asked.methods if (found := self._least(name, base))}
        self.budget = self.asked.budget or max(start.trained, *least.values(), 0)
        for name in least:
            try:
                known = self.known[name]
                given = self.backbone, known.made(base), self.split.train, self.budget
                self.sized[name] = within(name, known, *given)
            except Exception as error:
                self._fail(name, error)

    def _fail(self, name: str, error: Exception) -> None:
        """Note why a method has no figures, and tell of it before the others take their time."""
        self.failed[name] = _reason(error)
        self.tell(f"{name} fails: {self.failed[name]}")

    def _least(self, name: str, base: DataSettings) -> int:
        """The fewest numbers that a method trains, 0 of what has no size; one that fails is noted."""
        if name in UNTRAINED:
            return 0
        try:
            known = self.known[name] = known_method(name)
            trained = least(known, self.backbone, known.made(base), self.split.train)[1].trained
        except Exception as error:
            self._fail(name, error)
            return 0
        return 1 if known.unbounded else trained

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
        of_costs = len(ROWS) * ENOUGH
        of_method = rates * held + self.asked.seeds * (held + tested) + of_costs
        fixed = len(each) * of_method + tested
        a_step = sum(each.values()) * (rates + seeds)
        wanted = 60 * self.asked.minutes
        longest = max(FEWEST, LONGEST * len(self.split.train) // self.asked.batch_size)
        steps = self.asked.steps
        if steps is None:
            steps = int(min(longest, max(FEWEST, (wanted - fixed) / a_step))) if each else FEWEST
        allowed = wanted if self.asked.steps is None else math.inf
        return Plan(steps, trainings, fixed + steps * a_step, allowed)

    @property
    def _where(self) -> dict[str, Any]:
        """What times depend on beside what is timed: rows, backbone and machine."""
        return {
            "data": self.split.digest,
            "backbone": self.backbone.fingerprint,
            "dtype": str(self.backbone.dtype),
            "machine": machine(self.backbone),
        }

    def _seconds_of_a_step(self, name: str) -> float | None:
        """The time of a training step; None for a method that cannot take one, which is failed."""
        run = {"what": "time", "method": name, "settings": self.sized[name][0].as_json()}
        run |= {"batch": self.asked.batch_size, **self._where}
        known = self.runs.find(run)
        if known is not None:
            return float(known["seconds"])
        self.tell(f"{name}, timed")
        try:
            one, more = (self._timed(name, steps) for steps in (1, 3))
        except StoreError:
            raise
        except Exception as error:
            self._fail(name, error)
            del self.sized[name]
            return None
        return float(self.runs.keep(run, {"seconds": max(1e-3, (more - one) / 2)})["seconds"])

    def _timed(self, name: str, steps: int) -> float:
        method, settings = self.known[name].method, self.sized[name][0]
        loop = replace(self._loop(steps), lr=self.known[name].rates["adamw"], optimizer="adamw")
        fitted = fit(self.backbone, self.split.train, method, settings, loop)
        if fitted.cause is not None and not isinstance(fitted.cause, NotFinite):
            raise fitted.cause  # such as Ctrl-C, which `fit` lets no work be lost by
        return fitted.seconds

    def _seconds_to_measure(self) -> tuple[float, float]:
        """Times of held-out rows, and of test rows with neutral ones, under the frozen model."""
        run = {"what": "measuring", "of": self.settings.as_json(), **self._where}
        known = self.runs.find(run)
        if known is None:
            self.tell("measuring, timed")
            frozen = self._under_new_head()
            times = []
            for work in (
                lambda: self.judge.nll(frozen, self.split.held),
                lambda: self.judge.figures(frozen, self.split.test),
                lambda: self.judge.neutral(LENGTH),
            ):
                began = time.perf_counter()
                work()
                times.append(time.perf_counter() - began)
            known = self.runs.keep(run, {"seconds": times})
        held, *tested = known["seconds"]
        return held, sum(tested)

    def _under_new_head(self) -> Applied:
        """The frozen model, with a head of zeros if the task needs one."""
        head = new_head(self.backbone, self.settings, self.split.train)
        return replace(frozen_one(self.backbone), in_front=InFront(self.backbone.bos, 0, head))

    # -- one side ----------------------------------------------------------------------------------

    def _side(self, name: str, steps: int) -> Side:
        """All figures of a method, or why there are none."""
        label = self.known[name].named(self.sized[name][0]) if name in self.sized else name
        if name in self.failed:
            return Side(name, label, failed=self.failed[name])
        try:
            if name in UNTRAINED:
                given = self.backbone, self.split, self.judge, self.runs
                untrained = Untrained(*given, self.asked.seeds, self.tell)
                return untrained.frozen() if name == "frozen" else untrained.in_context()
            return self._trained(name, label, steps)
        except StoreError:
            raise
        except Exception as error:
            return Side(name, label, failed=_reason(error))

    def trials(self, name: str, steps: int) -> Trials:
        """The runs of a method."""
        return Trials(
            name,
            self.known[name],
            self.sized[name][0],
            self.backbone,
            self.split,
            self.judge,
            self.runs,
            self._loop(steps),
            self.folder,
            partial(self._command_of, steps),
            self.tell,
        )

    def _trained(self, name: str, label: str, steps: int) -> Side:
        known, (settings, trained) = self.known[name], self.sized[name]
        trials = self.trials(name, steps)
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
            traits=known.traits_for(self.backbone),
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
            frozen, merged = frozen_one(self.backbone), start.merged(value)
            found = {"latency": latency(frozen, lambda: start.applied(value)).as_json()}
            if merged is not None:
                with merged as applied:  # once, for it takes a copy of the backbone
                    found["merged"] = latency(frozen, lambda: nullcontext(applied)).as_json()
            known = self.runs.keep(run, found)
        return replace(
            side,
            stored_bytes=trials.stored_bytes(chosen),
            memory_bytes=memory(self.backbone, served(side.name, value)),
            latency=Latency.of_json(known["latency"]),
            merged=Latency.of_json(known["merged"]) if "merged" in known else None,
        )

    # -- what is said ------------------------------------------------------------------------------

    def _command_of(self, steps: int, run: str) -> str:
        """What makes one run again, wherever the steps of all were found by the clock."""
        if not self.command:
            return ""
        timed = "" if self.asked.steps else f" --steps {steps}"
        return f"{self.command}{timed} --only {shlex.quote(run)}"

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
        head = new_head(self.backbone, self.settings, self.split.train)
        said += unknown_labels(head, self.settings, self.split)
        return [*said, *known_before(self.split, self.settings)]


def served(name: str, value: Any) -> int | None:
    """Numbers of one task in a server's memory; None of a whole model."""
    if name == "full":
        return None
    prefix = getattr(value, "prefix", None)
    held = value if prefix is None else prefix
    return int(held.parameters if isinstance(held, Prefix) else held.numbers)


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
