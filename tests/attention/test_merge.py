"""The merge over a shared prefix against SDPA over keys that are joined row by row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

import foreword
from foreword.attention import call as attention
from foreword.attention import merge as cascade
from foreword.attention.bound import SiteTensors
from foreword.attention.frame import Frame
from foreword.attention.masks import as_additive
from foreword.attention.merge import (
    COPIED,
    FEW,
    SHORTEST_OF_MANY,
    Groups,
    Part,
    cascade_attention,
    merge_pays,
    merged,
    shared_attention,
)
from foreword.backbone import Backbone
from foreword.prefix import Prefix, WindowPolicy
from tests.oracle import checks
from tests.oracle.families import BY_NAME
from tests.ways.reference import agrees, generated, way

BATCH, QUERIES, KEYS, PREFIX = 6, 5, 7, 11
KERNELS = ["flash", "plain"]


def tensors(
    heads: int, groups: int, queries: int = QUERIES, prefixes: int = 1, value_dim: int = 12
) -> list[Tensor]:
    """Query, key, value, and the prefix's keys and values."""
    generator = torch.Generator().manual_seed(0)
    shapes = (
        (BATCH, heads * groups, queries, 12),
        (BATCH, heads, KEYS, 12),
        (BATCH, heads, KEYS, value_dim),
        (prefixes, heads, PREFIX, 12),
        (prefixes, heads, PREFIX, value_dim),
    )
    return [torch.randn(shape, generator=generator) for shape in shapes]


def masks(heads: int, queries: int = QUERIES) -> dict[str, Tensor | None]:
    """Of the call's own keys; rows 1 and 2 have queries that see none of them."""
    generator = torch.Generator().manual_seed(1)
    seen = torch.rand(BATCH, 1, queries, KEYS, generator=generator) > 0.4
    seen[..., 0] = True
    seen[1] = False
    seen[2, :, 0] = False
    hidden = torch.finfo(torch.float32).min
    return {
        "none": None,
        "boolean": seen,
        "additive": torch.zeros(seen.shape).masked_fill(~seen, hidden),
        "additive, infinite": torch.zeros(seen.shape).masked_fill(~seen, -torch.inf),
        "with a bias": torch.rand(seen.shape, generator=generator).masked_fill(~seen, hidden),
        "shared": seen[3:4],
        "per head": seen.expand(BATCH, heads, queries, KEYS).clone(),
    }


def with_columns(
    mask: Tensor | None, seen_BP: Tensor, dtype: torch.dtype = torch.float32
) -> Tensor | None:
    """A mask with the prefix's columns in front, additive and finite."""
    if mask is None:
        return None
    own = mask if mask.dtype != torch.bool else as_additive(mask, dtype)
    front = as_additive(seen_BP, dtype)[:, None, None].expand(-1, *mask.shape[1:3], -1)
    both = torch.cat([front, own.to(dtype).expand(BATCH, -1, -1, -1)], dim=-1)
    return both.clamp(min=torch.finfo(dtype).min)


def joined(
    made: list[Tensor], mask: Tensor | None, scaling: float | None, seen: Tensor | None = None
) -> Tensor:
    """The plain form: each row's copy of its prefix in front of its keys, one softmax."""
    query, key, value, *prefix = made
    each, groups = BATCH // len(prefix[0]), query.shape[1] // key.shape[1]
    keys, values = (
        torch.cat([part.repeat_interleave(each, dim=0), own], dim=2).repeat_interleave(
            groups, dim=1
        )
        for part, own in zip(prefix, (key, value), strict=True)
    )
    own = torch.zeros(1, 1, 1, KEYS) if mask is None else mask
    if own.dtype == torch.bool:
        own = torch.zeros(own.shape).masked_fill(~own, -torch.inf)
    columns = torch.zeros(BATCH, own.shape[1], query.shape[2], PREFIX)
    if seen is not None:
        columns = columns.masked_fill(~seen.repeat_interleave(each, dim=0), -torch.inf)
    wide = torch.cat([columns, own.expand(BATCH, -1, query.shape[2], -1)], dim=-1)
    out = scaled_dot_product_attention(query, keys, values, attn_mask=wide, scale=scaling)
    return out.transpose(1, 2)


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The CPU's kernel, and the plain one that other devices use."""
    if request.param == "plain":
        monkeypatch.setattr(cascade, "_FLASH", None)
    return str(request.param)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("mask", masks(1))
@pytest.mark.parametrize(("heads", "groups"), [(1, 1), (3, 1), (1, 4), (3, 3)])
@pytest.mark.parametrize("queries", [1, QUERIES])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_it_equals_the_plain_form(
    mask: str, heads: int, groups: int, queries: int, scaling: float | None
) -> None:
    made = tensors(heads, groups, queries)
    chosen = masks(heads * groups, queries)[mask]
    found = cascade_attention(*made[:3], chosen, *made[3:], scaling)
    torch.testing.assert_close(found, joined(made, chosen, scaling), rtol=1e-5, atol=1e-5)
    alone = scaled_dot_product_attention(made[0], made[1], made[2], scale=scaling, enable_gqa=True)
    assert float((found - alone.transpose(1, 2)).abs().max()) > 0.1  # the prefix counts


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("prefixes", [2, 3, 6])
@pytest.mark.parametrize("queries", [1, QUERIES])
def test_each_prefix_serves_its_own_rows(prefixes: int, queries: int) -> None:
    """Prefixes of different length; one that is not there at all."""
    made = tensors(3, 2, queries, prefixes)
    mask = torch.rand(BATCH, 1, queries, KEYS, generator=torch.Generator().manual_seed(1)) > 0.4
    mask[..., 0] = True
    length = torch.tensor([PREFIX, 0, 4, 9, PREFIX, 1])[:prefixes]
    seen = (torch.arange(PREFIX) < length[:, None])[:, None, None, :]
    found = cascade_attention(*made[:3], mask, *made[3:], None, seen)
    torch.testing.assert_close(found, joined(made, mask, None, seen), rtol=1e-5, atol=1e-5)
    turned = [part.roll(1, dims=0) for part in made[3:]]
    wrong = cascade_attention(*made[:3], mask, *turned, None, seen)
    assert float((found - wrong).abs().max()) > 0.1


@pytest.mark.parametrize("mask", masks(1))
@pytest.mark.parametrize(("heads", "groups"), [(1, 1), (3, 1), (1, 4), (3, 3)])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_one_softmax_equals_the_plain_form(
    mask: str, heads: int, groups: int, scaling: float | None
) -> None:
    made = tensors(heads, groups)
    chosen = masks(heads * groups)[mask]
    groups_of = Groups.of((0,) * BATCH, 1, heads, torch.device("cpu"))
    both = with_columns(chosen, torch.ones(BATCH, PREFIX, dtype=torch.bool))
    found = shared_attention(*made[:3], both, *made[3:], groups_of, scaling)
    torch.testing.assert_close(found, joined(made, chosen, scaling), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "row_of", [(0, 0, 0, 0, 0, 0), (2, 0, 1, 0, 0, 2), (3, 2, 1, 0, 1, 2), (1, 1, 1, 1, 1, 3)]
)
def test_rows_choose_their_prefix_in_any_order(row_of: tuple[int, ...], dtype: torch.dtype) -> None:
    """Prefixes that serve many rows, one, or none; of different length, one of them 0."""
    made = [tensor.to(dtype) for tensor in tensors(3, 2, prefixes=4, value_dim=5)]
    seen = (torch.arange(PREFIX) < torch.tensor([PREFIX, 4, 0, 9])[:, None])[:, None, None, :]
    mask = masks(6)["boolean"]
    groups = Groups.of(row_of, 4, 3, torch.device("cpu"))
    rows = list(row_of)
    both = with_columns(mask, seen[rows].flatten(1), dtype)
    found = shared_attention(*made[:3], both, *made[3:], groups)
    expected = joined(
        [*(t.float() for t in made[:3]), *(t.float()[rows] for t in made[3:])],
        mask,
        None,
        seen[rows],
    )
    seeing = (seen[rows].any(-1) | mask.any(-1)).transpose(1, 2)  # the others see nothing at all
    allowed = 1e-5 if dtype == torch.float32 else 3e-2
    differs = (found.float() - expected).masked_fill(~seeing[..., None], 0.0)
    assert float(differs.nan_to_num(9.0).abs().max()) <= allowed


def test_values_of_another_dimension() -> None:
    made = tensors(3, 2, value_dim=5)
    found = cascade_attention(*made[:3], masks(6)["boolean"], *made[3:])
    torch.testing.assert_close(found, joined(made, masks(6)["boolean"], None), rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("kernel")
def test_scores_so_large_that_their_exponentials_overflow() -> None:
    made = tensors(3, 2)
    found = cascade_attention(*made[:3], None, *made[3:], 300.0)
    torch.testing.assert_close(found, joined(made, None, 300.0), rtol=1e-3, atol=1e-3)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_half_precision_it_is_as_near_to_float32_as_the_plain_form(dtype: torch.dtype) -> None:
    halves = [tensor.to(dtype) for tensor in tensors(3, 3)]
    exact = joined([tensor.float() for tensor in halves], None, None)
    found = cascade_attention(*halves[:3], None, *halves[3:])
    assert found.dtype == dtype
    keys, values = (
        torch.cat([halves[i + 2].expand(BATCH, -1, -1, -1), halves[i]], dim=2) for i in (1, 2)
    )
    theirs = scaled_dot_product_attention(halves[0], keys, values, enable_gqa=True).transpose(1, 2)
    allowed = 3 * float((theirs.float() - exact).abs().max())
    assert float((found.float() - exact).abs().max()) <= allowed


def test_the_merge_worked_by_hand() -> None:
    """Scores 0 and log 3 against log 4: weights 1/2 and 1/2 of the means 0.75 and 5."""
    first = Part(torch.tensor(0.75), torch.tensor(4.0).log())
    second = Part(torch.tensor(5.0), torch.tensor(4.0).log())
    assert float(merged(first, second)) == pytest.approx(2.875)


def test_where_the_merge_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    def pays(rows: int, length: int, queries: int = 1, prefixes: int = 1, **grad: bool) -> bool:
        query = torch.empty(rows, 4, queries, 12).requires_grad_(grad.get("query", False))
        own = torch.empty(rows, 2, 5, 12)
        prefix = torch.empty(prefixes, 2, length, 12)
        trained = prefix.clone().requires_grad_(grad.get("prefix", False))
        return merge_pays(query, own, own, prefix, trained)

    many, long = FEW + 1, SHORTEST_OF_MANY
    assert pays(32, COPIED // 32)
    assert pays(32, long, queries=many)
    assert pays(32, long, prefixes=8)
    assert not pays(1, 16)
    assert not pays(1, 2 * COPIED)
    assert not pays(32, long, prefixes=32)
    assert not pays(2, 16)
    assert not pays(32, 32, queries=FEW)
    assert pays(32, 64, queries=FEW)
    assert not pays(32, long - 1, queries=many)
    assert not pays(32, long, query=True)
    assert not pays(32, long, prefix=True)
    with torch.no_grad():
        assert pays(32, long, query=True)
    monkeypatch.setattr(cascade, "_FLASH", None)
    assert pays(32, long)
    assert not pays(32, long, queries=many)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Share short prefixes too; grows with each such call by its number of queries."""
    seen: list[int] = []

    def counted(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def count(*args: Any) -> Tensor:
            seen.append(args[0].shape[2])
            return function(*args)

        return count

    monkeypatch.setattr(attention, "cascade_attention", counted(cascade_attention))
    monkeypatch.setattr(attention, "shared_attention", counted(shared_attention))
    monkeypatch.setattr(cascade, "COPIED", 1)
    monkeypatch.setattr(cascade, "SHORTEST", {})
    monkeypatch.setattr(cascade, "SHORTEST_OF_MANY", 1)
    return seen


FAMILIES = ["llama", "gpt2", "qwen2", "phi", "gpt_bigcode", "deepseek_v3", "mistral"]
"""Grouped heads, a head each, one for all, partial rotary, latents, a window in each layer."""


@pytest.mark.parametrize(
    ("family", "few"),
    [*((name, 100) for name in FAMILIES), *((name, 0) for name in FAMILIES[:5])],
)
@pytest.mark.parametrize("side", ["left", "right"])
def test_families_give_the_logits_of_text_in_context(
    family: str, few: int, side: str, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One softmax for few queries, two merged for many; these for values as wide as keys only."""
    monkeypatch.setattr(cascade, "FEW", few)
    case = checks.case(BY_NAME[family])
    assert checks.forward_error(case, side) <= checks.EXACT
    assert len(calls) == len(case.backbone.sites)
    bare = checks.forward(case, None, side, case.prefix().length)
    assert checks.difference(bare, case.references()) > checks.MOVED


WAYS: dict[str, dict[str, Any]] = {
    "dynamic": {},
    "static": {"cache_implementation": "static"},
    "chunks": {"prefill_chunk_size": 5},
    "chunks into a static cache": {"prefill_chunk_size": 5, "cache_implementation": "static"},
    "beams": {"num_beams": 3},
}


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_generation_gives_the_logits_of_text_in_context(
    family: str, how: str, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = way(family)
    with case.backbone.attached(case.shared):
        out = generated(case.model, case.rows, **WAYS[how])
        merged_calls = len(calls)
        monkeypatch.setattr(attention, "merge_pays", lambda *_, **__: False)
        plain = generated(case.model, case.rows, **WAYS[how])
    assert merged_calls > 0
    assert len(calls) == merged_calls
    assert torch.equal(out.sequences, plain.sequences)
    if how != "beams":  # whose steps are not in the order of their rows
        assert agrees(case, [case.texts[0]] * 3, case.rows, out)


def test_beams_of_a_prefix_for_each_row_share_its_copy(calls: list[int]) -> None:
    case = way()
    with case.backbone.attached(case.mixed):
        out = generated(case.model, case.rows, do_sample=True, num_return_sequences=2)
    assert len(calls) > 0
    assert agrees(case, case.texts, case.rows, out)


@pytest.mark.parametrize(
    ("family", "windows"), [("llama", "windowed"), ("mistral", "windowed"), ("gemma2", "visible")]
)
def test_what_the_merge_cannot_do_stays_plain(
    family: str, windows: WindowPolicy, calls: list[int]
) -> None:
    """A window that drops virtual tokens; an eager kernel with soft-capping. Llama has no windows."""
    case = checks.case(BY_NAME[family], windows)
    assert checks.forward_error(case, "left") <= checks.EXACT
    assert bool(calls) == (family == "llama")


@pytest.mark.parametrize("extra", [{"dropout": 0.1}, {"softcap": 30.0}, {"cache": object()}])
def test_calls_that_ask_for_more_stay_with_the_kernel(extra: dict[str, Any]) -> None:
    def is_plain(kwargs: dict[str, Any]) -> bool:
        query = key = value = torch.ones(1, 1, 1, 4)
        frame = Frame("", bound=None, batch=1, text_positions_BQ=None)
        kernel, module = attention.sdpa_attention_forward, torch.nn.Module()
        call = attention._Call(frame, kernel, module, query, key, value, None, kwargs)
        return call.is_plain_sdpa

    assert not is_plain(extra)
    assert is_plain({"dropout": 0.0, "scaling": 0.5, "cache": None})


def test_gradients_of_a_prefix_in_training_are_those_of_the_plain_form(calls: list[int]) -> None:
    assert checks.gradient_error(checks.case(BY_NAME["llama"])) <= checks.EXACT
    assert calls == []


class Sizes(TorchDispatchMode):
    """Number of elements of each tensor that an operation gives, views of smaller ones apart."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor):
                self.seen.append(tensor.untyped_storage().nbytes() // tensor.element_size())
        return out


def text_prefix(backbone: Backbone, length: int) -> Prefix:
    generator = torch.Generator().manual_seed(0)
    return backbone.capture(torch.randint(3, 90, (length,), generator=generator).tolist())


@pytest.mark.parametrize("merge", [True, False])
def test_a_decoding_step_copies_the_prefix_for_no_row(
    tiny: Backbone, merge: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, length = 16, 128
    foreword.attach(tiny.model, text_prefix(tiny, length))
    if not merge:
        monkeypatch.setattr(attention, "merge_pays", lambda *_, **__: False)
    ids = torch.randint(3, 90, (rows, 1), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(rows, 3, dtype=torch.long)
    with torch.no_grad():
        cache = tiny.model(ids.expand(-1, 2), attention_mask=mask[:, :2]).past_key_values
        with Sizes() as sizes:
            tiny.model(ids, attention_mask=mask, past_key_values=cache)
    copies = rows * 2 * length * 12
    assert (max(sizes.seen) >= copies) == (not merge)


def test_a_cast_is_made_once_and_never_for_a_prefix_in_training() -> None:
    stored = torch.randn(1, 2, 5, 4)
    call = torch.empty(3, 2, 1, 4, dtype=torch.bfloat16)
    site = SiteTensors(stored, stored.clone(), (5,))
    first, again = site.like(call, call), site.like(call, call)
    assert all(one is two for one, two in zip(first, again, strict=True))
    assert first[0] is not first[1]
    assert torch.equal(first[0], stored.bfloat16())
    assert site.like(stored, stored)[0] is stored
    with torch.inference_mode():
        inside = site.like(call, call)[0]
    assert inside.is_inference()
    assert not site.like(call, call)[0].is_inference()
    live = SiteTensors(stored.clone().requires_grad_(), stored.clone().requires_grad_(), (5,))
    assert live.like(call, call)[0] is not live.like(call, call)[0]
    assert live.like(call, call)[0].requires_grad
