"""The Python in the pages on ways to run and on other trainers runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

import foreword
from tests.conftest import byte_tokenizer, tiny_model

DOCS = Path(__file__).parents[2] / "docs/how-to"
pytestmark = [
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:'pin_memory' argument:UserWarning"),
]


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE)


def lines_of_tables(page: str) -> list[str]:
    """The code in the second column of each row."""
    return re.findall(r"^\|[^|]+\| `([^`]+\(.*)` \|", (DOCS / page).read_text(), re.MULTILINE)


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Names for the code: `foreword.load` gives a tiny backbone, and files go to a folder."""
    monkeypatch.chdir(tmp_path)
    tiny_model(max_position_embeddings=512).save_pretrained("tiny")  # TRL loads its reference anew
    loaded = AutoModelForCausalLM.from_pretrained("tiny").eval().requires_grad_(False)
    tiny = foreword.Backbone(loaded, byte_tokenizer(), name="tiny")
    monkeypatch.setattr(foreword, "load", lambda name, dtype: tiny)
    return {"__name__": "page", "assistant": tiny_model(seed=2)}


def run(code: str, names: dict[str, Any]) -> None:
    exec(compile(code, "page", "exec"), names)


def test_ways_to_run(names: dict[str, Any]) -> None:
    setup, *rest = blocks("ways-to-run.md")
    run(setup, names)
    lines = lines_of_tables("ways-to-run.md")
    assert len(lines) == 9
    for line in lines:
        run(line, names)
    for block in rest:
        run(block, names)
    assert names["second"].shape[1] > names["turn"].shape[1]
    assert names["compiled_logits"].shape[:2] == names["two"]["input_ids"].shape
    assert names["logits"].shape[1] == names["packed"].shape[1]


def test_own_trainer(names: dict[str, Any]) -> None:
    for block in blocks("own-trainer.md"):
        run(block, names)
    saved = foreword.load_prefix("mine.safetensors")
    assert saved.length == names["start"].length
    assert saved.digest != names["start"].digest
    assert names["trainer"].state.global_step == 4
    for line in lines_of_tables("own-trainer.md"):
        run(line, names)


def test_serving(names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    code = next(block for block in blocks("serving.md") if "Engine" in block)
    run(code, names)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines if line.strip()][-1] in ("length", "stop")
