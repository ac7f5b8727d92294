"""Fixtures of the command line: a call, and a folder with a tiny backbone and trained prefixes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import foreword
from foreword.cli.main import main
from foreword.store import PrefixStore
from tests.conftest import MEMORY, byte_tokenizer, tiny_model

Call = Callable[..., tuple[int, str, str]]
"""Runs `foreword` with some arguments: its exit status, and what it wrote on both streams."""

SETTINGS = foreword.TrainSettings(
    prompt="{mr} ->", target=" {ref}", length=4, steps=2, init_text="Say what it is."
)


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Call:
    def run(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main(arguments)
        out, err = capfd.readouterr()
        return code, out, err

    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny-model, and a store with e2e, formal and toxic-1, which began alike."""
    folder = tmp_path_factory.mktemp("trained")
    tiny_model().save_pretrained(folder / "tiny-model")
    byte_tokenizer().save_pretrained(folder / "tiny-model")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        backbone = foreword.load("tiny-model", dtype="float32")
        for number, name in enumerate(("e2e", "formal", "toxic-1")):
            rows = MEMORY[4 * number : 4 * number + 4]
            prefix = foreword.train(backbone, rows, SETTINGS).prefix
            PrefixStore(folder / "store").save(name, prefix)
    return folder


@pytest.fixture
def composable(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `trained`, which is the working folder and has the user's store."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("FOREWORD_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    return tmp_path
