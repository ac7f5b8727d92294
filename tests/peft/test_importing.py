"""A checkpoint that PEFT made, loaded here, gives PEFT's logits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

import foreword
from foreword.backbone import Backbone
from foreword.errors import FormatError, MismatchError, UnsupportedModel
from tests.conftest import tiny_model
from tests.oracle.families import WINDOW
from tests.peft.reference import (
    CONFIG,
    FAMILIES,
    LENGTH,
    NEW_TOKENS,
    PEFTS_OWN,
    TENSORS,
    apart,
    backbone_of,
    bos_backbone,
    change,
    checkpoint,
    greedy,
    model_of,
    peft_greedy,
    peft_logits,
    tokens,
)

pytestmark = PEFTS_OWN
EXACT = 1e-4
GENERATED = ("llama", "gpt2", "gpt_neox", "qwen2", "mistral", "gemma3_text")


@pytest.mark.parametrize("name", FAMILIES)
def test_it_gives_pefts_logits(name: str, tmp_path: Path) -> None:
    """The text is more than twice as long as the windows."""
    folder = checkpoint(model_of(name), tmp_path / "peft")
    backbone = backbone_of(name)
    prefix = foreword.import_peft(folder, backbone)
    ids = tokens(2 * WINDOW + 5)
    expected = peft_logits(model_of(name), folder, ids)
    with torch.no_grad():
        frozen = backbone.model(ids).logits
        with backbone.attached(prefix):
            found = backbone.model(ids).logits
    assert apart(found, expected) <= EXACT
    assert apart(frozen, expected) > 1e-2


@pytest.mark.parametrize("name", GENERATED)
@pytest.mark.parametrize("length", [LENGTH, WINDOW + 4])
def test_it_gives_pefts_greedy_text(name: str, length: int, tmp_path: Path) -> None:
    """Also where the prefix alone is longer than the window."""
    folder = checkpoint(model_of(name), tmp_path / "peft", num_virtual_tokens=length)
    backbone = backbone_of(name)
    ids = tokens(7)
    foreword.attach(backbone, foreword.import_peft(folder, backbone))
    found = backbone.model.generate(ids, **greedy(ids))
    foreword.detach(backbone)
    assert torch.equal(found, peft_greedy(model_of(name), folder, ids))
    assert not torch.equal(found, backbone.model.generate(ids, **greedy(ids)))


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral"])
@pytest.mark.parametrize("frozen", [0, 2, LENGTH])
def test_a_cartridge_is_read_alike(name: str, frozen: int, tmp_path: Path) -> None:
    folder = checkpoint(model_of(name), tmp_path / "c", "cartridge", num_frozen_tokens=frozen)
    backbone = backbone_of(name)
    prefix = foreword.import_peft(folder, backbone)
    assert prefix.meta.recipe["peft"]["config"]["num_frozen_tokens"] == frozen
    ids = tokens(23)
    with backbone.attached(prefix), torch.no_grad():
        found = backbone.model(ids).logits
    assert apart(found, peft_logits(model_of(name), folder, ids)) <= EXACT


def test_a_projected_prefix_is_saved_by_peft_as_keys_and_values(tmp_path: Path) -> None:
    """With prefix_projection PEFT trains an MLP; what it saves is what the MLP gave."""
    folder = checkpoint(
        model_of("llama"), tmp_path / "p", prefix_projection=True, encoder_hidden_size=7
    )
    assert set(load_file(folder / TENSORS)) == {"prompt_embeddings"}
    backbone = backbone_of("llama")
    ids = tokens(9)
    with backbone.attached(foreword.import_peft(folder, backbone)), torch.no_grad():
        found = backbone.model(ids).logits
    assert apart(found, peft_logits(model_of("llama"), folder, ids)) <= EXACT


def test_what_an_imported_prefix_says_of_itself(tmp_path: Path) -> None:
    folder = checkpoint(model_of("llama"), tmp_path / "a")
    backbone = backbone_of("llama")
    prefix = foreword.import_peft(folder, backbone)
    tensor = load_file(folder / TENSORS)["prompt_embeddings"]
    slots = tensor.view(LENGTH, 6, 2, 12)
    for layer in range(3):
        assert torch.equal(prefix.keys[layer], slots[:, 2 * layer].transpose(0, 1))
        assert torch.equal(prefix.values[layer], slots[:, 2 * layer + 1].transpose(0, 1))
    meta = prefix.meta
    assert (meta.positions, meta.windows, meta.bos) == ("offset", "visible", "none")
    assert (meta.backbone, meta.fingerprint) == ("llama", backbone.fingerprint)
    assert set(meta.recipe) == {"peft"}
    windowed = checkpoint(model_of("mistral"), tmp_path / "b")
    assert foreword.import_peft(windowed, backbone_of("mistral")).meta.windows == "windowed"


def test_inputs_add_their_own_bos(tmp_path: Path) -> None:
    """As PEFT's do."""
    backbone = bos_backbone()
    folder = checkpoint(backbone.model, tmp_path / "a")
    prefix = foreword.import_peft(folder, backbone)
    assert prefix.meta.bos == "input"
    ids = backbone.tokenizer(["Zizzi serves"], return_tensors="pt")["input_ids"]
    assert ids[0, 0] == backbone.tokenizer.bos_token_id
    expected = peft_greedy(backbone.model, folder, ids)[0, ids.shape[1] :]
    options = foreword.GenerateOptions(max_new_tokens=NEW_TOKENS)
    found = foreword.generate(backbone, ["Zizzi serves"], prefix, options)
    assert found == [[backbone.tokenizer.decode(expected, skip_special_tokens=True)]]


def test_an_imported_prefix_survives_its_own_file(tmp_path: Path) -> None:
    folder = checkpoint(model_of("llama"), tmp_path / "a")
    prefix = foreword.import_peft(folder, backbone_of("llama"))
    foreword.save_prefix(prefix, tmp_path / "a.safetensors")
    assert foreword.load_prefix(tmp_path / "a.safetensors").digest == prefix.digest


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_kept(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = checkpoint(model_of("llama"), tmp_path / "a")
    tensors = {name: t.to(dtype) for name, t in load_file(folder / TENSORS).items()}
    save_file(tensors, folder / TENSORS)
    assert foreword.import_peft(folder, backbone_of("llama")).dtype == dtype


def test_peft_itself_ignores_a_prefix_without_a_task(tmp_path: Path) -> None:
    """Why task_type null is refused here: PEFT says nothing and answers as the frozen model."""
    folder = checkpoint(model_of("llama"), tmp_path / "a")
    change(folder, task_type=None)
    ids = tokens(9)
    model = model_of("llama")
    with torch.no_grad():
        frozen = model(ids).logits
        assert torch.equal(PeftModel.from_pretrained(model, folder)(ids).logits, frozen)
    with pytest.raises(FormatError, match=r'task_type is null.*"task_type": "CAUSAL_LM"'):
        foreword.import_peft(folder, backbone_of("llama"))


def test_pickles_are_never_read(tmp_path: Path) -> None:
    folder = checkpoint(model_of("llama"), tmp_path / "a")
    (folder / TENSORS).unlink()
    (folder / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'touch /tmp/owned'\ntR.")
    with pytest.raises(FormatError, match="is a pickle.*safe_serialization=True"):
        foreword.import_peft(folder, backbone_of("llama"))


def test_another_backbone_is_refused(tmp_path: Path) -> None:
    folder = checkpoint(model_of("llama"), tmp_path / "a")
    with pytest.raises(MismatchError, match="2 key/value heads of dimension 12; 'phi' has 2 at"):
        foreword.import_peft(folder, backbone_of("phi"))
    change(folder, num_layers=4)
    with pytest.raises(MismatchError, match="4 layers; 'llama' has attention in 3"):
        foreword.import_peft(folder, backbone_of("llama"))


def test_a_model_that_cuts_attention_into_chunks_is_refused(tmp_path: Path) -> None:
    folder = checkpoint(model_of("llama4_text"), tmp_path / "peft")
    with pytest.raises(UnsupportedModel, match="cuts its attention into chunks"):
        foreword.import_peft(folder, backbone_of("llama4_text"))


def test_a_cache_that_holds_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint(model_of("llama"), tmp_path / "a")
    backbone = backbone_of("llama")
    monkeypatch.setattr(backbone.model.config, "use_cache", True)
    plain = type(backbone.model).forward

    def without_last_layer(self, input_ids, **kwargs):
        output = plain(self, input_ids, **kwargs)
        if output.past_key_values is not None:
            output.past_key_values.layers.pop()
        return output

    monkeypatch.setattr(type(backbone.model), "forward", without_last_layer)
    with pytest.raises(UnsupportedModel, match=r"2 layers there, 3 attention calls"):
        foreword.import_peft(folder, backbone)


def test_links_are_followed(tmp_path: Path) -> None:
    """The Hub's cache is made of links."""
    folder = checkpoint(model_of("llama"), tmp_path / "a")
    linked = tmp_path / "snapshot"
    linked.mkdir()
    for name in (CONFIG, TENSORS):
        (linked / name).symlink_to(folder / name)
    backbone = backbone_of("llama")
    found = foreword.import_peft(linked, backbone)
    assert found.digest == foreword.import_peft(folder, backbone).digest


@pytest.mark.backbone
def test_the_embedded_backbone(tmp_path: Path, smollm2: Backbone) -> None:
    folder = checkpoint(smollm2.model, tmp_path / "a", num_virtual_tokens=8)
    prefix = foreword.import_peft(folder, smollm2)
    ids = torch.tensor([smollm2.tokens("name[Zizzi], food[Thai] ->")])
    expected = peft_logits(smollm2.model, folder, ids)
    text = peft_greedy(smollm2.model, folder, ids)
    with smollm2.attached(prefix), torch.no_grad():
        assert apart(smollm2.model(ids).logits, expected) <= EXACT
        assert torch.equal(smollm2.model.generate(ids, **greedy(ids)), text)


def test_layers_of_several_geometries_are_refused_by_name(tmp_path: Path) -> None:
    """PEFT cuts its one geometry to each layer of gemma4, and leaves out those that need more."""
    model = model_of("gemma4_text")
    folder = checkpoint(model, tmp_path)
    with pytest.raises(UnsupportedModel, match=r"'gemma4_text'.* have 2 geometries"):
        foreword.import_peft(folder, backbone_of("gemma4_text"))


def test_a_checkpoint_that_names_no_model_says_so(tmp_path: Path) -> None:
    folder = checkpoint(tiny_model(), tmp_path)
    change(folder, base_model_name_or_path=None)
    with pytest.raises(MismatchError, match="It names no model that it is for"):
        foreword.import_peft(folder, Backbone(tiny_model(num_hidden_layers=2)))
