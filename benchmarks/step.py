"""One training step on E2E's real lengths: the plain attention kernel against SDPA.

    python benchmarks/step.py

Both sides in one process, interleaved, on the same batches of the shipped rows; medians and their
ratio as one JSON object.
"""

from __future__ import annotations

import json
import statistics
import time
from typing import Any

import torch
import transformers

import foreword
from foreword.attention import call
from foreword.attention.bound import bind
from foreword.data import Collator
from foreword.data.collate import padding_of
from foreword.methods.prefix.parameterization import DirectParameterization
from foreword.methods.prefix.start import scales, start
from foreword.objectives.encode import encode
from foreword.objectives.supervised import score

ROUNDS = 12
BATCH = 8


def main() -> None:
    """Measure and print."""
    backbone = foreword.load(dtype="bfloat16")
    settings = foreword.TrainSettings(prompt="{mr} ->", target=" {ref}", batch_size=BATCH)
    first = start(backbone, settings)
    rows, _ = encode(backbone, "foreword/e2e:train", settings, first)
    module = DirectParameterization(first, *scales(backbone, first))
    collate = Collator(padding_of(backbone.tokenizer))
    attention: Any = call  # Any: it exports no `pays`, which is set here
    pays = attention.pays
    sides = {"sdpa": lambda *_: False, "plain": pays}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    losses: dict[str, list[float]] = {name: [] for name in sides}
    tokens = 0
    with backbone.attached(None) as attachment:
        for index in range(ROUNDS + 1):
            batch: dict[str, Any] = collate(rows[index * BATCH : (index + 1) * BATCH])
            tokens += int(batch["attention_mask"].sum())
            for name, choose in sides.items():
                attention.pays = choose
                began = time.perf_counter()
                bound = bind(module.materialise(), backbone.sites, live=True)
                with attachment.using(bound):
                    loss = score(backbone.model, batch).nll_N.mean()
                loss.backward()
                if index:  # the first round warms up
                    seconds[name].append(time.perf_counter() - began)
                    losses[name].append(float(loss.detach()))
                module.zero_grad()
    attention.pays = pays
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    pairs = zip(losses["sdpa"], losses["plain"], strict=True)
    report = {
        "backbone": backbone.name,
        "dtype": "bfloat16",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "rows": BATCH,
        "tokens_per_step": tokens / (ROUNDS + 1),
        "median_seconds": medians,
        "speedup": medians["sdpa"] / medians["plain"],
        "largest_relative_loss_difference": max(abs(a - b) / a for a, b in pairs),
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
