"""What every engine checks of a request, by itself: no engine runs here."""

from __future__ import annotations

from typing import Any

import pytest

import foreword
from foreword.engine import Request, Weighted
from foreword.engine.checks import left_of, opened, refuse_mixture, room_of
from foreword.engine.request import NotServed
from foreword.errors import TooLong
from foreword.prefix import Prefix
from foreword.store import PrefixStore
from tests.conftest import byte_tokenizer, tiny_model


@pytest.fixture(scope="module")
def one() -> Prefix:
    backbone = foreword.Backbone(tiny_model(), byte_tokenizer(), name="tiny")
    return backbone.capture(backbone.tokens("one"))


@pytest.fixture(scope="module")
def mixed(one: Prefix) -> Prefix:
    return foreword.concat(one, one[:2].strength(-0.5), combination="logits")


def under(*prefixes: Weighted) -> Request:
    return Request((3, 4), prefixes=prefixes)


def test_what_is_one_prefix_as_it_is_goes_to_any_engine(one: Prefix) -> None:
    refuse_mixture(under())
    refuse_mixture(under(Weighted(one)))
    refuse_mixture(under(Weighted(one, 1.0, "one", 1.0)))


def test_strengths_weights_and_mixtures_are_refused_by_name(one: Prefix, mixed: Prefix) -> None:
    for request, field, said in (
        (under(Weighted(one, strength=0.5)), "strength", "a prefix at strength 0.5 is not served"),
        (under(Weighted(one, strength=0.0)), "strength", "a prefix at strength 0 is not served"),
        (under(Weighted(one, 1.5)), "weight", "a prefix at weight 1.5 is not served"),
        (under(Weighted(one, 0.0)), "weight", "a prefix at weight 0 is not served"),
        (under(Weighted(one), Weighted(one[:2])), "prefixes", "a mixture of 2 prefixes is not"),
        (under(Weighted(mixed)), "prefixes", "a prefix that stands for a mixture is not served"),
    ):
        with pytest.raises(NotServed, match=said) as found:
            refuse_mixture(request)
        assert found.value.field == field
        assert found.value.why.endswith("use Foreword's own engine (--engine embedded)")


def test_a_mixture_is_known_by_its_files_header(mixed: Prefix, tmp_path: Any) -> None:
    """An engine whose workers read prefixes is given no more than that."""
    store = PrefixStore(tmp_path)
    store.save("mixed", mixed)
    with pytest.raises(NotServed, match="stands for a mixture"):
        refuse_mixture(under(Weighted(store.outline("mixed"), name="mixed")))


def test_a_request_is_opened_to_the_prefixes_of_its_mixtures(one: Prefix, mixed: Prefix) -> None:
    plain = under(Weighted(one, 1.5))
    assert opened(plain) is plain
    found = opened(under(Weighted(mixed, 2.0, "mixed")))
    assert [each.weight for each in found.prefixes] == [2.0, -1.0]
    assert [each.prefix.length for each in found.prefixes] == [one.length, 2]
    assert {each.name for each in found.prefixes} == {"mixed"}


class Roomy:
    """An engine with a context of 20 tokens and memory for 100."""

    def room(self, size: int, prefix: Prefix | None) -> int:
        room = 20 - size - (0 if prefix is None else prefix.length)
        if room < 1:
            raise TooLong("no room")
        return room

    def left(self, size: int, prefix: Prefix | None) -> int:
        return 100 - size - (0 if prefix is None else prefix.length)


def test_room_is_that_of_the_longest_branch_and_memory_that_of_all(one: Prefix) -> None:
    engine: Any = Roomy()
    assert one.length == 3
    both = (Weighted(one, 0.5), Weighted(one[:2], 1.0))  # and the frozen model, at -0.5
    assert room_of(engine, 5, ()) == 15
    assert room_of(engine, 5, both) == 12
    assert left_of(engine, 5, both[1:]) == 93
    assert left_of(engine, 5, both) == (100 - (6 + 3) - (6 + 2) - 6) // 3
    with pytest.raises(TooLong):
        room_of(engine, 17, both)
