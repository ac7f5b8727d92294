"""A seeded request draws beside others as alone, in bfloat16 too: its logits are the same bits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import foreword
from foreword.engine import Engine, Limits, Request
from foreword.engine.slots.job import Job
from tests.conftest import byte_tokenizer, tiny_model
from tests.engine.test_engine import ask
from tests.engine.test_memory import together
from tests.weights.test_packing import needs_onednn

WITHOUT_TILES = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}
"""Keeps oneDNN from products of tiles (AMX), whose sums depend on the number of rows."""

HAS_TILES = torch.cpu._is_amx_tile_supported() and os.environ.items().isdisjoint(
    WITHOUT_TILES.items()
)


@pytest.mark.skipif(not HAS_TILES, reason="this processor has no products of tiles")
def test_without_products_of_tiles_logits_are_the_same_too() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        command, env=os.environ | WITHOUT_TILES, cwd=root, capture_output=True, text=True
    )
    assert "1 passed, 1 skipped" in done.stdout, done.stdout[-2000:]


@needs_onednn
@pytest.mark.skipif(HAS_TILES, reason="products of tiles (AMX) do not promise it")
def test_a_request_has_the_same_logits_alone_and_beside_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A product of one row sums in another order than those of more, where its sums are long.

    14 of 16 seeded requests drew alike alone and beside others: those alone were passes of one token.
    """
    model = tiny_model(hidden_size=128, intermediate_size=2048).to(torch.bfloat16)
    backbone = foreword.Backbone(model, byte_tokenizer(), name="tiny")
    prefix = backbone.capture([9, 8, 7, 6])
    seen: dict[str, list[torch.Tensor]] = {}
    tell = Engine._tell

    def watched(self: Engine, job: Job, token: int, logits_V: torch.Tensor) -> None:
        seen.setdefault(job.request.name, []).append(logits_V.clone())
        tell(self, job, token, logits_V)

    def asked(index: int) -> Request:
        options = {"temperature": 1.0, "seed": index, "max_tokens": 40}
        return ask([3 + index] * (2 + 5 * index), prefix if index % 2 else None, **options)

    monkeypatch.setattr(Engine, "_tell", watched)
    requests = [asked(index) for index in range(8)]
    with Engine(backbone, Limits(rows=8)) as engine:
        alone = [engine.generate([request])[0].tokens for request in requests]
        logits = {name: torch.stack(each) for name, each in seen.items()}
        seen.clear()
        beside = [one.tokens for one in together(engine, requests)]
    assert beside == alone
    for name, each in seen.items():
        assert torch.equal(torch.stack(each), logits[name]), name
