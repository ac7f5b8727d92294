"""What two processes do in `test_sharded.py`: FSDP2 over the backbone, on gloo.

Writes what each rank measured to `FOLDER/RANK.json`, and the prefixes that training gave.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel

import foreword
from foreword.train.ranks import index
from tests.conftest import byte_tokenizer, tiny_model
from tests.train.together import ROWS, settings

STEPS = 3


def start() -> foreword.Prefix:
    """Text of nine tokens as a prefix."""
    return foreword.Backbone(tiny_model()).capture(list(b"the start"))


def batch(rank: int) -> dict[str, torch.Tensor]:
    """Two rows for each rank."""
    generator = torch.Generator().manual_seed(rank)
    ids = torch.randint(2, 258, (2, 12), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def sharded(model: PreTrainedModel) -> PreTrainedModel:
    """Each layer a unit of its own, and the rest, the prefix included, the root's."""
    for layer in model.model.layers:
        fully_shard(layer)
    return fully_shard(model)


def steps(model: Any, batches: list[dict[str, torch.Tensor]]) -> dict[str, Any]:
    """Losses of some steps of training, and the first gradients."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.03)
    losses, gradients = [], []
    for step in range(STEPS):
        loss = torch.stack([model(**one).loss for one in batches]).mean()
        loss.backward()
        if step == 0:
            gradients = [_whole(p.grad).tolist() for p in model.foreword_prefix.parameters()]
        losses.append(float(loss.detach()))
        optimizer.step()
        optimizer.zero_grad()
    return {"losses": losses, "gradients": gradients}


def _whole(tensor: Any) -> torch.Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def main(out: Path) -> None:
    torch.set_num_threads(1)
    PartialState(cpu=True)
    model = tiny_model()
    trained = foreword.attach_trainable(model, start())
    sharded(model)
    measured = steps(model, [batch(index())])
    measured["is_sharded"] = type(model.lm_head.weight).__name__ == "DTensor"
    prefix = trained.prefix()
    tiny = foreword.Backbone(tiny_model(), byte_tokenizer(), name="tiny")
    tiny.model = sharded(tiny.model)
    result = foreword.train(tiny, ROWS, settings(2), evaluation=ROWS[:3], folder=out / "run")
    measured["history"] = result.history
    (out / f"{index()}.json").write_text(json.dumps(measured))
    foreword.save_prefix(prefix, out / f"attached-{index()}.safetensors")
    foreword.save_prefix(result.prefix, out / f"trained-{index()}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
