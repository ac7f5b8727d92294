"""What a method costs."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

import foreword
from foreword.compare import costs
from foreword.compare.costs import latency, memory, peak_memory, resident
from foreword.compare.quality import frozen_one
from foreword.methods.base import Applied
from tests.conftest import byte_tokenizer, tiny_model
from tests.methods.test_layers import t5
from tests.tasks.models import tiny_encoder


def test_what_is_slower_is_seen_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that waits makes a pass as much longer as it waits."""
    backbone = foreword.Backbone(tiny_model(), byte_tokenizer())
    monkeypatch.setattr(costs, "ROUNDS", 3)

    @contextmanager
    def slowed() -> Iterator[Applied]:
        hook = backbone.model.register_forward_hook(lambda *_: time.sleep(0.2))
        yield frozen_one(backbone)
        hook.remove()

    found = latency(frozen_one(backbone), slowed, rows=(1,))
    assert found.prefill[1] > 3
    assert found.decode[1] > 3


@pytest.mark.parametrize("kind", ["encoder", "encoder-decoder"])
def test_every_kind_is_timed(kind: str) -> None:
    backbone = tiny_encoder() if kind == "encoder" else t5()
    frozen = frozen_one(backbone)

    @contextmanager
    def same() -> Iterator[Applied]:
        yield frozen

    found = latency(frozen, same, rows=(1, 2))
    assert all(ratio > 0 for ratio in (*found.prefill.values(), *found.decode.values()))


@pytest.mark.skipif(resident() is None, reason="the system does not say")
def test_memory_that_was_given_back_is_seen() -> None:
    freed = [torch.ones(2**18) for _ in range(200)]  # what was held before must hide nothing
    del freed
    with peak_memory(torch.device("cpu")) as peak:
        block = torch.ones(200 * 2**18)  # 200 MiB
        time.sleep(0.1)
        del block
    assert peak.bytes is not None
    assert 150 * 2**20 < peak.bytes < 400 * 2**20


def test_memory_of_many_tasks() -> None:
    backbone = foreword.Backbone(tiny_model(), byte_tokenizer())
    weights = backbone.weight_bytes
    assert memory(backbone, 1000) == weights + 100 * 1000 * 4
    assert memory(backbone, None) == 100 * weights


def test_a_processor_is_named_with_the_instructions_that_matter(tiny: foreword.Backbone) -> None:
    able = torch.backends.cpu.get_cpu_capability()
    assert re.fullmatch(rf".+ \(({re.escape(able)}|AVX512-BF16)\)", costs.processor())
    assert costs.machine(tiny).startswith(f"{costs.processor()}, ")
