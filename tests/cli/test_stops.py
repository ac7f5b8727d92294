"""Training that something stops, from outside: real signals and limits on a process of its own."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

import foreword
from foreword.cli.main import main
from foreword.store import PrefixStore
from tests.cli.test_main import place, train  # noqa: F401

ROOT = Path(__file__).parents[2]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
PATIENCE = 300
"""Seconds that a busy machine may take; nothing is timed."""
LONG = {"steps": "100000", "checkpoint_every": "3", "batch_size": "2"}
"""A run that does not end by itself while a test looks at it."""


Start = Callable[..., subprocess.Popen[str]]


def environment() -> dict[str, str]:
    """This package, wherever the process runs, and as many threads as here."""
    threads = str(torch.get_num_threads())
    return {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONPATH": str(ROOT / "src")}


def python(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *words], env=environment(), capture_output=True, text=True
    )


def heeding_interrupts() -> None:
    """Shells let what they start in the background ignore SIGINT, and its children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def start() -> Iterator[Start]:
    """Start the command in a process of its own, in the working directory; it ends with the test."""
    running: list[subprocess.Popen[str]] = []

    def run(words: list[str], launcher: Sequence[str] = ()) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *launcher, "-m", "foreword", *words],
            env=environment(),
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=heeding_interrupts,
        )
        running.append(process)
        return process

    yield run
    for process in running:
        if process.poll() is None:
            process.terminate()
        process.communicate()


def wait_for(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until, "nothing happened"
        time.sleep(0.01)


def has_checkpoint(name: str = "food") -> bool:
    return any(PrefixStore().folder.glob(f".runs/{name}/checkpoint-*"))


def same(one: str, two: str) -> bool:
    pairs = zip(PrefixStore().load(one).keys, PrefixStore().load(two).keys, strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, 130, "interrupted (Ctrl-C)"),
        (signal.SIGTERM, 143, "interrupted (SIGTERM)"),
        (signal.SIGKILL, -signal.SIGKILL, ""),
    ],
)
def test_a_stopped_process_keeps_its_prefix_and_resumes_bit_for_bit(
    place: Path,  # noqa: F811
    start: Start,
    number: signal.Signals,
    code: int,
    said: str,
) -> None:
    words = train(steps="120", checkpoint_every="3", batch_size="2")
    process = start(words)
    wait_for(process, has_checkpoint)
    process.send_signal(number)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == code, err
    assert "Traceback" not in err
    if said:
        assert said in err
        assert "kept as 'food'; to go on, give the same command with --resume" in err
        assert PrefixStore().load("food").meta.training["stopped"] == said
    else:
        assert "food" not in PrefixStore()
    assert main([*words, "--resume"]) == 0
    assert PrefixStore().load("food").meta.training["steps"] == 120
    assert main(train(steps="120", batch_size="2", name="whole")) == 0
    assert same("food", "whole")
    assert not has_checkpoint()


def test_sigterm_before_training_is_one_word(place: Path) -> None:  # noqa: F811
    """While the backbone loads, nothing is there to keep."""
    code = (
        "import os, signal, sys, foreword.cli.options as o; from foreword.cli.main import main; "
        "o.load = lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM); sys.exit(main(sys.argv[1:]))"
    )
    done = python(code, *train())
    assert done.returncode == 143
    assert done.stderr.strip().endswith("interrupted")
    assert "Traceback" not in done.stderr


def test_a_disk_that_takes_no_checkpoint_takes_the_prefix(place: Path) -> None:  # noqa: F811
    """Files may have 12,000 bytes, which the prefix has not and the optimiser's state has."""
    limit = "import resource as r, signal, sys; r.setrlimit(r.RLIMIT_FSIZE, (12000, 12000)); "
    code = limit + "from foreword.cli.main import run; run()"
    done = python(code, *train(steps="9", checkpoint_every="3"))
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    words = " ".join(done.stderr.split())
    assert "training stopped after 3 of 9 steps: cannot write" in words
    assert "kept as 'food'; to go on, give the same command with --resume" in words
    assert PrefixStore().load("food").meta.training["steps"] == 3
    assert not list(PrefixStore().folder.glob(".runs/food/.aside/*"))
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_a_full_disk_that_does_not_even_take_the_prefix_says_so(
    place: Path,  # noqa: F811
    call,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from foreword.errors import StoreError
    from foreword.train import trainer

    def full(*_: object, **__: object) -> None:
        raise StoreError("cannot write x: the disk is full")

    monkeypatch.setattr(trainer, "publish", full)
    monkeypatch.setattr(PrefixStore, "save", full)
    code, _, err = call(*train(checkpoint_every="2"))
    assert code == 1
    assert "stopped after 2 of 4 steps: cannot write x: the disk is full. The best prefix so" in err
    assert "could not be kept: cannot write x" in err


def test_a_nan_loss_keeps_the_last_good_prefix(place: Path, call) -> None:  # noqa: F811
    code, _, err = call(*train(lr="3e38", warmup="0"))
    assert code == 1
    assert "at step 3; train again with a lower learning rate (--lr)" in err
    assert "kept as 'food'" in err
    assert "--resume" not in err
    assert PrefixStore().load("food").first_not_finite() is None


# -- names of what a stop keeps ----------------------------------------------------------------------


@pytest.fixture
def stopping(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run a command that Ctrl-C stops after its third step."""
    from foreword.cli.bar import TrainingBar

    def interrupted(self: object, args: object, state, control: object, **_: object) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt

    def run(*words: str) -> int:
        with monkeypatch.context() as patch:
            patch.setattr(TrainingBar, "on_step_end", interrupted, raising=False)
            return main(words)

    return run


def test_a_run_that_goes_on_from_its_own_name_is_not_stopped_over_its_start(
    place: Path,  # noqa: F811
    stopping: Callable[..., int],
) -> None:
    """The stopped prefix took the place of the start, so that --resume met another start."""
    assert stopping(*train()) == 130
    begun = PrefixStore().load("food").digest
    words = train("--init", "food", "--overwrite", checkpoint_every="2", steps="5")
    assert stopping(*words) == 130
    assert PrefixStore().load("food").digest == begun
    assert PrefixStore().load("food-stopped").meta.parents == (begun,)
    assert main([*words, "--resume"]) == 0
    finished = PrefixStore().load("food")
    assert finished.meta.training["stopped"] is None
    assert finished.meta.parents == (begun,)


def test_a_stop_takes_no_name_that_a_finished_prefix_has(
    place: Path,  # noqa: F811
    stopping: Callable[..., int],
) -> None:
    assert main(train()) == main(train(name="food-stopped")) == 0
    before = [PrefixStore().load(name).digest for name in ("food", "food-stopped")]
    assert stopping(*train("--overwrite")) == 130
    assert [PrefixStore().load(name).digest for name in ("food", "food-stopped")] == before
    assert PrefixStore().load("food-stopped-2").meta.training["steps"] == 3
    file = str(PrefixStore().path("food-stopped-2"))
    assert stopping(*train("--overwrite", "--init", file)) == 130
    assert PrefixStore().load("food-stopped-3").meta.training["steps"] == 3


def test_a_stopped_demo_gives_advice_that_can_be_followed(
    place: Path,  # noqa: F811
    stopping: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """It said to go on with --resume, which the demo has not."""
    monkeypatch.setattr("foreword.cli.demo.TRAINING", "data.jsonl")
    assert stopping("demo", "--backbone", "tiny-model", "--steps", "5", "--inputs", "1") == 130
    said = " ".join(capfd.readouterr().err.split())
    assert "kept as 'e2e-demo'; the same command starts the demo afresh" in said
    assert "--resume" not in said


# -- several processes -------------------------------------------------------------------------------


def test_torchrun_trains_and_one_process_keeps(
    place: Path,  # noqa: F811
    start: Start,
) -> None:
    process = start(train(batch_size="2", steps="5"), TORCHRUN)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert err.count("step 5/5") == 1
    assert main(train(batch_size="4", steps="5", name="one")) == 0
    one, two = PrefixStore().load("one"), PrefixStore().load("food")
    for mine, theirs in zip(one.keys, two.keys, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)
    assert sorted(PrefixStore()) == ["food", "one"]


def test_sigterm_stops_all_processes_at_one_step_and_they_resume(
    place: Path,  # noqa: F811
    start: Start,
) -> None:
    process = start(train(**LONG), TORCHRUN)
    wait_for(process, has_checkpoint)
    process.terminate()
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert "interrupted (SIGTERM). The best prefix so far is kept as 'food'" in err
    kept = PrefixStore().load("food")
    assert kept.meta.training["stopped"] == "interrupted (SIGTERM)"
    words = train("--resume", **LONG)
    again = start(words, TORCHRUN)
    newest = max(path.name for path in PrefixStore().folder.glob(".runs/food/checkpoint-*"))
    wait_for(again, lambda: not (PrefixStore().folder / ".runs/food" / newest).exists())
    again.terminate()
    again.communicate(timeout=PATIENCE)
    assert PrefixStore().load("food").meta.training["steps"] > kept.meta.training["steps"]


def children(process: subprocess.Popen[str]) -> list[int]:
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(word) for word in listed.read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the processes in /proc")
def test_a_lost_process_stops_the_others_which_keep_the_prefix(
    place: Path,  # noqa: F811
    start: Start,
) -> None:
    process = start(train(**LONG), TORCHRUN)
    wait_for(process, has_checkpoint)
    ranks = {}
    for number in children(process):
        words = Path(f"/proc/{number}/environ").read_bytes().split(b"\0")
        ranks |= {word: number for word in words if word.startswith(b"RANK=")}
    os.kill(ranks[b"RANK=1"], signal.SIGKILL)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert "The best prefix so far is kept as 'food'" in err
    assert foreword.PrefixStore().load("food").meta.training["stopped"] is not None
