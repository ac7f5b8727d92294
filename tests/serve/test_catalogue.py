"""Which prefixes of a store are models, told by their headers."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
from fastapi.testclient import TestClient

import foreword
from foreword import format as prefix_file
from foreword.backbone.served import Served
from foreword.engine.vllm.requests import check_served
from foreword.errors import FormatError, MismatchError, StoreError
from foreword.serve import create_app
from foreword.serve.catalogue import FREE, Catalogue
from foreword.store import PrefixStore
from tests.attacks import make
from tests.serve.behind import Behind, smaller_backbone


def labelled(prefix: foreword.Prefix) -> foreword.Prefix:
    """The prefix with a head."""
    head = foreword.Head("classify", ("a", "b"), "last", torch.zeros(2, 64), torch.zeros(2))
    return prefix.with_head(head)


@pytest.fixture
def store(behind: Behind) -> PrefixStore:
    """Two prefixes that fit, one of the same geometry, two that do not, and one that is no prefix."""
    backbone, store = behind.backbone, behind.emptied()
    prefix = backbone.capture(backbone.tokens("text"))
    store.save("one", prefix)
    store.save("two", backbone.capture(backbone.tokens("another text")))
    store.save("other-weights", prefix.with_meta(fingerprint="ab" * 32))
    store.save("other-tokens", prefix.with_meta(tokenizer="ab" * 32))
    smaller = smaller_backbone()
    store.save("smaller", smaller.capture(smaller.tokens("text")))
    store.save("labels", labelled(prefix))
    store.path("damaged").write_bytes(store.path("one").read_bytes()[:100])
    return store


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file's header was read, and how often a header was checked or a file loaded."""
    counts: Counter[str] = Counter()
    for name in ("claims", "outline", "load"):
        real = getattr(prefix_file, name)

        def counted(path: Path, name: str = name, real: object = real) -> object:
            counts[path.stem if name == "claims" else name] += 1
            return real(path)  # type: ignore[operator]

        monkeypatch.setattr(prefix_file, name, counted)
    return counts


def test_what_fits_is_listed(served: Served, store: PrefixStore) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter(
            "error"
        )  # weights of another revision are served, with a warning then
        assert list(Catalogue(served, store)) == ["one", "other-weights", "two"]


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("smaller", MismatchError, "has 2 sites.*'tiny'.*made on 'smaller'"),
        ("other-tokens", MismatchError, "made with another tokenizer"),
        ("labels", MismatchError, "carries a head for 'classify'"),
        ("damaged", FormatError, "its header claims"),
        ("none", StoreError, "no prefix is called 'none'"),
    ],
)
def test_what_does_not_says_why(
    served: Served,
    store: PrefixStore,
    name: str,
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        Catalogue(served, store).check(name)


def test_a_header_is_read_once_and_no_tensor_ever(
    served: Served, store: PrefixStore, reads: Counter[str]
) -> None:
    catalogue = Catalogue(served, store)
    assert [list(catalogue) for _ in range(3)] == [["one", "other-weights", "two"]] * 3
    kinds = 6  # of sites, length, head, weights and tokenizer
    assert reads == Counter([*store, *["outline"] * kinds])


def test_a_file_that_is_replaced_is_looked_at_again(
    served: Served, store: PrefixStore, reads: Counter[str]
) -> None:
    catalogue = Catalogue(served, store)
    list(catalogue)
    os.replace(store.path("smaller"), store.path("two"))
    os.replace(store.path("one"), store.path("damaged"))
    assert list(catalogue) == ["damaged", "other-weights"]
    assert (reads["two"], reads["damaged"], reads["other-weights"]) == (2, 2, 1)
    store.save("one", prefix_file.load(store.path("damaged")))
    assert list(catalogue) == ["damaged", "one", "other-weights"]


def test_a_file_that_is_deleted_meanwhile_is_not_listed(served: Served, store: PrefixStore) -> None:
    listed = iter(Catalogue(served, store))
    assert next(listed) == "one"
    store.remove("two")
    assert list(listed) == ["other-weights"]


@pytest.mark.engines("vllm", reason="it serves gated prefixes")
def test_prefixes_that_differ_by_their_policy_alone_are_told_apart(behind: Behind) -> None:
    """What was found of the first was taken for the others."""
    prefix, store = behind.backbone.capture([5, 6, 7]), behind.emptied()
    for name in ("a", "c"):
        store.save(name, prefix)
    for name in ("b", "d"):
        store.save(name, prefix.with_meta(softmax="own"))
    assert list(Catalogue(behind.served, store)) == ["a", "c"]
    store.remove("a")
    assert list(Catalogue(behind.served, store)) == ["c"]


class Choosy:
    """A backbone as an engine has it that serves no strengths: the tests' own, which refuses more."""

    context = 256
    name = "choosy"

    def __init__(self) -> None:
        self.asked = 0

    def check(self, prefix: foreword.Prefix, *, warn: bool = True) -> None:
        self.asked += 1
        check_served(prefix)


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
def test_prefixes_that_differ_by_their_pieces_alone_are_told_apart(
    behind: Behind, tmp_path: Path, names: tuple[str, str]
) -> None:
    """Of files of one geometry the first decided for all, be it at full strength or not."""
    backbone, store = behind.backbone, PrefixStore(tmp_path)
    one, two = (backbone.capture(backbone.tokens(text)) for text in ("one", "two"))
    half, full = names
    store.save(half, foreword.concat(one.strength(0.5), two, names=["x", "y"]))
    store.save(full, foreword.concat(one, two, names=["x", "y"]))
    pieces = store.load(full).meta.pieces
    store.save("mixed", store.load(full).with_meta(combination="logits"))
    assert len(pieces) == 2
    choosy = Choosy()
    assert list(Catalogue(choosy, store)) == [full]  # type: ignore[arg-type]
    assert choosy.asked == 3


def test_how_a_prefix_was_made_tells_no_kinds_apart(behind: Behind, tmp_path: Path) -> None:
    """Any other field does, a later format's too."""
    prefix, store = behind.backbone.capture([5, 6, 7]), PrefixStore(tmp_path)
    for number in range(3):
        recipe = {"method": "prefix", "prompt": f"{number}: {{input}}", "target": "{output}"}
        training, parents = {"seconds": number}, (f"{number}" * 64,)
        made = prefix.with_meta(recipe=recipe, training=training, parents=parents)
        store.save(f"p{number}", made)
    choosy = Choosy()
    assert list(Catalogue(choosy, store)) == ["p0", "p1", "p2"]  # type: ignore[arg-type]
    assert choosy.asked == 1
    fields = {field.name for field in dataclasses.fields(prefix.meta)}
    assert fields >= FREE


def test_hostile_headers_are_not_listed(served: Served, tmp_path: Path) -> None:
    store = PrefixStore(tmp_path)
    for name, content in make.attacks().items():
        store.path(name).write_bytes(content)
    assert list(Catalogue(served, store)) == []


def test_the_server_lists_what_it_can_serve(behind: Behind, store: PrefixStore) -> None:
    with TestClient(create_app(*behind.again(), behind.registry(store))) as client:
        listed = [one["id"] for one in client.get("/v1/models").json()["data"]]
        assert listed == ["tiny", "one", "other-weights", "two"]
        prefixes = [one["name"] for one in client.get("/v1/prefixes").json()["data"]]
        assert prefixes == list(store)
        for name, why in (("smaller", "made on 'smaller'"), ("damaged", "its header claims")):
            asked = {"model": name, "prompt": "x", "stream": True}
            for answer in (
                client.get(f"/v1/models/{name}"),
                client.post("/v1/completions", json=asked),
            ):
                assert answer.status_code == 400
                assert why in answer.json()["error"]["message"]
