"""The demo, shortened, on the real backbone: what it prints is what it measured."""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState

from foreword.cli import demo as module
from foreword.cli.main import main
from foreword.cli.pace import Pace
from foreword.store import PrefixStore


def fast(step: float, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Have the first steps take so many seconds each; what was trained to find that out."""
    asked: list[object] = []

    def trained(_: object, data: str, settings: object, *, callbacks: list[Pace]) -> None:
        asked.append((data, settings))
        control, now = TrainerControl(), iter([0.0, 2 * step])
        monkeypatch.setattr("foreword.cli.pace.time.perf_counter", lambda: next(now))
        for number in range(1, 4):
            state = TrainerState(global_step=number, max_steps=120)
            callbacks[0].on_step_end(None, state, control)
        assert control.should_training_stop

    monkeypatch.setattr(import_module("foreword.train"), "train", trained)
    return asked


def test_a_fast_machine_runs_the_whole_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = fast(1.0, monkeypatch)
    assert module._scale(None, module.DemoArguments()) == module.Scale()  # type: ignore[arg-type]
    assert asked == [("foreword/e2e:train", module.SETTINGS)]


def test_a_slow_machine_runs_a_short_one_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    fast(3.3, monkeypatch)
    assert module._scale(None, module.DemoArguments()) == module.SHORT  # type: ignore[arg-type]
    said = capfd.readouterr().out
    assert "A step takes 3.3 s here, so the whole demo would take about 11 minutes" in said
    assert "40 steps, 32 inputs, the NLL of one reference each" in said
    assert "foreword demo --full" in said


def test_who_says_how_much_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("foreword.train"), "train", None)
    whole = module._scale(None, module.DemoArguments(full=True))  # type: ignore[arg-type]
    less = module._scale(None, module.DemoArguments(steps=5, inputs=2))  # type: ignore[arg-type]
    assert whole == module.Scale()
    assert (less.settings.steps, less.inputs, less.scored_references) == (5, 2, None)


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
    assert [float(one) for one in figures["dial"]] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert figures["dial"]["1.0"] < figures["dial"]["0.0"]
    shown = ", ".join(f"{nll:.2f}" for nll in figures["dial"].values())
    dial = f"Dial: at strength 0, 0.25, 0.5, 0.75, 1 the NLL of 16 references is {shown}."
    assert out.splitlines()[-1] == dial
    assert (tmp_path / "out/loss.png").read_bytes().startswith(b"\x89PNG")
    assert PrefixStore().load("e2e-demo").meta.recipe["steps"] == 3
