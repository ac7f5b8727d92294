"""PEFT's checkpoints of encoder-decoders: its tied slots, its logits, and the way back."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, PrefixTuningConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

import foreword
from foreword.backbone import Backbone
from foreword.errors import CorruptFile, MismatchError, PrefixError, UnsupportedModel
from tests.kinds.families import BY_NAME, ENCODER_DECODERS
from tests.peft.reference import CONFIG, PEFTS_OWN, TENSORS, apart, change

pytestmark = PEFTS_OWN
NAMES = [family.name for family in ENCODER_DECODERS if family.available]
LENGTH, EXACT = 4, 1e-5


def model_of(name: str, layers: int = 3) -> PreTrainedModel:
    """A family's tiny model as PEFT can serve it: as many layers in both stacks, no free head size."""
    family = BY_NAME[name]
    sizes = {"num_layers": layers, "num_decoder_layers": layers, "d_kv": 8}
    if "d_kv" not in family.config:
        sizes = {"encoder_layers": layers, "decoder_layers": layers}
    return dataclasses.replace(family, config={**family.config, **sizes}).build()


def checkpoint(name: str, folder: Path, layers: int = 3) -> Path:
    """A checkpoint that PEFT made and saved, with numbers of the size of keys."""
    torch.manual_seed(3)
    config = PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=LENGTH)
    get_peft_model(model_of(name, layers), config).save_pretrained(folder)
    return folder


def texts(rows: int = 2) -> tuple[Tensor, Tensor]:
    """Source and target tokens."""
    generator = torch.Generator().manual_seed(2)
    return (
        torch.randint(3, 90, (rows, 9), generator=generator),
        torch.randint(3, 90, (rows, 6), generator=generator),
    )


def logits(model: Any, source: Tensor, target: Tensor, **more: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=source, decoder_input_ids=target, **more).logits
    return found


def peft_model(name: str, folder: Path, layers: int = 3) -> PeftModel:
    return PeftModel.from_pretrained(model_of(name, layers), folder).eval()


@pytest.mark.parametrize("layers", [2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_it_gives_pefts_logits(name: str, layers: int, tmp_path: Path) -> None:
    folder = checkpoint(name, tmp_path / "peft", layers)
    backbone = Backbone(model_of(name, layers), name=name)
    prefix = foreword.import_peft(folder, backbone)
    assert {site.stack for site in prefix.sites} == {"decoder"}
    source, target = texts()
    expected = logits(peft_model(name, folder, layers), source, target)
    frozen = logits(backbone.model, source, target)
    with backbone.attached(prefix):
        found = logits(backbone.model, source, target)
        uncached = logits(backbone.model, source, target, use_cache=False)
    assert apart(found, expected) <= EXACT
    assert apart(uncached, expected) <= EXACT
    assert apart(frozen, expected) > 1e-2


@pytest.mark.parametrize("name", ["t5", "bart", "marian"])
@pytest.mark.parametrize("beams", [1, 3])
def test_it_gives_pefts_text(name: str, beams: int, tmp_path: Path) -> None:
    folder = checkpoint(name, tmp_path / "peft")
    backbone = Backbone(model_of(name), name=name)
    prefix = foreword.import_peft(folder, backbone)
    source, _ = texts()
    options: dict[str, Any] = {"max_new_tokens": 6, "min_new_tokens": 6, "num_beams": beams}
    mask = torch.ones_like(source)
    expected = peft_model(name, folder).generate(
        input_ids=source, attention_mask=mask, do_sample=False, **options
    )
    with backbone.attached(prefix):
        found = backbone.model.generate(source, attention_mask=mask, do_sample=False, **options)
    assert torch.equal(found, expected)


def test_layers_read_the_slots_that_peft_gives_them(tmp_path: Path) -> None:
    """Of an odd number of layers each slot is read, of an even one half of them twice."""
    for layers, order in ((3, [0, 4, 2]), (2, [0, 0]), (4, [0, 4, 0, 4])):
        folder = checkpoint("bart", tmp_path / str(layers), layers)
        prefix = foreword.import_peft(folder, Backbone(model_of("bart", layers)))
        saved = load_file(folder / TENSORS)["prompt_embeddings"]
        slots = saved.view(LENGTH, 2 * layers, 4, 8).permute(1, 2, 0, 3)
        for layer, slot in enumerate(order):
            assert torch.equal(prefix.keys[layer], slots[slot])
            assert torch.equal(prefix.values[layer], slots[slot + 1])


@pytest.mark.parametrize(("name", "layers"), [("t5", 2), ("t5", 3), ("bart", 3), ("marian", 2)])
def test_an_imported_one_goes_back(name: str, layers: int, tmp_path: Path) -> None:
    folder = checkpoint(name, tmp_path / "peft", layers)
    backbone = Backbone(model_of(name, layers), name=name)
    prefix = foreword.import_peft(folder, backbone)
    back = foreword.export_peft(prefix, backbone, tmp_path / "back")
    source, target = texts()
    expected = logits(peft_model(name, folder, layers), source, target)
    assert torch.equal(logits(peft_model(name, back, layers), source, target), expected)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_one_that_was_trained_here_gives_our_logits_in_peft(name: str, tmp_path: Path) -> None:
    """Any prefix of a decoder with an odd number of layers; of BART one at an offset."""
    backbone = Backbone(model_of(name), name=name)
    labels = [site.label for site in backbone.sites if site.stack == "decoder"]
    prefix = backbone.capture([5, 6, 7]).only(labels)
    if name == "bart":
        with pytest.raises(PrefixError, match="takes no positions"):
            foreword.export_peft(prefix, backbone, tmp_path / "back")
        prefix = prefix.with_meta(positions="offset")
    back = foreword.export_peft(prefix, backbone, tmp_path / "back")
    source, target = texts()
    with backbone.attached(prefix):
        ours = logits(backbone.model, source, target)
    assert apart(ours, logits(peft_model(name, back), source, target)) <= EXACT
    assert json.loads((back / CONFIG).read_text())["task_type"] == "SEQ_2_SEQ_LM"


def test_what_peft_cannot_say_is_not_exported(tmp_path: Path) -> None:
    even = Backbone(model_of("t5", 2), name="t5")
    whole = even.capture([5, 6, 7])
    with pytest.raises(PrefixError, match="only a decoder's self-attention has a prefix"):
        foreword.export_peft(whole, even, tmp_path / "a")
    decoder = whole.only(["decoder.0", "decoder.1"])
    with pytest.raises(PrefixError, match="layers 0 and 1 of an encoder-decoder share"):
        foreword.export_peft(decoder, even, tmp_path / "a")
    with pytest.raises(PrefixError, match="joins 1 of the 2 layers"):
        foreword.export_peft(whole.only(["decoder.0"]), even, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_kinds_are_told_apart(tiny: Backbone, tmp_path: Path) -> None:
    folder = checkpoint("t5", tmp_path / "peft")
    with pytest.raises(UnsupportedModel, match="task_type SEQ_2_SEQ_LM needs an encoder-decoder"):
        foreword.import_peft(folder, tiny)
    with pytest.raises(MismatchError, match="for 3 layers; .* has attention in 2"):
        foreword.import_peft(folder, Backbone(model_of("t5", 2), name="t5"))
    change(folder, num_transformer_submodules=1)
    with pytest.raises(CorruptFile, match="expected 2 with SEQ_2_SEQ_LM"):
        foreword.import_peft(folder, Backbone(model_of("t5"), name="t5"))


# -- text at an offset -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bart", "mbart", "marian", "pegasus"])
def test_the_decoders_text_stands_after_the_prefix(name: str) -> None:
    """Moving a decoder's text up by P is what P tokens before it do to its positions."""
    backbone = Backbone(model_of(name), name=name)
    labels = [site.label for site in backbone.sites if site.stack == "decoder"]
    source, target = texts(1)
    calls = []
    with backbone.attached(None) as attachment, attachment.observing(calls.append):
        whole = logits(backbone.model, source, target, use_cache=False)
    by_name = {call.name: call for call in calls}
    sites = tuple(site for site in backbone.sites if site.label in labels)
    keys = tuple(by_name[site.name].key_BHKD[0, :, :2].contiguous() for site in sites)
    values = tuple(by_name[site.name].value_BHKE[0, :, :2].contiguous() for site in sites)
    prefix = foreword.Prefix(sites, keys, values, backbone.meta(positions="offset"))
    with backbone.attached(prefix):
        rest = logits(backbone.model, source, target[:, 2:], use_cache=False)
    assert apart(rest, whole[:, 2:]) <= EXACT
    with backbone.attached(prefix.with_meta(positions="free")):
        free = logits(backbone.model, source, target[:, 2:], use_cache=False)
    assert apart(free, whole[:, 2:]) > 1e-3


def test_an_offset_that_the_table_or_the_rows_do_not_allow_is_refused() -> None:
    backbone = Backbone(model_of("bart"), name="bart")
    prefix = backbone.capture([5, 6, 7]).with_meta(positions="offset")
    source, target = texts(2)
    long = target.repeat(1, 12)[:, :62]
    with backbone.attached(prefix), pytest.raises(UnsupportedModel, match="together need 65"):
        logits(backbone.model, source, long)
    shorter = backbone.capture([5, 6]).with_meta(positions="offset")
    pair = backbone.attached([prefix, shorter])
    with pair, pytest.raises(UnsupportedModel, match="positions for all rows alike"):
        logits(backbone.model, source, target)


def test_a_prefix_at_an_offset_trains_and_is_exported(tmp_path: Path) -> None:
    from tests.tasks.models import marking_tokenizer

    family = BY_NAME["bart"]
    sizes = {"encoder_layers": 3, "decoder_layers": 3, "vocab_size": 258}
    model = dataclasses.replace(family, config={**family.config, **sizes}).build()
    backbone = Backbone(model, marking_tokenizer(), name="bart")
    settings = foreword.TrainSettings(
        prompt="{a}", target="{b}", length=4, steps=3, sites="decoder", positions="offset"
    )
    rows = [{"a": "one", "b": "eins"}, {"a": "two", "b": "zwei"}]
    prefix = foreword.train(backbone, rows, settings).prefix
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", foreword.NotInPeft)
        back = foreword.export_peft(prefix, backbone, tmp_path / "back")
    source, target = texts()
    with backbone.attached(prefix):
        ours = logits(backbone.model, source, target)
    other = dataclasses.replace(family, config={**family.config, **sizes}).build()
    theirs = logits(PeftModel.from_pretrained(other, back).eval(), source, target)
    assert apart(ours, theirs) <= EXACT
