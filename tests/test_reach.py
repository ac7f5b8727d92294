"""A Hub that is out of reach is one error at once: nothing is tried again."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import datasets
import huggingface_hub
import pytest

import foreword
from foreword.cli.options import BackboneOptions, load
from foreword.data import read_rows
from foreword.errors import BackboneError, DataError
from foreword.reach import answers, check_path, is_out_of_reach, out_of_reach

NOWHERE = "http://127.0.0.1:9"
"""Nobody listens there."""


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Offline mode is off, the Hub is nowhere, and what is slept is only written down."""
    slept: list[float] = []
    for module in (huggingface_hub.constants, datasets.config):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", NOWHERE)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", NOWHERE)
    monkeypatch.setattr("time.sleep", slept.append)
    return slept


def test_a_data_set_is_asked_for_once(naps: list[float]) -> None:
    """It was tried six times, for half a minute."""
    with pytest.raises(DataError, match="'nobody/nothing' is neither a file, nor a shipped set"):
        read_rows("nobody/nothing")
    assert naps == []
    with pytest.raises(DataError, match="the Hub does not answer, and its cache has no copy"):
        read_rows("nobody/nothing:test")
    assert datasets.config.HF_HUB_OFFLINE is False


def test_a_backbone_is_asked_for_once(naps: list[float]) -> None:
    """Each of two files of its tokenizer was tried six times, for most of a minute."""
    with pytest.raises(BackboneError, match="cannot load backbone 'nobody/nothing'") as error:
        foreword.load("nobody/nothing")
    assert naps == []
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name", ["./minilm", "/no/such", "~/x", "../x", "a/b/c", "minilm/", "models\\minilm", "~"]
)
def test_a_path_that_leads_nowhere_is_no_name_on_the_hub(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Hub was asked, and after seconds said what a repo id may look like."""
    monkeypatch.setattr(huggingface_hub, "get_session", pytest.fail)
    monkeypatch.setenv("HOME", "/no/home")
    with pytest.raises(BackboneError, match="there is no such folder; check the path") as error:
        foreword.load(name)
    assert str(error.value).startswith(f"cannot load backbone {name!r}: ")
    with pytest.raises(BackboneError, match="there is no such folder; check the path"):
        BackboneOptions(backbone=name)


@pytest.mark.parametrize("name", ["minilm", "owner/minilm", "owner/mini.lm", "."])
def test_what_may_be_a_name_or_is_there_is_passed_on(name: str) -> None:
    check_path(name)


def test_a_home_folder_is_named_as_shells_spell_it_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "minilm").mkdir()
    with pytest.raises(BackboneError, match=f"by shells alone, so give {tmp_path}/minilm"):
        foreword.load("~/minilm")


def test_a_prefix_whose_backbone_was_moved_asks_where_it_is(tiny: foreword.Backbone) -> None:
    prefix = tiny.capture("<s>abc")
    moved = prefix.with_meta(backbone="./minilm")
    with pytest.raises(
        BackboneError, match=r"the prefix was made on it\. Say where it is now: --b"
    ):
        BackboneOptions().load(moved)


def test_a_command_asks_before_it_imports_anything_large(
    naps: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_module("foreword.backbone"), "load", pytest.fail)
    with pytest.raises(BackboneError, match="'nobody/nothing': there is no such folder, the Hub"):
        load("nobody/nothing", revision=None)
    assert naps == []


def test_what_is_in_the_cache_needs_no_answer(
    naps: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: "config.json")
    assert not is_out_of_reach("somebody/something")


def test_what_is_no_name_on_the_hub_is_not_looked_for(naps: list[float]) -> None:
    assert not is_out_of_reach("no/name/of/a/model")


def test_offline_mode_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub, "get_session", pytest.fail)
    assert not out_of_reach()
    assert not answers()
