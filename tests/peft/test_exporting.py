"""What we export, loaded by PEFT, gives our logits; what PEFT cannot say is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import foreword
from foreword.backbone import Backbone
from foreword.errors import MismatchError, PrefixError, StoreError, UnsupportedModel
from foreword.peft.refusals import check_softmax
from foreword.prefix import Prefix, PrefixMeta
from tests.conftest import tiny_model
from tests.latent import latent_model
from tests.oracle.families import WINDOW
from tests.peft.reference import (
    CONFIG,
    FAMILIES,
    LENGTH,
    PEFTS_OWN,
    TENSORS,
    apart,
    backbone_of,
    bos_backbone,
    checkpoint,
    greedy,
    model_of,
    peft_greedy,
    peft_logits,
    tokens,
)

pytestmark = PEFTS_OWN
EXACT = 1e-4


def noise(backbone: Backbone, **meta: object) -> Prefix:
    """Random keys and values under the backbone's default policies, windows as PEFT has them."""
    torch.manual_seed(4)
    keys = tuple(torch.randn(s.kv_heads, LENGTH, s.key_dim) for s in backbone.sites)
    values = tuple(torch.randn(s.kv_heads, LENGTH, s.value_dim) for s in backbone.sites)
    fields = {"windows": "windowed", **meta}
    return Prefix(backbone.sites, keys, values, backbone.meta(**fields))


@pytest.mark.parametrize("name", FAMILIES)
def test_peft_gives_our_logits(name: str, tmp_path: Path) -> None:
    """Under policy free where the model has no absolute positions, so that keys are moved."""
    backbone = backbone_of(name)
    prefix = noise(backbone)
    folder = foreword.export_peft(prefix, backbone, tmp_path / "out")
    ids = tokens(2 * WINDOW + 5)
    with backbone.attached(prefix), torch.no_grad():
        expected = backbone.model(ids).logits
    assert apart(peft_logits(model_of(name), folder, ids), expected) <= EXACT
    if prefix.meta.positions == "free":
        unmoved = prefix.with_meta(positions="offset")
        wrong = foreword.export_peft(unmoved, backbone, tmp_path / "unmoved")
        assert apart(peft_logits(model_of(name), wrong, ids), expected) > 1e-3


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "gemma3_text", "gpt_neox"])
def test_peft_gives_our_greedy_text(name: str, tmp_path: Path) -> None:
    backbone = backbone_of(name)
    prefix = noise(backbone)
    folder = foreword.export_peft(prefix, backbone, tmp_path / "out")
    ids = tokens(7)
    with backbone.attached(prefix):
        expected = backbone.model.generate(ids, **greedy(ids))
    assert torch.equal(peft_greedy(model_of(name), folder, ids), expected)


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("llama", "prefix", {}),
        ("gpt2", "prefix", {}),
        ("mistral", "prefix", {"init_weights": "zero"}),
        ("gpt_neox", "prefix", {"prefix_projection": True, "encoder_hidden_size": 5}),
        ("llama", "cartridge", {"num_frozen_tokens": 2}),
        ("qwen2", "cartridge", {"num_frozen_tokens": 0}),
    ],
)
def test_pefts_own_files_come_back_byte_for_byte(
    name: str, kind: str, options: dict[str, object], tmp_path: Path
) -> None:
    folder = checkpoint(model_of(name), tmp_path / "in", kind, **options)
    backbone = backbone_of(name)
    prefix = foreword.import_peft(folder, backbone)
    foreword.save_prefix(prefix, tmp_path / "kept.safetensors")
    kept = foreword.load_prefix(tmp_path / "kept.safetensors")
    again = foreword.export_peft(kept, backbone, tmp_path / "out")
    for file in (CONFIG, TENSORS):
        assert (again / file).read_bytes() == (folder / file).read_bytes()
    assert sorted(p.name for p in again.iterdir()) == [CONFIG, TENSORS]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_files_spelled_otherwise_come_back_too(dtype: torch.dtype, tmp_path: Path) -> None:
    """PEFT's own composition of cartridges writes a header without metadata."""
    folder = checkpoint(model_of("llama"), tmp_path / "in", "cartridge")
    tensors = {name: t.to(dtype) for name, t in load_file(folder / TENSORS).items()}
    save_file(tensors, folder / TENSORS)
    (folder / CONFIG).write_text((folder / CONFIG).read_text().replace("\n", "  \n") + "\n\n")
    backbone = backbone_of("llama")
    prefix = foreword.import_peft(folder, backbone)
    again = foreword.export_peft(prefix, backbone, tmp_path / "out")
    assert (again / TENSORS).read_bytes() == (folder / TENSORS).read_bytes()
    assert json.loads((again / CONFIG).read_text()) == json.loads((folder / CONFIG).read_text())


def test_unknown_config_keys_are_kept(tmp_path: Path) -> None:
    folder = checkpoint(model_of("llama"), tmp_path / "in")
    config = {**json.loads((folder / CONFIG).read_text()), "of_tomorrow": {"a": [1, 2.5, "é"]}}
    (folder / CONFIG).write_text(json.dumps(config))
    backbone = backbone_of("llama")
    again = foreword.export_peft(foreword.import_peft(folder, backbone), backbone, tmp_path / "out")
    assert json.loads((again / CONFIG).read_text()) == config


def test_a_config_that_no_longer_fits_is_not_used(tmp_path: Path) -> None:
    """A prefix made from an imported one may be shorter, or claim anything in its recipe."""
    folder = checkpoint(model_of("llama"), tmp_path / "in", "cartridge", num_frozen_tokens=LENGTH)
    save_file(load_file(folder / TENSORS), folder / TENSORS)
    backbone = backbone_of("llama")
    whole = foreword.import_peft(folder, backbone)
    assert "header" in whole.meta.recipe["peft"]
    shorter = Prefix(
        whole.sites,
        tuple(key[:, 1:] for key in whole.keys),
        tuple(value[:, 1:] for value in whole.values),
        whole.meta,
    )
    again = foreword.export_peft(shorter, backbone, tmp_path / "out")
    config = json.loads((again / CONFIG).read_text())
    assert (config["peft_type"], config["num_virtual_tokens"]) == ("PREFIX_TUNING", LENGTH - 1)
    expected = load_file(folder / TENSORS)["prompt_embeddings"][1:]
    assert torch.equal(load_file(again / TENSORS)["prompt_embeddings"], expected)
    raw = whole.meta.recipe["peft"]["config"]
    for number, recipe in enumerate(
        [
            {"peft": "yes"},
            {"peft": {"config": 5}},
            {"peft": {"config": {**raw, "task_type": None}}},
            {"peft": {"config": raw, "header": "{}"}},
            {"peft": {"config": raw, "header": 7}},
        ]
    ):
        made = foreword.export_peft(
            whole.with_meta(recipe=recipe), backbone, tmp_path / f"out{number}"
        )
        tensor = load_file(made / TENSORS)["prompt_embeddings"]
        assert torch.equal(tensor, load_file(folder / TENSORS)["prompt_embeddings"])


def test_a_header_of_another_dtype_is_not_used(tmp_path: Path) -> None:
    """The same number of bytes, read as other numbers."""
    folder = checkpoint(model_of("llama"), tmp_path / "in")
    tensors = {name: t.half() for name, t in load_file(folder / TENSORS).items()}
    save_file(tensors, folder / TENSORS)
    backbone = backbone_of("llama")
    prefix = foreword.import_peft(folder, backbone).to(torch.bfloat16)
    made = foreword.export_peft(prefix, backbone, tmp_path / "out")
    expected = tensors["prompt_embeddings"].bfloat16()
    assert torch.equal(load_file(made / TENSORS)["prompt_embeddings"], expected)


def test_a_trained_prefix_is_exported_in_float32(tmp_path: Path) -> None:
    backbone = backbone_of("llama")
    prefix = noise(backbone).to(torch.bfloat16)
    made = foreword.export_peft(prefix, backbone, tmp_path / "out")
    tensor = load_file(made / TENSORS)["prompt_embeddings"]
    assert tensor.dtype == torch.float32
    assert json.loads((made / CONFIG).read_text())["base_model_name_or_path"] == "llama"


# -- what PEFT cannot say ------------------------------------------------------------------------


def refused(prefix: Prefix, backbone: Backbone, folder: Path, why: str) -> None:
    with pytest.raises(PrefixError, match=why):
        foreword.export_peft(prefix, backbone, folder / "out")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", ["gpt2", "opt", "biogpt", "gpt_bigcode"])
def test_absolute_positions_at_offset_0(name: str, tmp_path: Path) -> None:
    backbone = backbone_of(name)
    free = noise(backbone, positions="free")
    refused(free, backbone, tmp_path, "text starts at position 0; in PEFT text starts at 5")


@pytest.mark.parametrize("name", ["mistral", "qwen2", "gemma3_text"])
def test_windows_that_never_drop_the_prefix(name: str, tmp_path: Path) -> None:
    backbone = backbone_of(name)
    visible = noise(backbone, windows="visible")
    refused(visible, backbone, tmp_path, r"of \[9\] tokens.* in PEFT they drop it")


def test_a_softmax_of_its_own() -> None:
    check_softmax(PrefixMeta(softmax="joint"))
    check_softmax(PrefixMeta())
    with pytest.raises(PrefixError, match="softmax of its own"):
        check_softmax(PrefixMeta(softmax="own"))


def test_pieces_at_strengths_of_their_own(tmp_path: Path) -> None:
    backbone = backbone_of("llama")
    whole = noise(backbone)
    for prefix in (whole.strength(0.5), foreword.concat(whole, whole, combination="logits")):
        refused(prefix, backbone, tmp_path, r"has pieces at strengths of their own.*prefix\.split")
    both = foreword.concat(whole, whole)
    foreword.export_peft(both, backbone, tmp_path / "both")
    again = foreword.import_peft(tmp_path / "both", backbone)
    assert again.length == both.length


def test_some_layers_only(tmp_path: Path) -> None:
    backbone = backbone_of("llama")
    whole = noise(backbone)
    some = Prefix(whole.sites[:2], whole.keys[:2], whole.values[:2], whole.meta)
    refused(some, backbone, tmp_path, "joins 2 of the 3 layers")


def with_sites(prefix: Prefix, **changes: int) -> Prefix:
    """The prefix with another geometry at its last site."""
    site = dataclasses.replace(prefix.sites[-1], **changes)
    key = torch.zeros(site.kv_heads, prefix.length, site.key_dim)
    value = torch.zeros(site.kv_heads, prefix.length, site.value_dim)
    return Prefix(
        (*prefix.sites[:-1], site),
        (*prefix.keys[:-1], key),
        (*prefix.values[:-1], value),
        prefix.meta,
    )


def test_geometry_that_peft_has_no_words_for(tmp_path: Path) -> None:
    backbone = backbone_of("llama")
    whole = noise(backbone)
    latent = with_sites(whole, value_dim=8)
    refused(latent, backbone, tmp_path, "multi-head latent attention")
    uneven = with_sites(whole, kv_heads=1)
    refused(uneven, backbone, tmp_path, "decoder.2 has 1 key/value heads of dimension 12")


def test_a_cache_of_latents(tmp_path: Path) -> None:
    """Where keys and values happen to have one dimension, the cache still gives it away."""
    uneven = Backbone(latent_model(6))
    refused(noise(uneven), uneven, tmp_path, "multi-head latent attention")
    even = Backbone(latent_model(12))
    with pytest.raises(UnsupportedModel, match="'deepseek_v3' does not keep the keys and values"):
        foreword.export_peft(noise(even), even, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_another_backbone(tmp_path: Path) -> None:
    other = Backbone(tiny_model(head_dim=8))
    with pytest.raises(MismatchError, match="key dimension"):
        foreword.export_peft(noise(other), backbone_of("llama"), tmp_path / "out")


def test_numbers_that_are_not_finite(tmp_path: Path) -> None:
    backbone = backbone_of("llama")
    prefix = noise(backbone)
    prefix.keys[1][0, 0, 0] = torch.nan
    refused(prefix, backbone, tmp_path, r"decoder\.1\.key holds NaN")


def test_a_bos_in_the_prefix_is_told(tmp_path: Path) -> None:
    """PEFT's files cannot say that inputs must leave it out; with it twice the logits move."""
    backbone = bos_backbone()
    prefix = backbone.capture("Zizzi")
    assert prefix.meta.bos == "prefix"
    with pytest.warns(foreword.NotInPeft, match="add_special_tokens=False"):
        folder = foreword.export_peft(prefix, backbone, tmp_path / "out")
    ids = torch.tensor([[50, 51, 52]])
    with backbone.attached(prefix), torch.no_grad():
        expected = backbone.model(ids).logits
    model = tiny_model()
    assert apart(peft_logits(model, folder, ids), expected) <= EXACT
    twice = peft_logits(tiny_model(), folder, torch.tensor([[0, 50, 51, 52]]))[:, 1:]
    assert apart(twice, expected) > 1e-2


# -- the folder ----------------------------------------------------------------------------------


def test_a_folder_is_replaced_only_when_asked_and_only_a_checkpoint(tmp_path: Path) -> None:
    backbone = backbone_of("llama")
    prefix = noise(backbone)
    folder = checkpoint(model_of("llama"), tmp_path / "out")
    assert (folder / "README.md").exists()
    before = (folder / TENSORS).read_bytes()
    with pytest.raises(StoreError, match="not empty.*--overwrite"):
        foreword.export_peft(prefix, backbone, folder)
    assert (folder / TENSORS).read_bytes() == before
    foreword.export_peft(prefix, backbone, folder, overwrite=True)
    assert (folder / TENSORS).read_bytes() != before
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"'thesis\.txt' in it would be lost"):
        foreword.export_peft(prefix, backbone, folder, overwrite=True)
    assert (folder / "thesis.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.backbone
def test_the_embedded_backbone(tmp_path: Path, smollm2: Backbone) -> None:
    prefix = smollm2.capture("You write one sentence about a restaurant.")
    folder = foreword.export_peft(prefix, smollm2, tmp_path / "out")
    ids = torch.tensor([smollm2.tokens(" name[Zizzi], food[Thai] ->")])
    with smollm2.attached(prefix), torch.no_grad():
        expected = smollm2.model(ids).logits
        text = smollm2.model.generate(ids, **greedy(ids))
    assert apart(peft_logits(smollm2.model, folder, ids), expected) <= EXACT
    assert torch.equal(peft_greedy(smollm2.model, folder, ids), text)


@pytest.mark.parametrize("name", ["bloom", "mpt"])
def test_where_only_distance_counts_nothing_has_to_be_moved(name: str, tmp_path: Path) -> None:
    """ALiBi: keys do not tell where a token stands, so free and offset are one policy."""
    backbone = backbone_of(name)
    prefix = noise(backbone)
    assert prefix.meta.positions == "free"
    folder = foreword.export_peft(prefix, backbone, tmp_path / "out")
    ids = tokens(2 * WINDOW + 5)
    with backbone.attached(prefix), torch.no_grad():
        expected = backbone.model(ids).logits
        bare = model_of(name)(ids).logits
    assert apart(bare, expected) > 1e-3
    assert apart(peft_logits(model_of(name), folder, ids), expected) <= EXACT
    moved = backbone.moved(prefix, "offset")
    assert all(map(torch.equal, moved.keys, prefix.keys))
    assert moved.meta.positions == "offset"
