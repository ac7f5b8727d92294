"""`foreword import` and `foreword export`, on a tiny backbone, without PEFT."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import foreword
from foreword.store import PrefixStore

LENGTH, WIDTH = 4, 2 * 3 * 2 * 12


@pytest.fixture
def place(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with tiny-model and the checkpoint adapter; the store is below it."""
    monkeypatch.setenv("FOREWORD_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "adapter").mkdir()
    config = {
        "base_model_name_or_path": "tiny-model",
        "peft_type": "PREFIX_TUNING",
        "task_type": "CAUSAL_LM",
        "num_virtual_tokens": LENGTH,
        "num_layers": 3,
        "num_attention_heads": 2,
        "token_dim": 24,
    }
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    tensors = {"prompt_embeddings": torch.randn(LENGTH, WIDTH)}
    save_file(tensors, tmp_path / "adapter/adapter_model.safetensors", {"format": "pt"})
    return tmp_path


def test_there_and_back(place: Path, call) -> None:
    """The checkpoint names its model, so --backbone is not needed."""
    code, out, err = call("import", "adapter", "--name", "mine")
    assert (code, out) == (
        0,
        "mine: PREFIX_TUNING, 4 virtual tokens, 576 parameters, on tiny-model\n",
    ), err
    assert PrefixStore().load("mine").meta.positions == "offset"
    code, out, err = call("inspect", "mine")
    assert "offset: the prefix lies at 0..P-1, text starts at P" in out
    code, out, err = call("generate", "mine", "name[Zizzi]", "--max-new-tokens", "3")
    assert code == 0, err
    code, out, err = call("export", "mine", "--to", "peft", "back")
    assert (code, out) == (0, "mine: 4 virtual tokens, written to back\n"), err
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        found, given = ((place / folder / file).read_bytes() for folder in ("back", "adapter"))
        same = json.loads(found) == json.loads(given) if file.endswith("json") else found == given
        assert same


def test_taken_names_and_folders(place: Path, call) -> None:
    assert call("import", "adapter", "--name", "mine")[0] == 0
    code, _, err = call("import", "adapter", "--name", "mine")
    assert code == 1
    assert "already in" in err
    assert call("import", "adapter", "--name", "mine", "--overwrite")[0] == 0
    code, _, err = call("export", "mine", "--to", "peft", "adapter")
    assert code == 1
    assert "adapter is not empty" in err
    assert call("export", "mine", "--to", "peft", "adapter", "--overwrite")[0] == 0


def test_a_checkpoint_that_names_no_model(place: Path, call) -> None:
    path = place / "adapter/adapter_config.json"
    config = {**json.loads(path.read_text()), "base_model_name_or_path": None}
    path.write_text(json.dumps(config))
    code, _, err = call("import", "adapter", "--name", "mine")
    assert code == 1
    assert "does not name its base model; name it with --backbone" in err
    assert call("import", "adapter", "--name", "mine", "--backbone", "tiny-model")[0] == 0


def test_the_named_revision_goes_with_the_named_model(place: Path, call) -> None:
    """A folder has no revisions, so that this one is asked for shows in nothing but the meta."""
    path = place / "adapter/adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "revision": "v2"}))
    assert call("import", "adapter", "--name", "mine")[0] == 0
    assert PrefixStore().load("mine").meta.revision == "v2"
    assert call("import", "adapter", "--name", "own", "--backbone", "tiny-model")[0] == 0
    assert PrefixStore().load("own").meta.revision is None


def test_the_export_is_measured_in_float32_unless_told_otherwise(place: Path, call) -> None:
    """A rotation that is measured in bfloat16 is coarser."""
    backbone = foreword.load("tiny-model", dtype="float32")
    prefix = backbone.capture(list(range(40, 60)))
    PrefixStore().save("text", prefix)
    assert call("export", "text", "--to", "peft", "a")[0] == 0
    assert call("export", "text", "--to", "peft", "b", "--dtype", "bfloat16")[0] == 0
    exact = backbone.moved(prefix, "offset").keys[2]
    found = [
        load_file(place / name / "adapter_model.safetensors")["prompt_embeddings"]
        for name in ("a", "b")
    ]
    keys = [tensor.view(20, 6, 2, 12)[:, 4].transpose(0, 1) for tensor in found]
    errors = [float((key - exact).abs().max()) for key in keys]
    assert errors[0] < 1e-6 < 1e-4 < errors[1]


def test_a_bos_in_the_prefix_warns_in_one_line(place: Path, call) -> None:
    backbone = foreword.load("tiny-model", dtype="float32")
    PrefixStore().save("text", backbone.capture([0, 40, 41]).with_meta(bos="prefix"))
    code, _, err = call("export", "text", "--to", "peft", "a")
    assert code == 0
    assert err.count("warning: this prefix carries the BOS") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["import", "nowhere", "--name", "mine"], 1, "there is no nowhere"),
        (["import", "adapter"], 2, "--name"),
        (["import", "adapter", "--name", "../up"], 1, "is not a name for a prefix"),
        (["export", "unknown", "--to", "peft", "a"], 1, "no prefix is called 'unknown'"),
        (["export", "unknown", "a"], 2, "--to"),
        (["export", "unknown", "--to", "gguf", "a"], 2, "peft"),
    ],
)
def test_refusals(place: Path, call, arguments: list[str], code: int, message: str) -> None:
    found, _, err = call(*arguments)
    assert found == code
    assert message in err
    assert not (place / "a").exists()


def test_peft_is_not_needed(place: Path) -> None:
    shutil.rmtree(place / "store", ignore_errors=True)
    code = (
        "import sys; sys.modules['peft'] = None\n"
        "from foreword.cli.main import main\n"
        "assert main(['import', 'adapter', '--name', 'mine']) == 0\n"
        "assert main(['export', 'mine', '--to', 'peft', 'back']) == 0\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
