"""What `serving.py --engine vllm` measures: prefixes on vLLM, and the embedded engine beside it.

All prompts are different, so that none is found in a cache of prompts; each is one of E2E's behind a
number of its own. Sides take turns, in an order of each round, and medians are told.

- tokens: 64 requests, 32 at once, with no prefix and over 8 of 16 and of 128 tokens; vLLM with the
  connector, vLLM without it, the embedded engine.
- zipf: the same with one prefix of 16 and with 2,000, drawn by Zipf's law (exponent 1).
- burst: the same with 64 distinct prefixes that were never read before, and again with the same ones.
- clients: times to the first token and between tokens through the server's engine, at 1, 8 and 32
  clients; and a prefix's first use, its next one, and none.
- front: a store of 100,000 files, as the server sees it: counted at the start, and asked for.
"""

from __future__ import annotations

import itertools
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from common import table
from serving_peers import VLLM, Child, model_of
from serving_requests import CLIENTS, PREFIXES, Times, ask, request_of, texts

from foreword.backbone import Backbone
from foreword.engine import Engine
from foreword.engine.threads import give_up_pool
from foreword.prefix import Prefix
from foreword.serve.remote import RemotePrefixes
from foreword.serve.residency import Residency
from foreword.store import PrefixStore

Ask = tuple[str | None, list[int], int]
"""A prefix's name or None, a prompt, and the number of tokens to make."""

LENGTHS = (16, 128)
AT_ONCE, REQUESTS = 32, 64
REGISTERED = 2_000
RESIDENT = 256
FRESH = 64
FILES, LINKS = 100_000, 50_000
WARM_UP = 1_024
"""Requests drawn by Zipf's law before those that count, so that what is often drawn is in memory."""


@dataclass
class Prompts:
    """Prompts and lengths of answers, no two alike."""

    backbone: Backbone
    rows: Sequence[dict[str, Any]]
    taken: int = 0

    def take(self, count: int) -> Iterator[tuple[list[int], int]]:
        """The next ones."""
        for _ in range(count):
            row = self.rows[self.taken % len(self.rows)]
            self.taken += 1
            new = len(self.backbone.tokens(row["ref"]))
            yield self.backbone.tokens(f"{self.taken}: {row['mr']} ->"), new

    def under(self, names: Sequence[str | None]) -> list[Ask]:
        """As many as there are names, each under its prefix."""
        return [(name, *one) for name, one in zip(names, self.take(len(names)), strict=True)]


@dataclass
class Side:
    """One way to answer requests.

    Attributes:
        run: Answers requests that come at once: the tokens of each.
        names: From a round's number to the prefixes that its requests name.
        rates: Tokens per second, round by round.
    """

    run: Callable[[list[Ask]], list[list[int]]]
    names: Callable[[int], Sequence[str | None]]
    rates: list[float] = field(default_factory=list)


def compared(sides: Mapping[str, Side], prompts: Prompts, rounds: int) -> None:
    """Let sides take turns; the first round does not count."""
    for index in range(-1, rounds):
        for name in random.Random(index).sample(list(sides), len(sides)):
            side = sides[name]
            asks = prompts.under(side.names(index))
            give_up_pool()  # of this thread: another side's would have to run beside it
            began = time.perf_counter()
            answers = side.run(asks)
            seconds = time.perf_counter() - began
            if [len(answer) for answer in answers] != [new for _, _, new in asks]:
                raise SystemExit(f"{name}: not all requests were answered whole")
            if index >= 0:
                side.rates.append(sum(map(len, answers)) / seconds)
        print(index, {name: [round(r) for r in side.rates[-1:]] for name, side in sides.items()})


def told(sides: Mapping[str, Side], over: Mapping[str, str]) -> dict[str, Any]:
    """Medians of sides, and the medians of the rounds' ratios to others."""
    lines: list[dict[str, Any]] = [
        {
            "side": name,
            "tokens/s": statistics.median(side.rates),
            "rounds": " ".join(f"{rate:.0f}" for rate in side.rates),
            "over": over.get(name, ""),
            "ratio": _ratio(side, sides[over[name]]) if name in over else "",
        }
        for name, side in sides.items()
    ]
    print(table(lines), flush=True)
    return {line["side"]: line for line in lines}


def _ratio(side: Side, other: Side) -> float:
    """The median of the ratios of two sides' turns in the same round."""
    return statistics.median(a / b for a, b in zip(side.rates, other.rates, strict=True))


class Embedded:
    """Foreword's own engine over a store, as its server has it."""

    def __init__(self, engine: Engine, store: PrefixStore) -> None:
        self.engine = engine
        self.residency = Residency(store, RESIDENT)

    def run(self, asks: list[Ask]) -> list[list[int]]:
        """Tokens of requests that come at once; a prefix is read when its request comes."""
        requests = [
            request_of(ids, new, None if name is None else self.residency.get(name))
            for name, ids, new in asks
        ]
        return [list(one.tokens) for one in self.engine.generate(requests)]


class Measured:
    """The stages over one store, whose prefixes are made here.

    Args:
        backbone: The model.
        rows: E2E's.
        python: That of vLLM's environment.
        rounds: How often each side takes its turn.
        only: What the names of the sides begin with that take turns; empty for all.
        stack: Closes what is started.
    """

    def __init__(
        self,
        backbone: Backbone,
        rows: list[dict[str, Any]],
        python: Path,
        rounds: int,
        only: str,
        stack: ExitStack,
    ) -> None:
        self.backbone, self.rows, self.python, self.rounds = backbone, rows, python, rounds
        self.only, self.stack = only, stack
        self.prompts = Prompts(backbone, rows)
        self.store = PrefixStore(stack.enter_context(TemporaryDirectory()))
        self.made = {length: texts(backbone, rows, length) for length in LENGTHS}
        for length, index in itertools.product(LENGTHS, range(PREFIXES)):
            self.store.save(f"p{length}-{index}", self.made[length][index])
        self._random = torch.Generator().manual_seed(0)
        self._runs: dict[Any, Any] = {}

    def vllm(self, resident: int | None = RESIDENT) -> VLLM:
        """VLLM with the connector, or without it; loaded when it is first asked for."""
        if resident not in self._runs:
            folder = None if resident is None else self.store.folder
            child = VLLM(self.python, self.backbone, AT_ONCE, folder, resident or 0, caching=True)
            self._runs[resident] = self.stack.enter_context(child)
        made: VLLM = self._runs[resident]
        return made

    def embedded(self) -> Embedded:
        """The embedded engine."""
        if "embedded" not in self._runs:
            engine = self.stack.enter_context(Engine(self.backbone))
            self._runs["embedded"] = Embedded(engine, self.store)
        made: Embedded = self._runs["embedded"]
        return made

    def fresh(self, length: int, count: int, word: str) -> list[str]:
        """Names of new prefixes in the store, no two alike."""
        names = [f"{word}{length}-{index}" for index in range(count)]
        for index, name in enumerate(names):
            self.store.save(name, self._changed(self.made[length][index % PREFIXES]))
        return names

    def _changed(self, prefix: Prefix) -> Prefix:
        """A prefix like another."""

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            return tensor + 0.01 * torch.randn(tensor.shape, generator=self._random)

        keys, values = tuple(map(moved, prefix.keys)), tuple(map(moved, prefix.values))
        return Prefix(prefix.sites, keys, values, prefix.meta)

    def compared(self, sides: dict[str, Side], over: Mapping[str, str]) -> dict[str, Any]:
        """What sides make in turns."""
        wanted = {name: side for name, side in sides.items() if name.startswith(self.only)}
        compared(wanted, self.prompts, self.rounds)
        return told(wanted, {name: other for name, other in over.items() if other in wanted})

    # -- stages ----------------------------------------------------------------------------------

    def tokens(self) -> dict[str, Any]:
        """No prefix, 8 of 16 and 8 of 128, on vLLM and on the embedded engine."""
        none: Sequence[str | None] = [None] * REQUESTS
        turns = {"no prefix": none} | {
            f"8 prefixes of {length}": [f"p{length}-{i % PREFIXES}" for i in range(REQUESTS)]
            for length in LENGTHS
        }
        runs = {"vLLM": self.vllm().answer, "embedded": self.embedded().run}
        sides = {
            f"{engine}, {what}": Side(run, lambda _, names=names: names)  # type: ignore[misc]
            for (engine, run), (what, names) in itertools.product(runs.items(), turns.items())
        }
        sides["vLLM without the connector"] = Side(self.vllm(None).answer, lambda _: none)
        over = {
            f"{engine}, {what}": f"{engine}, no prefix" for engine in runs for what in [*turns][1:]
        }
        over["vLLM, no prefix"] = "vLLM without the connector"
        return self.compared(sides, over)

    def zipf(self) -> dict[str, Any]:
        """One prefix, and 2,000 drawn by Zipf's law."""
        names = self.fresh(16, REGISTERED, "z")
        weights = [1 / rank for rank in range(1, REGISTERED + 1)]

        def drawn(index: int, count: int = REQUESTS) -> list[str]:
            return random.Random(f"zipf {index}").choices(names, weights, k=count)

        every = {
            "vLLM": self.vllm().answer,
            f"vLLM, resident={REGISTERED}": self.vllm(REGISTERED).answer,
            "embedded": self.embedded().run,
        }
        sides, over = {}, {}
        for kind, run in every.items():
            if not kind.startswith(self.only):
                continue
            run([(name, ids, 1) for name, ids, _ in self.prompts.under(drawn(-9, WARM_UP))])
            sides[f"{kind}, one prefix"] = Side(run, lambda _: [names[0]] * REQUESTS)
            sides[f"{kind}, Zipf"] = Side(run, drawn)
            over[f"{kind}, Zipf"] = f"{kind}, one prefix"
        seen = [len(set(drawn(index))) for index in range(self.rounds)]
        return {"distinct prefixes of a turn": seen, **self.compared(sides, over)}

    def burst(self) -> dict[str, Any]:
        """64 requests, each under a prefix that was never read before."""
        return {f"prefixes of {length}": self._burst(length) for length in LENGTHS}

    def _burst(self, length: int) -> dict[str, Any]:
        sides: dict[str, Side] = {}
        over: dict[str, str] = {}
        for kind, run in {"vLLM": self.vllm().answer, "embedded": self.embedded().run}.items():
            made = self.fresh(length, FRESH * (self.rounds + 1), f"{kind}b".lower())
            new = {index - 1: made[FRESH * index :][:FRESH] for index in range(self.rounds + 1)}
            one, cold, again = (f"{kind}, {what} of {length}" for what in ("1", "64 new", "64"))
            sides[one] = Side(run, lambda _, name=made[0]: [name] * FRESH)  # type: ignore[misc]
            sides[cold] = Side(run, new.__getitem__)
            sides[again] = Side(run, lambda _, names=new[-1]: names)  # type: ignore[misc]
            over |= {cold: one, again: one}
        return self.compared(sides, over)

    def clients(self) -> dict[str, Any]:
        """Times that clients see, through the server's engine on vLLM and the embedded one."""
        given = {
            **model_of(self.backbone),
            "sequences": AT_ONCE,
            "store": str(self.store.folder),
        }
        served = self.stack.enter_context(Child(self.python, "vllm_clients.py", given))
        own = self.embedded()

        def on_vllm(asks: list[Ask], clients: int) -> Times:
            return Times(**served.answer({"clients": clients, "asked": asks}))

        def embedded(asks: list[Ask], clients: int) -> Times:
            began = time.perf_counter() if clients == 1 == len(asks) else None
            requests = [
                request_of(ids, new, None if name is None else own.residency.get(name))
                for name, ids, new in asks
            ]
            return ask(own.engine, requests, clients, began)

        runs = {"vLLM": on_vllm, "embedded": embedded}
        return {**self._by_clients(runs), **self._first_use(runs)}

    def _by_clients(self, runs: Mapping[str, Callable[[list[Ask], int], Times]]) -> dict[str, Any]:
        seen = {(name, clients): Times() for clients in CLIENTS for name in runs}
        names = [f"p128-{index % PREFIXES}" for index in range(AT_ONCE)]
        for index in range(-1, self.rounds):
            for name, clients in random.Random(index).sample(list(seen), len(seen)):
                one = runs[name](self.prompts.under(names), clients)
                if index >= 0:
                    seen[name, clients].first += one.first
                    seen[name, clients].between += one.between
        lines = [
            {"engine": name, "clients": clients, **times.told()}
            for (name, clients), times in seen.items()
        ]
        print(table(lines), flush=True)
        return {"clients": lines}

    def _first_use(self, runs: Mapping[str, Callable[[list[Ask], int], Times]]) -> dict[str, Any]:
        """Times to the first token of single requests: a prefix's first use, its next, and none."""
        lines = []
        count = PREFIXES * 2
        for length, (engine, run) in itertools.product(LENGTHS, runs.items()):
            fresh = self.fresh(length, count, f"{engine}c".lower())
            seen: dict[str, list[float]] = {"first use": [], "next use": [], "no prefix": []}
            for name in fresh:
                for kind in seen:
                    under = None if kind == "no prefix" else name
                    ((ids, _),) = self.prompts.take(1)
                    seen[kind] += run([(under, ids, 1)], 1).first
            medians = {kind: 1e3 * statistics.median(times) for kind, times in seen.items()}
            lines.append({"engine": engine, "length": length, **medians})
        print(table(lines), flush=True)
        return {"milliseconds to the first token": lines}

    def front(self) -> dict[str, Any]:
        """What the server does with a store of many files: it counts them, and reads headers."""
        with TemporaryDirectory() as folder:
            store = PrefixStore(folder)
            for index in range(FILES):
                if index % LINKS == 0:
                    first = store.save(f"p{index}", self.made[16][0])
                else:
                    store.path(f"p{index}").hardlink_to(first)
            registry = RemotePrefixes(store)
            names = random.Random(0).sample([f"p{index}" for index in range(FILES)], 1_000)
            seconds = {
                "count": [_seconds(lambda: sum(1 for _ in store))],
                "header read": [_seconds(registry.get, name) for name in names],
                "header known": [_seconds(registry.get, name) for name in names],
            }
        found = {kind: 1e3 * statistics.median(times) for kind, times in seconds.items()}
        print(table([{"files": FILES, **{f"{kind} ms": ms for kind, ms in found.items()}}]))
        return found


def _seconds(call: Callable[..., object], *given: Any) -> float:
    began = time.perf_counter()
    call(*given)
    return time.perf_counter() - began


def measured(
    backbone: Backbone,
    rows: list[dict[str, Any]],
    python: Path,
    rounds: int,
    stages: str,
    sides: str,
) -> dict[str, Any]:
    """The stages that are named, of sides whose names begin so."""
    with ExitStack() as stack:
        run = Measured(backbone, rows, python, rounds, sides, stack)
        every = {
            "tokens": run.tokens,
            "zipf": run.zipf,
            "burst": run.burst,
            "clients": run.clients,
            "front": run.front,
        }
        return {stage: every[stage]() for stage in stages.split(",")}
