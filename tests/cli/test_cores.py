"""A busy machine is named, since threads that wait for each other become many times slower on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from foreword.cli import cores as module
from foreword.cli.cores import Pacemaker, others, warn_of_others


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda _: {0, 2}, raising=False)


def watched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, before: list[str], after: list[str]
) -> None:
    """Let the counts be `before`, and after the look `after`."""
    file = tmp_path / "stat"
    file.write_text("\n".join(before))
    monkeypatch.setattr(module, "STATISTICS", file)
    monkeypatch.setattr(module.time, "sleep", lambda _: file.write_text("\n".join(after)) and None)


STAT = ["cpu  0 0 0 0 0", "cpu0 100 0 10 500 5", "cpu1 0 0 0 0 0", "cpu2 7 0 0 900 0"]
ONE_BUSY = ["cpu  0 0 0 0 0", "cpu0 125 0 10 500 5", "cpu1 99 0 0 0 0", "cpu2 7 0 0 923 2"]
IDLE = ["cpu  0 0 0 0 0", "cpu0 101 0 10 524 5", "cpu1 99 0 0 0 0", "cpu2 7 0 0 925 0"]


def test_cores_that_others_use_are_counted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    watched(monkeypatch, tmp_path, STAT, ONE_BUSY)
    assert others() == pytest.approx(1.0)
    watched(monkeypatch, tmp_path, STAT, ONE_BUSY)
    warn_of_others()
    said = capfd.readouterr().err
    assert "other programs use 1.0 of the 2 cores" in said
    assert "OMP_NUM_THREADS=1" in said


def test_nothing_is_said_of_idle_cores_or_chosen_threads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    watched(monkeypatch, tmp_path, STAT, IDLE)
    warn_of_others()
    watched(monkeypatch, tmp_path, STAT, ONE_BUSY)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    warn_of_others()
    assert capfd.readouterr().err == ""


def test_where_it_cannot_be_told_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "STATISTICS", tmp_path / "none")
    assert others() is None
    warn_of_others()
    assert capfd.readouterr().err == ""


def test_steps_that_become_slow_are_told_of_once(capfd: pytest.CaptureFixture[str]) -> None:
    pace, clock = Pacemaker(), 0.0
    for seconds in (1.0,) * 8 + (4.0,) * 8 + (9.0,) * 12:
        clock += seconds
        pace.step(clock)
    said = capfd.readouterr().err
    assert said.count("steps take") == 1
    assert "where they took 1.0 s" in said
