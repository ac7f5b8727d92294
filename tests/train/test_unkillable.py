"""Runs that end in the middle of something: what they left is enough to end with the same prefix."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

import foreword
from foreword.errors import TrainingError
from foreword.files import write_whole
from foreword.train import checkpoint, trainer
from foreword.train.folder import RUN_FILE, discard
from foreword.train.trainer import ASIDE
from tests.train.test_run import Interrupt, Rows, StopAt, changed, equal

SETTINGS = changed(steps=7, dropout=0.2)
"""Not a whole number of epochs: three steps see all rows."""


class AtSave(TrainerCallback):
    """An end right after the checkpoint of a step is in its place."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_save(self, args: object, state: Any, control: object, **_: object) -> None:
        if state.global_step == self.step:
            raise SystemExit


def cut(tiny: foreword.Backbone, rows: Rows, folder: Path, callback: TrainerCallback) -> None:
    with pytest.raises(SystemExit):
        foreword.train(tiny, rows, SETTINGS, folder=folder, callbacks=[callback])


def test_killed_twenty_times_and_while_writing_it_ends_the_same() -> None:
    """The benchmark with a tiny model and few kills: real processes, real SIGKILL."""
    root = Path(__file__).parents[2]
    script = [sys.executable, str(root / "benchmarks/unkillable.py"), "--tiny"]
    done = subprocess.run(
        [*script, "--kills", "4", "--steps", "40"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["bit_for_bit_equal"] is True
    assert (report["kills"], report["final_step"]) == (4, 40)
    assert max(report["resumed_at"]) > 0


# -- what a step depends on --------------------------------------------------------------------------


def test_everything_that_a_step_depends_on_goes_on(
    tiny: foreword.Backbone, rows: Rows, tmp_path: Path
) -> None:
    """Optimiser, schedule, random states and counts of the last checkpoint, to the last bit."""
    foreword.train(tiny, rows, SETTINGS, folder=tmp_path / "whole")
    cut(tiny, rows, tmp_path / "cut", Interrupt(6, SystemExit()))
    torch.manual_seed(99)
    foreword.train(tiny, rows, SETTINGS, folder=tmp_path / "cut", resume=True)
    whole, resumed = (tmp_path / name / "checkpoint-7" for name in ("whole", "cut"))
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        one, two = (torch.load(place / name, weights_only=False) for place in (whole, resumed))
        assert same(one, two), name
    names = ("model.safetensors", "trainer_state.json")
    assert all((whole / n).read_bytes() == (resumed / n).read_bytes() for n in names)


def same(one: Any, two: Any) -> bool:
    """Whether two nested values are equal, tensors and arrays to the last bit."""
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    return bool(torch.as_tensor(one == two).all())


def test_a_run_killed_after_its_last_step_takes_no_further_one(
    tiny: foreword.Backbone, rows: Rows, tmp_path: Path
) -> None:
    """The Trainer asks whether it is done after a step only, so it took an eighth."""
    whole = foreword.train(tiny, rows, SETTINGS, folder=tmp_path / "whole")
    cut(tiny, rows, tmp_path / "cut", AtSave(7))
    resumed = foreword.train(tiny, rows, SETTINGS, folder=tmp_path / "cut", resume=True)
    assert equal(resumed.prefix, whole.prefix)
    assert resumed.history == whole.history
    assert resumed.prefix.meta.training["steps"] == 7


def test_a_run_killed_when_its_patience_was_over_stops_there(
    tiny: foreword.Backbone, rows: Rows, tmp_path: Path
) -> None:
    settings = changed(steps=60, lr=0.3, warmup=0.0, checkpoint_every=2, early_stop=3)
    learned = [{**row, "ref": "a" * 20} for row in rows]
    other = [{**row, "ref": "z" * 20} for row in rows]
    whole = foreword.train(tiny, learned, settings, evaluation=other, folder=tmp_path / "whole")
    last = int(whole.prefix.meta.training["steps"])
    assert last < 60
    folder = tmp_path / "cut"
    with pytest.raises(SystemExit):
        foreword.train(
            tiny, learned, settings, evaluation=other, folder=folder, callbacks=[AtSave(last)]
        )
    resumed = foreword.train(tiny, learned, settings, evaluation=other, folder=folder, resume=True)
    assert equal(resumed.prefix, whole.prefix)
    assert resumed.history == whole.history


# -- what is on the disk -----------------------------------------------------------------------------


def truncated(place: Path) -> None:
    file = place / "optimizer.pt"
    file.write_bytes(file.read_bytes()[:-1])


def flipped(place: Path) -> None:
    file = place / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "truncated": truncated,
    "flipped": flipped,
    "no manifest": lambda place: (place / checkpoint.MANIFEST).unlink(),
    "half a manifest": lambda place: (place / checkpoint.MANIFEST).write_text('{"optimizer.pt": "'),
    "an empty manifest": lambda place: (place / checkpoint.MANIFEST).write_text("{}"),
    "a list for a manifest": lambda place: (place / checkpoint.MANIFEST).write_text("[]"),
    "a file missing": lambda place: (place / "scheduler.pt").unlink(),
    "nothing in it": lambda place: [file.unlink() for file in place.iterdir()] and None,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_half_a_checkpoint_is_never_chosen_and_does_not_push_out_whole_ones(
    tiny: foreword.Backbone, rows: Rows, tmp_path: Path, damage: str
) -> None:
    """Two damaged ones of higher number were once the two that are kept."""
    settings = changed(steps=3, checkpoint_every=1)
    folder = tmp_path / "run"
    with pytest.raises(SystemExit):
        foreword.train(tiny, rows, settings, folder=folder, callbacks=[Interrupt(3, SystemExit())])
    for step in (2, 98, 99):
        if step > 2:
            shutil.copytree(folder / "checkpoint-1", folder / f"checkpoint-{step}")
        DAMAGE[damage](folder / f"checkpoint-{step}")
    assert checkpoint.newest(folder) == folder / "checkpoint-1"
    resumed = foreword.train(tiny, rows, settings, folder=folder, resume=True)
    assert equal(resumed.prefix, foreword.train(tiny, rows, settings).prefix)
    kept = {place.name for place in folder.glob("checkpoint-*")}
    assert kept == {"checkpoint-2", "checkpoint-3"}


def test_a_checkpoint_in_the_place_of_another_is_moved_not_merged(tmp_path: Path) -> None:
    place, aside = tmp_path / "checkpoint-4", tmp_path / ASIDE / "checkpoint-4"
    for folder, name in ((place, "old"), (aside, "new")):
        folder.mkdir(parents=True)
        (folder / name).write_text(name)
    checkpoint.publish(aside, place)
    assert {file.name for file in place.iterdir()} == {"new", checkpoint.MANIFEST}
    assert checkpoint.is_whole(place)


def test_what_a_kill_left_of_the_first_file_does_not_block_the_folder(
    tiny: foreword.Backbone, rows: Rows, tmp_path: Path
) -> None:
    """Killed while it wrote run.json, a run left a folder that it then refused as somebody else's."""
    (tmp_path / f".{RUN_FILE}.0123456789abcdef").write_text("{")
    foreword.train(tiny, rows, changed(steps=1), folder=tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {RUN_FILE, "checkpoint-1"}


def test_a_finished_run_is_discarded_such_that_a_kill_leaves_it_recognisable(
    tiny: foreword.Backbone, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    foreword.train(tiny, rows, changed(steps=1), folder=folder)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(SystemExit()))
        with pytest.raises(SystemExit):
            discard(folder)
    assert (folder / RUN_FILE).is_file()
    foreword.train(tiny, rows, changed(steps=1), folder=folder)
    discard(folder)
    assert not folder.exists()
    (tmp_path / "thesis.txt").write_text("mine")
    discard(tmp_path)
    assert (tmp_path / "thesis.txt").is_file()


# -- which runs resume -------------------------------------------------------------------------------


def test_where_the_loss_is_logged_does_not_stop_a_run_from_resuming(
    tiny: foreword.Backbone, rows: Rows, tmp_path: Path
) -> None:
    cut(tiny, rows, tmp_path / "run", Interrupt(6, SystemExit()))
    settings = changed(**{**SETTINGS.as_json(), "report_to": "tensorboard"})
    resumed = foreword.train(
        tiny, rows, settings, folder=tmp_path / "run", resume=True, logs=tmp_path / "logs"
    )
    assert equal(resumed.prefix, foreword.train(tiny, rows, SETTINGS).prefix)


def earlier(folder: Path, change: Callable[[Any], Any]) -> None:
    """Write the run's file as another version might have."""
    file = folder / RUN_FILE
    write_whole(file, json.dumps(change(json.loads(file.read_text()))).encode())


def test_what_an_older_version_did_otherwise_is_not_taken_for_the_default(
    tiny: foreword.Backbone, rows: Rows, tmp_path: Path
) -> None:
    """Before there was a setting for it, steps held random rows."""

    def older(run: Any) -> Any:
        del run["settings"]["group_by_length"]
        return run

    cut(tiny, rows, tmp_path, Interrupt(6, SystemExit()))
    earlier(tmp_path, older)
    with pytest.raises(TrainingError, match="had group_by_length=False, now it is True"):
        foreword.train(tiny, rows, SETTINGS, folder=tmp_path, resume=True)


def test_what_an_older_version_did_not_know_had_its_default(
    tiny: foreword.Backbone, rows: Rows, tmp_path: Path
) -> None:
    def older(run: Any) -> Any:
        del run["settings"]["gradient_checkpointing"], run["processes"], run["evaluation"]
        return run

    cut(tiny, rows, tmp_path, Interrupt(6, SystemExit()))
    earlier(tmp_path, older)
    assert foreword.train(tiny, rows, SETTINGS, folder=tmp_path, resume=True).stopped is None
    earlier(tmp_path, older)
    other = changed(**{**SETTINGS.as_json(), "gradient_checkpointing": True})
    with pytest.raises(TrainingError, match="had gradient_checkpointing=False, now it is True"):
        foreword.train(tiny, rows, other, folder=tmp_path, resume=True)


@pytest.mark.parametrize("found", [[], {}, {"settings": 3}])
def test_a_file_that_describes_no_run_is_named(
    tiny: foreword.Backbone, rows: Rows, tmp_path: Path, found: Any
) -> None:
    cut(tiny, rows, tmp_path, Interrupt(6, SystemExit()))
    earlier(tmp_path, lambda _: found)
    with pytest.raises(TrainingError, match="does not describe a run"):
        foreword.train(tiny, rows, SETTINGS, folder=tmp_path, resume=True)


def test_other_evaluation_rows_would_choose_another_prefix(
    tiny: foreword.Backbone, rows: Rows, tmp_path: Path
) -> None:
    foreword.train(tiny, rows, SETTINGS, evaluation=rows[:2], folder=tmp_path)
    with pytest.raises(TrainingError, match="other evaluation rows"):
        foreword.train(tiny, rows, SETTINGS, evaluation=rows[:3], folder=tmp_path, resume=True)


# -- what a stop keeps -------------------------------------------------------------------------------


class AtEvaluation(TrainerCallback):
    """Ctrl-C when an evaluation is known and the best prefix not yet in its file."""

    def on_evaluate(self, args: object, state: Any, control: object, **_: object) -> None:
        if state.global_step == 6:
            raise KeyboardInterrupt


def test_ctrl_c_between_an_evaluation_and_its_file_keeps_that_prefix(
    tiny: foreword.Backbone, rows: Rows
) -> None:
    settings = changed(steps=9, checkpoint_every=3)
    wanted = foreword.train(tiny, rows, changed(steps=9, checkpoint_every=3), evaluation=rows)
    losses = [entry["eval_loss"] for entry in wanted.history if "eval_loss" in entry]
    assert losses[1] < losses[0]
    with pytest.raises(foreword.TrainingStopped) as stopped:
        foreword.train(tiny, rows, settings, evaluation=rows, callbacks=[AtEvaluation()])
    kept = stopped.value.result.prefix
    assert kept.meta.training["best_eval_nll"] == losses[1]
    assert foreword.train(tiny, rows, settings, callbacks=[StopAt(6)]).prefix.length == kept.length
    assert equal(kept, foreword.train(tiny, rows, settings, callbacks=[StopAt(6)]).prefix)


def test_a_nan_among_the_evaluation_rows_stops_with_the_best_before(
    tiny: foreword.Backbone, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The least of NaN and others is NaN, so it stayed the best for ever."""
    figures = iter([5.0, math.nan])
    monkeypatch.setattr(trainer, "mean_nll", lambda *_: next(figures))
    settings = changed(steps=9, checkpoint_every=3)
    with pytest.raises(foreword.TrainingStopped, match="became nan after step 6.*--lr") as stopped:
        foreword.train(tiny, rows, settings, evaluation=rows)
    kept = stopped.value.result.prefix
    assert kept.meta.training["best_eval_nll"] == 5.0
    assert equal(kept, foreword.train(tiny, rows, settings, callbacks=[StopAt(3)]).prefix)


def test_a_last_step_that_breaks_the_prefix_is_seen(tiny: foreword.Backbone, rows: Rows) -> None:
    """No loss comes after it, and NaN was what training gave."""
    settings = changed(steps=1, warmup=0.0, lr=3e38, init="noise")
    with pytest.raises(foreword.TrainingStopped, match="nan or inf in the last step") as stopped:
        foreword.train(tiny, rows, settings, callbacks=[_Break()])
    assert stopped.value.result.prefix.first_not_finite() is None


class _Break(TrainerCallback):
    """An optimiser step that gives NaN."""

    def on_step_end(self, args: object, state: Any, control: object, **kwargs: Any) -> None:
        with torch.no_grad():
            next(kwargs["model"].parameters()).fill_(math.nan)


@pytest.mark.parametrize(("free", "said"), [(100, "the disk is full"), (2**30, "iostream error")])
def test_a_disk_that_torch_finds_full_is_named_and_room_is_made(
    tiny: foreword.Backbone,
    rows: Rows,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    free: int,
    said: str,
) -> None:
    """On a full disk torch says "basic_ios::clear: iostream error", and two checkpoints filled it."""
    real, saved = torch.save, []

    def save(value: Any, place: Any) -> None:
        saved.append(place)
        if "checkpoint-3" in str(place):
            usage = shutil.disk_usage(tmp_path)._replace(free=free)
            monkeypatch.setattr(trainer.shutil, "disk_usage", lambda _: usage)
            raise RuntimeError("basic_ios::clear: iostream error")
        real(value, place)

    monkeypatch.setattr(torch, "save", save)
    settings = changed(steps=6, checkpoint_every=1)
    with pytest.raises(foreword.TrainingStopped, match=said) as stopped:
        foreword.train(tiny, rows, settings, folder=tmp_path)
    assert stopped.value.result.prefix.meta.training["steps"] == 3
    assert {path.name for path in tmp_path.iterdir()} == {RUN_FILE, "checkpoint-2"}
