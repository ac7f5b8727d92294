"""Requests of the serving benchmarks, prefixes for them, and clients that ask and take times."""

from __future__ import annotations

import itertools
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from foreword.backbone import Backbone
from foreword.described import Described
from foreword.engine import Event, Request, Sampling, Weighted
from foreword.prefix import Prefix

PREFIXES = 8
CLIENTS = (1, 8, 32)


def texts(backbone: Backbone, rows: Sequence[dict[str, Any]], length: int) -> list[Prefix]:
    """Prefixes of one length, each from other rows' text."""
    made = []
    for index in range(PREFIXES):
        words = " ".join(row["ref"] for row in rows[index * 20 : index * 20 + 20])
        made.append(backbone.capture(backbone.tokens(words)[:length]))
    return made


def asked(
    backbone: Backbone, rows: Sequence[dict[str, Any]], prefixes: Sequence[Prefix | None]
) -> list[Request]:
    """One request per row, its output as long as the row's own; prefixes in turn."""
    return [
        request_of(
            backbone.tokens(f"{row['mr']} ->"),
            len(backbone.tokens(row["ref"])),
            prefixes[index % len(prefixes)],
        )
        for index, row in enumerate(rows)
    ]


def request_of(
    prompt: Sequence[int], new: int, prefix: Described | None = None, name: str = ""
) -> Request:
    """A request for so many new tokens, whatever these are."""
    sampling = Sampling(max_tokens=new, temperature=0, ignore_eos=True)
    return Request(
        tuple(prompt), sampling, () if prefix is None else (Weighted(prefix, name=name),)
    )


@dataclass
class Times:
    """What clients saw, in seconds.

    Attributes:
        first: From each request to its first token.
        between: Between the tokens after it.
    """

    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)

    def told(self) -> dict[str, float]:
        """Medians and the 99th percentiles, in milliseconds."""
        return {
            f"{name} {kind} ms": 1e3 * value
            for name, seen in (("first", self.first), ("between", self.between))
            for kind, value in (("p50", statistics.median(seen)), ("p99", _percentile(seen, 99)))
        }


def ask(
    engine: Any, requests: Sequence[Request], clients: int, began: float | None = None
) -> Times:
    """Let clients ask the requests, each one after the other, and note the times of their tokens.

    Args:
        engine: Anything with ``submit(request, sink)``.
        requests: What is asked.
        clients: How many ask at the same time.
        began: When the only request was begun, if that was before now.
    """
    queue = list(requests)
    lock = threading.Lock()
    seen = Times()

    def client() -> None:
        while True:
            with lock:
                if not queue:
                    return
                request = queue.pop()
            times = [time.perf_counter() if began is None else began]
            ended = threading.Event()

            def sink(
                event: Event, times: list[float] = times, end: threading.Event = ended
            ) -> None:
                times.extend([time.perf_counter()] * bool(event.tokens))
                if event.finish is not None:
                    end.set()

            engine.submit(request, sink)
            ended.wait()
            with lock:
                seen.first.append(times[1] - times[0])
                seen.between.extend(b - a for a, b in itertools.pairwise(times[1:]))

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seen


def _percentile(values: Sequence[float], percent: int) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]
