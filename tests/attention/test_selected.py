"""A batch whose rows select pieces of one prefix is each row under the prefix that it selects."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import foreword
from foreword.attention.bound import bind
from foreword.attention.selected import bind_selected, selections
from foreword.description import Piece
from foreword.prefix import Prefix
from tests.conftest import tiny_model

PIECES = (Piece("", 4), Piece("a=x", 2), Piece("a=y", 2), Piece("b=z", 3))
CHOSEN = [(2,), (), (1, 3), (2,), (3,), (1, 3)]
VALUES: dict[tuple[int, ...], dict[str, str]] = {
    (): {},
    (2,): {"a": "y"},
    (3,): {"b": "z"},
    (1, 3): {"a": "x", "b": "z"},
}


def models(kind: str) -> Any:
    if kind == "llama":
        return tiny_model()
    from transformers import GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 60, "bos_token_id": 0, "eos_token_id": 1}
    if kind == "gpt2":
        config = GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **sizes)
        return GPT2LMHeadModel(config).eval().requires_grad_(False)
    config = MistralConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=7,
        **sizes,
    )
    return MistralForCausalLM(config).eval().requires_grad_(False)


def live(backbone: foreword.Backbone, **meta: Any) -> Prefix:
    """A random prefix with control whose tensors are parameters."""
    generator = torch.Generator().manual_seed(1)
    length = sum(piece.length for piece in PIECES)

    def noise(heads: int, dim: int) -> torch.Tensor:
        made = torch.randn(heads, length, dim, generator=generator)
        return made.requires_grad_()

    keys = tuple(noise(site.kv_heads, site.key_dim) for site in backbone.sites)
    values = tuple(noise(site.kv_heads, site.value_dim) for site in backbone.sites)
    own = backbone.meta(pieces=PIECES, combination="control", **meta)
    return Prefix(backbone.sites, keys, values, own)


def text(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask of right-padded rows of 5 to 9 tokens."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(2, 50, (rows, 9), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(rows):
        mask[row, 5 + row % 5 :] = 0
    return ids, mask


def losses(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Summed NLL of the real tokens behind the first."""
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
    nll = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
    )
    return (nll * mask[:, 1:].flatten()).sum()


@pytest.mark.parametrize(
    ("kind", "meta", "kept"),
    [
        ("llama", {}, None),
        ("llama", {"positions": "offset"}, None),
        ("llama", {"softmax": "own"}, None),
        ("llama", {}, [True, False, True, True, False, True, True, True, False, True, True]),
        ("gpt2", {}, None),
        ("mistral", {"windows": "windowed"}, None),
    ],
)
def test_loss_and_gradients_are_those_of_each_row_alone(
    kind: str, meta: dict[str, Any], kept: list[bool] | None
) -> None:
    backbone = foreword.Backbone(models(kind), None, name=kind)
    prefix = live(backbone, **meta)
    ids, mask = text(len(CHOSEN))
    with backbone.attached(None) as attachment:
        bound = bind_selected(prefix, backbone.sites, CHOSEN, live=True, kept=kept)
        assert bound.rows == 4
        with attachment.using(bound):
            together = losses(backbone.model, ids, mask)
        found = torch.autograd.grad(together, prefix.tensors)
        alone = torch.zeros(())
        for row, chosen in enumerate(CHOSEN):
            places = [0, 1, 2, 3, *range(4, 6), *range(6, 8), *range(8, 11)]
            spans = {0: places[:4], 1: places[4:6], 2: places[6:8], 3: places[8:]}
            at = [place for number in (0, *chosen) for place in spans[number]]
            part = dataclasses.replace(
                prefix,
                keys=tuple(key[:, at] for key in prefix.keys),
                values=tuple(value[:, at] for value in prefix.values),
                meta=dataclasses.replace(prefix.meta, pieces=(), combination="attention"),
            )
            own = None if kept is None else [kept[place] for place in at]
            size = int(mask[row].sum())
            with attachment.using(bind(part, backbone.sites, live=True, kept=own)):
                alone = alone + losses(
                    backbone.model, ids[row : row + 1, :size], mask[row : row + 1, :size]
                )
        wanted = torch.autograd.grad(alone, prefix.tensors)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    hidden = [] if kept is None else [place for place, seen in enumerate(kept) if not seen]
    assert all(bool((gradient[:, hidden] == 0).all()) for gradient in found)
    seen = [place for place in range(11) if place not in hidden]
    assert all(bool(gradient[:, seen].abs().amax((0, 2)).min() > 0) for gradient in found)


def test_a_selection_is_what_select_gives() -> None:
    backbone = foreword.Backbone(tiny_model(), None, name="tiny")
    prefix = live(backbone)
    plain = dataclasses.replace(
        prefix,
        keys=tuple(key.detach() for key in prefix.keys),
        values=tuple(value.detach() for value in prefix.values),
    )
    ids, mask = text(len(CHOSEN))
    with torch.no_grad(), backbone.attached(None) as attachment:
        with attachment.using(bind_selected(plain, backbone.sites, CHOSEN)):
            found = backbone.model(input_ids=ids, attention_mask=mask).logits
        for row, chosen in enumerate(CHOSEN):
            with attachment.using(bind(plain.select(VALUES[chosen]), backbone.sites)):
                one = slice(row, row + 1)
                wanted = backbone.model(input_ids=ids[one], attention_mask=mask[one]).logits
            real = mask[row].bool()
            torch.testing.assert_close(found[row, real], wanted[0, real], rtol=1e-5, atol=1e-5)


def test_equal_selections_are_one_and_what_is_selected_is_the_identity() -> None:
    backbone = foreword.Backbone(tiny_model(), None, name="tiny")
    prefix = live(backbone)
    bound = bind_selected(prefix, backbone.sites, CHOSEN)
    assert bound.row_of_B == (2, 0, 1, 2, 3, 1)
    assert bound.offset_R == (0, 0, 0, 0)
    assert bound.identity == bind_selected(prefix, backbone.sites, CHOSEN).identity
    assert bound.identity != bind_selected(prefix, backbone.sites, CHOSEN[::-1]).identity
    lengths = {site.length_R for part in bound.parts for site in part.sites.values()}
    assert lengths == {(4, 9, 6, 7)}


def test_numbers_of_pieces_are_filled_up_with_none() -> None:
    assert selections(torch.tensor([[2, 3], [0, 0], [1, 0]]), 3) == [(2, 3), (), (1,)]
    assert selections(None, 2) == [(), ()]
