"""PEFT's checkpoints of encoders: where its prefix arrives, its hidden states, and the way back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, PrefixTuningConfig, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel

import foreword
from foreword.backbone import Backbone
from foreword.errors import FormatError, PrefixError, UnsupportedModel
from tests.kinds.families import BY_NAME, ENCODERS
from tests.peft.reference import CONFIG, PEFTS_OWN, TENSORS, apart, change
from tests.tasks.models import CLASSIFY, marking_tokenizer

pytestmark = PEFTS_OWN
REACHED = ("bert", "roberta", "xlm-roberta", "camembert", "data2vec-text", "electra")
"""Encoders that look into a cache."""
LENGTH, EXACT = 4, 1e-5


def model_of(name: str, **config: Any) -> PreTrainedModel:
    family = BY_NAME[name]
    return dataclasses.replace(family, config={**family.config, **config}).build()


def checkpoint(name: str, folder: Path, **config: Any) -> Path:
    """A checkpoint that PEFT made and saved, with numbers of the size of keys."""
    torch.manual_seed(3)
    sizes: dict[str, Any] = {"token_dim": 32, "num_layers": 3, "num_attention_heads": 4}
    told = PrefixTuningConfig(
        task_type="FEATURE_EXTRACTION", num_virtual_tokens=LENGTH, **(sizes | config)
    )
    get_peft_model(model_of(name), told).save_pretrained(folder)
    return folder


def texts() -> dict[str, Tensor]:
    """Two texts, the second one padded on the right."""
    ids = torch.randint(3, 90, (2, 9), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    ids[1, 6:], mask[1, 6:] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def hidden(model: Any) -> Tensor:
    """The last hidden states of real tokens."""
    inputs = texts()
    with torch.no_grad():
        found: Tensor = model(**inputs)[0]
    return found[inputs["attention_mask"].bool()]


@pytest.mark.parametrize("name", REACHED)
def test_it_gives_pefts_hidden_states(name: str, tmp_path: Path) -> None:
    folder = checkpoint(name, tmp_path / "peft")
    backbone = Backbone(model_of(name), name=name)
    prefix = foreword.import_peft(folder, backbone)
    expected = hidden(PeftModel.from_pretrained(model_of(name), folder).eval())
    frozen = hidden(backbone.model)
    with backbone.attached(prefix):
        found = hidden(backbone.model)
    with backbone.attached(prefix.with_meta(positions="free")):
        unmoved = hidden(backbone.model)
    assert apart(found, expected) <= EXACT
    assert apart(frozen, expected) > 1e-2
    assert apart(unmoved, expected) > 1e-3


@pytest.mark.parametrize("name", [one.name for one in ENCODERS if one.name not in REACHED])
def test_an_encoder_that_looks_into_no_cache_is_refused(name: str, tmp_path: Path) -> None:
    """On these PEFT says nothing, and either nothing changes or the model fails."""
    layers = BY_NAME[name].config.get("num_hidden_layers", 3)
    folder = checkpoint(name, tmp_path / "peft", num_layers=layers)
    with pytest.raises(UnsupportedModel, match="does not attend to what lies in a cache"):
        foreword.import_peft(folder, Backbone(model_of(name), name=name))


@pytest.mark.parametrize("name", ["albert", "modernbert"])
def test_on_those_pefts_prefix_changes_nothing(name: str, tmp_path: Path) -> None:
    """If this fails, PEFT or transformers has mended it, and the refusal above should go."""
    layers = BY_NAME[name].config["num_hidden_layers"]
    folder = checkpoint(name, tmp_path / "peft", num_layers=layers)
    ids = texts()["input_ids"][:1]
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(model_of(name), folder).eval()(input_ids=ids)[0]
        assert torch.equal(theirs, model_of(name)(input_ids=ids)[0])


def test_an_imported_one_goes_back_byte_for_byte(tmp_path: Path) -> None:
    folder = checkpoint("roberta", tmp_path / "peft")
    backbone = Backbone(model_of("roberta"), name="roberta")
    prefix = foreword.import_peft(folder, backbone)
    back = foreword.export_peft(prefix, backbone, tmp_path / "back")
    for name in (CONFIG, TENSORS):
        assert (back / name).read_bytes() == (folder / name).read_bytes()


def test_one_that_was_trained_here_gives_our_hidden_states_in_peft(tmp_path: Path) -> None:
    """Its head stays behind, and it must lie at positions."""
    model = model_of("bert", vocab_size=258)
    backbone = Backbone(model, marking_tokenizer(), name="bert")
    settings = foreword.TrainSettings(length=LENGTH, steps=3, positions="offset")
    trained = foreword.train(backbone, CLASSIFY, settings).prefix
    with pytest.raises(PrefixError, match="carries a head"):
        foreword.export_peft(trained, backbone, tmp_path / "back")
    bare = trained.with_head(None)
    with pytest.raises(PrefixError, match="takes no positions"):
        foreword.export_peft(bare.with_meta(positions="free"), backbone, tmp_path / "back")
    back = foreword.export_peft(bare, backbone, tmp_path / "back")
    assert json.loads((back / CONFIG).read_text())["task_type"] == "FEATURE_EXTRACTION"
    with backbone.attached(bare):
        ours = hidden(backbone.model)
    theirs = hidden(PeftModel.from_pretrained(model_of("bert", vocab_size=258), back).eval())
    assert apart(ours, theirs) <= EXACT


def test_a_classifiers_checkpoint_is_refused_with_the_reason(tmp_path: Path) -> None:
    folder = checkpoint("bert", tmp_path / "peft")
    change(folder, task_type="TOKEN_CLS")
    with pytest.raises(FormatError, match=r"task_type is 'TOKEN_CLS'; .*save a head"):
        foreword.import_peft(folder, Backbone(model_of("bert"), name="bert"))


# -- text at an offset -------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "room"), [("bert", 64), ("roberta", 63)])
def test_text_beyond_the_table_is_refused(name: str, room: int, tmp_path: Path) -> None:
    """RoBERTa's positions begin behind that of the padding token, here 0."""
    backbone = Backbone(model_of(name), name=name)
    prefix = foreword.import_peft(checkpoint(name, tmp_path / "peft"), backbone)
    with backbone.attached(prefix), torch.no_grad():
        backbone.model(torch.full((1, room - LENGTH), 5))
        with pytest.raises(UnsupportedModel, match=f"has {room} positions; .* together need"):
            backbone.model(torch.full((1, room - LENGTH + 1), 5))
