"""Geometry, turns of keys and what a worker keeps, which need no vLLM."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

import foreword
from foreword.backbone.rotate import Rotation
from foreword.engine.protocol import Loads
from foreword.engine.vllm.geometry import Geometry, Setting
from foreword.engine.vllm.loaded import LoadedPrefixes, Place
from foreword.engine.vllm.requests import Named
from foreword.engine.vllm.turning import TOO_FAR, Turning, joined, measured
from foreword.errors import CorruptFile, MismatchError, NameUnknown, UnsupportedModel
from foreword.store import PrefixStore
from tests.engine.vllm import tiny

SETTING = Setting("0.32.0", "kv_consumer", "fail", ("full", "window", "recurrent"), 1, 1, False)


@pytest.fixture(scope="module")
def backbone() -> foreword.Backbone:
    return tiny.backbone()


@pytest.fixture
def store(tmp_path, backbone) -> PrefixStore:
    made = PrefixStore(tmp_path)
    for length in (5, 16):
        made.save(f"p{length}", tiny.prefix(backbone, length, length))
    made.save("offset", tiny.prefix(backbone, 7, 7, "offset"))
    return made


def test_a_setting_under_which_prefixes_are_exact_is_taken() -> None:
    SETTING.check(("0.32",))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": "0.33.0"}, "was tested with vLLM 0.32; found 0.33.0"),
        ({"version": "0.320"}, "was tested with vLLM 0.32; found 0.320"),
        ({"role": "kv_both"}, "kv_role='kv_consumer'"),
        ({"on_failure": "recompute"}, "kv_load_failure_policy='fail'"),
        (
            {"caches": ("full", "latent")},
            r"this model has latent attention \(MLA\).*foreword serve",
        ),
        ({"caches": ("shared",)}, "recurrent layers whose states .* --no-enable-prefix-caching"),
        ({"caches": ("unmanaged",)}, "sliding windows .* --disable-hybrid-kv-cache-manager"),
        ({"caches": ("chunked",)}, "this model has chunked attention"),
        ({"caches": ("quantised",)}, "a quantised key-value cache.* --kv-cache-dtype auto"),
        ({"caches": ("full", "uneven")}, "differ in shape from layer to layer"),
        ({"caches": ("CrossAttentionSpec",)}, "another kind of cache, vLLM's CrossAttentionSpec"),
        ({"caches": ("recurrent",)}, "layers of attention; this model has none"),
        ({"pipeline": 2}, "no pipeline parallelism"),
        ({"context": 2}, "no context parallelism"),
        ({"drafts": True}, "no speculative decoding"),
        ({"experts": True}, "no --enable-return-routed-experts"),
    ],
)
def test_any_other_is_refused_by_name(changes, said) -> None:
    with pytest.raises(UnsupportedModel, match=said):
        replace(SETTING, **changes).check(("0.32",))


def test_a_prefix_fits_a_model_of_its_geometry_alone(store) -> None:
    outline = store.outline("p5")
    Geometry(3, 2, 32, 32, "m").check(outline)
    for other, said in {
        Geometry(
            4, 2, 32, 32, "m"
        ): "has 3 sites, decoder.0 to decoder.2; 'm' has 4 attention layers",
        Geometry(3, 4, 32, 32, "m"): r"dimension\) = \(2, 32, 32\); 'm' has \(4, 32, 32\)",
        Geometry(3, 2, 64, 32, "m"): r"'m' has \(2, 64, 32\)",
    }.items():
        with pytest.raises(MismatchError, match=said):
            other.check(outline)


def test_a_prefix_fits_a_model_of_its_windows_alone(store) -> None:
    outline = store.outline("p5")
    inner = replace(outline.sites[1], window=48)
    windowed = outline._replace(sites=(outline.sites[0], inner, outline.sites[2]))
    Geometry(3, 2, 32, 32, "m", (None, 48, None)).check(windowed)
    Geometry(3, 2, 32, 32, "m", (None, None, None)).check(outline)
    said = "site decoder.1 of the prefix has {}; 'm' has {} there"
    for found, other, one, two in (
        (windowed, (None, 49, None), "a sliding window of 48", "a sliding window of 49"),
        (windowed, (), "a sliding window of 48", "no sliding window"),
        (outline, (None, 48, None), "no sliding window", "a sliding window of 48"),
    ):
        with pytest.raises(MismatchError, match=said.format(one, two)):
            Geometry(3, 2, 32, 32, "m", other).check(found)


def rotary(backbone, scale: float = 1.0):
    """The keys of three layers, of which the second has no positions; turned by transformers."""
    turn = LlamaRotaryEmbedding(backbone.model.config)

    def run(first: int, seed: int) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        key = torch.randn(1, 2, 64, 32, generator=generator)
        cos, sin = turn(key, torch.arange(first, first + 64)[None])
        moved = apply_rotary_pos_emb(key, key, scale * cos, scale * sin)[1][0]
        return [moved, key[0], moved]

    return run


@pytest.mark.parametrize("scale", [1.0, 1.3])
def test_turns_are_measured_whatever_scales_the_keys(backbone, scale) -> None:
    """YaRN multiplies sines by a factor; a turn of keys that have it already must not add another."""
    run = rotary(backbone, scale)
    turning = measured(run, 512, "tiny", torch.float32)
    for by in (1, 37, 200):
        before, after = run(3, 5), run(3 + by, 5)
        for layer in range(3):
            moved = turning.turned(layer, before[layer], by)
            torch.testing.assert_close(moved, after[layer], atol=5e-5, rtol=0)


@pytest.mark.parametrize("by", [1, 37, 127, 505])
def test_one_turn_does_what_a_turn_for_each_power_does(backbone, by) -> None:
    """The plain way is one rotation after the other; those of the same planes are done at once."""
    turning = measured(rotary(backbone), 512, "tiny", torch.float32)
    for layer in range(3):
        key = torch.randn(2, by, 32, generator=torch.Generator().manual_seed(by))
        moved = key.double()
        for rotation in turning.parts(layer, by):
            moved = rotation.turned(moved)
        plain = moved.float()
        torch.testing.assert_close(turning.turned(layer, key, by), plain, atol=1e-6, rtol=0)
        assert len(joined(turning.parts(layer, by))) == (layer != 1)


def test_turns_in_other_planes_are_done_in_their_order() -> None:
    """They do not add up: what the first has turned is turned again by the second."""

    def turn(first: list[int], second: list[int], angle: float) -> Rotation:
        angles = torch.full((len(first),), angle, dtype=torch.float64)
        return Rotation(torch.tensor(first), torch.tensor(second), angles, 0.0)

    none = turn([], [], 0.0)
    parts = [turn([0, 1], [2, 3], 0.3), none, turn([0, 1], [2, 3], 0.4), turn([0, 2], [1, 3], 0.5)]
    whole = joined([none, *parts, parts[0]])
    assert [one.angle_R.tolist()[0] for one in whole] == [pytest.approx(0.7), 0.5, 0.3]
    key = torch.randn(1, 2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plain, fast = key, key
    for one in (none, *parts, parts[0]):
        plain = one.turned(plain)
    for one in whole:
        fast = one.turned(fast)
    torch.testing.assert_close(fast, plain, atol=1e-12, rtol=0)


def test_a_turn_further_than_measured_is_refused(backbone) -> None:
    turning = measured(rotary(backbone), 512, "tiny", torch.float32)
    assert turning.longest == 505
    with pytest.raises(UnsupportedModel, match="such prefixes have at most 505"):
        turning.turned(0, torch.zeros(2, 506, 32), 506)
    with pytest.raises(UnsupportedModel, match="a context of 7 leaves no room"):
        measured(rotary(backbone), 7, "tiny", torch.float32)
    assert measured(rotary(backbone), 2**20, "tiny", torch.float32).longest < TOO_FAR


def test_keys_that_do_not_turn_by_a_rotation_are_refused() -> None:
    """Tables of absolute positions are added, so another text's keys are moved otherwise."""
    table = torch.randn(600, 32, generator=torch.Generator().manual_seed(9))

    def run(first: int, seed: int) -> list[torch.Tensor]:
        key = torch.randn(2, 64, 32, generator=torch.Generator().manual_seed(seed))
        return [key + table[first : first + 64]]

    with pytest.raises(UnsupportedModel, match="no rotation leads from one position policy"):
        measured(run, 512, "absolute", torch.float32)


def test_keys_that_no_position_turns_are_refused() -> None:
    """Absolute positions are added before attention, which alone is measured."""

    def run(first: int, seed: int) -> list[torch.Tensor]:
        return [torch.randn(2, 64, 32, generator=torch.Generator().manual_seed(seed))]

    with pytest.raises(UnsupportedModel, match="'gpt2' does not turn keys by their positions"):
        measured(run, 512, "gpt2", torch.float32)


def test_queries_that_are_scaled_by_their_position_are_refused(backbone) -> None:
    """As some models do: text that stands elsewhere attends otherwise, whatever is done to keys."""
    turn = rotary(backbone)

    def run(first: int, seed: int) -> list[torch.Tensor]:
        scale = 1 + 0.01 * torch.arange(first, first + 64)[:, None]
        return [torch.cat((key, scale * key)) for key in turn(first, seed)]

    with pytest.raises(UnsupportedModel, match="no rotation leads from one position policy"):
        measured(run, 512, "scaled", torch.float32)


def loaded(store, backbone, heads=slice(0, 2), most=4, turning=None) -> LoadedPrefixes:
    made = turning or measured(rotary(backbone), 512, "tiny", torch.float32)
    place = Place(heads, torch.float32, False, made, "tiny")
    return LoadedPrefixes(store, place, most)


def named(store, name: str) -> Named:
    return Named(name, store.outline(name).digest)


def test_a_worker_keeps_its_own_heads_with_tokens_in_front(store, backbone) -> None:
    prefix = store.load("offset")
    layers = loaded(store, backbone, slice(1, 2)).get(named(store, "offset"))
    for (key, value), whole, values in zip(layers, prefix.keys, prefix.values, strict=True):
        assert torch.equal(key, whole[1:2].transpose(0, 1))
        assert torch.equal(value, values[1:2].transpose(0, 1))
        assert key.shape == (7, 1, 32)


def test_free_prefixes_are_turned_by_their_length(store, backbone) -> None:
    prefix = store.load("p16")
    wanted = backbone.moved(prefix, "offset")
    layers = loaded(store, backbone).get(named(store, "p16"))
    for layer in (0, 2):
        key = layers[layer][0].transpose(0, 1)
        torch.testing.assert_close(key, wanted.keys[layer], atol=2e-5, rtol=0)
    assert torch.equal(layers[1][0].transpose(0, 1), prefix.keys[1])


def test_a_model_that_cannot_turn_keys_takes_offset_prefixes_alone(store, backbone) -> None:
    held = loaded(store, backbone, turning=UnsupportedModel("absolute positions"))
    assert held.get(named(store, "offset"))
    with pytest.raises(UnsupportedModel, match="position policy 'free': absolute positions"):
        held.get(named(store, "p5"))


def test_what_is_read_is_what_was_asked_for_or_nothing(store, backbone) -> None:
    held = loaded(store, backbone)
    first = named(store, "p5")
    with pytest.raises(NameUnknown):
        held.get(replace(first, name="nobody"))
    store.save("p5", store.load("p16"), overwrite=True)
    with pytest.raises(CorruptFile, match="was asked for with digest .* its file has .* replaced"):
        held.get(first)
    assert held.get(named(store, "p5"))[0][0].shape[0] == 16


def test_numbers_beyond_the_models_dtype_are_refused(store, backbone) -> None:
    prefix = store.load("offset")
    store.save("large", replace(prefix, values=tuple(1e6 * value for value in prefix.values)))
    held = loaded(store, backbone)
    held.place = replace(held.place, dtype=torch.float16)
    with pytest.raises(MismatchError, match="the prefix has numbers up to"):
        held.get(named(store, "large"))


def test_the_prefixes_that_were_used_last_are_kept(store, backbone) -> None:
    held = loaded(store, backbone, most=2)
    for name in ("p5", "p16", "p5", "offset"):
        held.get(named(store, name))
    assert list(held._kept) == [named(store, name).digest for name in ("p5", "offset")]


def test_a_worker_counts_what_it_reads_finds_and_keeps(store, backbone) -> None:
    held = loaded(store, backbone, heads=slice(0, 1), most=2)
    size = {
        name: 3 * 2 * length * 32 * 4 for name, length in (("p5", 5), ("p16", 16), ("offset", 7))
    }
    for name in ("p5", "p16", "p5"):
        held.get(named(store, name))
    assert held.done == Loads(2, size["p5"] + size["p16"], hits=1, misses=2)
    held.done = Loads()
    held.get(named(store, "offset"))
    assert held.done == Loads(0, size["offset"] - size["p16"], misses=1)
    with pytest.raises(NameUnknown):
        held.get(replace(named(store, "p16"), name="nobody"))
    assert held.done.misses == 1


def test_a_turning_of_nothing_is_none(backbone) -> None:
    still = measured(rotary(backbone), 512, "tiny", torch.float32)
    key = torch.randn(2, 4, 32)
    assert isinstance(still, Turning)
    assert torch.equal(still.turned(0, key, 0), key)
