"""Two runs under one name: the second is refused, and checkpoints tell whose they are."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import foreword
from foreword.errors import TrainingError
from foreword.train import checkpoint
from foreword.train.folder import RUN_FILE, discard
from foreword.train.lock import LOCK_FILE, alone_in
from tests.train.test_run import Interrupt, Rows, changed, equal

SETTINGS = changed(steps=3, checkpoint_every=1)
HOLD = "import sys; from pathlib import Path; from foreword.train.lock import alone_in\n" + (
    "with alone_in(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
)


def test_a_second_run_in_one_folder_is_refused_and_changes_nothing(
    tiny: foreword.Backbone, rows: Rows, tmp_path: Path
) -> None:
    """Two runs under one name mixed their checkpoints, and a third resumed from the mixture."""
    folder = tmp_path / "run"
    foreword.train(tiny, rows, SETTINGS, folder=folder)
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    with (
        alone_in(folder),
        pytest.raises(TrainingError, match="another run is training in .*run; wait until it ends"),
    ):
        foreword.train(tiny, rows, SETTINGS, folder=folder)
    with alone_in(folder):
        discard(folder)
    assert before == {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_another_process_holds_a_folder_until_it_is_gone(tmp_path: Path) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    with pytest.raises(TrainingError, match="another run"), alone_in(tmp_path):
        pass
    other.kill()
    other.communicate()
    assert (tmp_path / LOCK_FILE).is_file()
    with alone_in(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_another_run_is_not_resumed_from(
    tiny: foreword.Backbone, rows: Rows, tmp_path: Path
) -> None:
    """Of more steps than the run's own, it was the newest, and pushed the run's own out."""
    ours, other = tmp_path / "ours", tmp_path / "other"
    with pytest.raises(SystemExit):
        foreword.train(tiny, rows, SETTINGS, folder=ours, callbacks=[Interrupt(3, SystemExit())])
    foreword.train(tiny, rows, changed(steps=3, checkpoint_every=1, seed=9), folder=other)
    shutil.copytree(other / "checkpoint-3", ours / "checkpoint-3")
    identity = json.loads((ours / RUN_FILE).read_text())["identity"]
    assert checkpoint.identity_of(ours / "checkpoint-2") == identity
    assert checkpoint.identity_of(ours / "checkpoint-3") != identity
    resumed = foreword.train(tiny, rows, SETTINGS, folder=ours, resume=True)
    assert equal(resumed.prefix, foreword.train(tiny, rows, SETTINGS).prefix)
    assert json.loads((ours / RUN_FILE).read_text())["identity"] == identity
    kept = {checkpoint.identity_of(place) for place in ours.glob("checkpoint-*")}
    assert kept == {identity}


def test_a_run_of_a_version_that_knew_no_identity_is_resumed(
    tiny: foreword.Backbone, rows: Rows, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit):
        foreword.train(
            tiny, rows, SETTINGS, folder=tmp_path, callbacks=[Interrupt(3, SystemExit())]
        )
    run = json.loads((tmp_path / RUN_FILE).read_text())
    del run["identity"]
    (tmp_path / RUN_FILE).write_text(json.dumps(run))
    for place in tmp_path.glob("checkpoint-*"):
        (place / checkpoint.IDENTITY).unlink()
        manifest = json.loads((place / checkpoint.MANIFEST).read_text())
        del manifest[checkpoint.IDENTITY]
        (place / checkpoint.MANIFEST).write_text(json.dumps(manifest))
    assert checkpoint.newest(tmp_path) == tmp_path / "checkpoint-2"
    resumed = foreword.train(tiny, rows, SETTINGS, folder=tmp_path, resume=True)
    steps = [entry["step"] for entry in resumed.history if "loss" in entry]
    assert steps == [1, 2, 3]
    assert equal(resumed.prefix, foreword.train(tiny, rows, SETTINGS).prefix)
    assert "identity" not in json.loads((tmp_path / RUN_FILE).read_text())
