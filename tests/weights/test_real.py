"""Real pretrained models of each kind: the oracle, PEFT's logits, and what a few steps teach.

They need model folders that are no part of Foreword: `make weights` runs them if FOREWORD_MODELS names a
folder (by default ../models) with minilm-l6-v2, flan-t5-small or opus-mt-zh-en in it, and passes over
those that are not there.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, PrefixTuningConfig, get_peft_model

import foreword
from foreword.backbone import Backbone
from tests.kinds import checks
from tests.kinds.checks import EXACT, MOVED, Case
from tests.kinds.families import Family
from tests.peft.reference import PEFTS_OWN, apart

MODELS = Path(os.environ.get("FOREWORD_MODELS", "../models"))
FAMILIES = {
    "minilm-l6-v2": Family("bert", {}),
    "flan-t5-small": Family(
        "t5", {"decoder_start_token_id": 0, "relative_attention_num_buckets": 32}, "distance"
    ),
    "opus-mt-zh-en": Family("marian", {"decoder_start_token_id": 65000}),
}
pytestmark = [
    pytest.mark.weights,
    PEFTS_OWN,
    pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses:UserWarning"),
]
SOURCE = "The Eagle is a family-friendly Thai restaurant near the riverside in Cambridge."


def loaded(name: str) -> Backbone:
    """A model in float32, or the test is passed over."""
    folder = MODELS / name
    if not folder.is_dir():
        pytest.skip(f"there is no {folder}")
    return foreword.load(str(folder), dtype="float32", device="cpu")


@pytest.mark.parametrize("name", FAMILIES)
def test_the_oracle_holds_on_real_weights(name: str) -> None:
    backbone = loaded(name)
    generator = torch.Generator().manual_seed(1)
    source, target = (
        torch.randint(1000, 20000, (1, size), generator=generator) for size in (17, 13)
    )
    case = Case(FAMILIES[name], backbone, source, target)
    splits: tuple[tuple[str, ...], ...] = (("encoder",),)
    if not case.is_encoder:
        splits = (("encoder", "cross", "decoder"), ("encoder", "cross"), ("decoder",), ("cross",))
    errors = [checks.split_error(case, split) for split in splits]
    errors.append(checks.rows_error(case))
    assert max(errors) <= EXACT
    # Marian's bias for padding is far larger than its other logits, which differences are counted in.
    assert min(checks.controls(case).values()) > max(1e-4, 50 * max(errors))
    for gradient in checks.gradients(case):
        assert float(gradient.abs().max()) > 0


@pytest.mark.parametrize("name", ["flan-t5-small", "opus-mt-zh-en"])
def test_pefts_checkpoint_gives_pefts_logits_and_text(name: str, tmp_path: Path) -> None:
    backbone, other = loaded(name), loaded(name)
    sizes: dict[str, Any] = {"num_virtual_tokens": 6, "task_type": "SEQ_2_SEQ_LM"}
    site = next(site for site in backbone.sites if site.stack == "decoder")
    sizes |= {"token_dim": site.kv_heads * site.key_dim, "num_attention_heads": site.kv_heads}
    torch.manual_seed(0)
    get_peft_model(other.model, PrefixTuningConfig(**sizes)).save_pretrained(tmp_path / "peft")
    peft = PeftModel.from_pretrained(loaded(name).model, tmp_path / "peft").eval()
    prefix = foreword.import_peft(tmp_path / "peft", backbone)
    assert backbone.tokenizer is not None
    inputs = backbone.tokenizer([SOURCE, "It is good."], padding=True, return_tensors="pt")
    call = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
    target = torch.tensor([[0, 5, 9, 400], [0, 7, 8, 600]])
    with torch.no_grad():
        expected = peft(**call, decoder_input_ids=target).logits
        frozen = backbone.model(**call, decoder_input_ids=target).logits
        with backbone.attached(prefix):
            found = backbone.model(**call, decoder_input_ids=target).logits
            text = backbone.model.generate(**call, max_new_tokens=8, num_beams=1, do_sample=False)
    assert apart(found, expected) <= EXACT
    assert apart(frozen, expected) > MOVED
    wanted = peft.generate(**call, max_new_tokens=8, num_beams=1, do_sample=False)
    assert torch.equal(text, wanted)


def test_pefts_checkpoint_of_an_encoder_gives_pefts_hidden_states(tmp_path: Path) -> None:
    name = "minilm-l6-v2"
    backbone, other = loaded(name), loaded(name)
    torch.manual_seed(0)
    config = PrefixTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=6)
    get_peft_model(other.model, config).save_pretrained(tmp_path / "peft")
    peft = PeftModel.from_pretrained(loaded(name).model, tmp_path / "peft").eval()
    prefix = foreword.import_peft(tmp_path / "peft", backbone)
    assert backbone.tokenizer is not None
    inputs = backbone.tokenizer([SOURCE, "It is good."], padding=True, return_tensors="pt")
    call = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
    real = call["attention_mask"].bool()
    with torch.no_grad():
        expected = peft(**call)[0][real]
        frozen = backbone.model(**call)[0][real]
        with backbone.attached(prefix):
            found = backbone.model(**call)[0][real]
    assert apart(found, expected) <= EXACT
    assert apart(frozen, expected) > MOVED


def test_a_few_steps_teach_an_encoder_what_its_frozen_self_does_not_know() -> None:
    """A prefix with a head against the same head alone, on questions about people and places."""
    backbone = loaded("minilm-l6-v2")
    people = ("the painter", "the king", "the inventor", "the singer", "my doctor", "the author")
    places = ("the lake", "the castle", "the airport", "my hotel", "the museum", "the bridge")
    rows = [
        {"text": text.format(thing), "label": label}
        for label, things, texts in (
            ("person", people, ("Who is {}?", "Tell me about {}.", "How old is {}?")),
            ("place", places, ("Where is {}?", "Tell me about {}.", "How far is {}?")),
        )
        for thing in things
        for text in texts
    ]
    train, test = rows[::2], rows[1::2]
    result = foreword.train(backbone, train, foreword.TrainSettings(steps=30, batch_size=8))
    found = foreword.evaluate(backbone, result.prefix, test)
    assert isinstance(found, foreword.LabelEvaluation)
    assert found.base is not None
    assert found.prefix["accuracy"] >= 90
    assert found.prefix["nll"] < found.base["nll"]


def test_a_few_steps_teach_an_encoder_decoder_a_form() -> None:
    backbone = loaded("flan-t5-small")
    prompt, target = "Describe: {mr}", "{ref}"
    rows = foreword.read_rows("foreword/e2e:train")
    settings = foreword.TrainSettings(prompt=prompt, target=target, steps=25, batch_size=8)
    prefix = foreword.train(backbone, rows, settings).prefix
    found = foreword.evaluate(backbone, prefix, "foreword/e2e:heldout", limit=6)
    assert isinstance(found, foreword.Evaluation)
    assert found.base is not None
    assert found.prefix.nll < 0.75 * found.base.nll
    assert found.prefix.bleu > found.base.bleu
