"""`Router`: against the discriminant written out, on features of tiny backbones, and as a file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from transformers import BertConfig, BertModel

import foreword
from foreword.errors import (
    CorruptFile,
    DataError,
    FormatError,
    MismatchError,
    NameTaken,
    StoreError,
)
from foreword.router import FORMAT, Router, as_routed, discriminant, inputs_in
from tests.conftest import byte_tokenizer, tiny_model

NUMBERS = [f"{i}{i + 3}{7 * i}" for i in range(12)]
WORDS = [f"{a} {b} cake" for a in ("a", "the", "my") for b in ("red", "large", "sweet", "old")]
SHOUTS = [f"WHAT {w}!!" for w in ("NOW", "EVER", "A DAY", "IS IT", "A MESS", "FUN")]
INPUTS = {"numbers": NUMBERS[:8], "words": WORDS[:8], "shouts": SHOUTS[:4]}
HELD_OUT = {"numbers": NUMBERS[8:], "words": WORDS[8:], "shouts": SHOUTS[4:]}


@pytest.fixture(scope="module", params=["decoder", "encoder"])
def backbone(request: pytest.FixtureRequest) -> foreword.Backbone:
    if request.param == "decoder":
        return foreword.Backbone(tiny_model(), byte_tokenizer(), name="tiny")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=258,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        pad_token_id=1,
    )
    return foreword.Backbone(BertModel(config).eval(), byte_tokenizer(), name="tiny-bert")


@pytest.fixture(scope="module")
def router(backbone: foreword.Backbone) -> Router:
    return Router.fit(backbone, INPUTS)


def test_held_out_inputs_go_where_they_belong(backbone: foreword.Backbone, router: Router) -> None:
    assert router.names == ("numbers", "words", "shouts")
    assert router.texts == (8, 8, 4)
    shares = router.accuracy(backbone, HELD_OUT)
    for name, texts in HELD_OUT.items():
        went = [one.name for one in router.route(backbone, texts)]
        assert shares[name] == 100 * went.count(name) / len(texts)
    assert sum(shares.values()) / 3 > 80


def test_scores_are_posteriors_by_mahalanobis_distance(
    backbone: foreword.Backbone, router: Router
) -> None:
    """Log p = -d^2 / 2 less what all prefixes have in common, d measured in the shrunk covariance."""
    groups = [
        foreword.features(backbone, texts, pooling="mean").double() for texts in INPUTS.values()
    ]
    total = sum(len(group) for group in groups)
    covariance = sum(
        torch.outer(row - group.mean(0), row - group.mean(0)) for group in groups for row in group
    ) / (total - 3)
    shrunk = (covariance + torch.diag(covariance.diagonal())) / 2
    inverse = torch.linalg.inv(shrunk)
    texts = [text for own in HELD_OUT.values() for text in own]
    vectors = foreword.features(backbone, texts, pooling="mean").double()
    for routed, x in zip(router.route(backbone, texts), vectors, strict=True):
        halves = torch.stack([-(x - g.mean(0)) @ inverse @ (x - g.mean(0)) / 2 for g in groups])
        wanted = halves - halves.logsumexp(0)
        found = torch.tensor([*routed.scores.values()], dtype=torch.float64)
        assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-2)
        assert routed.name == router.names[int(wanted.argmax())]
        assert [*routed.scores] == [*router.names]


def test_features_that_never_vary_do_not_decide() -> None:
    generator = torch.Generator().manual_seed(0)
    groups = [torch.randn(20, 3, generator=generator).double() + 5 * i for i in range(2)]
    still = [torch.cat([group, torch.full((20, 1), 7.0).double()], dim=1) for group in groups]
    weight, bias = discriminant(still)
    wanted, own = discriminant(groups)
    assert torch.isfinite(weight).all()
    x = torch.randn(5, 3, generator=generator).double()
    with_still = torch.cat([x, torch.full((5, 1), 7.0).double()], dim=1) @ weight.T + bias
    plain = x @ wanted.T + own
    assert torch.allclose(with_still.diff(dim=1), plain.diff(dim=1), atol=1e-5)


def test_a_file_gives_the_same_router(
    tmp_path: Path, backbone: foreword.Backbone, router: Router
) -> None:
    path = router.save(tmp_path / "router.safetensors")
    loaded = Router.load(path)
    assert loaded.route(backbone, WORDS) == router.route(backbone, WORDS)
    for name in ("names", "texts", "fingerprint", "backbone", "revision"):
        assert getattr(loaded, name) == getattr(router, name)
    before = path.read_bytes()
    with pytest.raises(NameTaken, match="something is there"):
        router.save(path)
    assert path.read_bytes() == before
    router.save(path, overwrite=True)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["router.safetensors"]


def test_another_backbone_is_refused(router: Router) -> None:
    other = foreword.Backbone(tiny_model(seed=5), byte_tokenizer(), name="other")
    with pytest.raises(MismatchError, match="the router was fitted on 'tiny"):
        router.route(other, ["a"])


def test_known_features_are_scored_alike(backbone: foreword.Backbone, router: Router) -> None:
    texts = [text for own in HELD_OUT.values() for text in own]
    found = router.scored(foreword.features(backbone, texts, pooling="mean"))
    assert found == router.route(backbone, texts)


def test_a_router_of_another_width_is_refused(backbone: foreword.Backbone, router: Router) -> None:
    router.check(backbone)
    wider = dataclasses.replace(router, weight=torch.ones(3, backbone.width + 1))
    with pytest.raises(MismatchError, match=rf"features of {backbone.width + 1} numbers"):
        wider.check(backbone)


def about(**changes: object) -> dict[str, str]:
    said = {
        "format": FORMAT,
        "version": 1,
        "names": ["a", "b"],
        "texts": [2, 2],
        "fingerprint": "f",
        "backbone": "x",
        "revision": None,
        **changes,
    }
    return {FORMAT: json.dumps(said)}


GOOD = {"weight": torch.ones(2, 3), "bias": torch.ones(2)}


@pytest.mark.parametrize(
    ("content", "refusal", "message"),
    [
        (b"", CorruptFile, "is damaged"),
        (b"123456789", FormatError, "it is no router's"),
        (save(GOOD, about())[:-4], CorruptFile, "is damaged"),
        (save(GOOD), FormatError, "it is no router's"),
        (save(GOOD, {FORMAT: "{"}), CorruptFile, "is damaged"),
        (save(GOOD, {FORMAT: "[" * 100_000}), CorruptFile, "is damaged"),
        (save(GOOD, {FORMAT: "[]"}), FormatError, "it is no router's"),
        (save(GOOD, about(format="other")), FormatError, "it is no router's"),
        (save(GOOD, about(version=True)), FormatError, "its version is True"),
        (save(GOOD, about(version=1.0)), FormatError, "its version is 1.0"),
        (save(GOOD, about(names="ab")), CorruptFile, "its names is 'ab', expected a list"),
        (save(GOOD, about(texts={"2": 2, "3": 3})), CorruptFile, "its texts is .* a list"),
        (save(GOOD, about(backbone=None)), CorruptFile, "its backbone is None, expected text"),
        (save(GOOD, about(revision=3)), CorruptFile, "its revision is 3, expected text or null"),
        (save(GOOD, about(extra=1)), CorruptFile, "an unknown 'extra'; expected exactly"),
        (save({**GOOD, "more": torch.ones(1)}, about()), CorruptFile, "expected weight and bias"),
        (save(GOOD, about(version=2)), FormatError, "its version is 2"),
        (save(GOOD, about(names=["a"])), CorruptFile, "at least two names"),
        (save(GOOD, about(names=["a", "a"])), CorruptFile, "at least two names"),
        (save(GOOD, about(names=["a", "b", "c"])), CorruptFile, "a router of 3 prefixes"),
        (save(GOOD, about(names=["a", 3])), CorruptFile, "is damaged"),
        (save(GOOD, about(texts=["a", None])), CorruptFile, "is damaged"),
        (save(GOOD, about(fingerprint=3)), CorruptFile, "its fingerprint is 3, expected text"),
        (save({"weight": torch.ones(2, 3)}, about()), CorruptFile, "expected weight and bias"),
        (save({**GOOD, "weight": torch.ones(2)}, about()), CorruptFile, "is damaged"),
        (save({**GOOD, "weight": torch.ones(3, 2)}, about()), CorruptFile, "is damaged"),
        (save({**GOOD, "bias": torch.tensor([1.0, torch.nan])}, about()), CorruptFile, "bias"),
        (save({**GOOD, "bias": torch.ones(2).half()}, about()), CorruptFile, "bias"),
        (b"version https://git-lfs.github.com/spec/v1", FormatError, "pointer of Git LFS"),
    ],
)
def test_what_is_no_router(
    tmp_path: Path, content: bytes, refusal: type[Exception], message: str
) -> None:
    path = tmp_path / "router.safetensors"
    path.write_bytes(save(GOOD, about()))
    assert Router.load(path).names == ("a", "b")
    path.write_bytes(content)
    with pytest.raises(refusal, match=message):
        Router.load(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot read the router"):
        Router.load(tmp_path / "none")


def test_inputs_in_rows() -> None:
    rows = [{"a": "x", "b": 3, "c": "z"}]
    assert inputs_in(rows, "Say {a} now:") == ["x"]
    assert inputs_in(rows, "{a} and {b} and {a}") == ["x\n3"]
    with pytest.raises(DataError, match="names no column"):
        inputs_in(rows, "Say")
    with pytest.raises(DataError, match="row 1: there is no column 'd'; the columns are: a, b, c"):
        inputs_in(rows, "{d}")


@pytest.mark.parametrize(
    ("text", "routed"),
    [
        ('{"a": "x", "b": 3}', "x\n3"),
        (' {"b": true, "a": "{y}"}\n', "True\n{y}"),
        ('{"a": ""}', ""),
        ("{}", "{}"),
        ("x", "x"),
        ("{a} and b", "{a} and b"),
        ('["x"]', '["x"]'),
        ('{"a": "x"', '{"a": "x"'),
        ('{"a": null}', '{"a": null}'),
        ('{"a": ["x"]}', '{"a": ["x"]}'),
        ('{"a": {"b": "x"}}', '{"a": {"b": "x"}}'),
        ('{"a": NaN}', '{"a": NaN}'),
        ('{"a":' * 100_000, '{"a":' * 100_000),
    ],
)
def test_what_is_routed_of_a_text(text: str, routed: str) -> None:
    assert as_routed(text) == routed


def test_a_json_object_is_routed_as_the_row_that_it_stands_for(
    backbone: foreword.Backbone, router: Router
) -> None:
    """Also where the router is fitted on lines that are such objects."""
    rows = [{"a": text, "b": number} for number, text in enumerate(WORDS)]
    given, values = [json.dumps(row) for row in rows], inputs_in(rows, "{a}, {b} times:")
    assert router.route(backbone, given) == router.route(backbone, values)
    made, wanted = (
        Router.fit(backbone, {"words": own, "numbers": NUMBERS}) for own in (given, values)
    )
    assert torch.equal(made.weight, wanted.weight)


def test_what_is_refused(backbone: foreword.Backbone, router: Router) -> None:
    with pytest.raises(DataError, match="at least two prefixes; found 1"):
        Router.fit(backbone, {"a": NUMBERS})
    with pytest.raises(DataError, match="the number of texts of 'b' must be"):
        Router.fit(backbone, {"a": NUMBERS, "b": ["one"]})
    with pytest.raises(DataError, match="inputs must be texts by the name"):
        Router.fit(backbone, [NUMBERS, WORDS])  # type: ignore[arg-type]
    with pytest.raises(DataError, match="does not know 'verbs'"):
        router.accuracy(backbone, {"verbs": ["go"]})
