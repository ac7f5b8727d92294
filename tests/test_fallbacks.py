"""Slow paths say why they are taken, once."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from foreword import fallbacks
from foreword.attention import merge
from foreword.engine.slots import runner
from foreword.fallbacks import note_fallback
from foreword.weights import packing
from foreword.weights.packing import packed
from tests.conftest import tiny_model

Said = pytest.LogCaptureFixture


@pytest.fixture(autouse=True)
def _anew(monkeypatch: pytest.MonkeyPatch, caplog: Said) -> None:
    monkeypatch.setattr(fallbacks, "_noted", set())
    caplog.set_level(logging.INFO, logger="foreword.fallbacks")


def bfloat16_model() -> nn.Module:
    made: nn.Module = tiny_model().to(torch.bfloat16)
    return made


def test_each_reason_is_logged_once(caplog: Said) -> None:
    for why in ("too old", "too old", "too new"):
        note_fallback("a kernel", why)
    assert caplog.messages == ["a kernel: not used; too old", "a kernel: not used; too new"]


def test_without_bfloat16_products_weights_are_not_packed(
    caplog: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine was a third slower on such a processor, and nothing said why."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False, raising=False)
    for _ in range(2):
        with packed(bfloat16_model()) as layers:
            assert layers == 0
    assert [said.split(";")[0] for said in caplog.messages] == ["packed weights: not used"]


@pytest.mark.parametrize("fails", [False, True])
def test_a_model_that_cannot_run_with_joined_layers(
    fails: bool, caplog: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "_can_be_packed", lambda _: True)
    monkeypatch.setattr(packing, "_readers", lambda *_: [])
    monkeypatch.setattr(packing, "_pack", lambda *_: None)
    given = iter([torch.zeros(2), torch.ones(2)])

    def run() -> torch.Tensor:
        found = next(given)
        if fails and bool(found.any()):
            raise RuntimeError("parts of a tensor")
        return found

    with packed(bfloat16_model(), run):
        pass
    why = "cannot run so (parts of a tensor)" if fails else "gave other numbers"
    assert why in caplog.text


def test_a_torch_without_the_flash_kernel(caplog: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge, "_FLASH", None)
    query, key, prefix = torch.randn(8, 4, 2, 8), torch.randn(8, 2, 5, 8), torch.randn(1, 2, 90, 8)
    for _ in range(2):
        merge.cascade_attention(query, key, key, None, prefix, prefix)
    assert len(caplog.messages) == 1
    assert "flash kernel for prefixes that rows share: not used" in caplog.text


def test_an_engine_that_pads_its_rows(caplog: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    import foreword
    from foreword.engine import Engine

    distance = runner._distance
    calls = iter(range(100))
    # the first two distances prove that rows can stand beside each other at all
    monkeypatch.setattr(
        runner, "_distance", lambda *two: distance(*two) if next(calls) < 2 else float("nan")
    )
    with Engine(foreword.Backbone(tiny_model(), name="tiny")) as engine:
        assert not engine.runner.is_flat
    assert "passes over flattened tokens: not used; logits move by nan" in caplog.text
    assert "copies of short prefixes in their rows' slots: not used" in caplog.text
