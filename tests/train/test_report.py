"""Reporters, with the real wandb in offline mode: what its file holds is what training logged."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import foreword
from foreword.errors import TrainingError
from foreword.train.settings import TrainSettings

SETTINGS = {"prompt": "{mr} ->", "target": " {ref}", "length": 4, "steps": 4}


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that wandb writes to, without a login or a network."""
    import wandb

    for name in ("WANDB_PROJECT", "WANDB_API_KEY", "WANDB_LOG_MODEL", "WANDB_WATCH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert wandb.run is None
    wandb.teardown()


def records(folder: Path) -> Iterator[Any]:
    """The records of the one run in a folder: protocol buffers in a LevelDB log."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # its service writes the file, and has done so once it is gone
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    raw = file.read_bytes()
    place, whole = 7, b""
    while place + 7 <= len(raw):
        rest = 32768 - place % 32768
        if rest < 7:
            place += rest
            continue
        size, kind = int.from_bytes(raw[place + 4 : place + 6], "little"), raw[place + 6]
        whole += raw[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # a whole record, or its last part
            record = Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def values(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def test_wandb_gets_the_losses_and_the_settings(
    tiny: foreword.Backbone, rows, offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_LOG_MODEL", "end")
    monkeypatch.setenv("WANDB_WATCH", "all")
    settings = TrainSettings(**SETTINGS, checkpoint_every=2, report_to="wandb")
    result = foreword.train(
        tiny, rows, settings, evaluation=rows[:3], logs=Path("runs/restaurants")
    )
    found = list(records(offline))
    kinds = {record.WhichOneof("record_type") for record in found}
    assert {"run", "history", "exit"} <= kinds
    assert {"artifact", "output_raw", "output"}.isdisjoint(kinds)
    (run,) = [record.run for record in found if record.WhichOneof("record_type") == "run"]
    assert (run.project, run.display_name) == ("foreword", "restaurants")
    config: dict[str, Any] = {}
    for record in found:
        for part in (record.run.config, record.config):
            config.update(values(part.update))
    assert {name: config[name] for name in settings.as_json()} == settings.as_json()
    assert set(config) - set(settings.as_json()) <= {"_wandb"}
    logged = [values(r.history.item) for r in found if r.WhichOneof("record_type") == "history"]
    for name, key in (("train/loss", "loss"), ("eval/loss", "eval_loss")):
        wanted = [(entry["step"], entry[key]) for entry in result.history if key in entry]
        assert len(wanted) in (4, 2)
        assert [(e["train/global_step"], e[name]) for e in logged if name in e] == wanted


def test_the_project_is_that_of_the_environment_and_unnamed_runs_get_a_name(
    tiny: foreword.Backbone, rows, offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    foreword.train(tiny, rows, TrainSettings(**{**SETTINGS, "steps": 1}, report_to="wandb"))
    (run,) = [r.run for r in records(offline) if r.WhichOneof("record_type") == "run"]
    assert run.project == "mine"
    assert run.display_name != "runs"


def test_an_open_run_is_used_and_left_open(tiny: foreword.Backbone, rows, offline: Path) -> None:
    import wandb

    with wandb.init(project="theirs", name="whole") as run:
        foreword.train(tiny, rows, TrainSettings(**{**SETTINGS, "steps": 1}, report_to="wandb"))
        assert wandb.run is run
        assert run.config["length"] == 4
    assert len(list(offline.glob("wandb/offline-run-*"))) == 1


def test_a_run_ends_when_training_fails(
    tiny: foreword.Backbone, rows, offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    from foreword.train.trainer import LearnerTrainer

    def interrupted(*_: object, **__: object) -> None:
        assert wandb.run is not None
        raise KeyboardInterrupt

    monkeypatch.setattr(LearnerTrainer, "compute_loss", interrupted)
    with pytest.raises(foreword.TrainingStopped):
        foreword.train(tiny, rows, TrainSettings(**SETTINGS, report_to="wandb"))
    assert "exit" in {record.WhichOneof("record_type") for record in records(offline)}


def test_what_cannot_be_sent_does_not_cost_the_prefix(
    tiny: foreword.Backbone, rows, offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    real = wandb.Run.finish

    def lost(self: wandb.Run) -> None:
        real(self)
        raise OSError("no network")

    monkeypatch.setattr(wandb.Run, "finish", lost)
    settings = TrainSettings(**{**SETTINGS, "steps": 1}, report_to="wandb")
    assert foreword.train(tiny, rows, settings).prefix.length == 4


def test_without_a_login_training_is_refused_before_its_first_step(
    tiny: foreword.Backbone, rows, offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("HOME", str(offline))
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    with pytest.raises(TrainingError, match=r"does not start: .*WANDB_MODE=offline"):
        foreword.train(tiny, rows, TrainSettings(**SETTINGS, report_to="wandb"))


@pytest.mark.parametrize("package", ["wandb", "tensorboard"])
def test_a_missing_package_is_named(
    tiny: foreword.Backbone, rows, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    def missing(*_: object) -> None:
        raise RuntimeError(f"requires {package}")

    base = {"wandb": "WandbCallback", "tensorboard": "TensorBoardCallback"}[package]
    monkeypatch.setattr(f"transformers.integrations.integration_utils.{base}.__init__", missing)
    with pytest.raises(TrainingError, match=f"run: pip install {package}"):
        foreword.train(tiny, rows, TrainSettings(**SETTINGS, report_to=package))
