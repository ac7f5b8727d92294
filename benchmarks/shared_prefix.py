"""Decoding under one long prefix for all rows: attached in one copy against `past_key_values`.

    python benchmarks/shared_prefix.py                # both dtypes, 64 steps
    python benchmarks/shared_prefix.py --dtypes float32 --steps 16

Four sides in one process, step by step in turn, on the same tokens: no prefix; the prefix as a
pre-filled `DynamicCache` with a copy for each row, as PEFT and Cartridges hand it over; the prefix
attached; and the prefix attached with the plain form forced, which joins it to each row's keys. The
first two run on a model that nothing was attached to. One JSON object.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from common import machine
from torch import Tensor
from transformers import DynamicCache

import foreword
from foreword.attention import call
from foreword.attention.bound import Bound, bind
from foreword.backbone import Backbone
from foreword.data import left_padded
from foreword.data.collate import padding_of
from foreword.data.sources import read_rows
from foreword.prefix import Prefix

Step = Callable[[Tensor], Tensor]
"""From the next tokens (B, T) to the last token's logits (B, V)."""


class Side:
    """A batch that is decoded one way: its cache, its mask and its times."""

    def __init__(self, model: Any, mask: Tensor, prefix: Prefix | None, rows: int) -> None:
        self.model = model
        self.mask = mask
        self.length = 0 if prefix is None else prefix.length
        self.cache = DynamicCache() if prefix is None else _filled(prefix, rows, model.dtype)
        self.seconds: list[float] = []

    def __call__(self, tokens: Tensor) -> Tensor:
        """Run the next tokens and keep the time that the model took."""
        new = tokens.shape[1] if self.seconds else 0
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), new)], dim=1)
        positions = (self.mask.cumsum(-1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        shown = torch.cat([self.mask.new_ones(len(tokens), self.length), self.mask], dim=1)
        began = time.perf_counter()
        logits: Tensor = self.model(
            input_ids=tokens,
            attention_mask=shown,
            position_ids=positions + self.length,
            past_key_values=self.cache,
            logits_to_keep=1,
        ).logits[:, -1]
        self.seconds.append(time.perf_counter() - began)
        return logits.float()


def _filled(prefix: Prefix, rows: int, dtype: torch.dtype) -> DynamicCache:
    """A cache that holds the prefix for every row."""
    cache = DynamicCache()
    for layer, pair in enumerate(zip(prefix.keys, prefix.values, strict=True)):
        key, value = (part.to(dtype).expand(rows, -1, -1, -1).contiguous() for part in pair)
        cache.update(key, value, layer)
    return cache


def _texts(backbone: Backbone, length: int, rows: int, steps: int) -> tuple[list[int], Any, Tensor]:
    """Tokens of the prefix's text, padded prompts, and the tokens (B, steps) that are fed."""
    tokenizer: Any = backbone.tokenizer
    examples = read_rows("foreword/e2e:train")
    text = tokenizer("\n".join(f"{row['mr']} -> {row['ref']}" for row in examples)).input_ids
    prompts = [tokenizer(f"{row['mr']} ->").input_ids for row in examples[-rows:]]
    fed = torch.tensor(text[-rows * steps :]).view(rows, steps)
    return text[:length], left_padded(prompts, padding_of(tokenizer)), fed


def measured(dtype: str, length: int, rows: int, steps: int) -> dict[str, Any]:
    """Milliseconds a step of each side, what a prefix adds, and how far the logits are apart."""
    backbone = foreword.load(dtype=dtype)
    text, batch, fed = _texts(backbone, length, rows, steps)
    prefix = backbone.capture(text, "offset")
    bare = copy.deepcopy(backbone.model)
    mask, prompt = batch["attention_mask"], batch["input_ids"]
    attention: Any = call  # Any: it exports no `merge_pays`, which is set here
    with backbone.attached(None) as attachment, torch.no_grad():
        bound, pays = bind(prefix, backbone.sites), attention.merge_pays

        def attached(bound: Bound, choose: Callable[..., bool]) -> Step:
            side = Side(backbone.model, mask, None, rows)

            def step(tokens: Tensor) -> Tensor:
                attention.merge_pays = choose
                with attachment.using(bound):
                    return side(tokens)

            step.seconds = side.seconds  # type: ignore[attr-defined]
            return step

        sides: dict[str, Any] = {
            "no prefix": Side(bare, mask, None, rows),
            "past_key_values": Side(bare, mask, prefix, rows),
            "attached": attached(bound, pays),
            "attached, plain form": attached(bound, lambda *_: False),
        }
        apart = dict.fromkeys(sides, 0.0)
        largest = 0.0
        for index in range(-1, steps):
            tokens = prompt if index < 0 else fed[:, index : index + 1]
            logits = {name: side(tokens) for name, side in sides.items()}
            reference = logits["past_key_values"]
            largest = max(largest, float(reference.abs().max()))
            for name, found in logits.items():
                apart[name] = max(apart[name], float((found - reference).abs().max()))
        attention.merge_pays = pays
    first = {name: 1e3 * side.seconds[0] for name, side in sides.items()}
    # The first steps warm up.
    each = {name: 1e3 * statistics.median(side.seconds[3:]) for name, side in sides.items()}
    added = {name: ms - each["no prefix"] for name, ms in each.items() if name != "no prefix"}
    itemsize = bare.dtype.itemsize
    numbers = sum(tensor.numel() for tensor in (*prefix.keys, *prefix.values))
    kept = 0 if itemsize == 4 else numbers * itemsize
    return {
        "dtype": dtype,
        "backbone": backbone.name,
        "prefix_length": length,
        "rows": rows,
        "steps": steps,
        "prompt_tokens": int(mask.sum()) / rows,
        "padded_prompt": prompt.shape[1],
        "prefill_ms": first,
        "step_ms": each,
        "added_ms": added,
        "added_over_past_key_values": {
            name: ms / added["past_key_values"] for name, ms in added.items()
        },
        "prefix_mib": {
            "past_key_values": numbers * rows * itemsize / 2**20,
            "attached": (numbers * 4 + kept) / 2**20,
        },
        "largest_logit_difference_from_past_key_values": apart,
        "largest_logit": largest,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--steps", type=int, default=64)
    chosen = parser.parse_args()
    torch.set_num_threads(2)
    runs = [measured(d, chosen.length, chosen.rows, chosen.steps) for d in chosen.dtypes]
    print(json.dumps({**machine(), "runs": runs}, indent=1))


if __name__ == "__main__":
    main()
