"""Two processes on gloo train what one process trains with the doubled batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import foreword
from foreword.backbone.load import _own_device
from foreword.data.encode import IGNORED, Encoded
from foreword.errors import TrainingError
from foreword.train.ranks import Ranks
from foreword.train.shares import BLANK, FilledUp, batches
from tests.train.together import CASES, LAST, ROWS, backbone, settings

ROOT = Path(__file__).parents[2]
ROUNDING = 5e-5
"""What other sums of the same numbers may make of a trained prefix, by the processor: up to 1.3e-5."""
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def run_on_two(module: str, out: Path) -> None:
    """Run a module on two processes, which write to a folder."""
    done = subprocess.run(
        [*TORCHRUN, "-m", module, str(out)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what two processes trained."""
    out = tmp_path_factory.mktemp("together")
    run_on_two("tests.train.together", out)
    return out


def outcome(out: Path, rank: int, name: str) -> Any:
    return json.loads((out / f"errors-{rank}.json").read_text())[name]


def tensors(prefix: foreword.Prefix) -> list[torch.Tensor]:
    return [*prefix.keys, *prefix.values]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_what_one_does_with_the_doubled_batch(trained: Path, case: str) -> None:
    """Targets are unequal across processes and steps: a mean of means would be another prefix."""
    one = foreword.train(backbone(), ROWS, settings(4, **CASES[case]), evaluation=ROWS[:3])
    two = foreword.load_prefix(trained / f"{case}.safetensors")
    for mine, theirs in zip(tensors(one.prefix), tensors(two), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=ROUNDING)
    history = outcome(trained, 0, case)
    assert history == outcome(trained, 1, case), "both chose by the same figures"
    for mine, theirs in zip(one.history, history, strict=True):
        assert mine == pytest.approx(theirs, abs=ROUNDING)


def test_the_comparison_would_see_a_row_counted_twice() -> None:
    """Without blank rows, the last step of an epoch gets rows from the start once more."""
    one = foreword.train(backbone(), ROWS, settings(4)).prefix
    more = foreword.train(backbone(), [*ROWS, ROWS[0]], settings(4)).prefix
    pairs = zip(tensors(one), tensors(more), strict=True)
    assert max(float((a - b).abs().max()) for a, b in pairs) > 20 * ROUNDING


def test_the_first_writes_and_all_keep_their_random_state(trained: Path) -> None:
    folder = trained / "grouped"
    names = {"best.safetensors", "run.json", "checkpoint-6", f"checkpoint-{LAST}"}
    assert {path.name for path in folder.iterdir()} == names
    manifest = json.loads((folder / f"checkpoint-{LAST}" / "manifest.json").read_text())
    assert {"rng_state_0.pth", "rng_state_1.pth", "model.safetensors"} <= set(manifest)
    assert json.loads((folder / "run.json").read_text())["processes"] == 2


def test_two_processes_resume_bit_for_bit(trained: Path) -> None:
    whole, resumed = (
        foreword.load_prefix(trained / f"{name}.safetensors") for name in ("grouped", "resumed")
    )
    assert all(torch.equal(a, b) for a, b in zip(tensors(whole), tensors(resumed), strict=True))


def test_another_number_of_processes_does_not_resume(trained: Path) -> None:
    with pytest.raises(TrainingError, match="had 2 processes, now there are 1"):
        foreword.train(
            backbone(), ROWS, settings(2), evaluation=ROWS[:3], folder=trained / "grouped",
            resume=True,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "message", "steps"),
    [
        ("other-rows", "process 1 of 2 read other training rows than process 0", None),
        ("nan", "at step 4", 3),
        ("nan-evaluation", "the NLL of the evaluation rows became nan after step 3", 3),
        ("full", "the disk is full", 6),
    ],
)
def test_what_goes_wrong_on_one_process_stops_both(
    trained: Path, name: str, message: str, steps: int | None
) -> None:
    for rank in (0, 1):
        found, done = outcome(trained, rank, name)
        assert message in found
        assert done == steps


def test_shares_are_equal_and_hold_every_row_once() -> None:
    order = FilledUp([4, 2, 0, 1, 3], 4, blank=5)  # type: ignore[arg-type]
    assert list(order) == [4, 2, 0, 1, 3, 5, 5, 5]
    assert len(order) == 8
    rows = [Encoded([number], [number]) for number in range(5)]
    shares = [list(batches(rows, 2, index, 2)) for index in (0, 1)]
    assert shares == [[rows[0:2], rows[4:5]], [rows[2:4], [BLANK]]]
    assert set(BLANK.labels) == {IGNORED}


def test_one_process_asks_nobody() -> None:
    ranks = Ranks(torch.device("cpu"))
    assert (ranks.count, ranks.first, ranks.gathered(3), ranks.any(True)) == (1, True, [3], True)
    with ranks.stopping_together():
        assert ranks.first_does(lambda: 4) == ranks.all_do(lambda: 4) == 4


def test_launches_that_would_shard_the_prefix_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(TrainingError, match="asks for FSDP.*fully_shard"):
        foreword.train(backbone(), ROWS, settings(2))


def test_each_process_of_a_machine_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    for given, taken in (("cuda", "cuda:3"), ("cuda:1", "cuda:1"), ("cpu", "cpu")):
        assert _own_device(torch.device(given)) == torch.device(taken)
    monkeypatch.delenv("LOCAL_RANK")
    assert _own_device(torch.device("cuda")) == torch.device("cuda")
