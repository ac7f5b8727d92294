"""Strengths: against a formula written out by hand, exact ends, rows alone, the cache, both kernels."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

import foreword
from foreword.attention import strength
from foreword.attention.bound import Bound, Part, bind
from foreword.attention.frame import Frame
from foreword.description import Piece
from foreword.errors import ForewordError, UnsupportedModel
from foreword.prefix import Prefix
from tests.backbone.test_attach import close, ids, in_context, logits, together_equals_alone
from tests.conftest import byte_tokenizer, tiny_model
from tests.oracle.by_hand import by_hand
from tests.oracle.families import BY_NAME, FAMILIES, attention_of
from tests.oracle.own import OWN

STRENGTHS = [-0.5, 0.25, 0.7, 1.6]


def backbone_of(kernel: str = "sdpa") -> foreword.Backbone:
    model = tiny_model()
    model.set_attn_implementation(kernel)
    return foreword.Backbone(model, byte_tokenizer())


def at(prefix: Prefix, *strengths: float) -> Prefix:
    """The prefix in as many pieces as strengths, of like length, the last one the longest."""
    each = prefix.length // len(strengths)
    lengths = [each] * (len(strengths) - 1)
    lengths.append(prefix.length - sum(lengths))
    pieces = (Piece("", length, value) for length, value in zip(lengths, strengths, strict=True))
    return prefix.with_meta(pieces=tuple(pieces))


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("softmax", ["joint", "own"])
@pytest.mark.parametrize("strengths", [(0.3,), (-0.5,), (1.7,), (0.6, 1.2), (0.5, 1.0, 0.2)])
def test_logits_and_gradients_are_those_of_the_formula(
    kernel: str, softmax: str, strengths: tuple[float, ...]
) -> None:
    backbone = backbone_of(kernel)
    model = backbone.model
    text, row = ids(7, 9)
    prefix = at(backbone.capture(text.tolist()).with_meta(softmax=softmax), *strengths)
    leaves = [t.clone().requires_grad_() for t in (*prefix.keys, *prefix.values)]
    live = Prefix(prefix.sites, tuple(leaves[:3]), tuple(leaves[3:]), prefix.meta)

    def outcome() -> tuple[Tensor, tuple[Tensor, ...]]:
        found = model(row[None], use_cache=False).logits[0]
        return found.detach(), torch.autograd.grad(found.logsumexp(-1).sum(), leaves)

    with backbone.attached(None) as attachment, attachment.using(bind(live, backbone.sites)):
        found, gradients = outcome()
    with by_hand(live):
        wanted, wanted_gradients = outcome()
    assert close(found, wanted)
    with by_hand(live.with_meta(pieces=())):
        assert not close(found, outcome()[0])
    for ours, theirs in zip(gradients, wanted_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("softmax", ["joint", "own"])
@pytest.mark.parametrize("positions", ["free", "offset"])
def test_at_0_it_is_the_base_model_and_at_1_the_prefix_to_the_bit(
    dtype: torch.dtype, softmax: str, positions: str
) -> None:
    backbone = foreword.Backbone(tiny_model().to(dtype), byte_tokenizer())
    text, row = ids(6, 9)
    prefix = backbone.capture(text.tolist(), positions).with_meta(softmax=softmax)  # type: ignore[arg-type]
    with backbone.attached(None):  # which in bfloat16 takes the same kernels
        plain = logits(backbone.model, row)
    with backbone.attached(prefix):
        whole = logits(backbone.model, row)
    for value, wanted in ((0.0, plain), (1.0, whole)):
        with backbone.attached(prefix.strength(value)):
            assert torch.equal(logits(backbone.model, row), wanted)
        with backbone.attached([prefix.strength(value)]):
            assert torch.equal(logits(backbone.model, row), wanted)


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_it_goes_from_one_end_to_the_other_without_a_jump(family: object) -> None:
    spec = next(one for one in FAMILIES if one is family)
    backbone = foreword.Backbone(spec.build(attention_of(spec)))
    text, row = (tokens % 97 for tokens in ids(5, 9))
    prefix = backbone.capture(text.tolist())
    if backbone.positions == "offset":  # whose text is moved by a prefix of any strength but 0
        prefix = prefix.with_meta(positions="free")
    plain = logits(backbone.model, row)
    with backbone.attached(prefix):
        whole = logits(backbone.model, row)
    ends = [(1e-6, plain), (1 - 1e-6, whole)]
    for value, wanted in ends:
        with backbone.attached(prefix.strength(value)):
            if spec in OWN:
                with pytest.raises(UnsupportedModel, match=r"strength 0 or 1.*foreword\.Mixture"):
                    logits(backbone.model, row)
                continue
            assert close(logits(backbone.model, row), wanted)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral", "gemma2"])
def test_rows_of_every_kind_equal_each_alone(family: str, side: str) -> None:
    spec = BY_NAME[family]
    backbone = foreword.Backbone(spec.build(attention_of(spec)))
    rows = [row % 97 for row in ids(20, 24, 22, 21, 23, 19, 18)]
    texts = [text % 97 for text in ids(6, 3, 8, 4, 7, seed=5)]
    made = [backbone.capture(text.tolist()) for text in texts]
    mixed = [
        made[0].strength(0.4),
        None,
        at(made[1], 0.0, 0.3, 1.2),
        made[2],
        made[3].strength(0.0),
        made[2].with_meta(softmax="own", windows="windowed").strength(1.5),
        at(made[4].with_meta(windows="windowed"), 0.2, 1.0).only(["decoder.1"]),
    ]
    together_equals_alone(backbone, mixed, rows, side)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"use_cache": False}])
def test_texts_with_and_without_a_cache_are_those_of_the_formula(
    dtype: torch.dtype, how: dict[str, object]
) -> None:
    backbone = foreword.Backbone(tiny_model().to(dtype), byte_tokenizer())
    text, row = ids(6, 9)
    prefix = at(backbone.capture(text.tolist()), 0.5, 1.3)
    options = {
        "max_new_tokens": 8,
        "do_sample": False,
        "pad_token_id": 0,
        "eos_token_id": None,
        **how,
    }
    with backbone.attached(prefix):
        found = backbone.model.generate(row[None], **options)
        one = backbone.model(found).logits
    with backbone.attached([prefix, None]):
        both = backbone.model.generate(row.expand(2, -1), **options)
    assert torch.equal(found[0], both[0])
    if dtype == torch.float32:
        with by_hand(prefix), torch.no_grad():
            wanted = backbone.model.generate(row[None], **{**options, "use_cache": False})
            logits_wanted = backbone.model(found, use_cache=False).logits
        assert torch.equal(found, wanted)
        assert close(one[0].detach(), logits_wanted[0])
    with backbone.attached(prefix.with_meta(pieces=())):
        assert not torch.equal(found, backbone.model.generate(row[None], **options))


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "mpt"])
@pytest.mark.parametrize("cut", [1, 4])
def test_the_halves_of_a_text_side_by_side_are_the_text_in_context(family: str, cut: int) -> None:
    spec = BY_NAME[family]
    backbone = foreword.Backbone(spec.build(attention_of(spec)))
    text, row = (tokens % 97 for tokens in ids(7, 9))
    prefix = backbone.capture(text.tolist()).with_meta(windows="windowed")
    found = []
    for one in (prefix, foreword.concat(prefix[:cut], prefix[cut:])):
        with backbone.attached(one):
            found.append(logits(backbone.model, row))
    assert torch.equal(*found)
    assert close(found[1], in_context(backbone, text, row))
    with backbone.attached(prefix[cut:]):
        assert not close(logits(backbone.model, row), found[1])


def test_few_queries_on_a_shared_copy_equal_each_row_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way that a long prefix takes in decoding, one copy for all rows."""
    backbone = backbone_of()
    text, *rows = ids(120, 9, 9, 9, 9, 9, 9)
    prefix = backbone.capture((text % 97).tolist())
    mixed = [prefix.strength(0.3)] * 3 + [at(prefix, 0.7, 1.0)] * 3
    batch = torch.stack(rows)
    called = []
    inner = strength.blended_softmax
    monkeypatch.setattr(
        "foreword.attention.merge.blended_softmax",
        lambda *args: called.append(1) or inner(*args),
    )
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "min_new_tokens": 6}
    found = []
    for chosen in (mixed[0], mixed[3]):
        with backbone.attached(chosen):
            found.append(backbone.model.generate(batch, **options))
    assert called
    for chosen, texts in zip((mixed[0], mixed[3]), found, strict=True):
        for row, written in zip(rows, texts, strict=True):
            with backbone.attached(chosen):
                assert torch.equal(backbone.model.generate(row[None], **options)[0], written)


def test_a_piece_of_strength_0_is_as_if_it_were_not_there() -> None:
    backbone = backbone_of()
    text, row = ids(7, 9)
    prefix = backbone.capture(text.tolist())
    with backbone.attached(prefix[3:]):
        wanted = logits(backbone.model, row)
    pieces = (Piece("a", 3, 0.0), Piece("b", 4))
    with backbone.attached(prefix.with_meta(pieces=pieces)):
        assert torch.equal(logits(backbone.model, row), wanted)


def test_more_strengths_than_can_be_computed_are_refused() -> None:
    backbone = backbone_of()
    prefix = at(backbone.capture(ids(10)[0].tolist()), 0.1, 0.2, 0.3, 0.4, 0.5)
    with pytest.raises(UnsupportedModel, match="5 pieces at strengths other than 0 and 1.*most 4"):
        foreword.attach(backbone.model, prefix)


@pytest.mark.parametrize(
    ("combination", "names", "said"),
    [("logits", ("", ""), "for a mixture"), ("control", ("", "a=b"), "prefix.select")],
)
def test_pieces_that_are_not_for_one_text_are_refused(
    combination: str, names: tuple[str, str], said: str
) -> None:
    backbone = backbone_of()
    prefix = backbone.capture(ids(6)[0].tolist()).with_meta(
        pieces=tuple(Piece(name, 3) for name in names), combination=combination
    )
    with pytest.raises(ForewordError, match=said):
        foreword.attach(backbone.model, prefix)
    with pytest.raises(UnsupportedModel):
        bind(prefix, backbone.sites)


def with_bias(bound: Bound, bias_RP: Tensor) -> Bound:
    """The same with a bias at every site."""
    parts = (
        Part(
            part.softmax,
            {n: dataclasses.replace(site, bias_RP=bias_RP) for n, site in part.sites.items()},
        )
        for part in bound.parts
    )
    return dataclasses.replace(bound, parts=tuple(parts))


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("softmax", ["joint", "own"])
def test_a_bias_counts_a_virtual_token_as_often_as_it_says(kernel: str, softmax: str) -> None:
    """The logarithm of 3 is the same as three copies of it; minus infinity hides one."""
    backbone = backbone_of(kernel)
    text, row = ids(5, 9)
    prefix = backbone.capture(text.tolist()).with_meta(softmax=softmax)
    bound = bind(prefix, backbone.sites)
    bias_1P = torch.tensor([[0.0, 3.0, 1.0, 0.0, 2.0]]).log()
    kept = [1, 1, 1, 2, 4, 4]
    copies = dataclasses.replace(
        prefix,
        keys=tuple(key[:, kept] for key in prefix.keys),
        values=tuple(value[:, kept] for value in prefix.values),
    )
    with backbone.attached(None) as attachment, attachment.using(with_bias(bound, bias_1P)):
        found = logits(backbone.model, row)
    with backbone.attached(copies):
        assert close(found, logits(backbone.model, row))


def test_a_call_without_a_mask_has_the_bias_of_its_own_site() -> None:
    backbone = backbone_of()
    prefix = backbone.capture(ids(5)[0].tolist())
    bound = bind(prefix, backbone.sites)
    sites = list(bound.parts[0].sites.values())[:2]
    frame = Frame("", bound, 1, None)
    like = torch.zeros(1, 2, 9, 8)
    assert frame.joint_mask(None, sites[0], 1, like) is None
    for number, site in enumerate(sites, 1):
        biased = dataclasses.replace(site, bias_RP=torch.full((1, 5), float(number)))
        found = frame.joint_mask(None, biased, 1, like)
        assert found is not None
        assert found[0, 0, 0].tolist() == [float(number)] * 5 + [0.0] * 9
    hidden = dataclasses.replace(sites[0], kept_RP=((True, False, True, True, True),))
    found = frame.joint_mask(None, hidden, 1, like)
    assert found is not None
    assert (found[0, 0, 0] == torch.finfo(torch.float32).min).tolist() == [False, True] + [
        False
    ] * 12


def test_several_parts_join_one_row() -> None:
    """One that shares the text's softmax, and two with softmaxes of their own."""
    backbone = backbone_of()
    row = ids(9)[0]
    joint, one, two = (backbone.capture(text.tolist()) for text in ids(4, 5, 3, seed=5))
    bounds = [
        bind(p.with_meta(softmax=s), backbone.sites)
        for p, s in ((joint, "joint"), (one, "own"), (two, "own"))
    ]
    every = dataclasses.replace(bounds[0], parts=tuple(b.parts[0] for b in bounds))
    first = [site.name for site in backbone.sites][:1]
    only = dataclasses.replace(
        every, parts=tuple(Part(p.softmax, {n: p.sites[n] for n in first}) for p in every.parts)
    )
    outs: list[Tensor] = []
    with backbone.attached(None) as attachment:
        hook = backbone.model.model.layers[0].self_attn.o_proj.register_forward_pre_hook(
            lambda _, args: outs.append(args[0].detach())
        )
        for bound in (
            None,
            *(
                dataclasses.replace(
                    b, parts=(Part(b.parts[0].softmax, {first[0]: b.parts[0].sites[first[0]]}),)
                )
                for b in bounds
            ),
            only,
        ):
            with attachment.using(bound):
                logits(backbone.model, row)
        hook.remove()
    plain, with_joint, with_one, with_two, with_all = outs
    assert close(with_all, with_joint + (with_one - plain) + (with_two - plain))
