"""Finished runs on the disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from foreword.compare.store import Runs
from foreword.errors import StoreError

RUN = {"method": "lora", "rate": 0.004, "settings": {"rank": 2}}


def test_what_was_kept_is_found_again(tmp_path: Path) -> None:
    runs = Runs(tmp_path / "new" / "runs.jsonl")
    assert runs.find(RUN) is None
    runs.keep(RUN, {"held": 1.25})
    again = Runs(runs.path)
    assert again.find(RUN) == {"held": 1.25}
    assert again.find(dict(reversed(RUN.items()))) == {"held": 1.25}
    assert again.find({**RUN, "rate": 0.002}) is None


def test_a_line_that_was_cut_off_costs_that_run_alone(tmp_path: Path) -> None:
    runs = Runs(tmp_path / "runs.jsonl")
    runs.keep(RUN, {"held": 1.0})
    runs.keep({**RUN, "rate": 1}, {"held": 2.0})
    whole = runs.path.read_bytes()
    runs.path.write_bytes(whole[:-9])
    with runs.path.open("ab") as file:
        file.write(b"\n" + b"[" * 100_000 + b'\n{"run": []}\nnull\n')
    cut = Runs(runs.path)
    assert cut.find(RUN) == {"held": 1.0}
    assert cut.find({**RUN, "rate": 1}) is None
    cut.keep({**RUN, "rate": 2}, {"held": 3.0})
    again = Runs(runs.path)
    assert (again.find(RUN), again.find({**RUN, "rate": 2})) == ({"held": 1.0}, {"held": 3.0})


def test_a_file_of_something_else_is_told_of(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StoreError, match="cannot read"):
        Runs(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_to_is_told_of(tmp_path: Path) -> None:
    runs = Runs(tmp_path / "runs.jsonl")
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError):
        runs.keep(RUN, {})
