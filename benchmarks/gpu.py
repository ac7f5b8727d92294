"""Training steps on a GPU: Foreword, PEFT's prefix tuning, and the frozen backbone's own passes.

    python benchmarks/gpu.py [--shape smollm2-135m] [--tokens 512,4096] [--tokenizer FOLDER]
                             [--save FOLDER]

Each side makes forward and backward passes over the same random tokens in bfloat16, every token a
target; then a step with its optimiser. Interleaved rounds; medians of the passes, means of whole steps
(SOAP finds its axes at every fifth). The share of the card's matrix rate is that of a frozen backbone's
sums, over the rate of one large product in the same run.

Speed does not depend on what the weights are, so they are random, in the shape of a known model; with
--save they are kept as a folder, for `serving.py --backbone`.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from common import machine, table
from peft import PrefixTuningConfig, TaskType, get_peft_model
from torch import Tensor, nn
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from foreword.backbone import Backbone
from foreword.methods.prefix.build import parameterise
from foreword.methods.prefix.dropout import PrefixDropout
from foreword.methods.prefix.learner import PrefixLearner
from foreword.objectives.supervised import Supervised
from foreword.train import TrainSettings
from foreword.train.soap import SOAP
from foreword.weights import embedded

LENGTH = 16
PER_STEP = 16_384
"""Tokens of a step, whatever the length of its rows."""
WARM_UP, ROUNDS = 3, 15
PRODUCT = 8192
SHAPES: dict[str, dict[str, Any]] = {
    "smollm2-135m": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
    "smollm2-1.7b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
}


def random_model(shape: str, device: str) -> LlamaForCausalLM:
    """A model of this shape in bfloat16, with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49_152,
        max_position_embeddings=8192,
        rope_theta=100_000,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        **SHAPES[shape],
    )
    with torch.device(device):
        model = LlamaForCausalLM(config)
    return model.to(torch.bfloat16).eval().requires_grad_(False)


def flops(model: nn.Module, rows: int, tokens: int) -> float:
    """Of a frozen backbone's step: products forward, and backward to the activations alone."""
    config: Any = model.config
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    attention = 6 * tokens * config.num_attention_heads * config.head_dim * config.num_hidden_layers
    return float(rows * tokens * (4 * linear + attention))


def matrix_rate(device: str) -> float:
    """FLOP/s of one large product in bfloat16."""
    left, right = (
        torch.randn(PRODUCT, PRODUCT, dtype=torch.bfloat16, device=device) for _ in range(2)
    )
    times = [_seconds(lambda: left @ right) for _ in range(WARM_UP + ROUNDS)]
    return 2 * PRODUCT**3 / statistics.median(times[WARM_UP:])


def _seconds(action: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    began = time.perf_counter()
    action()
    torch.cuda.synchronize()
    return time.perf_counter() - began


class Side:
    """Passes of one way to train, and its optimiser."""

    def __init__(
        self,
        loss: Callable[[], Tensor],
        optimizer: Callable[[list[nn.Parameter]], Any],
        module: Any,
    ) -> None:
        self.loss = loss
        trained = [p for p in module.parameters() if p.requires_grad] if module is not None else []
        self.optimizer = optimizer(trained) if trained else None
        self.passes: list[float] = []
        self.steps: list[float] = []
        self.memory = 0

    def turn(self, *, counts: bool) -> None:
        """One round."""
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        passes = _seconds(lambda: self.loss().backward())
        self.memory = torch.cuda.max_memory_allocated() - held
        step = 0.0
        if self.optimizer is not None:
            step = _seconds(self.optimizer.step)
            self.optimizer.zero_grad()
        if counts:
            self.passes.append(passes)
            self.steps.append(passes + step)


def sides(
    model: LlamaForCausalLM, tokenizer: Any, ids: Tensor, stack: ExitStack
) -> dict[str, Side]:
    """All ways, over the same tokens."""
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    plain = _copy(model)
    config = PrefixTuningConfig(num_virtual_tokens=LENGTH, task_type=TaskType.CAUSAL_LM)
    peft = get_peft_model(_copy(model), config)
    backbone = Backbone(model, tokenizer, name="random")
    settings = TrainSettings(prompt="{mr} ->", target=" {ref}", length=LENGTH)
    first = backbone.capture(ids[0, :LENGTH].tolist())
    attachment = stack.enter_context(backbone.attached(None))
    parameterization = parameterise(backbone, first, settings)
    module = PrefixLearner(
        parameterization, backbone, attachment, PrefixDropout(0, 0, 0), Supervised()
    )
    module.to(ids.device)

    def ours() -> Tensor:
        output = module(**batch)
        loss: Tensor = output["loss"] / output["targets"]
        return loss

    def frozen() -> Tensor:
        embeddings = plain.get_input_embeddings()(ids).requires_grad_()
        loss: Tensor = plain(inputs_embeds=embeddings, labels=ids).loss
        return loss

    return {
        "frozen backbone": Side(frozen, lambda _: None, None),
        "foreword": Side(ours, lambda ps: SOAP(ps, lr=0.01), module),
        "PEFT prefix tuning": Side(
            lambda: peft(**batch).loss, lambda ps: torch.optim.AdamW(ps, lr=0.01), peft
        ),
    }


def _copy(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """The same model, which nothing is attached to."""
    made: LlamaForCausalLM = copy.deepcopy(model)
    return made


def measured(shape: str, tokenizer: Any, tokens: int, device: str) -> list[dict[str, Any]]:
    """A line per side."""
    rows = PER_STEP // tokens
    model = random_model(shape, device)
    generator = torch.Generator(device).manual_seed(0)
    ids = torch.randint(100, 49_000, (rows, tokens), device=device, generator=generator)
    with ExitStack() as stack:
        found = sides(model, tokenizer, ids, stack)
        for index in range(WARM_UP + ROUNDS):
            for side in found.values():
                side.turn(counts=index >= WARM_UP)
    rate = matrix_rate(device)
    sums = flops(model, rows, tokens)
    return [
        {
            "shape": shape,
            "tokens per row": tokens,
            "side": name,
            "passes ms": 1e3 * statistics.median(side.passes),
            "with optimiser ms": 1e3 * statistics.mean(side.steps),
            "tokens/s": rows * tokens / statistics.mean(side.steps),
            "share of matrix rate": sums / statistics.median(side.passes) / rate,
            "peak MiB": side.memory / 2**20,
        }
        for name, side in found.items()
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="smollm2-135m", choices=SHAPES)
    parser.add_argument("--tokens", default="512,4096")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--save", type=Path, help="keep the random model in this folder, and end")
    parser.add_argument("--tokenizer", help="its folder; default: the embedded backbone's")
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer or embedded.obtain())
    if arguments.save:
        random_model(arguments.shape, "cpu").save_pretrained(arguments.save)
        tokenizer.save_pretrained(arguments.save)
        return
    lines: list[dict[str, Any]] = []
    for tokens in arguments.tokens.split(","):
        lines += measured(arguments.shape, tokenizer, int(tokens), arguments.device)
        torch.cuda.empty_cache()
    rate = matrix_rate(arguments.device) / 1e12
    head = {**machine(), "card": torch.cuda.get_device_name(), "matrix TFLOP/s": rate}
    print(json.dumps({**head, "lines": lines}, indent=1))
    print(table(lines))


if __name__ == "__main__":
    main()
