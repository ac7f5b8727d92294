"""Prefixes at some of a backbone's sites: against a formula by hand, in rows, and refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import foreword
from foreword.attention.bound import bind, bind_rows
from foreword.errors import MismatchError
from tests.backbone.test_attach import close, ids, logits, padded
from tests.conftest import byte_tokenizer, tiny_model
from tests.oracle.by_hand import by_hand


@pytest.mark.parametrize("labels", [["decoder.1"], ["decoder.0", "decoder.2"]])
def test_only_the_sites_of_the_prefix_attend_to_it(
    tiny: foreword.Backbone, labels: list[str]
) -> None:
    text, row = ids(6, 9)
    whole = tiny.capture(text.tolist())
    some = whole.only(labels)
    with by_hand(some):
        wanted = logits(tiny.model, row)
    with by_hand(whole):
        other = logits(tiny.model, row)
    foreword.attach(tiny, some)
    found = logits(tiny.model, row)
    assert close(found, wanted)
    assert not close(found, other)


def test_they_are_placed_by_label_and_not_in_order(tiny: foreword.Backbone) -> None:
    text, row = ids(6, 9)
    whole = tiny.capture(text.tolist())
    turned = foreword.Prefix(whole.sites[::-1], whole.keys[::-1], whole.values[::-1], whole.meta)
    with tiny.attached(whole):
        wanted = logits(tiny.model, row)
    with tiny.attached(turned):
        assert torch.equal(logits(tiny.model, row), wanted)


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_on_different_sites_equal_each_alone(tiny: foreword.Backbone, side: str) -> None:
    """Where a row has no prefix it must see none of the others', whose columns are there."""
    whole = [tiny.capture(text.tolist()) for text in ids(6, 3, 8, seed=5)]
    mixed = [
        whole[0].only(["decoder.0"]),
        whole[1].only(["decoder.1", "decoder.2"]),
        None,
        whole[2],
        whole[2].only(["decoder.2"]),
    ]
    rows = ids(20, 24, 22, 21, 23)
    wanted = []
    for prefix, row in zip(mixed, rows, strict=True):
        with tiny.attached(prefix):
            wanted.append(logits(tiny.model, row))
    with tiny.attached(mixed), torch.no_grad():
        inputs = padded(rows, side)
        found = tiny.model(**inputs).logits
    for index, row in enumerate(wanted):
        assert close(found[index][inputs["attention_mask"][index].bool()], row)


def test_generation_over_rows_on_different_sites(tiny: foreword.Backbone) -> None:
    whole = tiny.capture(ids(6)[0].tolist())
    mixed = [whole.only(["decoder.1"]), None]
    rows = ids(9, 9)
    options = {"max_new_tokens": 6, "num_beams": 3, "pad_token_id": 1, "eos_token_id": None}
    wanted = []
    for prefix, row in zip(mixed, rows, strict=True):
        with tiny.attached(prefix):
            wanted.append(tiny.model.generate(row[None], do_sample=False, **options))
    with tiny.attached(mixed):
        found = tiny.model.generate(torch.stack(rows), do_sample=False, **options)
    assert torch.equal(found, torch.cat(wanted))


def test_a_file_keeps_them(tiny: foreword.Backbone, tmp_path: Path) -> None:
    some = tiny.capture([5, 6, 7]).only(["decoder.0", "decoder.2"])
    foreword.save_prefix(some, tmp_path / "p.safetensors")
    found = foreword.load_prefix(tmp_path / "p.safetensors")
    assert [site.label for site in found.sites] == ["decoder.0", "decoder.2"]
    assert found.digest == some.digest


def test_a_site_that_the_backbone_has_not_is_refused(tiny: foreword.Backbone) -> None:
    fewer = foreword.Backbone(tiny_model(num_hidden_layers=2), byte_tokenizer(), name="fewer")
    last = tiny.capture([5, 6]).only(["decoder.2"])
    with pytest.raises(MismatchError, match=r"has 1 sites, 'fewer' has 2 and no decoder\.2"):
        foreword.attach(fewer, last)
    with pytest.raises(MismatchError, match=r"has 1 sites, 'fewer' has 2"), fewer.attached(last):
        pass
    for binding in (lambda: bind(last, fewer.sites), lambda: bind_rows([None, last], fewer.sites)):
        with pytest.raises(MismatchError, match=r"a site decoder\.2.*its 2 sites"):
            binding()


def test_a_smaller_models_prefix_is_not_taken_for_one_on_some_layers() -> None:
    """All three layers of one model fit the first three of a larger one of the same width."""
    small = foreword.Backbone(tiny_model(), byte_tokenizer(), name="small")
    large = foreword.Backbone(tiny_model(num_hidden_layers=4), byte_tokenizer(), name="large")
    prefix = small.capture([5, 6, 7])
    with pytest.raises(MismatchError, match=r"3 sites, fewer than 'large'.*made on 'small'"):
        foreword.attach(large, prefix)
    with pytest.raises(MismatchError, match="fewer than 'llama'"):
        foreword.attach(large.model, prefix)
    foreword.attach(large, prefix.with_meta(fingerprint=""))
