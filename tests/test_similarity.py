"""How alike prefixes are: against the definition written out, and known vectors."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

import foreword
from foreword.description import Piece
from foreword.errors import PrefixError
from foreword.prefix import Prefix, PrefixMeta, Site
from foreword.similarity import Similarity, similarity

SITES = tuple(Site(f"attn{i}", "decoder", i, kv_heads=2, key_dim=3, value_dim=4) for i in range(3))


def random_prefix(
    seed: int, length: int = 5, *, start: int | None = 99, scale: float = 1
) -> Prefix:
    """A random prefix with a random start; the first site's numbers are `scale` times as large."""
    generator = torch.Generator().manual_seed(seed)

    def tensors(dim: int) -> tuple[torch.Tensor, ...]:
        every = [torch.randn(2, length, dim, generator=generator) for _ in SITES]
        return (scale * every[0], *every[1:])

    made = Prefix(SITES, tensors(3), tensors(4), PrefixMeta(fingerprint="w"))
    origin = None if start is None else random_prefix(start, length, start=None)
    return dataclasses.replace(made, start=origin)


def by_hand(a: Prefix, b: Prefix, *, raw: bool, mean: bool) -> float:
    """The mean over sites, keys and values of cosines, one after the other."""
    found = []
    for kind in ("keys", "values"):
        for site in range(len(SITES)):
            x, y = (getattr(one, kind)[site].double() for one in (a, b))
            if not raw:
                x = x - getattr(a.start, kind)[site].double()
                y = y - getattr(b.start, kind)[site].double()
            if mean:
                x, y = x.mean(dim=1), y.mean(dim=1)
            top = sum(
                p * q for p, q in zip(x.flatten().tolist(), y.flatten().tolist(), strict=True)
            )
            found.append(top / float(x.norm() * y.norm()))
    return sum(found) / len(found)


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("pooling", ["tokens", "mean"])
def test_the_definition(raw: bool, pooling: str) -> None:
    every = {name: random_prefix(seed) for seed, name in enumerate("abc")}
    found = similarity(every, raw=raw, pooling=pooling)  # type: ignore[arg-type]
    assert (found.names, found.raw, found.pooling) == (("a", "b", "c"), raw, pooling)
    for i, one in enumerate("abc"):
        for j, other in enumerate("abc"):
            wanted = by_hand(every[one], every[other], raw=raw, mean=pooling == "mean")
            assert found.matrix[i][j] == pytest.approx(wanted, abs=1e-12)
        assert found.matrix[i][i] == 1
    assert found.matrix == tuple(zip(*found.matrix, strict=True))


def test_no_layer_rules() -> None:
    small, large = (
        similarity({"a": random_prefix(0, scale=s), "b": random_prefix(1, scale=s)}, raw=True)
        for s in (1, 1000)
    )
    assert large.matrix[0][1] == pytest.approx(small.matrix[0][1], abs=1e-6)


def test_what_was_learned_is_compared_and_not_the_start() -> None:
    a, origin = random_prefix(0), random_prefix(0).start
    assert origin is not None
    tensors = {
        kind: tuple(2 * s - t for t, s in zip(getattr(a, kind), getattr(origin, kind), strict=True))
        for kind in ("keys", "values")
    }
    opposite = dataclasses.replace(a, **tensors)
    assert similarity({"a": a, "b": opposite}).matrix[0][1] == pytest.approx(-1, abs=1e-6)
    double = {
        kind: tuple(2 * t - s for t, s in zip(getattr(a, kind), getattr(origin, kind), strict=True))
        for kind in ("keys", "values")
    }
    twice = dataclasses.replace(a, **double)
    assert similarity({"a": a, "b": twice}).matrix[0][1] == pytest.approx(1, abs=1e-6)


def test_what_an_order_of_virtual_tokens_changes() -> None:
    a = random_prefix(0)
    order = [3, 1, 4, 0, 2]
    assert a.start is not None
    turned = dataclasses.replace(
        a,
        keys=tuple(key[:, order] for key in a.keys),
        values=tuple(value[:, order] for value in a.values),
        start=dataclasses.replace(
            a.start,
            keys=tuple(key[:, order] for key in a.start.keys),
            values=tuple(value[:, order] for value in a.start.values),
        ),
    )
    assert similarity({"a": a, "b": turned}, pooling="mean").matrix[0][1] == pytest.approx(1)
    assert similarity({"a": a, "b": turned}).matrix[0][1] < 0.5


def test_prefixes_of_different_lengths_are_compared_by_their_means() -> None:
    every = {"a": random_prefix(0), "b": random_prefix(1, 3)}
    found = similarity(every)
    assert found.pooling == "mean"
    wanted = by_hand(every["a"], every["b"], raw=False, mean=True)
    assert found.matrix[0][1] == pytest.approx(wanted, abs=1e-12)
    with pytest.raises(PrefixError, match=r"different lengths \(a 5, b 3\)"):
        similarity(every, pooling="tokens")


def test_the_nearest() -> None:
    found = Similarity(
        ("a", "b", "c"),
        ((1.0, 0.2, 0.7), (0.2, 1.0, -0.1), (0.7, -0.1, 1.0)),
        "tokens",
        raw=False,
        left_out={"d": "it is large"},
    )
    assert found.nearest("a") == [("c", 0.7), ("b", 0.2)]
    assert found.nearest("b") == [("a", 0.2), ("c", -0.1)]
    with pytest.raises(
        PrefixError, match="no prefix called 'd' was compared; it was left out: it is"
    ):
        found.nearest("d")
    with pytest.raises(PrefixError, match="they are a, b, c"):
        found.nearest("e")


def test_places_have_the_distances_that_a_plane_can_show() -> None:
    """Of three prefixes a plane shows all: the distances are sqrt(2 - 2 s)."""
    found = similarity({name: random_prefix(seed) for seed, name in enumerate("abc")})
    places, share = found.places()
    assert share == pytest.approx(1)
    for i in range(3):
        for j in range(3):
            wanted = math.sqrt(max(2 - 2 * found.matrix[i][j], 0))
            assert math.dist(places[i], places[j]) == pytest.approx(wanted, abs=1e-7)
    assert sum(x for x, _ in places) == pytest.approx(0, abs=1e-9)


def test_places_of_many_are_their_principal_components() -> None:
    generator = torch.Generator().manual_seed(3)
    units = torch.nn.functional.normalize(
        torch.randn(7, 4, generator=generator, dtype=torch.float64), dim=1
    )
    rows = tuple(tuple(row) for row in (units @ units.T).tolist())
    places, share = Similarity(tuple("abcdefg"), rows, "tokens", raw=False).places()
    centred = units - units.mean(0)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    wanted = (u * s)[:, :2]
    assert torch.allclose(torch.tensor(places).double().abs(), wanted.abs(), atol=1e-9)
    assert share == pytest.approx(float((s[:2] ** 2).sum() / (s**2).sum()))


def test_equal_prefixes_lie_at_one_place() -> None:
    a = random_prefix(0)
    places, share = similarity({"a": a, "b": a}).places()
    assert [abs(x) + abs(y) < 1e-6 for x, y in places] == [True, True]
    assert share == 1


def test_who_is_left_out_and_why() -> None:
    a = random_prefix(0)
    mixture = random_prefix(2).with_meta(
        pieces=(Piece("x", 2), Piece("y", 3)), combination="logits"
    )
    every = {
        "a": a,
        "b": random_prefix(1),
        "mixed": mixture,
        "other": random_prefix(3).with_meta(fingerprint="v"),
        "unknown": random_prefix(4, start=None),
        "nan": dataclasses.replace(a, keys=tuple(key * math.nan for key in a.keys)),
        "still": dataclasses.replace(a, keys=a.start.keys, values=a.start.values),  # type: ignore[union-attr]
        "short": random_prefix(5).only(["decoder.0"]),
    }
    found = similarity(every, left_out={"gone": "damaged"})
    assert found.names == ("a", "b")
    said = {
        "gone": "damaged",
        "mixed": "its pieces are combined as 'logits'",
        "other": "same fingerprint; found 'w' and 'v'",
        "unknown": "it is not known where it started",
        "nan": "decoder.0.key holds NaN",
        "still": "it learned nothing",
        "short": "prefixes at the same sites",
    }
    assert found.left_out.keys() == said.keys()
    assert all(said[name] in found.left_out[name] for name in said)
    assert {"unknown", "still"} <= set(similarity(every, raw=True).names)


def test_json() -> None:
    found = similarity({name: random_prefix(seed) for seed, name in enumerate("ab")})
    said = found.as_json()
    assert said["names"] == ("a", "b")
    assert said["matrix"] == found.matrix
    assert (said["places"], said["places_share"]) == found.places()


def test_what_is_refused() -> None:
    a = random_prefix(0)
    with pytest.raises(PrefixError, match="found 1 that can be$"):
        similarity({"a": a})
    with pytest.raises(PrefixError, match="found 1 that can be; b was left out: it is not known"):
        similarity({"a": a, "b": random_prefix(1, start=None)})
    with pytest.raises(PrefixError, match="pooling must be one of tokens, mean; found 'max'"):
        similarity({"a": a, "b": a}, pooling="max")  # type: ignore[arg-type]
    with pytest.raises(PrefixError, match="prefixes must be prefixes by name"):
        similarity([a, a])  # type: ignore[arg-type]
    with pytest.raises(PrefixError, match="prefix 'b' must be a Prefix"):
        similarity({"a": a, "b": 3})  # type: ignore[dict-item]


def test_trained_prefixes_of_like_tasks_are_nearer(tiny: foreword.Backbone) -> None:
    """Two trained on the same rows are nearer than one on others."""
    rows = [{"a": f"x{i}", "b": f"y{i}"} for i in range(4)]
    others = [{"a": f"{i}?", "b": "  QQQ" * 2} for i in range(4)]
    settings = foreword.TrainSettings(
        prompt="{a} ->", target=" {b}", length=4, steps=6, batch_size=4
    )
    again = dataclasses.replace(settings, seed=1)
    found = foreword.similarity(
        {
            "one": foreword.train(tiny, rows, settings).prefix,
            "again": foreword.train(tiny, rows, again).prefix,
            "other": foreword.train(tiny, others, settings).prefix,
        }
    )
    assert [name for name, _ in found.nearest("one")] == ["again", "other"]
