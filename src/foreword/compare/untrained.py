"""What is not trained: the frozen model as it is, and the same with examples in its context."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

from foreword.backbone import Backbone
from foreword.compare.costs import latency, machine, memory
from foreword.compare.quality import Judge, frozen_one
from foreword.compare.result import Latency, Seed, Side
from foreword.compare.split import Split
from foreword.compare.store import Runs
from foreword.errors import TrainingError
from foreword.head import HEAD_TASKS
from foreword.methods.base import Applied, Traits
from foreword.methods.prefix.settings import PrefixSettings
from foreword.methods.prefix.start import start
from foreword.objectives.encode import InFront
from foreword.objectives.settings import DataSettings
from foreword.prefix import Prefix

Tell = Callable[[str], None]

EXAMPLES = 512
"""Tokens of the examples that are shown in context, at most; never more than half of the context."""


def room_of_examples(backbone: Backbone) -> int:
    """Tokens of the examples that are shown in context."""
    return min(EXAMPLES, backbone.context // 2)


class Untrained:
    """Measures what is not trained, each once.

    Args:
        backbone: The backbone.
        split: The rows.
        judge: Measures.
        runs: What was measured.
        seeds: Choices of examples.
        tell: Told of each measurement before it begins.

    Raises:
        TrainingError: The task needs a head, and without training there is none.
    """

    def __init__(
        self, backbone: Backbone, split: Split, judge: Judge, runs: Runs, seeds: int, tell: Tell
    ) -> None:
        if judge.settings.task in HEAD_TASKS:
            raise TrainingError(
                f"task {judge.settings.task!r} needs a head, and without training there is none"
            )
        self.backbone = backbone
        self.split = split
        self.judge = judge
        self.runs = runs
        self.seeds = seeds
        self.tell = tell

    def frozen(self) -> Side:
        """The frozen model, asked in the templates."""
        even = dict.fromkeys((1, 32), 1.0)
        return Side(
            "frozen",
            "the frozen model",
            traits=Traits(shares_batch=True, merges=True, composes=False, switches_off=True),
            seeds=(self._measured("frozen", 0, lambda: frozen_one(self.backbone)),),
            latency=Latency(even, even),
            memory_bytes=self.backbone.weight_bytes,
        )

    def in_context(self) -> Side:
        """As many examples as fit, in front of every input; their keys and values are kept."""
        shown = [self._examples(seed) for seed in range(self.seeds)]
        seeds = [
            self._measured("in-context", seed, partial(self._under, prefix))
            for seed, prefix in enumerate(shown)
        ]
        run = {"what": "costs", "of": shown[0].digest, "machine": machine(self.backbone)}
        known = self.runs.find(run)
        if known is None:
            under = self._under(shown[0])
            found = latency(frozen_one(self.backbone), lambda: nullcontext(under))
            known = self.runs.keep(run, found.as_json())
        return Side(
            "in-context",
            f"examples in the context, up to {room_of_examples(self.backbone)} tokens",
            stored_bytes=4 * shown[0].length,
            traits=Traits(shares_batch=True, merges=False, composes=False, switches_off=True),
            seeds=tuple(seeds),
            latency=Latency.of_json(known),
            memory_bytes=memory(self.backbone, shown[0].parameters),
        )

    def _examples(self, seed: int) -> Prefix:
        """Keys and values of examples that a seed draws."""
        own = self.judge.settings
        data = {name: getattr(own, name) for name in DataSettings.__dataclass_fields__}
        length = room_of_examples(self.backbone)
        fields: dict[str, Any] = {**data, "seed": seed, "init": "demonstrations", "length": length}
        return start(self.backbone, PrefixSettings(**fields), self.split.train)

    def _under(self, prefix: Prefix) -> Applied:
        return Applied(self.backbone, prefix, InFront.of(prefix))

    def _measured(self, name: str, seed: int, applied: Callable[[], Applied]) -> Seed:
        """Figures of what is not trained, measured once."""
        run = {
            "what": "untrained",
            "method": name,
            "seed": seed,
            "settings": self.judge.settings.as_json(),
            "written": self.judge.new_tokens,
            "data": self.split.digest,
            "backbone": self.backbone.fingerprint,
            "dtype": str(self.backbone.dtype),
        }
        known = self.runs.find(run)
        if known is None:
            self.tell(f"{name} seed {seed}, tested")
            one = applied()
            neutral = {} if name == "frozen" else self.judge.neutral(one.in_front.length)
            known = self.runs.keep(
                run,
                {
                    "held": self.judge.nll(one, self.split.held),
                    "figures": self.judge.figures(one, self.split.test),
                    "forgotten": self.judge.forgotten(one, neutral),
                },
            )
        return Seed(seed, **known)
