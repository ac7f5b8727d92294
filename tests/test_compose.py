"""Prefixes composed by expressions, compared with the same worked out from their tensors."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import foreword
from foreword.backbone import Backbone
from foreword.backbone.cascade import cascade
from foreword.compose import compose, needs_backbone
from foreword.description import Piece, PrefixMeta, Site
from foreword.errors import ExpressionError, ForewordError, MismatchError, NameUnknown, PrefixError
from foreword.expressions import MODES, parse
from foreword.prefix import Prefix
from foreword.store import PrefixStore
from tests.conftest import MEMORY

SITES = (Site("one", "decoder", 0, 2, 3, 4), Site("two", "decoder", 1, 1, 3, 3))
LENGTH = 5


def drawn(seed: int, length: int = LENGTH, **meta: Any) -> Prefix:
    """A prefix of random numbers."""
    torch.manual_seed(seed)
    keys = tuple(torch.randn(site.kv_heads, length, site.key_dim) for site in SITES)
    values = tuple(torch.randn(site.kv_heads, length, site.value_dim) for site in SITES)
    return Prefix(SITES, keys, values, PrefixMeta(backbone="b", recipe={"prompt": "{x}"}, **meta))


START = drawn(9)
CONTROL = drawn(
    4,
    8,
    pieces=(Piece("", 3), Piece("mood=good", 2), Piece("mood=bad", 2), Piece("size=short", 1)),
    combination="control",
)
STORED = {
    **{name: dataclasses.replace(drawn(seed), start=START) for seed, name in enumerate("abc")},
    "task": CONTROL,
    "short": dataclasses.replace(drawn(5, 3), start=drawn(6, 3)),
    "other-start": dataclasses.replace(drawn(7), start=drawn(8)),
    "unstarted": drawn(7),
    "at-0": drawn(7, positions="offset"),
    "at-1": drawn(8, positions="offset"),
    "dim": drawn(3).strength(0.5),
    "mixture": foreword.concat(drawn(1), drawn(2), combination="logits"),
    "two": foreword.concat(drawn(1), drawn(2)),
}


def load(name: str) -> Prefix:
    if name not in STORED:
        raise NameUnknown(f"no prefix is called {name!r}")
    return STORED[name]


def composed(text: str, mode: Any = "sum", **more: Any) -> Prefix:
    return compose(text, load, mode=mode, **more)


def same(made: Prefix, wanted: Callable[[torch.Tensor, ...], torch.Tensor], *names: str) -> bool:
    """Whether every tensor is what is made of those of some prefixes, to the last bit."""
    every = zip(made.tensors, *(STORED[name].tensors for name in names), strict=True)
    return all(torch.equal(found, wanted(*given)) for found, *given in every)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("text", ["a", "(a)", "a[:]", "2*a - a", "a[0:5]", "task", "dim"])
def test_a_name_is_the_prefix_itself(text: str, mode: str) -> None:
    assert composed(text, mode) is STORED[text.strip("(2*)-[:05] ").split(" ")[0]]


def test_a_sum_is_of_what_was_learned() -> None:
    made = composed("0.7*a + b - 2*(c - a)")
    every = zip(made.tensors, START.tensors, *(STORED[n].tensors for n in "abc"), strict=True)
    for found, s, a, b, c in every:
        s, a, b, c = (each.double() for each in (s, a, b, c))
        wanted = s + 2.7 * (a - s) + (b - s) - 2 * (c - s)
        assert float((found - wanted).abs().max()) < 4e-6
    assert made.start is START
    assert made.dtype == torch.float32


def test_weights_of_one_and_zero_are_the_first() -> None:
    assert same(composed("a + 0*b"), lambda a: a, "a")
    assert same(composed("0*b + a - 0*c"), lambda a: a, "a")
    made = composed("a - a")
    assert all(torch.equal(*pair) for pair in zip(made.tensors, START.tensors, strict=True))


def test_side_by_side_at_strengths() -> None:
    made = composed("0.5*a + short - b[1:3]", "concat")
    assert same(made, lambda a, s, b: torch.cat([a, s, b[:, 1:3]], 1), "a", "short", "b")
    assert made.meta.combination == "attention"
    assert made.meta.pieces == (Piece("a", 5, 0.5), Piece("short", 3), Piece("b[1:3]", 2, -1.0))


def test_pieces_stay_where_they_are_side_by_side() -> None:
    made = composed("0.5*two + a", "concat")
    assert made.meta.pieces == (Piece("", 5, 0.5), Piece("", 5, 0.5), Piece("", 5, 1.0))
    assert composed("0.5*two", "concat").meta.pieces == made.meta.pieces[:2]
    assert composed("0.5*dim + a", "concat").meta.pieces == (Piece("dim", 5, 0.25), Piece("a", 5))


@pytest.mark.parametrize("names", ["a b", "at-0 at-1"])
def test_a_mixture_of_logits(names: str) -> None:
    """Each is a prefix of its own there, so that their positions may overlap."""
    one, two = names.split()
    made = composed(f"1.5*{one} - 0.5*{two}", "logits")
    assert same(made, lambda *pair: torch.cat(pair, 1), one, two)
    assert made.meta.combination == "logits"
    assert made.meta.pieces == (Piece(one, 5, 1.5), Piece(two, 5, -0.5))
    assert composed("0.5*a", "logits").meta.pieces == (Piece("a", 5, 0.5),)


def test_a_mixture_in_a_mixture_is_its_pieces() -> None:
    """A weight times log p(mixture) is a sum over its pieces, but for a constant that drops out."""
    inner = composed("2*a - 0.5*b", "logits")
    made = compose("0.5*m + c", {"m": inner, "c": STORED["c"]}.__getitem__, mode="logits")
    wanted = composed("a - 0.25*b + c", "logits")
    assert made.meta.pieces == wanted.meta.pieces
    assert same(made, lambda *all_: torch.cat(all_, 1), "a", "b", "c")


def test_a_mixture_takes_what_is_side_by_side_as_one() -> None:
    made = composed("0.5*two + 0.5*short", "logits")
    assert made.meta.pieces == (Piece("two", 10, 0.5), Piece("short", 3, 0.5))


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("task[mood=good]", [0, 1, 2, 3, 4]),
        ("task[mood=bad]", [0, 1, 2, 5, 6]),
        ("task[size=short]", [0, 1, 2, 7]),
        ("task[size=short,mood=bad]", [0, 1, 2, 5, 6, 7]),
    ],
)
def test_what_is_selected_of_a_prefix_with_control(text: str, columns: list[int]) -> None:
    made = composed(text)
    assert same(made, lambda all_: all_[:, columns], "task")
    assert made.meta.combination == "attention"
    assert made.meta.pieces == ()
    assert made.meta.parents == (CONTROL.digest,)


def test_selected_pieces_keep_strengths_of_their_own() -> None:
    made = compose("a[mood=good]", {"a": CONTROL.strength(0.5)}.__getitem__)
    assert made.meta.pieces == (Piece("", 3, 0.5), Piece("mood=good", 2, 0.5))


def test_a_value_that_training_did_not_see() -> None:
    said = r"was trained for mood = 'good', 'bad', and not for 'odd': its shared part stands alone"
    with pytest.warns(foreword.UnseenValue, match=said):
        made = composed("task[mood=odd]")
    assert same(made, lambda all_: all_[:, :3], "task")
    with pytest.warns(foreword.UnseenValue):
        made = composed("task[mood=odd,size=short]")
    assert same(made, lambda all_: all_[:, [0, 1, 2, 7]], "task")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        composed("task[mood=bad]")


def test_what_is_selected_can_be_composed_on() -> None:
    made = composed("0.5*task[mood=good] + task[mood=bad]", "concat")
    assert [piece.name for piece in made.meta.pieces] == ["task[mood=good]", "task[mood=bad]"]
    assert made.meta.parents == (CONTROL.digest,)


def test_a_piece_has_no_longer_name_than_a_label() -> None:
    long = CONTROL.with_meta(
        pieces=tuple(Piece(f"mood={'x' * 249}{i}" if i else "", 1) for i in range(8))
    )
    made = compose(
        f"task[mood={'x' * 249}1] + a", {**STORED, "task": long}.__getitem__, mode="concat"
    )
    assert [piece.name for piece in made.meta.pieces] == ["task", "a"]


RECORDS = {
    ("0.7*a + (b - a)", "sum"): ("a", "b"),
    ("a[1:3] - 0.5*b[1:3]", "sum"): ("a", "b"),
    ("0.5*a[:2] + a[2:] + b", "concat"): ("a", "b"),
    ("0.5*a", "concat"): ("a",),
    ("a - 0.5*b", "logits"): ("a", "b"),
    ("a[2:4]", "logits"): ("a",),
}


@pytest.mark.parametrize(("text", "mode"), RECORDS)
def test_the_record_of_a_composition(text: str, mode: str, tmp_path: Path) -> None:
    """Parents by digest, the expression as it is written out, and templates of the first operand."""
    made = composed(text, mode)
    assert made.meta.parents == tuple(STORED[name].digest for name in RECORDS[text, mode])
    record = made.meta.recipe["composition"]
    assert record["expression"] == str(parse(text))
    assert record["mode"] == ("slice" if text == "a[2:4]" else mode)
    assert made.meta.recipe["prompt"] == "{x}"
    assert made.meta.training == {}
    foreword.save_prefix(made, tmp_path / "made.safetensors")
    assert foreword.load_prefix(tmp_path / "made.safetensors").digest == made.digest


def test_the_operands_are_in_the_record() -> None:
    found = composed("0.5*a[:2] + task[mood=bad]", "concat").meta.recipe["composition"]["of"]
    assert found == [
        {"prefix": STORED["a"].digest, "operand": "a[:2]", "weight": 0.5},
        {"prefix": CONTROL.digest, "operand": "task[mood=bad]", "weight": 1.0},
    ]


def test_each_name_is_loaded_once() -> None:
    asked: list[str] = []

    def counted(name: str) -> Prefix:
        asked.append(name)
        return load(name)

    compose("a[:2] + b - a[2:4] + 0*c", counted, mode="concat")
    assert asked == ["a", "b", "c"]


def test_operands_of_two_dtypes_are_composed_in_one_that_holds_both() -> None:
    half = {name: STORED[name].to(torch.bfloat16) for name in "ab"}
    assert compose("a + b", half.__getitem__).dtype == torch.bfloat16
    assert compose("a + b", {**half, "b": STORED["b"]}.__getitem__).dtype == torch.float32
    mixed = {"a": half["a"], "b": STORED["b"].to(torch.float16)}
    assert compose("a + b", mixed.__getitem__, mode="concat").dtype == torch.float32


WRONG = [
    ("nope", "sum", NameUnknown, "^no prefix is called 'nope'$"),
    ("a + b-c", "sum", NameUnknown, "'b-c'. A '-' belongs to the name that it stands in"),
    ("a +", "sum", ExpressionError, "expected a name"),
    ("a[:6]", "sum", ExpressionError, r"^a\[:6\]: a has 5 virtual tokens"),
    ("a[5:]", "sum", ExpressionError, r"^a\[5:\]: a has 5 virtual tokens"),
    ("a[5]", "sum", ExpressionError, r"^a\[5:6\]: a has 5 virtual tokens"),
    ("a[x=y]", "sum", PrefixError, "^a has no attributes to select by"),
    (
        "task[mod=good]",
        "sum",
        PrefixError,
        "^task has no attribute 'mod'; it has 'mood', 'size'",
    ),
    ("task[mod=good]", "sum", PrefixError, "did you mean 'mood'"),
    ("task[:2]", "sum", PrefixError, r"^task\[:2\]: a slice needs prefixes that stand in front"),
    ("a + short", "sum", PrefixError, "^a and short: a sum needs prefixes of the same length"),
    ("a + b + other-start", "sum", PrefixError, "^a and other-start: a sum is of what was learned"),
    ("a + unstarted", "sum", PrefixError, r"^a and unstarted: .*foreword.with_start"),
    ("2*unstarted", "sum", PrefixError, r"^unstarted: .*foreword.with_start"),
    ("a + task", "sum", ExpressionError, "^task has a piece for each .* write task.mood=good.$"),
    ("at-0 + at-1", "concat", PrefixError, "^at-0, at-1: .*foreword.cascade"),
    (
        "0.5*task",
        "concat",
        ExpressionError,
        "^task has a piece for each of 'mood=good', 'mood=bad', ",
    ),
    ("a + at-0", "concat", PrefixError, "^a, at-0: .*same positions"),
    ("a + dim", "logits", PrefixError, r"^dim: pieces of strengths \[0.5\] cannot be mixed"),
    ("a + task", "logits", ExpressionError, "^task has a piece for each"),
    ("a + mixture", "concat", PrefixError, "^a, mixture: .* combined as 'logits'"),
    ("a + b", "cascade", PrefixError, "mode cascade moves positions .* give backbone="),
    ("a + b", "product", PrefixError, "mode must be one of sum, concat, cascade, logits"),
    (3, "sum", ExpressionError, "an expression must be text"),
]


@pytest.mark.parametrize(("text", "mode", "kind", "said"), WRONG)
def test_what_is_refused_says_of_what(
    text: str, mode: str, kind: type[ForewordError], said: str
) -> None:
    with pytest.raises(kind, match=said):
        composed(text, mode)


def test_what_is_loaded_must_be_a_prefix() -> None:
    with pytest.raises(PrefixError, match="what was loaded for 'a' must be a Prefix"):
        compose("a", lambda name: name)  # type: ignore[arg-type, return-value]
    with pytest.raises(PrefixError, match="load must be what gives the prefix of a name"):
        compose("a", STORED)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "modes"),
    [("a", ""), ("a[:2]", ""), ("t[x=y]", ""), ("2*a", "sum cascade"), ("a + b", "sum cascade")],
)
def test_which_modes_need_the_backbone(text: str, modes: str) -> None:
    assert [mode for mode in MODES if needs_backbone(parse(text), mode)] == modes.split()


@pytest.fixture
def trained(tiny: Backbone, tmp_path: Path) -> dict[str, Prefix]:
    """Two prefixes of one start, in the store of `tmp_path` too, where no start is kept."""
    settings = foreword.TrainSettings(
        prompt="{mr} ->", target=" {ref}", length=4, steps=2, init_text="Say what it is."
    )
    found = {}
    for name, rows in (("p", MEMORY[:6]), ("q", MEMORY[6:])):
        found[name] = foreword.train(tiny, rows, settings).prefix
        PrefixStore(tmp_path).save(name, found[name])
    return found


def test_starts_are_recomputed_for_what_comes_from_files(
    tiny: Backbone, tmp_path: Path, trained: dict[str, Prefix]
) -> None:
    store = PrefixStore(tmp_path)
    live = compose("p + 0.5*(p - q)", trained.__getitem__)
    made = compose("p + 0.5*(p - q)", store.load, backbone=tiny, store=store)
    assert made.digest == live.digest
    store.save("r", made)
    again = compose("2*r[:2] - q[:2]", store.load, backbone=tiny, store=store)
    assert again.digest == compose("2*r[:2] - q[:2]", {**trained, "r": live}.__getitem__).digest
    with pytest.raises(PrefixError, match="^q: .*foreword.with_start"):
        compose("p - q", {**trained, "q": store.load("q")}.__getitem__)


def test_a_cascade_is_on_the_backbone(tiny: Backbone, trained: dict[str, Prefix]) -> None:
    made = compose("0.5*p + q[:2]", trained.__getitem__, mode="cascade", backbone=tiny)
    wanted = cascade(tiny, trained["p"].strength(0.5), trained["q"][:2])
    every = zip(made.tensors, wanted.tensors, strict=True)
    assert all(torch.equal(*pair) for pair in every)
    assert made.meta.pieces == (Piece("p", 4, 0.5), Piece("q[:2]", 2))
    assert made.meta.parents == (trained["p"].digest, trained["q"].digest)
    with pytest.raises(MismatchError, match="^a, b: "):
        composed("a + b", "cascade", backbone=tiny)
