"""`Tasks`: tasks of lm-eval, by name or from YAML files, with their data loaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from foreword.arguments import check_text, did_you_mean
from foreword.errors import DataError, first_line
from foreword.evaluate.harness.quiet import hushed
from foreword.reach import answers

INSTALL = "pip install 'foreword[lm-eval]'"

_YAML = (".yaml", ".yml")


@dataclass(frozen=True)
class Tasks:
    """Tasks, ready to be run.

    Attributes:
        spec: What they were asked for by.
        loaded: What lm-eval's task manager gives: ``tasks`` by name, and ``groups`` of them.
    """

    spec: str
    loaded: Mapping[str, Any]

    @property
    def by_name(self) -> Mapping[str, Any]:
        """lm-eval's own tasks."""
        found: Mapping[str, Any] = self.loaded["tasks"]
        return found


def check_installed() -> None:
    """Check that lm-eval can be imported.

    Raises:
        DataError: It is not installed.
    """
    if find_spec("lm_eval") is None:
        raise DataError(
            f"tasks of lm-eval need the package lm_eval, which is not installed; run: {INSTALL}"
        )


def tasks_named(spec: str) -> Tasks:
    """The tasks that words with commas between stand for.

    A word is a YAML file, a folder of such files, or the name of a task, a group or a tag that lm-eval
    brings; ``*`` in a name stands for anything, and a file or folder of the name comes first. Data are
    taken from this machine where they are, and else from the Hub, if it answers and offline mode
    (``HF_HUB_OFFLINE``) is off.

    Args:
        spec: The words.

    Raises:
        DataError: lm-eval is not installed, there is no such task, or its data cannot be loaded.
    """
    check_text("the tasks of lm-eval", spec, DataError)
    check_installed()
    words = [spec] if os.path.exists(spec) else [word.strip() for word in spec.split(",")]
    groups: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
    with hushed():
        for word in words:
            for kind, found in _loaded(word).items():
                groups[kind].update(found)
    for name, task in groups["tasks"].items():
        _refuse(name, task)
    return Tasks(spec, groups)


def _loaded(word: str) -> Mapping[str, Any]:
    """What one word stands for."""
    from lm_eval.tasks import TaskManager

    is_path = os.path.exists(word) or os.sep in word or word.endswith(_YAML)
    if not is_path:
        manager = TaskManager()
        names = manager.match_tasks([word])
        if not names:
            near = did_you_mean(word, manager.all_tasks)
            raise DataError(
                f"lm-eval has no task, group or tag called {word!r}, and there is no such file or "
                f"folder; `lm_eval ls tasks` shows those that there are{near}"
            )
    elif os.path.isdir(word):
        manager = TaskManager(include_path=word, include_defaults=False)
        names = manager.all_subtasks
        if not names:
            raise DataError(
                f"the folder {word} has no task of lm-eval; expected a .yaml file with `task: NAME`"
            )
    elif os.path.isfile(word):
        manager, names = TaskManager(include_defaults=False), [word]
    else:
        raise DataError(f"there is no file {word}; expected a YAML file of a task of lm-eval")
    return _with_data(word, lambda: manager.load(names))


def _with_data(word: str, load: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
    """Tasks with their data: from this machine, or from the Hub where that does not do."""
    try:
        with _offline():
            return load()
    except Exception as error:  # of lm-eval, of datasets, of YAML, or of a task's own code
        if not answers():
            raise DataError(_unloaded(word, error, reached=False)) from error
    try:
        return load()
    except Exception as error:
        raise DataError(_unloaded(word, error, reached=True)) from error


@contextmanager
def _offline() -> Iterator[None]:
    """In a block, the datasets library looks into files and its cache alone."""
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _unloaded(word: str, error: Exception, *, reached: bool) -> str:
    """What is said of tasks that do not load."""
    said = f"lm-eval cannot load {word!r}: {type(error).__name__}: {first_line(error)}"
    if Path(word).suffix in _YAML or os.path.isdir(word):
        return (
            f"{said}. A task on files of your own has `dataset_path: json` and names them under "
            "`dataset_kwargs: data_files:`, by paths from the working folder"
        )
    if reached:
        return f"{said}. Or give a YAML file of a task on your own data"
    return (
        f"{said}. Data that are not on this machine come from the Hub, which was not reached: run the "
        "command once where it answers, with HF_HUB_OFFLINE unset, or give a YAML file of a task on "
        "your own data"
    )


def _refuse(name: str, task: Any) -> None:
    """Refuse what a backbone under a prefix does not do.

    Raises:
        DataError: The task runs what the model wrote, or shows it more than text.
    """
    if getattr(task, "UNSAFE_CODE", False):
        raise DataError(
            f"the task {name!r} runs code that the model writes, which Foreword does not; serve the "
            "prefix, and let lm_eval run it against the server, with --confirm_run_unsafe_code"
        )
    if getattr(task, "MULTIMODAL", False):
        raise DataError(f"the task {name!r} is not of text alone; choose one that is")
