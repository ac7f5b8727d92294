"""Speed and memory of training: Foreword against PEFT's prefix tuning, on E2E's real lengths.

    python benchmarks/training.py [--shared ../shared] [--only speed,limit,memory]

- speed: examples/s of `foreword.train` and of PEFT under transformers' Trainer, by its defaults
  (float32, random batches) and at its best (bfloat16, rows grouped by length); interleaved rounds over
  the same rows.
- limit: the time that the matrix products of a step take by themselves, over the time of the step;
  and the rate of the same products in float32.
- memory: peak above the weights of one step of 4 rows of 2,048 tokens, each side in a process of its
  own; ours with gradient checkpointing, which PEFT's prefix tuning refuses.

Without the shared data, the shipped rows are used.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import SHARED, Row, machine, memory_of_process, read_rows, reset_peak, table
from peft import PrefixTuningConfig, TaskType, get_peft_model
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.utils import logging

import foreword
from foreword.backbone import Backbone
from foreword.data import Collator, Encoded
from foreword.data.collate import padding_of
from foreword.methods.prefix.start import start
from foreword.objectives.encode import encode
from foreword.train import TrainSettings

BATCH = 16
STEPS = 8
ROUNDS = 5
LENGTH = 16
MEMORY_ROWS, MEMORY_TOKENS = 4, 2048


class Clock(TrainerCallback):  # type: ignore[misc]
    """Wall time from the first step's begin to the last one's end, data loading included."""

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Start."""
        self.began = time.perf_counter()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Note the time so far."""
        self.seconds = time.perf_counter() - self.began


def settings(**changes: Any) -> TrainSettings:
    """The default recipe, a batch of 16."""
    return TrainSettings(
        prompt="{mr} ->", target=" {ref}", length=LENGTH, batch_size=BATCH, epochs=1, **changes
    )


def ours(backbone: Backbone, rows: list[Row]) -> float:
    """Seconds that the steps of `foreword.train` take over the rows."""
    clock = Clock()
    foreword.train(backbone, rows, settings(checkpoint_every=10_000), callbacks=[clock])
    return clock.seconds


def theirs(model: nn.Module, backbone: Backbone, rows: list[Row], **options: Any) -> float:
    """Seconds that the steps of PEFT's prefix tuning take under Trainer."""
    encoded = encode(backbone, rows, settings(), start(backbone, settings()))[0]
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=BATCH,
            num_train_epochs=1,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            use_cpu=True,
            remove_unused_columns=False,
            **options,
        )
        dicts = [{"input_ids": row.input_ids, "labels": row.labels} for row in encoded]
        collator = Collator(padding_of(backbone.tokenizer))
        Trainer(
            model=model,
            args=arguments,
            train_dataset=dicts,
            data_collator=lambda batch: collator([Encoded(**row) for row in batch]),
            callbacks=[clock],
        ).train()
    return clock.seconds


def peft_model(backbone: Backbone, dtype: torch.dtype) -> nn.Module:
    """A copy of the backbone under PEFT's prefix tuning, with transformers' own attention."""
    model = AutoModelForCausalLM.from_pretrained(backbone.model.config.name_or_path, dtype=dtype)
    config = PrefixTuningConfig(num_virtual_tokens=LENGTH, task_type=TaskType.CAUSAL_LM)
    return get_peft_model(model, config)


def speed(rows: list[Row], rounds: int) -> dict[str, Any]:
    """Interleaved rounds of all sides over the same rows; medians."""
    bf16, f32 = foreword.load(dtype="bfloat16"), foreword.load(dtype="float32")
    peft_f32, peft_bf16 = peft_model(bf16, torch.float32), peft_model(bf16, torch.bfloat16)
    grouped = {"train_sampling_strategy": "group_by_length"}
    sides: dict[str, Callable[[list[Row]], float]] = {
        "foreword, defaults (bfloat16)": lambda part: ours(bf16, part),
        "foreword, float32": lambda part: ours(f32, part),
        "PEFT, defaults (float32)": lambda part: theirs(peft_f32, bf16, part),
        "PEFT, best (bfloat16, grouped)": lambda part: theirs(peft_bf16, bf16, part, **grouped),
    }
    for side in sides.values():
        side(rows[: 2 * BATCH])
    rate: dict[str, list[float]] = {name: [] for name in sides}
    size = STEPS * BATCH
    for index in range(rounds):
        part = rows[index * size : (index + 1) * size]
        for name, side in sides.items():
            rate[name].append(len(part) / side(part))
        print(json.dumps({name: round(seen[-1], 2) for name, seen in rate.items()}), flush=True)
    median = {name: statistics.median(seen) for name, seen in rate.items()}
    mine, floats, default, best = median.values()
    return {
        "examples_per_second": median,
        "ours_over_peft_defaults": mine / default,
        "float32_over_peft_defaults": floats / default,
        "ours_over_peft_best": mine / best,
    }


def limit(rows: list[Row], rounds: int) -> dict[str, Any]:
    """Share of a step's time that its matrix products, measured alone in the same run, would take.

    Counted are the model's linear layers, forward and gradient of the activations, over real tokens,
    and the output layer at targets only. Attention's own products are left out.
    """
    backbone = foreword.load(dtype="bfloat16")
    like = start(backbone, settings())
    shares, rates, float_rates = [], [], []
    ours(backbone, rows[: 2 * BATCH])
    for index in range(rounds):
        part = rows[index * STEPS * BATCH : (index + 1) * STEPS * BATCH]
        encoded = encode(backbone, part, settings(), like)[0]
        steps = len(encoded) / BATCH
        tokens = round(sum(len(row.input_ids) for row in encoded) / steps)
        targets = round(sum(label >= 0 for row in encoded for label in row.labels) / steps)
        alone, flops = matrix_seconds(backbone.model, tokens, targets, torch.bfloat16)
        floats, _ = matrix_seconds(backbone.model, tokens, targets, torch.float32)
        seconds = ours(backbone, part) / steps
        shares.append(alone / seconds)
        rates.append(flops / alone / 1e9)
        float_rates.append(flops / floats / 1e9)
    return {
        "share_of_limit": statistics.median(shares),
        "matrix_GFLOP_per_second": statistics.median(rates),
        "matrix_GFLOP_per_second_float32": statistics.median(float_rates),
        "shares": shares,
    }


def matrix_seconds(
    model: PreTrainedModel, tokens: int, targets: int, dtype: torch.dtype
) -> tuple[float, float]:
    """Seconds and FLOPs of a step's products x @ W.T and g @ W, each shape's median times its count."""
    head = model.get_output_embeddings()
    counts: dict[tuple[int, int, int], int] = {}
    for module in model.modules():
        if isinstance(module, nn.Linear):
            out, inner = module.weight.shape
            shape = (targets if module is head else tokens, out, inner)
            counts[shape] = counts.get(shape, 0) + 1
    seconds = flops = 0.0
    for (batch, out, inner), count in counts.items():
        weight = torch.randn(out, inner, dtype=dtype)
        value = torch.randn(batch, inner, dtype=dtype)
        grad = torch.randn(batch, out, dtype=dtype)
        seconds += count * (_median(value, weight.T) + _median(grad, weight))
        flops += count * 4 * batch * out * inner
    return seconds, flops


def _median(left: Tensor, right: Tensor) -> float:
    times = []
    for _ in range(12):
        began = time.perf_counter()
        torch.mm(left, right)
        times.append(time.perf_counter() - began)
    return statistics.median(times[2:])


def memory() -> dict[str, Any]:
    """Each side's peak in MiB above what it held before the step, in a process of its own."""
    peaks = {}
    for side in ("foreword", "foreword without checkpointing", "peft"):
        command = [sys.executable, __file__, "--memory-of", side]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks[side] = json.loads(done.stdout.splitlines()[-1])
        print(json.dumps({side: peaks[side]}), flush=True)
    return {
        "peak_MiB_above_weights": peaks,
        "ours_over_peft": peaks["foreword"]["MiB"] / peaks["peft"]["MiB"],
    }


def memory_of(side: str) -> dict[str, Any]:
    """One step's peak, its loss over all tokens; every token is a target."""
    generator = torch.Generator().manual_seed(0)
    backbone = foreword.load(dtype="bfloat16")
    vocabulary = int(backbone.model.config.vocab_size)
    shape = (MEMORY_ROWS, MEMORY_TOKENS)
    ids = torch.randint(vocabulary, shape, generator=generator)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    if side == "peft":
        model = peft_model(backbone, torch.bfloat16)
        del backbone
        return _peak(lambda: model(**batch).loss)
    from foreword.methods.prefix.build import parameterise
    from foreword.methods.prefix.dropout import PrefixDropout
    from foreword.methods.prefix.learner import PrefixLearner
    from foreword.objectives.supervised import Supervised

    with backbone.attached(None) as attachment:
        parameterization = parameterise(backbone, start(backbone, settings()), settings())
        module = PrefixLearner(
            parameterization, backbone, attachment, PrefixDropout(0, 0, 0), Supervised()
        )
        if side == "foreword":
            module.activation_checkpointing_enable({"use_reentrant": False})

        def loss() -> Tensor:
            output = module(**batch)
            mean: Tensor = output["loss"] / output["targets"]
            return mean

        return _peak(loss)


def _peak(loss_of: Callable[[], Tensor]) -> dict[str, Any]:
    before = memory_of_process("VmRSS")
    reset_peak()
    began = time.perf_counter()
    loss = loss_of()
    loss.backward()
    return {
        "MiB": (memory_of_process("VmHWM") - before) / 2**20,
        "seconds": time.perf_counter() - began,
        "loss": float(loss.detach()),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--only", default="speed,limit,memory")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    if arguments.memory_of:
        print(json.dumps(memory_of(arguments.memory_of)))
        return
    file = arguments.shared / "data" / "data2text" / "e2e_dev.jsonl"
    rows: Any = read_rows(file) if file.is_file() else foreword.read_rows("foreword/e2e:train")
    random.Random(0).shuffle(rows)
    report: dict[str, Any] = {
        **machine(),
        "backbone": "SmolLM2-135M-Instruct",
        "data": str(file.name) if file.is_file() else "foreword/e2e:train",
        "batch": BATCH,
        "prefix": LENGTH,
    }
    stages = {
        "speed": lambda: speed(rows, arguments.rounds),
        "limit": lambda: limit(rows, arguments.rounds),
        "memory": memory,
    }
    for stage in arguments.only.split(","):
        report[stage] = stages[stage]()
    print(json.dumps(report, indent=1))
    if "speed" in report:
        rates = report["speed"]["examples_per_second"]
        print(table([{"side": name, "examples/s": rate} for name, rate in rates.items()]))


if __name__ == "__main__":
    main()
