"""Habits of PEFT and TRL: what they call a setting, and what they take for a backbone or a prefix."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from pathlib import Path
from typing import Any

import pytest
from peft import TaskType

import foreword
from foreword.cli.main import main
from foreword.errors import BackboneError, PrefixError, TrainingError
from foreword.objectives.settings import TASK_TYPES
from foreword.train.foreign import OURS, ours
from tests.conftest import tiny_model

TEXT: dict[str, Any] = {"prompt": "{mr} ->", "target": " {ref}"}


@pytest.mark.parametrize("name", sorted(OURS))
def test_a_foreign_name_is_answered_with_ours(name: str) -> None:
    fields = {field.name for field in dataclasses.fields(foreword.TrainSettings)}
    assert name not in fields
    assert OURS[name] in fields
    with pytest.raises(TrainingError, match=f"has no {name}; it is called {OURS[name]} here"):
        foreword.TrainSettings(**TEXT, **{name: 1})


def test_settings_are_as_they_were() -> None:
    settings = foreword.TrainSettings(**TEXT, lr=0.1)
    assert dataclasses.replace(settings, lr=0.2).lr == 0.2
    assert pickle.loads(pickle.dumps(settings)) == settings == copy.deepcopy(settings)
    assert "lr" in inspect.signature(foreword.TrainSettings).parameters
    with pytest.raises(TypeError, match="nonsense"):
        foreword.TrainSettings(**TEXT, nonsense=1)  # type: ignore[call-arg]


def test_an_option_however_it_is_spelled() -> None:
    assert ours("--learning-rate=0.1") == ours("learning_rate") == "lr"
    assert ours("--lr") is None


def test_the_command_names_our_option(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["train", "x.jsonl", "--name", "x", "--per-device-train-batch-size", "4"]) == 2
    said = capfd.readouterr().err
    assert "--per-device-train-batch-size is called --batch-size here" in said
    config = tmp_path / "config.yaml"
    config.write_text("num_virtual_tokens: 20\n")
    assert main(["train", "x.jsonl", "--name", "x", "--config", str(config)]) == 2
    assert "is called --length here" in capfd.readouterr().err
    assert main(["train", "x.jsonl", "--name", "x", "--nonsense", "4"]) == 2
    assert "is called" not in capfd.readouterr().err


def test_only_the_right_hint_is_given(capfd: pytest.CaptureFixture[str]) -> None:
    """Above it stood a guess: "Did you mean --length?"."""
    assert main(["train", "x.jsonl", "--name", "x", "--learning-rate", "0.1"]) == 2
    said = " ".join(capfd.readouterr().err.split())
    assert "Unknown option: --learning-rate." in said
    assert "Did you mean" not in said
    assert said.endswith("--learning-rate is called --lr here")
    assert main(["train", "x.jsonl", "--name", "x", "--epoch", "1"]) == 2
    assert "Did you mean --epochs?" in " ".join(capfd.readouterr().err.split())
    assert main(["generate", "x", "--learning-rate", "1"]) == 2
    assert "is called" not in capfd.readouterr().err


@pytest.mark.parametrize("given", sorted(TASK_TYPES))
def test_a_task_type_of_pefts_names_the_task(given: str, capfd: pytest.CaptureFixture[str]) -> None:
    meant = TASK_TYPES[given]
    said = f"PEFT's {given} is called {meant} here"
    for task in (given, TaskType(given)):
        with pytest.raises(TrainingError, match=rf"^task must be one of .*; found .*\. {said}$"):
            foreword.TrainSettings(**TEXT, task=task)  # type: ignore[arg-type]
    assert foreword.TrainSettings(**TEXT, task=meant).task == meant  # type: ignore[arg-type]
    assert main(["train", "x.jsonl", "--name", "x", "--task", given]) == 2
    assert said in capfd.readouterr().err
    with pytest.raises(TrainingError, match=r"found 'nonsense'$"):
        foreword.TrainSettings(**TEXT, task="nonsense")  # type: ignore[arg-type]


def test_a_model_in_the_place_of_a_backbone(rows: list[dict[str, str]]) -> None:
    with pytest.raises(BackboneError, match=r"foreword\.Backbone\(model, tokenizer\)"):
        foreword.train(tiny_model(), rows, foreword.TrainSettings(**TEXT))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [str, Path])
def test_a_path_in_the_place_of_a_prefix(tiny: foreword.Backbone, kind: Any) -> None:
    path = kind("food.safetensors")
    refusal = r"foreword\.load_prefix\('food\.safetensors'\)"
    with pytest.raises(PrefixError, match=refusal):
        foreword.generate(tiny, "x", path)
    with pytest.raises(PrefixError, match=refusal):
        foreword.attach(tiny, path)
    with pytest.raises(PrefixError, match=refusal):
        foreword.evaluate(tiny, path, [])
    with pytest.raises(PrefixError, match=refusal):
        foreword.predict(tiny, "x", path)
    with pytest.raises(PrefixError, match=refusal):
        foreword.attach_trainable(tiny.model, path)
