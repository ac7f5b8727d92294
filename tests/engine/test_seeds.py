"""A seeded request draws beside others as alone, in bfloat16 too: its logits are the same bits."""

from __future__ import annotations

import pytest
import torch

import foreword
from foreword.engine import Engine, Limits, Request
from foreword.engine.slots.job import Job
from tests.conftest import byte_tokenizer, tiny_model
from tests.engine.test_engine import ask
from tests.engine.test_memory import together
from tests.weights.test_packing import needs_onednn


@needs_onednn
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
