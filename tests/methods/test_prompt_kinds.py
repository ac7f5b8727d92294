"""Prompt tuning and P-tuning of encoders and encoder-decoders against peft and plain PyTorch.

Shapes: B rows, T tokens, P virtual tokens, D size of an embedding.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PromptEncoderConfig, PromptTuningConfig, get_peft_model
from torch import Tensor, nn

import foreword
from foreword.compare.costs import memory
from foreword.compare.run import served
from foreword.data import Collator
from foreword.data.collate import padding_of
from foreword.errors import DataError, StoreError
from foreword.evaluate.run import scored
from foreword.methods.base import Traits
from foreword.methods.embeddings import Prompt
from foreword.methods.heads import HEAD_RATE, scale_of
from foreword.methods.in_front import table_of
from foreword.methods.prompt import PromptMethod, PromptSettings, PTuningMethod, PTuningSettings
from foreword.methods.registry import OWN, within
from foreword.objectives.encode import encode
from foreword.objectives.settings import DataSettings
from foreword.objectives.supervised import Supervised
from foreword.train.fit import fit
from foreword.train.settings import LoopSettings
from tests.conftest import MEMORY, byte_tokenizer
from tests.kinds.families import BY_NAME
from tests.methods.by_hand import LOOP, STEPS, TEXT, batch_of, descend
from tests.methods.test_layers import state
from tests.peft.reference import PEFTS_OWN
from tests.tasks.models import ROWS as LABELLED
from tests.tasks.models import tiny_encoder
from tests.tasks.test_multilabel import ROWS as SEVERAL
from tests.tasks.test_regress import ROWS as NUMBERS
from tests.train.test_run import StopAt

Backbone = foreword.Backbone
LENGTH, WIDTH = 5, 24
METHODS: dict[str, Any] = {"prompt-tuning": PromptMethod(), "p-tuning": PTuningMethod()}
PAIRS = ("t5", "bart", "marian")
ROWS: dict[str, Any] = {**LABELLED, "multilabel": SEVERAL, "regress": NUMBERS}
CLASSIFY: dict[str, Any] = {
    "task": "classify",
    "prompt": "{text}",
    "target": "{label}",
    "pooling": "mean",
}


def settings_of(name: str, **data: Any) -> Any:
    if name == "prompt-tuning":
        return PromptSettings(**data, length=LENGTH, init="vocab")
    return PTuningSettings(**data, length=LENGTH, width=WIDTH)


def pair(name: str = "t5") -> Backbone:
    """A family's tiny model with the byte tokenizer's vocabulary."""
    family = BY_NAME[name]
    sizes = {"vocab_size": 258, "pad_token_id": 1, "eos_token_id": 1}
    sizes |= {"decoder_vocab_size": 258} if name == "marian" else {}
    sizes |= {"max_position_embeddings": 256} if name != "t5" else {}
    model = dataclasses.replace(family, config={**family.config, **sizes}).build()
    return Backbone(model, byte_tokenizer(), name=name)


def prompt_encoder(name: str, backbone: Backbone, **more: Any) -> Any:
    """A PeftModel whose virtual tokens start where ours do by seed 0."""
    torch.manual_seed(0)
    sizes = {"num_virtual_tokens": LENGTH, **more}
    if name == "p-tuning":
        return get_peft_model(
            backbone.model, PromptEncoderConfig(**sizes, encoder_hidden_size=WIDTH)
        )
    model = get_peft_model(backbone.model, PromptTuningConfig(**sizes))
    ids = torch.randint(258, (LENGTH,), generator=torch.Generator().manual_seed(0))
    first = table_of(backbone)(ids).detach().clone()
    with torch.no_grad():
        model.prompt_encoder["default"].embedding.weight[:LENGTH] = first
    return model


def virtual(model: Any) -> Tensor:
    """The first P embeddings of a PeftModel, with their graph."""
    made: Tensor = model.prompt_encoder["default"](model.prompt_tokens["default"][None])[0]
    return made[:LENGTH]


# -- encoder-decoders --------------------------------------------------------------------------------


@PEFTS_OWN
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", PAIRS)
def test_training_is_that_of_peft_used_by_hand(family: str, name: str) -> None:
    settings = settings_of(name, **TEXT)
    found = fit(pair(family), MEMORY, METHODS[name], settings, LOOP)
    other = pair(family)
    batch = batch_of(other, METHODS[name], settings)
    model = prompt_encoder(
        name, other, task_type="SEQ_2_SEQ_LM", num_transformer_submodules=1
    ).eval()

    def loss() -> Tensor:
        logits = model(**batch).logits
        return nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())

    descend([p for p in model.parameters() if p.requires_grad], loss)
    expected = virtual(model).detach()
    torch.testing.assert_close(found.value.embeddings_PD, expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad(), found.start.applied(found.value) as applied:
        mine = applied.backbone.model(**batch).logits
    with torch.no_grad():
        torch.testing.assert_close(mine, model(**batch).logits, rtol=1e-4, atol=1e-5)


@PEFTS_OWN
@pytest.mark.parametrize("family", PAIRS)
def test_the_second_half_of_what_peft_makes_is_read_by_nothing(family: str) -> None:
    """By itself PEFT makes 2 P embeddings for an encoder-decoder, P for each stack, and reads P."""
    found = fit(pair(family), MEMORY, PromptMethod(), settings_of("prompt-tuning", **TEXT), LOOP)
    other = pair(family)
    model: Any = prompt_encoder("prompt-tuning", other, task_type="SEQ_2_SEQ_LM").eval()
    weight = model.prompt_encoder["default"].embedding.weight
    assert len(weight) == 2 * LENGTH
    with torch.no_grad():
        weight[:LENGTH] = found.value.embeddings_PD
    batch = batch_of(other, PromptMethod(), settings_of("prompt-tuning", **TEXT))
    out = model(**batch)
    out.loss.backward()
    assert weight.grad[:LENGTH].any(dim=-1).all()
    assert not weight.grad[LENGTH:].any()
    with torch.no_grad(), found.start.applied(found.value) as applied:
        mine = applied.backbone.model(**batch).logits
    torch.testing.assert_close(mine, out.logits, rtol=1e-4, atol=1e-5)


@PEFTS_OWN
@pytest.mark.parametrize("family", PAIRS)
@pytest.mark.parametrize("beams", [1, 3])
def test_it_writes_what_peft_writes(family: str, beams: int) -> None:
    settings = settings_of("prompt-tuning", **TEXT)
    loop = LoopSettings(optimizer="adamw", lr=0.3, steps=3, batch_size=12)
    found = fit(pair(family), MEMORY, PromptMethod(), settings, loop)
    model: Any = prompt_encoder("prompt-tuning", pair(family), task_type="SEQ_2_SEQ_LM").eval()
    with torch.no_grad():
        model.prompt_encoder["default"].embedding.weight[:LENGTH] = found.value.embeddings_PD
    batch = batch_of(found.start.backbone, PromptMethod(), settings)  # type: ignore[attr-defined]
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    options: dict[str, Any] = {"max_new_tokens": 6, "min_new_tokens": 6, "num_beams": beams}
    expected = model.generate(**inputs, do_sample=False, **options)
    with found.start.applied(found.value) as applied, applied.backbone.inferring(None):
        texts = applied.backbone.model.generate(**inputs, do_sample=False, **options)
    assert torch.equal(texts, expected)


def test_marian_scales_what_is_learned_as_it_scales_tokens() -> None:
    """PEFT hands embeddings over that Marian scales no more, those of the text among them."""
    family = BY_NAME["marian"]
    sizes = {"vocab_size": 258, "decoder_vocab_size": 258, "scale_embedding": True}
    model = dataclasses.replace(family, config={**family.config, **sizes}).build()
    backbone = Backbone(model, byte_tokenizer(), name="marian")
    ids, target = torch.tensor([[5, 6, 7, 8, 9, 10, 11]]), torch.tensor([[2, 3, 4]])
    start = PromptMethod().start(backbone, settings_of("prompt-tuning", **TEXT), MEMORY)
    own = table_of(backbone)(ids[0, :LENGTH])
    with torch.no_grad():
        whole = model(ids, decoder_input_ids=target).logits
        with start.applied(Prompt(own, None)):
            rest = model(ids[:, LENGTH:], decoder_input_ids=target).logits
        by_embeddings = model(
            inputs_embeds=table_of(backbone)(ids), decoder_input_ids=target
        ).logits
    torch.testing.assert_close(rest, whole)
    assert float((by_embeddings - whole).abs().max()) > 1e-3


# -- encoders with a head ----------------------------------------------------------------------------


@PEFTS_OWN
@pytest.mark.parametrize("name", METHODS)
def test_training_with_a_head_is_that_of_plain_pytorch(name: str) -> None:
    """PEFT's own module in front of `inputs_embeds`, and a linear layer over the text's mean."""
    settings, rows = settings_of(name, **CLASSIFY), ROWS["classify"]
    backbone, method = tiny_encoder(), METHODS[name]
    found = fit(backbone, rows, method, settings, LOOP)
    other = tiny_encoder()
    start = method.start(other, settings, rows)
    encoded, _ = encode(other, rows, settings, start.in_front)
    batch = collated(other, encoded)
    ids, mask, labels = batch["input_ids"], batch["attention_mask"], batch["labels"][:, 0]
    unit = HEAD_RATE / LOOP.lr
    scale = scale_of(other, None, encoded) * unit
    model = prompt_encoder(name, other, task_type="FEATURE_EXTRACTION").eval()
    weight, bias = (nn.Parameter(torch.zeros(shape)) for shape in ((2, other.width), (2,)))
    trained = [*(p for p in model.parameters() if p.requires_grad), weight, bias]

    def logits() -> Tensor:
        embeddings = virtual(model).expand(len(ids), -1, -1)
        words: Any = other.model.get_input_embeddings()
        hidden = other.model(
            inputs_embeds=torch.cat([embeddings, words(ids)], dim=1),
            attention_mask=torch.cat([torch.ones(len(ids), LENGTH), mask], dim=1),
        )[0][:, LENGTH:]
        mean = (hidden * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        return nn.functional.linear(mean, weight * scale, bias * unit)

    descend(trained, lambda: nn.functional.cross_entropy(logits(), labels))
    assert found.value.head is not None
    close = {"rtol": 1e-3, "atol": 1e-5}
    torch.testing.assert_close(found.value.embeddings_PD, virtual(model).detach(), **close)
    torch.testing.assert_close(found.value.head.weight, (weight * scale).detach(), **close)
    with torch.no_grad(), found.start.applied(found.value) as applied:
        head = applied.in_front.head
        assert head is not None
        mine = head.logits(applied.backbone.model(ids, mask)[0], mask)
        torch.testing.assert_close(mine, logits(), rtol=1e-3, atol=1e-4)


@PEFTS_OWN
def test_hidden_states_are_those_of_peft_behind_its_virtual_tokens() -> None:
    backbone, settings = tiny_encoder(), settings_of("prompt-tuning", **CLASSIFY)
    found = fit(backbone, ROWS["classify"], PromptMethod(), settings, LOOP)
    model: Any = prompt_encoder("prompt-tuning", tiny_encoder(), task_type="FEATURE_EXTRACTION")
    with torch.no_grad():
        model.eval().prompt_encoder["default"].embedding.weight.copy_(found.value.embeddings_PD)
    ids, mask = torch.tensor([[5, 6, 7, 8], [9, 10, 2, 1]]), torch.tensor([[1] * 4, [1, 1, 1, 0]])
    with torch.no_grad(), found.start.applied(found.value) as applied:
        mine = applied.backbone.model(ids, mask)[0]
        theirs = model(ids, mask)[0][:, LENGTH:]
    torch.testing.assert_close(mine[mask.bool()], theirs[mask.bool()])


@pytest.mark.parametrize("task", ROWS)
@pytest.mark.parametrize("name", METHODS)
def test_every_task_of_a_head_is_learned(task: str, name: str) -> None:
    backbone = tiny_encoder()
    before = state(backbone.model)
    known = OWN[name]
    settings = known.made(DataSettings(task=task), length=4)  # type: ignore[arg-type]
    loop = LoopSettings(optimizer="adamw", lr=0.01, steps=30, batch_size=12)
    found = fit(backbone, ROWS[task], known.method, settings, loop)
    losses = [one["loss"] for one in found.history if "loss" in one]
    assert losses[-1] < 0.9 * losses[0]
    value = found.value
    assert value.head is not None
    assert value.prefix is None
    head = value.head.weight.numel() + value.head.bias.numel()
    assert value.numbers == found.start.numbers == 4 * 32 + head
    assert found.training["trained_parameters"] == found.start.trained
    assert state(backbone.model) == before


# -- both --------------------------------------------------------------------------------------------

KINDS: dict[str, tuple[Any, dict[str, Any], Any]] = {
    "encoder": (tiny_encoder, CLASSIFY, ROWS["classify"]),
    "encoder-decoder": (pair, TEXT, MEMORY),
}
BOTH = pytest.mark.parametrize("kind", KINDS)
EITHER = pytest.mark.parametrize("name", METHODS)


def collated(backbone: Backbone, encoded: Any) -> dict[str, Tensor]:
    return Collator(padding_of(backbone.tokenizer, backbone.vocabulary))(encoded)


@BOTH
@EITHER
def test_a_killed_run_goes_on_to_the_same_bits(kind: str, name: str, tmp_path: Path) -> None:
    make, data, rows = KINDS[kind]
    method, settings, backbone = METHODS[name], settings_of(name, **data), make()
    loop = LoopSettings(optimizer="soap", lr=0.01, steps=6, checkpoint_every=2)
    whole = fit(backbone, rows, method, settings, loop).value
    fit(backbone, rows, method, settings, loop, folder=tmp_path, callbacks=[StopAt(3)])
    again = fit(backbone, rows, method, settings, loop, folder=tmp_path, resume=True).value
    assert torch.equal(again.embeddings_PD, whole.embeddings_PD)
    if whole.head is not None:
        assert torch.equal(again.head.weight, whole.head.weight)


@BOTH
@EITHER
def test_a_value_is_read_as_it_was_written(kind: str, name: str, tmp_path: Path) -> None:
    make, data, rows = KINDS[kind]
    settings, backbone = settings_of(name, **data), make()
    found = fit(backbone, rows, METHODS[name], settings, LOOP)
    encoded = encode(backbone, rows, found.start.settings, found.start.in_front)[0]
    file = tmp_path / "value.safetensors"
    with found.start.learning(Supervised(), encoded, 0.01) as learner:
        learner.save(found.value, file)
        read = learner.load(file)
        assert torch.equal(read.embeddings_PD, found.value.embeddings_PD)
        if found.value.head is not None:
            assert read.head.labels == found.value.head.labels
            assert torch.equal(read.head.weight, found.value.head.weight)
        file.write_bytes(file.read_bytes()[:40])
        with pytest.raises(StoreError, match="cannot read"):
            learner.load(file)


@pytest.mark.parametrize("make", [tiny_encoder, pair, partial(pair, "bart")])
@pytest.mark.parametrize("name", [*METHODS, "prefix", "lora"])
def test_gradient_checkpointing_changes_nothing(make: Any, name: str) -> None:
    """In training mode the layers of T5 and BART would drop by numbers of their own."""
    backbone, known, losses = make(), OWN[name], []
    is_encoder = backbone.kind == "encoder"
    data, rows = (CLASSIFY, ROWS["classify"]) if is_encoder else (TEXT, MEMORY)
    before = dropout(backbone)
    for checkpointed in (False, True):
        loop = LoopSettings(
            optimizer="adamw", lr=0.01, steps=3, gradient_checkpointing=checkpointed
        )
        found = fit(backbone, rows, known.method, known.made(DataSettings(**data)), loop)
        losses.append([one["loss"] for one in found.history])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)  # the kernel may be another
    assert dropout(backbone) == before
    assert is_encoder or any(before)


def dropout(backbone: Backbone) -> list[Any]:
    """What each module drops by a number of its own."""
    every = (vars(module).items() for module in backbone.model.modules())
    return [{name: of for name, of in one if "drop" in name and of} for one in every]


@BOTH
@EITHER
def test_a_backbone_in_bfloat16_learns(kind: str, name: str) -> None:
    make, data, rows = KINDS[kind]
    whole = make()
    backbone = Backbone(whole.model.to(torch.bfloat16), whole.tokenizer)
    loop = LoopSettings(optimizer="adamw", lr=0.03, steps=30, batch_size=12)
    found = fit(backbone, rows, METHODS[name], settings_of(name, **data), loop)
    losses = [one["loss"] for one in found.history]
    assert losses[-1] < losses[0] - 0.02
    assert found.value.embeddings_PD.dtype == torch.float32
    assert backbone.model.dtype == torch.bfloat16


def test_the_best_evaluation_is_the_nll_under_what_is_left(tmp_path: Path) -> None:
    """What is learned makes other targets less likely, so that the first evaluation is the best."""
    backbone, settings = pair(), settings_of("prompt-tuning", **TEXT)
    others = [{"mr": row["mr"], "ref": "#" * 9} for row in MEMORY[:4]]
    loop = LoopSettings(optimizer="adamw", lr=0.1, steps=4, checkpoint_every=1, warmup=0.0)
    found = fit(
        backbone, MEMORY, PromptMethod(), settings, loop, evaluation=others, folder=tmp_path
    )
    losses = [one["eval_loss"] for one in found.history if "eval_loss" in one]
    encoded = encode(backbone, others, settings, found.start.in_front)[0]
    with found.start.applied(found.value) as applied:
        nll = scored(applied.backbone, applied.prefix, encoded, 3)[0]
    assert nll == pytest.approx(min(losses), rel=1e-4)


def test_it_starts_from_the_embeddings_of_a_text() -> None:
    backbone = tiny_encoder()
    settings = PromptSettings(**CLASSIFY, length=LENGTH, init_text="film")
    start = PromptMethod().start(backbone, settings, ROWS["classify"])
    rows = encode(backbone, ROWS["classify"], settings, start.in_front)[0]
    with start.learning(Supervised(), rows, 0.01) as learner:
        found = learner.value().embeddings_PD
    ids = torch.tensor(backbone.tokens("film")[:LENGTH])
    assert torch.equal(found, table_of(backbone)(ids))


def test_an_embedding_may_be_smaller_than_a_hidden_state() -> None:
    """That of ELECTRA and ALBERT is projected."""
    family = BY_NAME["electra"]
    model = dataclasses.replace(family, config={**family.config, "vocab_size": 258}).build()
    backbone = Backbone(model, tiny_encoder().tokenizer)
    found = fit(
        backbone, ROWS["classify"], PTuningMethod(), settings_of("p-tuning", **CLASSIFY), LOOP
    )
    assert found.value.embeddings_PD.shape == (LENGTH, 24)
    assert found.training["trained_parameters"] == found.start.trained
    assert len(found.history) >= STEPS


def test_sizes_are_counted_and_leave_text_half_of_the_context() -> None:
    backbone, known = tiny_encoder(), OWN["prompt-tuning"]
    made = known.made(DataSettings(**CLASSIFY))
    for budget, length in ((1000, 29), (10**6, 64)):
        settings, trained = within("x", known, backbone, made, ROWS["classify"], budget)
        assert (settings.length, trained) == (length, length * 32 + 2 * 32 + 2)
    with pytest.raises(DataError, match="leaves 1 of the backbone's 128 tokens"):
        known.method.start(backbone, known.made(made, length=127), ROWS["classify"])
    longer = known.made(made, length=100)
    assert known.method.start(backbone, longer, ROWS["classify"]).numbers == 100 * 32 + 66


def test_what_a_server_would_hold_is_counted() -> None:
    backbone = pair()
    found = fit(backbone, MEMORY, PromptMethod(), settings_of("prompt-tuning", **TEXT), LOOP)
    assert served("prompt-tuning", found.value) == LENGTH * 32
    assert memory(backbone, LENGTH * 32) == backbone.weight_bytes + 100 * LENGTH * 32 * 4


def test_what_can_be_done_with_it_is_told_by_kind(tiny: Backbone) -> None:
    in_front = Traits(shares_batch=False, merges=False, composes=False, switches_off=True)
    for name in METHODS:
        known = OWN[name]
        assert known.traits_for(tiny_encoder()) == known.traits_for(pair()) == in_front
        as_prefix = known.traits_for(tiny)
        assert as_prefix == known.traits
        assert as_prefix is not None
        assert as_prefix.shares_batch
    assert OWN["lora"].traits_for(pair()) == OWN["lora"].traits
