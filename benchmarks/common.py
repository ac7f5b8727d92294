"""What the benchmarks share: the machine in words, tables, results that are kept line by line."""

from __future__ import annotations

import datetime
import json
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch

import foreword
from foreword.compare.costs import processor

Row = dict[str, Any]
T = TypeVar("T")

SHARED = Path(__file__).resolve().parents[2] / "shared"
"""Where data that is not shipped is looked for, unless a benchmark's option says another place."""


def machine() -> dict[str, Any]:
    """Date, processor, threads and versions, for the head of every report."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        **{name: version(name) for name in ("torch", "transformers", "peft")},
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with equal keys as a Markdown table."""
    heads = list(rows[0])
    lines = [heads, ["---"] * len(heads), *([_cell(row[head]) for head in heads] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value}"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a .jsonl file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def shuffled(rows: Iterable[T]) -> list[T]:
    """The rows in an order that is the same in every run."""
    mixed = list(rows)
    random.Random(0).shuffle(mixed)
    return mixed


def kept(place: Path, make: Callable[[], foreword.Prefix]) -> foreword.Prefix:
    """The prefix of a file, which is made and saved there where it is not yet."""
    if not place.is_file():
        start = time.perf_counter()
        foreword.save_prefix(make(), place)
        print(f"made {place.name} in {time.perf_counter() - start:.0f} s", flush=True)
    return foreword.load_prefix(place)


def reset_peak() -> None:
    """Let the kernel count this process's peak from now on (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def memory_of_process(field: str) -> int:
    """What this process holds in memory (VmRSS) or has held at its peak (VmHWM), in bytes (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status has no {field}")


class Results:
    """Finished runs by name in a .jsonl file, so that a benchmark cut off goes on where it was."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._known = {line["run"]: line for line in read_rows(path)} if path.is_file() else {}

    def __contains__(self, run: str) -> bool:
        return run in self._known

    def __getitem__(self, run: str) -> dict[str, Any]:
        return self._known[run]

    def get(self, run: str) -> dict[str, Any] | None:
        """A run's figures, if they are known."""
        return self._known.get(run)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._known.values())

    def add(self, run: str, **figures: Any) -> dict[str, Any]:
        """Keep a run's figures; they are on disk when this returns."""
        line = self._known[run] = {"run": run, **figures}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        return line
