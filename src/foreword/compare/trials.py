"""One method on one backbone and one split: rates searched, then the seeds that count."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from foreword.backbone import Backbone
from foreword.compare.costs import peak_memory
from foreword.compare.quality import Judge
from foreword.compare.rates import best_rate, next_rate
from foreword.compare.result import Seed, Tried
from foreword.compare.split import Split
from foreword.compare.store import Runs, key_of
from foreword.data import Encoded
from foreword.errors import TrainingError, first_line
from foreword.methods.base import Start
from foreword.methods.registry import Known
from foreword.objectives.encode import encode
from foreword.objectives.settings import DataSettings
from foreword.objectives.supervised import Supervised
from foreword.train.fit import fit
from foreword.train.folder import discard
from foreword.train.settings import LoopSettings, Optimizer
from foreword.train.trainer import NotFinite

OPTIMIZERS: tuple[Optimizer, ...] = ("soap", "adamw")
"""Both are tried for every method, and the better one counts."""

SOME = 16
"""Rows that are enough to measure a head's scale on."""

SHOWN = 200
"""Points of a learning curve that are kept."""

Command = Callable[[str], str]
"""The command that makes a run again, after what the run is called."""


@dataclass(frozen=True)
class Chosen:
    """The better optimiser at its best rate.

    Attributes:
        optimizer: Its name.
        rate: The rate.
        interior: Whether the rate lies between two that are worse.
        search: Everything that was tried.
    """

    optimizer: Optimizer
    rate: float
    interior: bool
    search: tuple[Tried, ...]


class Trials:
    """Runs of one method, each made once.

    Args:
        name: The method's name.
        known: The method.
        settings: Its settings, sized, with the task decided.
        backbone: The backbone.
        split: The rows.
        judge: Measures what training leaves.
        runs: Finished runs.
        loop: What the loop does, but for optimiser and rate.
        folder: Where checkpoints and values are kept while they are needed.
        command: Gives the command that makes a run again.
        tell: Told of each run before it begins.
    """

    def __init__(
        self,
        name: str,
        known: Known,
        settings: DataSettings,
        backbone: Backbone,
        split: Split,
        judge: Judge,
        runs: Runs,
        loop: LoopSettings,
        folder: Path,
        command: Command = lambda run: "",
        tell: Callable[[str], None] = lambda run: None,
    ) -> None:
        self.name = name
        self.known = known
        self.settings = settings
        self.backbone = backbone
        self.split = split
        self.judge = judge
        self.runs = runs
        self.loop = loop
        self.folder = folder
        self.command = command
        self.tell = tell
        self._files: set[Path] = set()

    def search(self) -> Chosen:
        """Both optimisers, each at rates doubled or halved until the best is interior.

        Raises:
            TrainingError: Training failed at every rate.
        """
        search: list[Tried] = []
        best: list[tuple[float, Optimizer, float, bool]] = []
        for optimizer in OPTIMIZERS:
            first, tried = self.known.rates[optimizer], dict[float, float]()
            while (rate := next_rate(tried, first)) is not None:
                found = self._held(optimizer, rate)
                tried[rate] = math.inf if found is None else found
                command = self.command(self.called(optimizer, rate, self.settings.seed))
                search.append(Tried(optimizer, rate, found, command))
            rate, loss, interior = best_rate(tried, first)
            best.append((loss, optimizer, rate, interior))
        loss, optimizer, rate, interior = min(best, key=lambda one: one[0])
        if math.isinf(loss):
            raise TrainingError(f"training by {self.name} failed at every rate that was tried")
        return Chosen(optimizer, rate, interior, tuple(search))

    def called(self, optimizer: str, rate: float, seed: int) -> str:
        """What a run is called: ``lora soap 0.004 seed 1``."""
        return f"{self.name} {optimizer} {rate:g} seed {seed}"

    def final(self, optimizer: Optimizer, rate: float, seed: int) -> Seed:
        """A training that counts, measured on the rows to test on and on neutral ones.

        Raises:
            TrainingError: Training failed with this seed.
        """
        trained = self._trained(optimizer, rate, seed)
        if trained["held"] is None:
            raise TrainingError(trained["failed"])
        run = self._of(optimizer, rate, seed, "test")
        tested = self.runs.find(run) or self.runs.keep(run, self._tested(optimizer, rate, seed))
        history = tuple((int(step), float(loss)) for step, loss in trained["history"])
        command = self.command(self.called(optimizer, rate, seed))
        return Seed(seed, **{**trained, **tested, "history": history}, command=command)

    def value(self, chosen: Chosen) -> tuple[Start[Any, Any], Any]:
        """The start and the value of the first seed, to measure what they cost."""
        return self._value(chosen.optimizer, chosen.rate, self.settings.seed)

    def of(self, chosen: Chosen) -> dict[str, Any]:
        """What decides the value of the first seed."""
        return self._of(chosen.optimizer, chosen.rate, self.settings.seed, "training")

    def stored_bytes(self, chosen: Chosen) -> int:
        """What the value of the first seed takes on the disk, once it was asked for."""
        return self._file(chosen.optimizer, chosen.rate, self.settings.seed).stat().st_size

    def _held(self, optimizer: Optimizer, rate: float) -> float | None:
        """NLL of held-out rows after a training with the first seed; None where it failed."""
        held: float | None = self._trained(optimizer, rate, self.settings.seed)["held"]
        return held

    def _trained(self, optimizer: Optimizer, rate: float, seed: int) -> dict[str, Any]:
        """Figures of a training, which is made if it was not; its value is left in a file."""
        run = self._of(optimizer, rate, seed, "training")
        self._files.add(self._file(optimizer, rate, seed))
        known = self.runs.find(run)
        if known is not None:
            return known
        self.tell(self.called(optimizer, rate, seed))
        try:
            return self.runs.keep(run, self._made(optimizer, rate, seed))
        except NotFinite as error:  # which it would be again; whatever else fails, fails the method
            return self.runs.keep(run, {"held": None, "failed": first_line(error)})

    def _made(self, optimizer: Optimizer, rate: float, seed: int) -> dict[str, Any]:
        """Train, gone on with where it was killed, and measure on held-out rows."""
        loop = replace(self.loop, optimizer=optimizer, lr=rate)
        place = self._file(optimizer, rate, seed).with_suffix("")
        with peak_memory(self.backbone.device) as peak:
            fitted = fit(
                self.backbone,
                self.split.train,
                self.known.method,
                replace(self.settings, seed=seed),
                loop,
                folder=place,
                resume=True,
            )
        if fitted.cause is not None:
            if isinstance(fitted.cause, NotFinite):
                discard(place)
            raise fitted.cause
        with fitted.start.applied(fitted.value) as applied:
            held = self.judge.nll(applied, self.split.held)
        if not math.isfinite(held):
            raise NotFinite(f"the NLL of held-out rows became {held}")
        with fitted.start.learning(Supervised(), self._some(fitted.start), rate) as learner:
            learner.save(fitted.value, self._file(optimizer, rate, seed))
        discard(place)
        losses = [(int(one["step"]), one["loss"]) for one in fitted.history if "loss" in one]
        return {
            "held": held,
            "seconds": fitted.seconds,
            "tokens_per_second": fitted.tokens / fitted.seconds if fitted.seconds else None,
            "peak_bytes": peak.bytes,
            "history": losses[:: max(1, len(losses) // SHOWN)],
        }

    def _tested(self, optimizer: Optimizer, rate: float, seed: int) -> dict[str, Any]:
        self.tell(f"{self.called(optimizer, rate, seed)}, tested")
        start, value = self._value(optimizer, rate, seed)
        neutral = self.judge.neutral(start.in_front.length)  # of the backbone as it is until then
        with start.applied(value) as applied:
            return {
                "figures": self.judge.figures(applied, self.split.test),
                "forgotten": self.judge.forgotten(applied, neutral),
            }

    def _value(self, optimizer: Optimizer, rate: float, seed: int) -> tuple[Start[Any, Any], Any]:
        """What a training left, which is made again if its file is gone."""
        file = self._file(optimizer, rate, seed)
        if not file.is_file():
            self._made(optimizer, rate, seed)
        settings = replace(self.settings, seed=seed)
        start = self.known.method.start(self.backbone, settings, self.split.train)
        with start.learning(Supervised(), self._some(start), rate) as learner:
            return start, learner.load(file)

    def _some(self, start: Start[Any, Any]) -> list[Encoded]:
        """A few rows as the start reads them, which a head's scale is measured on."""
        return encode(self.backbone, self.split.train[:SOME], start.settings, start.in_front)[0]

    def forget(self, kept: Chosen | None = None) -> None:
        """Remove the files of values that were asked for, but for that of the first seed at a choice."""
        stays = None if kept is None else self._file(kept.optimizer, kept.rate, self.settings.seed)
        for file in self._files - {stays}:
            file.unlink(missing_ok=True)

    def _file(self, optimizer: str, rate: float, seed: int) -> Path:
        """Where a training leaves its value; its checkpoints are in a folder of the same name."""
        key = key_of(self._of(optimizer, rate, seed, "training"))[:16]
        return self.folder / f"{self.name.partition('+')[0]}-{key}.safetensors"

    def _of(self, optimizer: str, rate: float, seed: int, what: str) -> dict[str, Any]:
        """All that decides what a run gives."""
        return {
            "what": what,
            "method": self.name,
            "settings": replace(self.settings, seed=seed).as_json(),
            "loop": {**asdict(self.loop), "optimizer": optimizer, "lr": rate},
            "data": self.split.digest,
            "backbone": self.backbone.fingerprint,
            "dtype": str(self.backbone.dtype),
            "quantization": self.backbone.quantization,
        }
