"""SmolLM2-135M with 8-bit weights beside bfloat16: quality, memory, time.

    python benchmarks/quantized.py [quality] [memory] [speed] [--steps N] [--held-out N] [--rounds N]

quality: a prefix trained on each backbone for the same steps, and each evaluated on both, on rows of
E2E that were held out; the frozen models beside them, and the 8-bit one with its embeddings rounded
too. memory: one process per side; peaks are the kernel's own count, above what the process had after
its imports. speed: both sides in one process, interleaved; medians of CPU time of all threads, so that
other work on the machine counts little. One JSON object and one table for each part.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import torch
from common import machine, memory_of_process, reset_peak, table

import foreword
from foreword.attention.bound import bind
from foreword.data import Collator
from foreword.data.collate import padding_of
from foreword.methods.prefix.parameterization import DirectParameterization
from foreword.methods.prefix.start import scales, start
from foreword.objectives.encode import encode
from foreword.objectives.supervised import score
from foreword.weights.int8_linear import Int8Linear

SIDES: dict[str, str | None] = {"bfloat16": None, "int8": "int8"}
BATCH, TOKENS, WIDTHS = 8, 16, (1, 8, 32)
SETTINGS = foreword.TrainSettings(
    prompt="{mr} ->",
    target=" {ref}",
    length=16,
    init_text="Turn the facts about a restaurant into one fluent sentence that names it and states "
    "every fact.",
    batch_size=BATCH,
)


def load(side: str) -> foreword.Backbone:
    """The backbone of one side."""
    return foreword.load(dtype="bfloat16", quantize=SIDES[side])


def quality(options: argparse.Namespace) -> None:
    """Two prefixes on three backbones."""
    settings = replace(SETTINGS, steps=options.steps, checkpoint_every=options.steps)
    backbones = {side: load(side) for side in SIDES}
    rows = foreword.read_rows("foreword/e2e:heldout")[::3][: options.held_out]
    trained = {
        side: foreword.train(backbone, "foreword/e2e:train", settings)
        for side, backbone in backbones.items()
    }
    made = []
    for name, backbone in judges(backbones):
        line: dict[str, Any] = {"backbone": name}
        for side, result in trained.items():
            found = nll(backbone, result.prefix, rows)
            line |= {"frozen": found["base"], f"prefix trained on {side}": found["prefix"]}
        made.append(line)
    losses = {side: result.history[-1]["loss"] for side, result in trained.items()}
    show(
        "quality", made, steps=options.steps, batch=BATCH, held_out_rows=len(rows), last_loss=losses
    )


def judges(backbones: dict[str, foreword.Backbone]) -> Iterator[tuple[str, foreword.Backbone]]:
    """The two backbones, then the 8-bit one with its embeddings rounded as well."""
    yield from backbones.items()
    table_VD = backbones["int8"].model.get_input_embeddings().weight
    scale_V1 = table_VD.float().abs().amax(dim=1, keepdim=True) / 127
    table_VD.copy_((table_VD.float() / scale_V1).round() * scale_V1)
    yield "int8, embeddings too", backbones["int8"]


def nll(
    backbone: foreword.Backbone, prefix: foreword.Prefix, rows: list[dict[str, Any]]
) -> dict[str, float]:
    """NLL per target token of the frozen model and with the prefix."""
    encoded, _ = encode(backbone, rows, SETTINGS, prefix)
    collate = Collator(padding_of(backbone.tokenizer))
    found = {}
    for name, bound in (("base", None), ("prefix", prefix)):
        total, targets = 0.0, 0
        with backbone.attached(bound), torch.no_grad():
            for first in range(0, len(encoded), BATCH):
                batch: dict[str, Any] = collate(encoded[first : first + BATCH])
                scores = score(backbone.model, batch)
                total += float(scores.nll_N.sum())
                targets += len(scores.nll_N)
        found[name] = total / targets
    return found


def memory(options: argparse.Namespace) -> None:
    """One child per side, and one with torchao's own linear layers."""
    made = []
    for side in (*SIDES, "int8, torchao's own layers"):
        child = [sys.executable, __file__, "child", side]
        ran = subprocess.run(child, check=True, stdout=subprocess.PIPE, text=True)
        made.append(json.loads(ran.stdout.splitlines()[-1]))
    show("memory", made, batch=BATCH)


def child(side: str) -> None:
    """Load, then one step of training; print what it took above the imports, in MB."""
    reset_peak()
    before = resident("VmRSS")
    backbone = load(side.split(",")[0])
    loading = resident("VmHWM") - before
    loaded = resident("VmRSS") - before
    if "own" in side:
        for module in backbone.model.modules():
            if isinstance(module, Int8Linear):
                layer: torch.nn.Linear = module
                layer.__class__ = torch.nn.Linear
    step = Step(backbone)
    step(0)
    gc.collect()
    reset_peak()
    step(1)
    line = {
        "backbone": side,
        "weights MB": backbone.weight_bytes / 1e6,
        "after loading": loaded,
        "peak of loading": loading,
        "peak of a training step": resident("VmHWM") - before,
    }
    print(json.dumps(line))


def resident(field: str) -> float:
    """What `memory_of_process` says, in MB."""
    return memory_of_process(field) / 1e6


class Step:
    """One training step of one side on a numbered batch; returns its seconds."""

    def __init__(self, backbone: foreword.Backbone) -> None:
        self.backbone = backbone
        first = start(backbone, SETTINGS)
        self.rows, _ = encode(backbone, "foreword/e2e:train", SETTINGS, first)
        self.module = DirectParameterization(first, *scales(backbone, first))
        self.collate = Collator(padding_of(backbone.tokenizer))

    def __call__(self, index: int) -> float:
        """Forward and backward pass of the batch."""
        batch: dict[str, Any] = self.collate(self.rows[index * BATCH : (index + 1) * BATCH])
        with self.backbone.attached(None) as attachment:
            began = time.process_time()
            with attachment.using(bind(self.module.materialise(), self.backbone.sites, live=True)):
                loss = score(self.backbone.model, batch).nll_N.mean()
            loss.backward()
            seconds = time.process_time() - began
        self.module.zero_grad()
        return seconds


def speed(options: argparse.Namespace) -> None:
    """Steps and decoding, side after side in each round."""
    backbones = {side: load(side) for side in SIDES}
    steps = {side: Step(backbone) for side, backbone in backbones.items()}
    timed: dict[str, dict[str, list[float]]] = {side: {} for side in SIDES}
    for index in range(options.rounds + 1):
        for side, step in steps.items():
            keep(timed[side], f"step of {BATCH} rows, CPU s", step(index), index)
    for width in WIDTHS:
        for index in range(options.rounds // 2 + 1):
            for side, backbone in backbones.items():
                name = f"decode {width} rows, CPU ms/token"
                keep(timed[side], name, 1e3 * decode(backbone, width), index)
    medians = {
        side: {name: statistics.median(every) for name, every in found.items()}
        for side, found in timed.items()
    }
    show(
        "speed",
        [{"backbone": side, **found} for side, found in medians.items()],
        rounds=options.rounds,
    )


def keep(found: dict[str, list[float]], name: str, value: float, index: int) -> None:
    """Keep a time, those of the first round aside, which warms up."""
    found.setdefault(name, []).extend([value] if index else [])


def decode(backbone: foreword.Backbone, width: int) -> float:
    """Seconds per token of a greedy decode of equal rows with a prefix."""
    prefix = backbone.capture("Facts about a restaurant, then a sentence:")
    ids = torch.tensor([backbone.tokens("name[The Eagle], food[French] ->")]).repeat(width, 1)
    with backbone.attached(prefix):
        counts = {"min_new_tokens": TOKENS, "max_new_tokens": TOKENS, "do_sample": False}
        began = time.process_time()
        backbone.model.generate(ids, **counts)
        return (time.process_time() - began) / TOKENS


def show(part: str, made: list[dict[str, Any]], **about: Any) -> None:
    """Print a part's JSON and table."""
    about |= {"torchao": version("torchao"), "rows": made}
    print(json.dumps({"part": part, **machine(), **about}, indent=1))
    print(table(made), flush=True)


PARTS = {"quality": quality, "memory": memory, "speed": speed}


def main() -> None:
    """Run the parts that were named, or all."""
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--held-out", type=int, default=160)
    parser.add_argument("--rounds", type=int, default=8)
    options = parser.parse_args()
    for name in options.parts or PARTS:
        PARTS[name](options)


if __name__ == "__main__":
    main()
