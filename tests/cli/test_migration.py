"""The migration guide is true: its commands and its Python run in order, on a tiny model."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

import foreword
from foreword.cli.main import VERBS, main
from foreword.store import PrefixStore
from tests.conftest import MEMORY
from tests.peft.reference import PEFTS_OWN

pytestmark = PEFTS_OWN
PAGE = Path(__file__).parents[2] / "docs/how-to/peft.md"
GUIDE = PAGE.read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(python|console)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def test_its_blocks_run(
    tmp_path: Path,
    tiny_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The guide's names are names in the working folder, so nothing is put in their place."""
    tiny_folder.rename(tmp_path / "my-model")
    rows = "".join(json.dumps(row) + "\n" for row in MEMORY)
    (tmp_path / "train.jsonl").write_text(rows)
    monkeypatch.setenv("FOREWORD_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    ran = []
    for kind, text in BLOCK.findall(GUIDE):
        if kind == "python":
            exec(compile(text, "docs/how-to/peft.md", "exec"), names)
            continue
        for line in text.splitlines():
            assert line.startswith("$ foreword "), f"not a command of foreword: {line}"
            words = shlex.split(line)[2:]
            assert main(words) == 0, capfd.readouterr().err
            ran.append(words[0])
    assert set(ran) >= {"import", "inspect", "generate", "export"}
    assert set(ran) <= {verb.__name__.rstrip("_") for verb in VERBS}
    assert "PREFIX_TUNING, 8 virtual tokens" in capfd.readouterr().out
    imported = names["prefix"]
    assert isinstance(imported, foreword.Prefix)
    assert PrefixStore().load("mine").keys[0].equal(imported.keys[0])
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert Path("back", file).read_bytes() == Path("my-adapter", file).read_bytes()


def test_every_name_of_foreword_that_it_mentions_exists() -> None:
    for name in re.findall(r"foreword\.(\w+)", GUIDE):
        assert hasattr(foreword, name), name
    fields = foreword.TrainSettings.__dataclass_fields__
    for arguments in re.findall(r"TrainSettings\(([^)]*)\)", GUIDE):
        for field in re.findall(r"(\w+)=", arguments):
            assert field in fields, field


def test_its_links_are_there() -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", GUIDE)
    assert links
    assert [link for link in links if not (PAGE.parent / link).exists()] == []
