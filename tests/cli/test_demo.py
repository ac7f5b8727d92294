"""The demo, shortened, on the real backbone: what it prints is what it measured."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from foreword.cli.main import main
from foreword.store import PrefixStore


@pytest.mark.backbone
def test_the_demo_trains_shows_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FOREWORD_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("COLUMNS", "160")
    code = main(["demo", "--steps", "3", "--inputs", "2", "--output", str(tmp_path / "out")])
    out, err = capfd.readouterr()
    assert code == 0, err
    figures = json.loads((tmp_path / "out/figures.json").read_text())
    assert "dequantised from 4 bits" in out
    assert "CC BY-SA 4.0" in out
    assert re.search(r"in (bfloat16|float32) on \w+ \(", out)
    assert "examples/s" in err
    assert "tokens/s" in err
    assert out.count("Input  ") == out.count("Frozen model  ") == out.count("With prefix  ") == 2
    for label, value in (
        ("NLL per target token", f"{figures['nll']['prefix']:.3f}"),
        ("BLEU (multi-reference)", f"{figures['bleu']['prefix']:.1f}"),
        ("ROUGE-L", f"{figures['rouge_l']['prefix']:.1f}"),
        ("restaurant named %", f"{figures['named']:.1f}"),
        ("slot recall %", f"{figures['slot_recall']:.1f}"),
        ("trainable parameters", "184,320"),
        ("share of the backbone %", "0.137"),
        ("file, bytes", f"{PrefixStore().path('e2e-demo').stat().st_size:,}"),
    ):
        (row,) = [line for line in out.splitlines() if label in line]
        assert value in row
    assert figures["nll"]["prefix"] < figures["nll"]["frozen"]
    assert (tmp_path / "out/loss.png").read_bytes().startswith(b"\x89PNG")
    assert PrefixStore().load("e2e-demo").meta.recipe["steps"] == 3
