"""`--quantize int8`: on the verbs that load a backbone, and what `inspect` then says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import foreword
from foreword.store import PrefixStore
from tests.cli.test_main import F32, place, train
from tests.conftest import MEMORY

__all__ = ["place"]  # fixtures

INT8 = ("--quantize", "int8")


def test_a_prefix_is_trained_and_used_on_an_8_bit_backbone(place: Path, call) -> None:
    code, _, err = call(*train(*INT8))
    assert (code, err.count("error")) == (0, 0)
    assert "quantised (int8)" in err
    prefix = PrefixStore().load("food")
    assert prefix.meta.training["quantization"] == "int8"
    assert "quantization='int8'" in call("inspect", "food")[1]

    said = ("name[Zizzi], food[Thai]", "--max-new-tokens", "6")
    for words, quantize in ((INT8, "int8"), ((), None)):
        backbone = foreword.load(str(place / "tiny-model"), dtype="float32", quantize=quantize)
        options = foreword.GenerateOptions(max_new_tokens=6)
        wanted = foreword.generate(backbone, [MEMORY[0]], prefix, options)
        code, out, err = call("generate", "food", *F32, *words, "--strict", *said)
        assert (code, out) == (0, wanted[0][0] + "\n")

    assert call("evaluate", "food", "some.jsonl", *F32, *INT8, "--strict")[0] == 0
    assert call("inspect", "food", "--attention", "food[Thai]", *F32, *INT8)[0] == 0


def test_inspect_needs_a_picture_for_it(place: Path, call) -> None:
    call(*train())
    code, _, err = call("inspect", "food", *INT8)
    assert code == 1
    assert "--quantize" in err.replace("\n", " ")


def test_what_cannot_be_done_is_said(place: Path, call, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = call(*train("--quantize", "int3"))
    assert code == 2
    assert "int8" in err
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    code, _, err = call(*train(*INT8))
    assert code == 1
    assert "foreword[quantize]" in err.replace("\n", "")
