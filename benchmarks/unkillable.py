"""Training that is killed with SIGKILL, again and again, against the same training left alone.

    python benchmarks/unkillable.py
    python benchmarks/unkillable.py --tiny --kills 5

A child process trains a prefix with frequent checkpoints. Every other kill waits until a checkpoint is
being written and strikes while it is; the others strike at random moments. Each time another child
resumes. In the end the tensors of both prefixes are compared bit for bit. One JSON object goes to
standard output, one line per kill to standard error; the exit code says whether they were equal.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from common import machine

import foreword
from foreword.train.checkpoint import newest
from foreword.train.trainer import ASIDE

ROOT = Path(__file__).resolve().parents[1]
SPAWN = multiprocessing.get_context("forkserver")
PATIENCE = 600
"""Seconds without any progress after which something is wrong with the benchmark."""


@dataclass(frozen=True)
class Plan:
    """What is trained: a tiny random model, or the embedded one."""

    tiny: bool
    steps: int
    every: int
    threads: int

    def train(self, folder: Path, done: Path) -> None:
        """The child's part: go on from the newest checkpoint in `folder`, put the prefix at `done`."""
        torch.set_num_threads(self.threads)
        backbone, rows = self._tiny() if self.tiny else self._embedded()
        settings = foreword.TrainSettings(
            prompt="{mr} ->",
            target=" {ref}",
            length=8,
            steps=self.steps,
            batch_size=2,
            checkpoint_every=self.every,
            dropout=0.1,
        )
        result = foreword.train(
            backbone, rows[4:], settings, evaluation=rows[:4], folder=folder, resume=True
        )
        foreword.save_prefix(result.prefix, done)

    def _tiny(self) -> tuple[foreword.Backbone, list[dict[str, Any]]]:
        sys.path.insert(0, str(ROOT))
        from tests.conftest import MEMORY, byte_tokenizer, tiny_model

        return foreword.Backbone(tiny_model(), byte_tokenizer(), name="tiny"), list(MEMORY)

    def _embedded(self) -> tuple[foreword.Backbone, list[dict[str, Any]]]:
        return foreword.load(), foreword.read_rows("foreword/e2e:train")[:40]


@dataclass(frozen=True)
class Kill:
    """One kill: where the child had resumed, what was aimed at, and what was hit.

    Attributes:
        resumed_at: Step of the checkpoint that the child went on from, 0 without one.
        newest: Step of the newest whole checkpoint that it left.
        aimed: Whether the kill waited for a checkpoint's writing.
        writing: Whether a checkpoint was half-written, or not yet in its place.
        done: Whether the child had finished before it could be killed.
    """

    resumed_at: int
    newest: int
    aimed: bool
    writing: bool
    done: bool


def step_of(folder: Path) -> int:
    """Step of the newest whole checkpoint, or 0."""
    place = newest(folder)
    return int(place.name.split("-")[1]) if place else 0


def started(plan: Plan, folder: Path, done: Path) -> BaseProcess:
    """A child that trains."""
    child = SPAWN.Process(target=plan.train, args=(folder, done))
    child.start()
    return child


def wait(child: BaseProcess, condition: Any) -> None:
    """Watch a child as closely as it goes until a condition holds or the child is done."""
    until = time.monotonic() + PATIENCE
    while child.is_alive() and not condition():
        if time.monotonic() > until:
            raise SystemExit("the child makes no progress")


def kill(plan: Plan, folder: Path, done: Path, at: int, aimed: bool, chance: random.Random) -> Kill:
    """Start a child, let it come to about step `at`, and kill it."""
    begun, before = step_of(folder), stamp(folder)
    child = started(plan, folder, done)
    wait(child, lambda: step_of_names(folder) >= at)
    aside = folder / ASIDE
    if aimed:
        wait(child, lambda: stamp(folder) != before)  # until then, what is there is the last one's
        wait(child, aside.is_dir)
        time.sleep(chance.uniform(0, 0.01))
    else:
        time.sleep(chance.uniform(0, 0.05 if plan.tiny else 10))
    child.kill()  # SIGKILL; nothing, if the child is done
    child.join()
    writing = stamp(folder) != before and aside.is_dir()
    return Kill(begun, step_of(folder), aimed, writing, done.is_file())


def stamp(folder: Path) -> int:
    """Changes when a child has taken over what the one before it left."""
    file = folder / "run.json"
    return file.stat().st_mtime_ns if file.is_file() else 0


def step_of_names(folder: Path) -> int:
    """Step of the newest checkpoint by name alone, which is quick."""
    names = [path.name.split("-")[1] for path in folder.glob("checkpoint-*")]
    return max((int(name) for name in names if name.isdigit()), default=0)


def equal(one: foreword.Prefix, two: foreword.Prefix) -> bool:
    """Whether all tensors agree to the last bit."""
    pairs = zip((*one.keys, *one.values), (*two.keys, *two.values), strict=True)
    return all(torch.equal(a.view(torch.int32), b.view(torch.int32)) for a, b in pairs)


def disturbed(plan: Plan, place: Path, kills: int, chance: random.Random) -> list[Kill]:
    """Train with kills, then to the end."""
    folder, done = place / "killed", place / "killed.safetensors"
    last = max(0, plan.steps - 3 * plan.every)
    moments = sorted(chance.randint(0, last) for _ in range(kills))
    hits = []
    for number, at in enumerate(moments):
        hit = kill(plan, folder, done, at, number % 2 == 0, chance)
        print(f"kill {number + 1}: {hit}", file=sys.stderr)
        hits.append(hit)
    child = started(plan, folder, done)
    child.join()
    if child.exitcode:
        raise SystemExit(f"the last child failed: exit code {child.exitcode}")
    return hits


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a tiny random model")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--every", type=int, default=2, help="steps between checkpoints")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    SPAWN.set_forkserver_preload(["foreword"])
    plan = Plan(options.tiny, options.steps, options.every, torch.get_num_threads())
    with tempfile.TemporaryDirectory(prefix="unkillable-") as name:
        place = Path(name)
        began = time.monotonic()
        hits = disturbed(plan, place, options.kills, random.Random(options.seed))
        seconds = time.monotonic() - began
        alone = started(plan, place / "alone", place / "alone.safetensors")
        alone.join()
        ours, theirs = (
            foreword.load_prefix(place / f"{run}.safetensors") for run in ("killed", "alone")
        )
        same = equal(ours, theirs)
    report = {
        **machine(),
        "model": "tiny" if plan.tiny else "smollm2-135m-instruct",
        "steps": plan.steps,
        "checkpoint_every": plan.every,
        "kills": sum(not hit.done for hit in hits),
        "kills_in_a_checkpoint": sum(hit.writing and not hit.done for hit in hits),
        "resumed_at": [hit.resumed_at for hit in hits],
        "seconds_with_kills": seconds,
        "final_step": ours.meta.training["steps"],
        "bit_for_bit_equal": same,
        "each": [asdict(hit) for hit in hits],
    }
    print(json.dumps(report, indent=1))
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
