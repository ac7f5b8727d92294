"""Starts from demonstrations and from other prefixes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import foreword
from foreword.errors import (
    DataError,
    FormatError,
    MismatchError,
    PrefixError,
    StoreError,
    TrainingError,
)
from foreword.methods.prefix.demonstrations import demonstration_tokens
from foreword.methods.prefix.start import start
from foreword.store import PrefixStore
from tests.conftest import byte_tokenizer, tiny_model
from tests.tasks.models import CLASSIFY, tiny_encoder
from tests.train.test_run import SETTINGS, changed, equal, nll

Rows = list[dict[str, str]]
DEMONSTRATIONS = {"init": "demonstrations"}


def spelled(row: dict[str, str]) -> str:
    """A row as training spells it, the end of sequence after it."""
    return f"{row['mr']} -> {row['ref']}</s>"


@pytest.fixture
def store(tmp_path: Path) -> PrefixStore:
    return PrefixStore(tmp_path / "store")


def with_bos() -> foreword.Backbone:
    """A tiny backbone whose tokenizer puts a BOS before each text."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return foreword.Backbone(tiny_model(), tokenizer, name="tiny")


# -- demonstrations ----------------------------------------------------------------------------------


def test_demonstrations_are_whole_rows_in_the_order_that_the_seed_draws(
    tiny: foreword.Backbone, rows: Rows
) -> None:
    order = torch.randperm(12, generator=torch.Generator().manual_seed(5)).tolist()
    texts = [spelled(rows[index]) for index in order]
    length = len(texts[0]) + len(texts[1]) - 2 * len("</s>") + 2
    found = demonstration_tokens(tiny, rows, SETTINGS.templates, length, seed=5)
    assert tiny.tokenizer.decode(found) == texts[0] + texts[1]
    shorter = demonstration_tokens(tiny, rows, SETTINGS.templates, length - 1, seed=5)
    assert tiny.tokenizer.decode(shorter).startswith(texts[0])
    assert len(shorter) < length - 1
    other = demonstration_tokens(tiny, rows, SETTINGS.templates, length, seed=6)
    assert other != found


def test_a_start_from_demonstrations_is_those_rows_in_context(
    tiny: foreword.Backbone, rows: Rows
) -> None:
    settings = changed(**DEMONSTRATIONS, length=120)
    begun = start(tiny, settings, rows)
    tokens = demonstration_tokens(tiny, rows, settings.templates, 120, seed=0)
    assert 60 < begun.length == len(tokens) <= 120
    assert equal(begun, tiny.capture(tokens).to(torch.float32))
    trained = foreword.train(tiny, rows, changed(**DEMONSTRATIONS, length=120, steps=1)).prefix
    assert trained.length == begun.length
    assert trained.meta.recipe["init"] == "demonstrations"


def test_the_bos_stands_first_and_once(rows: Rows) -> None:
    backbone = with_bos()
    assert backbone.bos == "input"
    found = demonstration_tokens(backbone, rows, SETTINGS.templates, 120, seed=0)
    assert found[0] == 0
    assert 0 not in found[1:]
    assert len(found) > 61
    begun = start(backbone, changed(**DEMONSTRATIONS, length=120), rows)
    assert begun.meta.bos == "prefix"


def test_conversations_can_be_demonstrations(tiny: foreword.Backbone) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    found = demonstration_tokens(tiny, [{"messages": turns}], foreword.Task(), 60, seed=0)
    assert tiny.tokenizer.decode(found) == "<s>user: hi</s><s>assistant: yo</s>"


def test_a_prefix_too_short_for_one_example_is_refused_with_the_length_that_it_takes(
    tiny: foreword.Backbone, rows: Rows
) -> None:
    shortest = min(len(spelled(row)) - len("</s>") + 1 for row in rows)
    with pytest.raises(DataError, match=rf"prefix of 16 tokens.*needs --length {shortest}"):
        foreword.train(tiny, rows, changed(**DEMONSTRATIONS, length=None))
    assert start(tiny, changed(**DEMONSTRATIONS, length=shortest), rows).length == shortest
    with pytest.raises(DataError, match="row 1: its target has 308 tokens"):
        demonstration_tokens(tiny, [{"mr": "x", "ref": "y" * 306}], SETTINGS.templates, 60, seed=0)
    bare = foreword.Backbone(tiny_model())
    with pytest.raises(DataError, match="no tokenizer"):
        demonstration_tokens(bare, rows, SETTINGS.templates, 60, seed=0)


# -- another prefix ----------------------------------------------------------------------------------


def test_a_start_from_a_prefix_is_that_prefix_and_says_so(
    tiny: foreword.Backbone, rows: Rows, store: PrefixStore
) -> None:
    first = foreword.train(tiny, rows, changed(steps=3)).prefix
    path = store.save("first", first)
    settings = changed(init="first", length=None, steps=1)
    begun = start(tiny, settings, store=store)
    assert equal(begun, first)
    assert begun.meta.parents == (first.digest,)
    assert (begun.meta.recipe, begun.meta.training) == ({}, {})
    assert equal(start(tiny, changed(init=str(path), length=6)), first)
    settings = changed(init="first", length=None, steps=1, batch_size=12)
    second = foreword.train(tiny, rows, settings, store=store)
    assert second.history[0]["loss"] == pytest.approx(nll(tiny, first, rows), rel=1e-4)
    assert second.prefix.meta.parents == (first.digest,)
    assert (second.prefix.length, second.prefix.meta.recipe["length"]) == (6, 6)


def test_a_gated_prefix_can_be_trained_on_directly(
    tiny: foreword.Backbone, rows: Rows, store: PrefixStore
) -> None:
    gated = foreword.train(tiny, rows, changed(parameterization="gated", steps=4, lr=0.1)).prefix
    store.save("gated", gated)
    again = foreword.train(tiny, rows, changed(init="gated", steps=2, batch_size=12), store=store)
    assert again.history[0]["loss"] == pytest.approx(nll(tiny, gated, rows), rel=1e-4)
    assert again.prefix.meta.softmax == "own"
    with pytest.raises(TrainingError, match="was gated already"):
        start(tiny, changed(init="gated", parameterization="gated"), store=store)


def test_a_prefix_on_some_layers_starts_one_on_those_or_fewer(
    tiny: foreword.Backbone, store: PrefixStore
) -> None:
    store.save("some", tiny.capture([5, 6, 7, 8, 9, 10]).only(["decoder.1", "decoder.2"]))

    def labels(**fields: object) -> list[str]:
        begun = start(tiny, changed(init="some", **fields), store=store)
        return [site.label for site in begun.sites]

    assert labels() == ["decoder.1", "decoder.2"]
    assert labels(layers="last:1") == ["decoder.2"]
    with pytest.raises(MismatchError, match=r"'some', is not on all.*no site 'decoder\.0'"):
        labels(sites="decoder")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"length": 16}, "has length 6, and the settings say 16"),
        ({"positions": "offset"}, "has positions 'free', and the settings say 'offset'"),
        ({"windows": "visible"}, "has windows 'windowed', and the settings say 'visible'"),
    ],
)
def test_a_prefix_is_not_cut_or_read_in_another_way(
    tiny: foreword.Backbone, store: PrefixStore, fields: dict[str, object], message: str
) -> None:
    store.save("first", tiny.capture([5, 6, 7, 8, 9, 10]).with_meta(windows="windowed"))
    assert start(tiny, changed(init="first"), store=store).meta.windows == "windowed"
    with pytest.raises(TrainingError, match=message):
        start(tiny, changed(init="first", **fields), store=store)


def test_a_prefix_at_a_strength_is_no_start(tiny: foreword.Backbone, store: PrefixStore) -> None:
    whole = tiny.capture([5, 6, 7, 8, 9, 10])
    store.save("half", whole.strength(0.5))
    store.save("mixture", foreword.concat(whole[:3], whole[3:], combination="logits"))
    for name in ("half", "mixture"):
        with pytest.raises(TrainingError, match=f"'{name}', has pieces at strengths of their own"):
            start(tiny, changed(init=name), store=store)
    store.save("pieces", foreword.concat(whole[:3], whole[3:]))
    begun = start(tiny, changed(init="pieces"), store=store)
    assert equal(begun, whole)
    assert begun.meta.pieces == ()


def test_a_prefix_that_is_not_there_or_does_not_fit_is_refused(
    tiny: foreword.Backbone, store: PrefixStore, tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match=r"'tezt' is neither one of text, demonstrations.* nor"):
        start(tiny, changed(init="tezt"), store=store)
    with pytest.raises(FormatError, match="cannot read"):
        start(tiny, changed(init=str(tmp_path / "no.safetensors")), store=store)
    other = foreword.Backbone(tiny_model(head_dim=8), byte_tokenizer(), name="other")
    store.save("other", other.capture([5, 6, 7, 8, 9, 10]))
    with pytest.raises(MismatchError, match=r"decoder\.0.*8.*12"):
        start(tiny, changed(init="other"), store=store)


def test_resuming_from_another_start_is_refused(
    tiny: foreword.Backbone, rows: Rows, store: PrefixStore, tmp_path: Path
) -> None:
    settings = changed(init="first", steps=2)
    store.save("first", tiny.capture([5, 6, 7, 8, 9, 10]))
    foreword.train(tiny, rows, settings, folder=tmp_path / "run", store=store)
    store.save("first", tiny.capture([5, 6, 7, 8, 9, 11]), overwrite=True)
    with pytest.raises(TrainingError, match="other start \\(or another backbone"):
        foreword.train(tiny, rows, settings, folder=tmp_path / "run", store=store, resume=True)


def test_the_users_store_is_the_default(
    tiny: foreword.Backbone, store: PrefixStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = tiny.capture([5, 6, 7, 8, 9, 10])
    store.save("first", prefix)
    monkeypatch.setenv("FOREWORD_STORE", str(store.folder))
    assert equal(start(tiny, changed(init="first")), prefix)


@pytest.mark.parametrize("init", ["text", "vocab", "noise"])
def test_a_prefix_longer_than_a_table_of_positions_is_refused_in_one_way(init: str) -> None:
    """A text of as many tokens was once run first, and torch said that an index is out of range."""
    refusal = "a prefix of 600 leaves 0 of the backbone's 128 tokens for text; use a shorter one"
    encoder = tiny_encoder()
    settings = foreword.TrainSettings(length=600, init=init, steps=1)
    with pytest.raises(DataError, match=refusal):
        foreword.train(encoder, CLASSIFY, settings)
    if init != "noise":
        with pytest.raises(PrefixError, match=refusal):
            start(encoder, settings)
