"""The page of arithmetic: its tables are what the module computes, and that is right."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
import torch

import foreword
from foreword.store import PrefixStore
from foreword.weights import embedded
from tests.conftest import byte_tokenizer, tiny_model
from tests.engine.vllm import arithmetic

PAGE = arithmetic.PAGE.read_text(encoding="utf-8")


def test_the_page_has_every_table_as_it_is_computed() -> None:
    assert sorted(name for _, name, _ in arithmetic.TABLE.findall(PAGE)) == sorted(
        arithmetic.TABLES
    )
    assert arithmetic.renewed(PAGE) == PAGE, "run `make pages`"


def test_a_figure_that_was_changed_by_hand_is_found() -> None:
    changed = PAGE.replace("16.8 MB", "16.9 MB", 1)
    assert changed != PAGE
    assert arithmetic.renewed(changed) == PAGE


@pytest.mark.parametrize(
    ("dtype", "number"),
    [(torch.bfloat16, arithmetic.HALF), (torch.float32, arithmetic.FULL)],
)
def test_sizes_are_those_of_prefixes(tmp_path, dtype: torch.dtype, number: int) -> None:
    model = tiny_model()
    backbone = foreword.Backbone(model, byte_tokenizer(), name="tiny")
    prefix = backbone.capture(list(range(2, 25))).to(dtype)
    config = model.config
    sizes = (config.num_hidden_layers, config.num_key_value_heads, config.head_dim)
    expected = arithmetic.Model("tiny", *sizes).size(23, number)
    assert prefix.nbytes == expected
    path = PrefixStore(tmp_path).save("one", prefix)
    assert 0 < path.stat().st_size - expected < 16_384  # the header


@pytest.mark.backbone
def test_the_embedded_model_is_the_tables() -> None:
    config = foreword.load(embedded.NAME).model.config
    (model,) = [one for one in arithmetic.MODELS if one.name.startswith("SmolLM2-135M")]
    heads, dim = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
    assert (model.layers, model.kv_heads, model.head_dim) == (config.num_hidden_layers, heads, dim)


def test_one_model_by_hand() -> None:
    """2 x 32 layers x 8 heads x 128 x 2 bytes are 131,072 a token; 100,000 prefixes of 16, 210 GB."""
    (model,) = [one for one in arithmetic.MODELS if one.name.startswith("Llama-3.1-8B")]
    assert model.size(1) == 131_072
    assert arithmetic.amount(100_000 * model.size(16)) == "210 GB"


@pytest.mark.parametrize("exponent", arithmetic.EXPONENTS)
@pytest.mark.parametrize("resident", [20, 200])
def test_the_approximation_is_what_a_cache_does(exponent: float, resident: int) -> None:
    """A cache that drops what was used least recently, over draws from Zipf's law."""
    prefixes = 2_000
    share_N = arithmetic.popularity(exponent, prefixes)
    drawn = np.random.default_rng(0).choice(prefixes, size=120_000, p=share_N)
    kept: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for number, name in enumerate(drawn.tolist()):
        hits += name in kept and number >= 20_000  # from when the cache is full
        kept[name] = None
        kept.move_to_end(name)
        if len(kept) > resident:
            kept.popitem(last=False)
    expected = arithmetic.hit_rate(resident, exponent, prefixes)
    assert hits / 100_000 == pytest.approx(expected, abs=0.01)


def test_all_in_memory_is_always_a_hit_and_more_memory_is_never_worse() -> None:
    assert arithmetic.hit_rate(arithmetic.PREFIXES, 1.0) == 1.0
    rates = [arithmetic.hit_rate(resident, 1.0) for resident in arithmetic.RESIDENT]
    assert rates == sorted(rates)


def test_different_prefixes_among_requests_are_counted_as_draws_show() -> None:
    share_N = arithmetic.popularity(1.0)
    generator = np.random.default_rng(1)
    found = [len(set(generator.choice(len(share_N), 256, p=share_N).tolist())) for _ in range(200)]
    assert arithmetic.distinct(256, 1.0) == pytest.approx(np.mean(found), rel=0.02)
