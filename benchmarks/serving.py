"""Serving: the engine over many prefixes, and what else one could do.

    python benchmarks/serving.py [--shared ../shared] [--only tokens,latency,memory] [--rounds 3]
                                 [--vllm PYTHON] [--sides engine]
    python benchmarks/serving.py --engine vllm --vllm PYTHON [--only tokens,zipf,burst,clients,front]

- tokens: requests over 8 prefixes, 32 at once and as many again behind them, on E2E's real prompts and
  answers' lengths; tokens/s of the engine with and without prefixes, of PEFT switching adapters between
  groups of the 32 requests, of transformers' `generate` over static batches of 32 and of its
  `generate_batch`, and of vLLM if the Python of its environment is given; interleaved rounds, each in
  an order of its own, medians. Beside them, how many rows without prefixes equal the engine's.
- latency: time to the first token and between tokens at 1, 8 and 32 clients; a prefix that is in
  memory against one that is read for the request.
- memory: what a resident prefix takes, and 10,000 registered ones.

With --engine vllm prefixes are served by vLLM, the embedded engine beside it; see `serving_vllm`.
"""

from __future__ import annotations

import argparse
import gc
import json
import operator
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import SHARED, machine, memory_of_process, read_rows, table
from peft import PeftModel
from serving_peers import VLLM, Answers, ContinuousBatching, SideFailed, copy_of
from serving_requests import CLIENTS, PREFIXES, Times, ask, asked, texts
from serving_vllm import measured

import foreword
from foreword.backbone import Backbone
from foreword.data import left_padded
from foreword.engine import Engine, Request
from foreword.engine.threads import give_up_pool
from foreword.prefix import Prefix
from foreword.serve.residency import Residency
from foreword.store import PrefixStore
from foreword.weights.embedded import NAME

CONCURRENT, WAVES = 32, 2
WARM_UP = 16
LENGTHS = (16, 128)
REGISTERED = 10_000
BARE = "engine, no prefix"
OURS, PEFT = "engine, 8 prefixes of {}", "PEFT, 8 adapters of {} in turn"


@dataclass
class Side:
    """One way to answer requests, and what was seen of it.

    Attributes:
        run: Answers requests that come at once.
        turn: What is entered for a turn, and left after it, outside the clock.
        prefixes: What the requests name in turn.
        rates: Tokens per second, round by round.
        equal: Whether a row without a prefix equals the engine's, row by row.
        failure: Why the side does not run here.
    """

    run: Callable[[list[Request]], Answers]
    turn: AbstractContextManager[Any] = field(default_factory=nullcontext)
    prefixes: Sequence[Prefix | None] = (None,)
    rates: list[float] = field(default_factory=list)
    equal: list[bool] = field(default_factory=list)
    failure: str = ""

    def answer(self, requests: list[Request], *, counts: bool) -> Answers:
        """The answers, none if the side fails; the rate is kept if the round counts."""
        give_up_pool()  # of this thread: the engine's would have to run beside it
        with self.turn:
            began = time.perf_counter()
            try:
                answers = self.run(requests)
            except SideFailed as error:
                self.failure = str(error)
                return []
            seconds = time.perf_counter() - began
        if counts:
            self.rates.append(sum(map(len, answers)) / seconds)
        return answers

    def told(self) -> dict[str, Any]:
        """The median rate and the share of equal rows, or why there are none."""
        return {
            "tokens/s": self.failure or statistics.median(self.rates),
            "rows as the engine's": sum(self.equal) / len(self.equal) if self.equal else "",
        }


def of_engine(engine: Engine, requests: list[Request]) -> Answers:
    """What the engine makes of requests that come at once."""
    return [list(one.tokens) for one in engine.generate(requests)]


@torch.inference_mode()
def of_generate(model: Any, requests: Sequence[Request]) -> Answers:
    """What `generate` makes, batch after batch, each of which runs until its longest row ends."""
    return [row for at in _waves(requests) for row in _batch(model, requests[at : at + CONCURRENT])]


def _waves(requests: Sequence[Request]) -> range:
    return range(0, len(requests), CONCURRENT)


def _batch(model: Any, requests: Sequence[Request]) -> Answers:
    batch = left_padded([list(request.prompt) for request in requests], 0)
    sizes = [request.sampling.max_tokens for request in requests]
    inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
    rows = model.generate(
        **inputs, max_new_tokens=max(sizes), do_sample=False, eos_token_id=None, pad_token_id=0
    )
    width = batch["input_ids"].shape[1]
    return [row[width : width + size].tolist() for row, size in zip(rows, sizes, strict=True)]


class Switching:
    """PEFT with one adapter per prefix; each group of requests is one batch under its own."""

    def __init__(self, backbone: Backbone, prefixes: Sequence[Prefix], folder: Path) -> None:
        base = copy_of(backbone)
        self.model: Any = None
        for index, prefix in enumerate(prefixes):
            place = folder / f"peft-{prefix.length}-{index}"
            foreword.export_peft(prefix, backbone, place)
            if self.model is None:
                self.model = PeftModel.from_pretrained(base, str(place), adapter_name="0")
            else:
                self.model.load_adapter(str(place), adapter_name=str(index))

    def run(self, requests: Sequence[Request]) -> Answers:
        """Group after group of those that are there at once; answers in that order."""
        answers: Answers = []
        for at in _waves(requests):
            for index in range(PREFIXES):
                self.model.set_adapter(str(index))
                answers += of_generate(self.model, requests[at : at + CONCURRENT][index::PREFIXES])
        return answers


def all_sides(
    backbone: Backbone, rows: list[dict[str, Any]], vllm: Path | None, stack: ExitStack
) -> dict[str, Side]:
    """The sides by name, the engine without prefixes first; the stack closes what they hold."""
    made = {length: texts(backbone, rows, length) for length in LENGTHS}
    plain = copy_of(backbone)
    batching = ContinuousBatching(backbone, CONCURRENT)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    peft = {
        length: Switching(backbone, [backbone.moved(p, "offset") for p in prefixes], folder)
        for length, prefixes in made.items()
    }
    engine = stack.enter_context(Engine(backbone))
    sides = {
        BARE: Side(partial(of_engine, engine)),
        "generate, static batches, no prefix": Side(partial(of_generate, plain)),
        "generate_batch, no prefix": Side(batching.run, batching),
    }
    if vllm is not None:
        server = stack.enter_context(VLLM(vllm, backbone, CONCURRENT))
        sides["vLLM, no prefix"] = Side(server.run)
    for length, prefixes in made.items():
        sides[OURS.format(length)] = Side(partial(of_engine, engine), prefixes=prefixes)
        sides[PEFT.format(length)] = Side(peft[length].run, prefixes=prefixes)
    return sides


def tokens(
    backbone: Backbone, rows: list[dict[str, Any]], rounds: int, vllm: Path | None, only: str
) -> dict[str, Any]:
    """Tokens per second of all sides, or of those whose names begin so, interleaved."""
    with ExitStack() as stack:
        every = all_sides(backbone, rows, vllm, stack)
        sides = {name: side for name, side in every.items() if name.startswith(only)}
        for index in range(rounds + 1):  # the first round warms up
            size = CONCURRENT * WAVES if index else WARM_UP
            _round(backbone, sides, random.Random(index).sample(rows, size), index)
            last = {name: round(side.rates[-1], 1) for name, side in sides.items() if side.rates}
            print(json.dumps(last), flush=True)
    told = {name: side.told() for name, side in sides.items()}
    print(table([{"side": name, **each} for name, each in told.items()]))
    return {"sides": told, "ratios": _ratios(sides)}


def _round(
    backbone: Backbone, sides: dict[str, Side], part: list[dict[str, Any]], index: int
) -> None:
    """Let the sides that run answer the same rows, in an order of this round."""
    answers: dict[str, Answers] = {}
    for name in random.Random(index).sample(list(sides), len(sides)):
        side = sides[name]
        if not side.failure:
            requests = asked(backbone, part, side.prefixes)
            answers[name] = side.answer(requests, counts=index > 0)
    for name, made in answers.items():
        if None in sides[name].prefixes:
            sides[name].equal += map(operator.eq, made, answers[BARE])


def _ratios(sides: dict[str, Side]) -> dict[str, float]:
    """The engine's rates over the others', and over its own without prefixes."""
    median = {name: statistics.median(side.rates) for name, side in sides.items() if side.rates}
    ratios = {
        f"engine over {name}": median[BARE] / rate
        for name, rate in median.items()
        if None in sides[name].prefixes and name != BARE
    }
    for length in LENGTHS:
        ours, peft = median[OURS.format(length)], median.get(PEFT.format(length))
        ratios[f"prefixes of {length} over none"] = ours / median[BARE]
        if peft is not None:
            ratios[f"prefixes of {length} over PEFT"] = ours / peft
    return ratios


def latency(backbone: Backbone, rows: list[dict[str, Any]], rounds: int) -> dict[str, Any]:
    """Times to the first token and between tokens, by number of clients; cold and warm prefixes."""
    prefixes = texts(backbone, rows, 128)
    lines = []
    with Engine(backbone) as engine:
        for clients in CLIENTS:
            seen = Times()
            for index in range(rounds):
                part = random.Random(index).sample(rows, max(CLIENTS))
                one = ask(engine, asked(backbone, part, prefixes), clients)
                seen.first += one.first
                seen.between += one.between
            lines.append({"clients": clients, **seen.told()})
        print(table(lines))
        return {"clients": lines, "first_token": _cold(engine, backbone, prefixes, rows)}


def _cold(
    engine: Engine, backbone: Backbone, prefixes: Sequence[Prefix], rows: list[dict[str, Any]]
) -> dict[str, float]:
    """Milliseconds to the first token of a prefix from its file, and of the same one in memory."""
    seconds: dict[str, list[float]] = {"cold": [], "warm": []}
    with tempfile.TemporaryDirectory() as folder:
        store = PrefixStore(folder)
        for index, prefix in enumerate(prefixes):
            store.save(f"p{index}", prefix)
        residency = Residency(store)
        for index in range(PREFIXES):
            for kind in seconds:
                began = time.perf_counter()
                prefix = residency.get(f"p{index}")
                requests = asked(backbone, rows[index : index + 1], [prefix])
                seconds[kind] += ask(engine, requests, 1, began).first
    told = {kind: 1e3 * statistics.median(seen) for kind, seen in seconds.items()}
    return {**told, "cold above warm": told["cold"] - told["warm"]}


def memory(backbone: Backbone, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Bytes that a resident prefix takes over those of its tensors; of 10,000 registered ones."""
    (prefix, *_) = texts(backbone, rows, 128)
    with tempfile.TemporaryDirectory() as folder:
        store = PrefixStore(folder)
        (small, *_) = texts(backbone, rows, 1)
        store.save("p0", small)
        gc.collect()
        before = memory_of_process("VmRSS")
        content = store.path("p0").read_bytes()
        for index in range(1, REGISTERED):
            store.path(f"p{index}").write_bytes(content)
        residency = Residency(store, most=256)
        names = list(store)
        residency.get("p1")
        registered = memory_of_process("VmRSS") - before
        for index in range(200):
            changed = prefix.with_meta(recipe={"number": index})
            store.save(f"big{index}", changed)
        gc.collect()
        before = memory_of_process("VmRSS")
        for index in range(200):
            residency.get(f"big{index}")
        gc.collect()
        taken = memory_of_process("VmRSS") - before
    return {
        "registered": len(names),
        "registered_MB": registered / 1e6,
        "resident_over_tensors": taken / (200 * prefix.nbytes),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--only", help="stages, by default all")
    parser.add_argument("--engine", default="embedded", choices=("embedded", "vllm"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--sides", default="", help="only those whose names begin so, such as engine"
    )
    parser.add_argument("--backbone", default=NAME, help="a name or folder; default: embedded")
    parser.add_argument("--dtype", default="auto", choices=("auto", "bfloat16", "float32"))
    parser.add_argument(
        "--vllm", type=Path, metavar="PYTHON", help="that of an environment that has vLLM"
    )
    arguments = parser.parse_args()
    file = arguments.shared / "data" / "data2text" / "e2e_dev.jsonl"
    rows: Any = read_rows(file) if file.is_file() else foreword.read_rows("foreword/e2e:train")
    random.Random(0).shuffle(rows)
    backbone = foreword.load(arguments.backbone, dtype=arguments.dtype)
    report: dict[str, Any] = {**machine(), "backbone": backbone.name, "dtype": str(backbone.dtype)}
    if arguments.engine == "vllm":
        if arguments.vllm is None:
            parser.error("--engine vllm needs --vllm, the Python of an environment that has vLLM")
        only = arguments.only or "tokens,zipf,burst,clients,front"
        report |= measured(backbone, rows, arguments.vllm, arguments.rounds, only, arguments.sides)
        print(json.dumps(report, indent=1))
        return
    stages: dict[str, Callable[[], dict[str, Any]]] = {
        "tokens": lambda: tokens(backbone, rows, arguments.rounds, arguments.vllm, arguments.sides),
        "latency": lambda: latency(backbone, rows, arguments.rounds),
        "memory": lambda: memory(backbone, rows),
    }
    for stage in (arguments.only or ",".join(stages)).split(","):
        report[stage] = stages[stage]()
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
