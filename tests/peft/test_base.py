"""What an export says of the base model that its config names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from foreword.cli.main import main
from foreword.peft.base import hint
from foreword.store import PrefixStore
from foreword.weights import embedded
from tests.conftest import byte_tokenizer, tiny_model


def test_names_that_peft_can_load_need_no_hint(tmp_path: Path) -> None:
    assert hint("HuggingFaceTB/SmolLM2-135M-Instruct") is None
    assert hint("gpt2") is None
    assert hint(str(tmp_path)) is None


def test_the_embedded_backbone_and_none_do() -> None:
    said = hint(embedded.NAME)
    assert said is not None
    assert str(embedded.converted_folder()) in said
    assert "base_model_name_or_path" in said
    assert "names no base model" in (hint(None) or "")


def test_the_command_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import foreword

    monkeypatch.setenv("FOREWORD_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    tiny_model().save_pretrained("tiny-model")
    byte_tokenizer().save_pretrained("tiny-model")
    for name, base in (("near", "tiny-model"), ("far", str(tmp_path / "tiny-model"))):
        backbone = foreword.load(base, dtype="float32")
        PrefixStore().save(name, backbone.capture("Name the food."))
        capfd.readouterr()
        assert main(["export", name, f"{name}-adapter", "--to", "peft"]) == 0
        said = "from the present working directory alone" in capfd.readouterr().err
        written = json.loads((tmp_path / f"{name}-adapter/adapter_config.json").read_text())
        assert said == (written["base_model_name_or_path"] == "tiny-model")
        assert said == (name == "near")
