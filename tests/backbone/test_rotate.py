"""Moving a prefix between position policies, against a run under the other policy.

Shapes: H key/value heads, P prefix length, D key dimension.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import foreword
from foreword.backbone import Backbone
from foreword.backbone.rotate import fitted, layouts, measured
from foreword.errors import MismatchError, UnsupportedModel
from tests.conftest import tiny_model
from tests.latent import latent_model
from tests.oracle.families import BY_NAME, LENGTH, attention_of

ROTARY = ("llama", "gpt_neox", "phi", "glm4", "cohere", "cohere2", "gemma3_text", "smollm3")
ROTARY += ("mistral", "stablelm", "olmo2", "gpt_oss", "qwen3")
UNTURNED = {"smollm3": {1}, "cohere2": {1}}
"""Layers whose keys know no positions."""


def backbone_of(name: str) -> Backbone:
    family = BY_NAME[name]
    return Backbone(family.build(attention_of(family)))


def text(length: int, seed: int = 5) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 97, (length,), generator=generator).tolist()


def apart(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    """Largest difference over sites, relative to the site's largest number."""
    pairs = zip(found, expected, strict=True)
    return max(float((f - e).abs().max() / e.abs().max()) for f, e in pairs)


@pytest.mark.parametrize("length", [LENGTH, 300])
@pytest.mark.parametrize("name", ROTARY)
def test_a_moved_capture_is_the_capture_under_the_other_policy(name: str, length: int) -> None:
    backbone = backbone_of(name)
    free = backbone.capture(text(length), "free")
    offset = backbone.capture(text(length), "offset")
    assert apart(free.keys, offset.keys) > 1e-3
    there = backbone.moved(free, "offset")
    assert apart(there.keys, offset.keys) <= 1e-5
    assert apart(backbone.moved(offset, "free").keys, free.keys) <= 1e-5
    back = backbone.moved(there, "free")
    assert apart(back.keys, free.keys) <= 1e-6
    assert (there.meta.positions, back.meta.positions) == ("offset", "free")
    assert back.meta.parents == (free.digest, there.digest)
    assert there.values is free.values
    for layer in range(len(free.sites)):
        same = torch.equal(there.keys[layer], free.keys[layer])
        assert same == (layer in UNTURNED.get(name, ()))


@pytest.mark.parametrize("name", ROTARY)
def test_a_moved_prefix_gives_the_same_logits(name: str) -> None:
    """Noise, unlike a captured text, is free to be wrong in every dimension."""
    backbone = backbone_of(name)
    torch.manual_seed(1)
    like = backbone.capture(text(LENGTH), "free")
    keys = tuple(torch.randn_like(key) for key in like.keys)
    free = foreword.Prefix(like.sites, keys, like.values, like.meta)
    offset = backbone.moved(free, "offset")
    ids = torch.tensor([text(11, 7)])

    def logits(prefix: foreword.Prefix) -> Tensor:
        with backbone.attached(prefix), torch.no_grad():
            return backbone.model(ids).logits

    expected = logits(free)
    largest = max(1.0, float(expected.abs().max()))
    assert float((logits(offset) - expected).abs().max()) <= 1e-5 * largest
    mislabelled = logits(free.with_meta(positions="offset"))
    assert float((mislabelled - expected).abs().max()) > 1e-3


def test_a_prefix_on_some_sites_is_turned_as_those_sites_turn() -> None:
    """smollm3's middle layer knows no positions: rotations taken in order would be others'."""
    backbone = backbone_of("smollm3")
    free = backbone.capture(text(LENGTH), "free")
    there = backbone.moved(free, "offset")
    some = backbone.moved(free.only(["decoder.1", "decoder.2"]), "offset")
    assert [site.label for site in some.sites] == ["decoder.1", "decoder.2"]
    for found, expected in zip(some.keys, there.keys[1:], strict=True):
        assert torch.equal(found, expected)


def test_the_same_policy_is_the_same_prefix(tiny: Backbone) -> None:
    prefix = tiny.capture([5, 6, 7])
    assert tiny.moved(prefix, "free") is prefix


def test_a_rotation_is_measured_once_per_length(
    tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tiny.moved(tiny.capture([5, 6, 7]), "offset")
    again = tiny.capture([5, 6, 7])
    monkeypatch.setattr(tiny, "_run_at", None)
    assert apart(tiny.moved(again, "offset").keys, first.keys) == 0


def test_moving_leaves_an_attached_prefix_alone(tiny: Backbone) -> None:
    prefix = tiny.capture([5, 6, 7])
    foreword.attach(tiny, prefix)
    ids = torch.tensor([[9, 10, 11]])
    with torch.no_grad():
        before = tiny.model(ids).logits
        tiny.moved(tiny.capture([8, 9]), "offset")
        assert torch.equal(tiny.model(ids).logits, before)
    foreword.detach(tiny)


def test_the_dtype_stays_and_low_precision_is_close() -> None:
    """bfloat16 rounds the model's own sines, so its measured rotation is as coarse as its keys."""
    wide = Backbone(tiny_model())
    prefix = wide.capture(text(40))
    expected = wide.moved(prefix, "offset")
    low = Backbone(tiny_model().to(torch.bfloat16))
    found = low.moved(prefix, "offset")
    assert {key.dtype for key in found.keys} == {torch.float32}
    assert 1e-6 < apart(found.keys, expected.keys) < 2e-2
    half = low.moved(prefix.to(torch.bfloat16), "offset")
    assert {key.dtype for key in half.keys} == {torch.bfloat16}


@pytest.mark.parametrize("name", ["gpt2", "opt", "gpt_bigcode", "biogpt"])
def test_absolute_positions_are_refused(name: str) -> None:
    backbone = backbone_of(name)
    prefix = backbone.capture(text(LENGTH))
    with pytest.raises(UnsupportedModel, match=f"'{name}' adds absolute positions"):
        backbone.moved(prefix, "free")


def test_a_model_that_takes_no_positions_is_refused(
    tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = tiny.capture([5, 6, 7])
    monkeypatch.setattr("foreword.backbone.backbone.parameters_of", lambda kind: ("input_ids",))
    with pytest.raises(UnsupportedModel, match="'llama' takes no position_ids"):
        tiny.moved(prefix, "offset")


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "dynamic", "factor": 2.0},
        {
            "rope_type": "longrope",
            "short_factor": [1.0] * 6,
            "long_factor": [2.0] * 6,
            "original_max_position_embeddings": 64,
        },
    ],
    ids=["dynamic", "longrope"],
)
def test_scalings_by_length_are_refused(scaling: dict[str, object]) -> None:
    model = tiny_model(rope_parameters={"rope_theta": 1e4, **scaling})
    backbone = Backbone(model)
    with pytest.raises(UnsupportedModel, match=f"'{scaling['rope_type']}', module 'model.rotary"):
        backbone.moved(backbone.capture([5, 6, 7]), "offset")


def test_fixed_scalings_are_moved() -> None:
    model = tiny_model(
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    )
    backbone = Backbone(model)
    moved = backbone.moved(backbone.capture(text(30)), "offset")
    assert apart(moved.keys, backbone.capture(text(30), "offset").keys) <= 1e-5


def test_only_the_rotary_part_of_a_latent_key_turns() -> None:
    backbone = Backbone(latent_model(6))
    free, offset = (backbone.capture(text(9), policy) for policy in ("free", "offset"))
    moved = backbone.moved(free, "offset")
    assert apart(moved.keys, offset.keys) <= 1e-5
    for before, after in zip(free.keys, moved.keys, strict=True):
        assert torch.equal(before[..., :8], after[..., :8])
        assert not torch.equal(before[..., 8:], after[..., 8:])


def test_another_geometry_is_refused(tiny: Backbone) -> None:
    other = Backbone(tiny_model(head_dim=8))
    with pytest.raises(MismatchError, match="key dimension"):
        tiny.moved(other.capture([5, 6]), "offset")


def run_of(turn, values=lambda first: 0.0):
    """A model of one site whose keys at position p are `turn(key, p)`; keys depend on tokens."""

    def run(first: int, ids: list[int]):
        generator = torch.Generator().manual_seed(3)
        table = torch.randn(50, 8, generator=generator)
        keys = torch.stack([turn(table[i], first + n) for n, i in enumerate(ids)])
        value = torch.ones(1, len(ids), 8) + values(first)
        return (keys[None],), (value,)

    return run


def planes(key: Tensor, pairs: list[tuple[int, int]], angles: list[float]) -> Tensor:
    """A hand-made rotary embedding: each pair of dimensions turned by its own angle."""
    out = key.clone()
    for (i, j), angle in zip(pairs, angles, strict=True):
        cos, sin = torch.tensor(angle).cos(), torch.tensor(angle).sin()
        out[i], out[j] = cos * key[i] - sin * key[j], sin * key[i] + cos * key[j]
    return out


@pytest.mark.parametrize(
    "pairs",
    [
        [(0, 4), (1, 5), (2, 6), (3, 7)],
        [(0, 2), (1, 3)],
        [(4, 6), (5, 7)],
        [(0, 1), (2, 3), (4, 5), (6, 7)],
        [(2, 3)],
        [],
    ],
    ids=["halves", "leading part", "trailing part", "neighbours", "some neighbours", "none"],
)
def test_every_layout_is_found_by_hand(pairs: list[tuple[int, int]]) -> None:
    rates = [1.0, 0.3, 0.05, 0.002][: len(pairs)]
    run = run_of(lambda key, p: planes(key, pairs, [p * rate for rate in rates]))
    (rotation,) = measured(run, 7, 50, "made", 1e-4)
    found = dict(
        zip(zip(rotation.first_R.tolist(), rotation.second_R.tolist(), strict=True),
            rotation.angle_R.tolist(), strict=True)
    )  # fmt: skip
    for pair, rate in zip(pairs, rates, strict=True):
        turn = (7 * rate + torch.pi) % (2 * torch.pi) - torch.pi
        assert found.pop(pair) == pytest.approx(turn, abs=1e-5)
    assert all(abs(angle) < 1e-6 for angle in found.values())


def test_keys_that_no_rotation_explains_are_refused() -> None:
    stretched = run_of(lambda key, p: key * (1 + 0.01 * p))
    with pytest.raises(UnsupportedModel, match=r"decoder\.0 the keys .* differ by 6\.\de-02"):
        measured(stretched, 7, 50, "made", 1e-4)
    # The angle grows with the square of the position: one shift, but another turn for each token.
    bent = run_of(lambda key, p: planes(key, [(0, 4)], [0.01 * p * p]))
    with pytest.raises(UnsupportedModel, match="'made': no rotation leads"):
        measured(bent, 7, 50, "made", 1e-4)


def test_values_that_know_positions_are_refused() -> None:
    absolute = run_of(lambda key, p: key, values=lambda first: 0.01 * first)
    with pytest.raises(UnsupportedModel, match="the values of a test text differ"):
        measured(absolute, 7, 50, "made", 1e-4)


def test_no_plane_is_made_up_where_nothing_moves() -> None:
    keys = torch.randn(2, 9, 6)
    rotation = fitted(keys, keys * (1 + 1e-7), 1e-5)
    assert len(rotation.first_R) == 0
    assert rotation.turned(keys) is keys
    assert len(layouts(6)) == 2 + 3
