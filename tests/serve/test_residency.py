"""Which prefixes are in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import foreword
from foreword.errors import FormatError, StoreError
from foreword.prefix import Prefix
from foreword.serve.residency import Residency
from foreword.store import PrefixStore
from tests.conftest import byte_tokenizer, tiny_model


@pytest.fixture(scope="module")
def prefix() -> Prefix:
    backbone = foreword.Backbone(tiny_model(), byte_tokenizer(), name="tiny")
    return backbone.capture(backbone.tokens("a text"))


@pytest.fixture
def residency(tmp_path: Path, prefix: Prefix) -> Residency:
    store = PrefixStore(tmp_path)
    for number in range(6):
        changed = Prefix(
            prefix.sites, prefix.keys, tuple(v + number for v in prefix.values), prefix.meta
        )
        store.save(f"p{number}", changed)
    return Residency(store, most=3)


def test_the_last_used_ones_stay(residency: Residency) -> None:
    for name in ("p0", "p1", "p2", "p0", "p3"):
        residency.get(name)
    assert residency.resident == ("p2", "p0", "p3")
    assert (residency.hits, residency.misses, residency.evictions) == (1, 4, 1)
    assert residency.get("p0") is residency.get("p0")
    assert residency.bytes == 3 * residency.get("p0").nbytes


def test_pinned_ones_stay_besides(residency: Residency) -> None:
    residency.pin("p0")
    for number in range(1, 6):
        residency.get(f"p{number}")
    assert residency.resident == ("p0", "p3", "p4", "p5")
    assert residency.pinned == {"p0"}
    residency.unpin("p0")
    assert residency.resident == ("p3", "p4", "p5")


def test_a_replaced_file_is_read_anew_and_the_old_prefix_goes_on(
    residency: Residency, prefix: Prefix
) -> None:
    old = residency.get("p1")
    residency.store.save("p1", prefix, overwrite=True)
    new = residency.get("p1")
    assert new.digest == prefix.digest != old.digest
    assert torch.equal(old.values[0], prefix.values[0] + 1)


def test_a_removed_file_is_gone_and_an_unknown_name_says_so(residency: Residency) -> None:
    residency.pin("p1")
    residency.store.remove("p1")
    with pytest.raises(StoreError, match="no prefix is called 'p1'"):
        residency.get("p1")
    assert residency.resident == ()
    assert residency.pinned == frozenset()
    with pytest.raises(StoreError, match="is not a name"):
        residency.get("../p2")


def test_a_damaged_file_leaves_what_is_in_memory_alone(residency: Residency) -> None:
    residency.get("p0")
    residency.store.path("p2").write_bytes(b"no prefix")
    with pytest.raises(FormatError):
        residency.get("p2")
    assert residency.resident == ("p0",)


def test_there_must_be_room_for_one(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="at least 1"):
        Residency(PrefixStore(tmp_path), most=0)
