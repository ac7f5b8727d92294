"""What strengths and mixtures cost the engine: the same requests in several ways, in turn.

    python benchmarks/strength.py                       # 16 requests, 24 tokens, 20 rounds
    python benchmarks/strength.py --requests 1 --rounds 40

One engine in one process; every round runs each way once, in an order that moves on by one. Prefixes are
texts' keys and values, so that nothing is trained. Times are of a whole round's requests, prompts
included, per step; ratios are medians of the ratio to the plain way of the same round. Mixtures are
told per request: k branches are to cost at most k + 0.3 plain requests. One JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from common import machine

import foreword
from foreword.engine import Engine, Limits, Request, Sampling, Weighted
from foreword.prefix import Prefix

TEXTS = (
    "Read the input below with care and write.",
    "Write a short and friendly review of a place.",
    "Turn these facts into one fluent sentence now.",
    "Answer the question in as few words as you can.",
)
PROMPT = (
    "The restaurant near the river is known for its food and its service, and people come from far"
)

Way = Callable[[int], tuple[Weighted, ...]]
"""From the number of a request to its prefixes."""


def ways(prefixes: list[Prefix]) -> dict[str, Way]:
    """What is compared; the first is the plain way."""
    count = len(prefixes)

    def some(index: int, many: int, weights: list[float]) -> tuple[Weighted, ...]:
        return tuple(
            Weighted(prefixes[(index + each) % count], weights[each]) for each in range(many)
        )

    return {
        "plain": lambda i: (Weighted(prefixes[i % count]),),
        "strength 0.7": lambda i: (Weighted(prefixes[i % count], strength=0.7),),
        "every other at 0.7": lambda i: (
            Weighted(prefixes[i % count], strength=0.7 if i % 2 else 1.0),
        ),
        "2 branches (weight 1.5)": lambda i: some(i, 1, [1.5]),
        "2 branches": lambda i: some(i, 2, [0.5, 0.5]),
        "3 branches": lambda i: some(i, 3, [0.5, 0.25, 0.25]),
        "4 branches": lambda i: some(i, 4, [0.25, 0.25, 0.25, 0.25]),
    }


def measured(engine: Engine, requests: list[Request]) -> float:
    """Seconds of some requests."""
    began = time.perf_counter()
    found = engine.generate(requests)
    seconds = time.perf_counter() - began
    assert all(not one.error for one in found), found[0].error
    return seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--length", type=int, default=16, help="virtual tokens of each prefix")
    parser.add_argument("--dtype", default="auto")
    chosen = parser.parse_args()
    backbone = foreword.load(dtype=chosen.dtype)
    prefixes = [
        backbone.capture((backbone.tokens(text) * chosen.length)[: chosen.length]) for text in TEXTS
    ]
    ids, sides = backbone.tokens(PROMPT), ways(prefixes)
    sampling = Sampling(max_tokens=chosen.tokens, temperature=0.0, ignore_eos=True)
    seconds: dict[str, list[float]] = {name: [] for name in sides}

    def requests(way: Way) -> list[Request]:
        return [
            Request(tuple(ids[: len(ids) - i % 5]), sampling, way(i))
            for i in range(chosen.requests)
        ]

    with Engine(backbone, Limits(rows=4 * chosen.requests)) as engine:
        for number in range(chosen.rounds + 1):
            names = list(sides)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                took = measured(engine, requests(sides[name]))
                if number:  # the first round warms up
                    seconds[name].append(took)
    plain = seconds["plain"]
    report = {
        **machine(),
        "backbone": backbone.name,
        **vars(chosen),
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "median_seconds": {name: statistics.median(times) for name, times in seconds.items()},
        "ratio_to_plain": {
            name: statistics.median(a / b for a, b in zip(times, plain, strict=True))
            for name, times in seconds.items()
        },
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
