"""FSDP2 (`fully_shard`) over a backbone whose prefix is trained: what one whole model gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import foreword
from tests.conftest import tiny_model
from tests.train.sharded import batch, start, steps
from tests.train.test_ranks import run_on_two, tensors
from tests.train.together import ROWS, backbone, settings


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what two processes measured."""
    folder = tmp_path_factory.mktemp("sharded")
    run_on_two("tests.train.sharded", folder)
    return folder


def measured(out: Path, rank: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / f"{rank}.json").read_text())
    return found


def close(one: foreword.Prefix, two: foreword.Prefix, atol: float = 1e-5) -> None:
    for mine, theirs in zip(tensors(one), tensors(two), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=atol)


def test_an_attached_prefix_trains_over_shards_as_over_the_whole(out: Path) -> None:
    """The prefix is the root's, and its gradient the mean over both processes' rows."""
    model = tiny_model()
    trained = foreword.attach_trainable(model, start())
    whole = steps(model, [batch(0), batch(1)])
    ranks = [measured(out, rank) for rank in (0, 1)]
    assert all(rank["is_sharded"] for rank in ranks)
    means = [sum(pair) / 2 for pair in zip(*(rank["losses"] for rank in ranks), strict=True)]
    assert means == pytest.approx(whole["losses"], abs=1e-5)
    for rank in (0, 1):
        pairs = zip(ranks[rank]["gradients"], whole["gradients"], strict=True)
        for mine, theirs in pairs:
            torch.testing.assert_close(torch.tensor(mine), torch.tensor(theirs), rtol=0, atol=1e-5)
        close(foreword.load_prefix(out / f"attached-{rank}.safetensors"), trained.prefix())
    alone = steps(_attached(), [batch(0)])
    assert max(abs(a - b) for a, b in zip(alone["losses"], means, strict=True)) > 1e-2


def _attached() -> Any:
    model = tiny_model()
    foreword.attach_trainable(model, start())
    return model


def test_train_takes_a_sharded_backbone(out: Path) -> None:
    one = foreword.train(backbone(), ROWS, settings(4), evaluation=ROWS[:3])
    for rank in (0, 1):
        two = foreword.load_prefix(out / f"trained-{rank}.safetensors")
        close(one.prefix, two)
        assert two.meta.fingerprint == one.prefix.meta.fingerprint
        for mine, theirs in zip(one.history, measured(out, rank)["history"], strict=True):
            assert mine == pytest.approx(theirs, abs=1e-5)
