"""A run's folder: what the run is, so that only the same one resumes, and what it keeps there."""

from __future__ import annotations

import dataclasses
import json
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from foreword.errors import StoreError, TrainingError
from foreword.files import remove_leftovers, write_whole
from foreword.prefix import canonical_json
from foreword.train import checkpoint
from foreword.train.lock import LOCK_FILE, alone_in
from foreword.train.ranks import Ranks
from foreword.train.settings import TrainSettings
from foreword.train.trainer import ASIDE, BEST_FILE

RUN_FILE = "run.json"
WITHOUT_EFFECT = ("report_to",)
"""Settings that do not change what is learned. How often checkpoints are written does: that is when
the best prefix is chosen."""

PREFIX = "prefix"
"""The method of runs that say none."""

_DECIDED = ("task", "pooling")
"""Settings that training decides where they are not given; versions that did not know them had no
choice."""

_ONCE = {"group_by_length": False}
"""What a run did before there was a setting for it, where that is not the default."""

_DIGESTS = {
    "data": "rows",
    "start": "start (or another backbone)",
    "evaluation": "evaluation rows",
}


@contextmanager
def temporary(ranks: Ranks) -> Iterator[Path]:
    """A folder for a block, the same one for all processes."""
    folder = Path(ranks.first_does(lambda: tempfile.mkdtemp(prefix="foreword-")))
    try:
        yield folder
    finally:
        if ranks.first:
            shutil.rmtree(folder, ignore_errors=True)


class Prepared(NamedTuple):
    """A folder that is ready for a run.

    Attributes:
        begun: The checkpoint to go on from, or None.
        identity: What the run's checkpoints carry, so that another run's are told from them; None for a
            run that an earlier version began.
    """

    begun: Path | None
    identity: str | None


def prepare(folder: Path, run: Mapping[str, Any], numbers: int, *, resume: bool) -> Prepared:
    """Make the run's folder, and find the checkpoint to resume from.

    What cannot be known later is refused now: no room on the disk, or another run's checkpoints.

    Args:
        folder: The folder.
        run: What the run is: settings, digests of rows and start, number of processes.
        numbers: How many numbers are trained, or stand in the prefix.
        resume: Whether to go on with what is there.

    Raises:
        TrainingError: The run there is another one, or something else is in the folder.
        StoreError: The disk has too little room.
    """
    file = folder / RUN_FILE
    if resume and file.is_file():
        earlier = _read(file)
        _refuse_other_run(earlier, run)
        identity = earlier.get("identity")
        checkpoint.drop_unusable(folder, identity)
        shutil.rmtree(folder / ASIDE, ignore_errors=True)
        remove_leftovers(folder)
    else:
        clear(folder)
        identity = secrets.token_hex(16)
    named = {} if identity is None else {"identity": identity}
    write_whole(file, canonical_json({**run, **named}))
    needed = 12 * numbers * 4
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StoreError(
            f"{folder} has {free} bytes free; checkpoints of this training need {needed}. Free some "
            "space or choose another folder"
        )
    return Prepared(checkpoint.newest(folder) if resume else None, identity)


def clear(folder: Path) -> None:
    """Remove what a run left in its folder, the file that says what it is last, and nothing else.

    Raises:
        TrainingError: The folder holds something, but no run of ours.
    """
    if not folder.is_dir():
        return
    remove_leftovers(folder)
    if not any(entry.name != LOCK_FILE for entry in folder.iterdir()):
        return
    file = folder / RUN_FILE
    if not file.is_file():
        raise TrainingError(
            f"{folder} is not empty and holds no earlier run; choose another folder for checkpoints"
        )
    checkpoint.keep_newest(folder, 0)
    shutil.rmtree(folder / ASIDE, ignore_errors=True)
    (folder / BEST_FILE).unlink(missing_ok=True)
    file.unlink()


def discard(folder: Path) -> None:
    """Remove the folder of a run whose prefix is kept elsewhere; killed midway, it can be done again.

    One that another run has begun to use stays.
    """
    if not folder.is_dir():
        return
    with suppress(OSError, StoreError, TrainingError):
        with alone_in(folder):
            clear(folder)
        folder.rmdir()


def _read(file: Path) -> dict[str, Any]:
    try:
        earlier = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise TrainingError(f"cannot read {file}: {error}; start anew without --resume") from error
    if not isinstance(earlier, dict) or not isinstance(earlier.get("settings"), dict):
        raise TrainingError(f"{file} does not describe a run; start anew without --resume")
    return earlier


def _refuse_other_run(earlier: Mapping[str, Any], run: Mapping[str, Any]) -> None:
    """Refuse to go on with a run that would have learned something else.

    A setting that the earlier run's version did not know had the value that is now the default, or
    the one in `_ONCE`.
    """
    methods = earlier.get("method", PREFIX), run.get("method", PREFIX)
    if methods[0] != methods[1]:
        raise TrainingError(
            f"the run to resume trained by the method {methods[0]}, now it is {methods[1]}; start anew "
            "without --resume"
        )
    default = dataclasses.asdict(TrainSettings()) if methods[0] == PREFIX else {}
    before = {**default, **_ONCE, **earlier["settings"]}
    undecided = [name for name in _DECIDED if name not in earlier["settings"]]
    for name, value in {**default, **run["settings"]}.items():
        if name in undecided:
            continue
        if before.get(name) != value and name not in WITHOUT_EFFECT:
            raise TrainingError(
                f"the run to resume had {name}={before.get(name)!r}, now it is {value!r}; give the "
                "same settings, or start anew without --resume"
            )
    processes = earlier.get("processes", 1)
    if processes != run["processes"]:
        raise TrainingError(
            f"the run to resume had {processes} processes, now there are {run['processes']}; start as "
            "many, or start anew without --resume"
        )
    for name, what in _DIGESTS.items():
        if earlier.get(name, run[name]) != run[name]:
            raise TrainingError(f"the run to resume had other {what}; start anew without --resume")
