"""Idle threads of OpenMP's pools, beside which the engine's would sleep after every small product."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import foreword
from foreword.engine import Engine, Request, Sampling
from foreword.engine import threads as engine_threads
from foreword.engine.threads import give_up_pool

TASKS = Path("/proc/self/task")

linux = pytest.mark.skipif(
    sys.platform != "linux" or "OpenMP" not in torch.__config__.parallel_info(),
    reason="torch has no pool of OpenMP's here",
)


def count() -> int:
    return len(list(TASKS.iterdir()))


def use_pool() -> None:
    torch.ones(2**20).sqrt_()


@pytest.fixture
def least() -> Iterator[int]:
    """The process's threads without a pool of this one, which has two more of them if it is used."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    give_up_pool()
    yield count()
    torch.set_num_threads(before)
    give_up_pool()


@linux
def test_a_threads_pool_is_gone_and_comes_back(least: int) -> None:
    use_pool()
    assert count() == least + 2
    assert give_up_pool()
    assert count() == least
    use_pool()
    assert count() == least + 2


@linux
def test_an_idle_engine_and_who_made_it_keep_no_pool(least: int, tiny: foreword.Backbone) -> None:
    use_pool()
    with Engine(tiny) as engine:
        engine.generate([Request((5, 6, 7), Sampling(max_tokens=2, temperature=0))])
        end = time.monotonic() + 30
        while count() > least + 1 and time.monotonic() < end:  # it listens a moment later
            time.sleep(0.01)
        assert least <= count() <= least + 1  # the engine's own thread


def test_without_openmp_there_is_nothing_to_give_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(_: object) -> object:
        return object()

    monkeypatch.setattr(engine_threads.ctypes, "CDLL", nothing)
    assert not give_up_pool()
    monkeypatch.setattr(engine_threads.sys, "platform", "other")
    assert not give_up_pool()
