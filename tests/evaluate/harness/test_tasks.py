"""Tasks of lm-eval, by name and by path, and those that are not to be had."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import datasets
import pytest

from foreword.errors import DataError
from foreword.evaluate.harness import tasks_named
from tests.evaluate.harness.written import CHOICE, ROWS, WRITE, written


@pytest.fixture
def few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """lm-eval brings two tasks in place of its thousands, one of them on data of the Hub."""
    from lm_eval.tasks import TaskManager, manager

    brought = tmp_path / "brought"
    brought.mkdir()
    written(brought, "known", CHOICE, tag="two")
    written(brought, "hub", CHOICE, dataset_path="nobody/nothing", dataset_kwargs=None)
    monkeypatch.setattr(manager, "__file__", str(brought / "manager.py"))
    assert TaskManager().all_tasks == ["hub", "known", "two"]
    monkeypatch.chdir(tmp_path)
    return brought


def test_tasks_are_found_by_name_and_by_path(few: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    written(own, "mine", WRITE)
    written(own, "other", CHOICE)
    names = {
        "known": ["known"],
        "two": ["known"],
        "kn*": ["known"],
        "own": ["mine", "other"],
        "own/mine.yaml": ["mine"],
        "known, own/mine.yaml": ["known", "mine"],
    }
    for spec, wanted in names.items():
        assert sorted(tasks_named(spec).by_name) == wanted


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (
            "knwon",
            "no task, group or tag called 'knwon', and there is no such file or folder.*'known'",
        ),
        (
            "hub",
            r"cannot load 'hub': .*not on this machine come from the Hub, which was not reached",
        ),
        ("own/no.yaml", "there is no file own/no.yaml; expected a YAML file"),
        (".", "the folder . has no task of lm-eval"),
        ("bad.yaml", r"cannot load 'bad.yaml': .*names them under `dataset_kwargs: data_files:`"),
        ("lost.yaml", r"cannot load 'lost.yaml': FileNotFoundError"),
    ],
)
def test_tasks_that_are_not_to_be_had(
    few: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, spec: str, said: str
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    if spec == "bad.yaml":
        Path(spec).write_text("task: [", encoding="utf-8")
    if spec == "lost.yaml":
        lost = {"data_files": {"test": "nowhere.json"}}
        written(place, "lost", CHOICE, dataset_kwargs=lost)
    with pytest.raises(DataError, match=said):
        tasks_named(spec)
    assert datasets.config.HF_HUB_OFFLINE


def test_the_hub_is_asked_where_it_answers(few: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """First this machine, then the Hub; after it, offline mode is what it was."""
    modes = []

    def loaded(*given: Any, **how: Any) -> Any:
        modes.append(datasets.config.HF_HUB_OFFLINE)
        if datasets.config.HF_HUB_OFFLINE:
            raise ConnectionError("offline")
        return datasets.DatasetDict({"test": datasets.Dataset.from_list(ROWS)})

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets, "load_dataset", loaded)
    monkeypatch.setattr(import_module("foreword.evaluate.harness.tasks"), "answers", lambda: True)
    assert [*tasks_named("hub").by_name] == ["hub"]
    assert modes == [True, False]
    assert datasets.config.HF_HUB_OFFLINE is False
    monkeypatch.setattr(datasets, "load_dataset", lambda **how: 1 / 0)
    with pytest.raises(
        DataError, match=r"ZeroDivisionError: division by zero. Or give a YAML file"
    ):
        tasks_named("hub")


def test_a_task_that_runs_code_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "code", CHOICE, unsafe_code=True)
    with pytest.raises(
        DataError, match="'code' runs code that the model writes, which Foreword does"
    ):
        tasks_named(str(path))


def test_a_task_of_more_than_text_is_refused(few: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.api.task import ConfigurableTask

    monkeypatch.setattr(ConfigurableTask, "MULTIMODAL", True, raising=False)
    with pytest.raises(DataError, match="the task 'known' is not of text alone"):
        tasks_named("known")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(DataError, match=r"run: pip install 'foreword\[lm-eval\]'"):
        tasks_named("known")
