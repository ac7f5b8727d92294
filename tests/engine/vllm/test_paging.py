"""Where a prefix goes in vLLM's blocks, and how much text is exact behind it; no vLLM is needed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import foreword
from foreword.engine import Request, Sampling, Weighted
from foreword.engine.vllm.engine import VllmEngine
from foreword.engine.vllm.geometry import Geometry
from foreword.engine.vllm.model import ServedModel, windows_in
from foreword.engine.vllm.offline import OfflinePrefixes
from foreword.engine.vllm.paging import Load, gathered
from foreword.engine.vllm.requests import Named
from foreword.engine.vllm.windows import check_text, text_room
from foreword.errors import DataError, MismatchError, TooLong
from foreword.store import PrefixStore
from tests.engine.vllm import tiny
from tests.engine.vllm.test_engine import PLACEHOLDER, Scripted
from tests.oracle.families import BY_NAME

MISTRAL = {
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "sliding_window": 24,
}


def load(start: int, length: int, *tables: tuple[int, ...]) -> Load:
    return Load("r", Named("p", "0" * 64), start, length, tables)


def test_a_prefix_goes_into_its_blocks_from_where_it_is_not_shared() -> None:
    """Blocks of 4: token 5 is the second of the request's second block."""
    one = load(0, 10, (7, 3, 9))
    assert one.first(0, 4) == 0
    assert one.slots(0, 4).tolist() == [28, 29, 30, 31, 12, 13, 14, 15, 36, 37]
    assert one.written(0, 4) == (7, 3, 9)
    rest = load(4, 10, (7, 3, 9))
    assert rest.slots(0, 4).tolist() == [12, 13, 14, 15, 36, 37]
    assert rest.written(0, 4) == (3, 9)


def test_what_has_left_a_window_goes_nowhere() -> None:
    """The null block stands for blocks that are gone; it is every request's."""
    one = load(0, 10, (7, 3, 9), (0, 0, 5))
    assert one.slots(0, 4).tolist()[:2] == [28, 29]
    assert one.first(1, 4) == 8
    assert one.slots(1, 4).tolist() == [20, 21]
    assert one.written(1, 4) == (5,)
    assert load(9, 10, (0, 0, 5)).slots(0, 4).tolist() == [21]
    gone = load(0, 8, (0, 0, 5))
    assert gone.first(0, 4) == 8
    assert gone.slots(0, 4).tolist() == []
    assert gone.written(0, 4) == ()
    assert load(0, 8, (0, 0)).slots(0, 4).tolist() == []


def test_prefixes_of_a_step_are_gathered_each_from_its_own_first_token() -> None:
    def prefix(length: int, base: float) -> list[tuple[torch.Tensor, torch.Tensor]]:
        key_PHD = base + torch.arange(float(length))[:, None, None]
        return [(key_PHD, -key_PHD)]

    ready = [(load(0, 3, (1,)), prefix(3, 0)), (load(0, 4, (2,)), prefix(4, 10))]
    key_PHD, value_PHD = gathered(ready, 0, [1, 2], torch.device("cpu"))
    assert key_PHD.flatten().tolist() == [1, 2, 12, 13]
    assert value_PHD.flatten().tolist() == [-1, -2, -12, -13]


FAMILIES = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "phi3",
    "gemma3_text",
    "starcoder2",
    "qwen3_5_text",
    "jamba",
)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_config_says_the_windows_that_a_probe_finds(name) -> None:
    model = BY_NAME[name].build()
    sites = foreword.Backbone(model).sites
    assert windows_in(model.config) == tuple(site.window for site in sites)


@pytest.fixture(scope="module")
def windowed() -> foreword.Backbone:
    return tiny.of_family("MistralConfig", MISTRAL)


@pytest.fixture(scope="module")
def store(windowed, tmp_path_factory) -> PrefixStore:
    made = PrefixStore(tmp_path_factory.mktemp("store"))
    prefix = tiny.prefix(windowed, 10, 0)
    made.save("visible", prefix.with_meta(windows="visible"))
    made.save("windowed", prefix.with_meta(windows="windowed"))
    made.save("plain", tiny.prefix(tiny.backbone(), 10, 0))
    return made


def test_text_behind_a_visible_prefix_ends_with_the_window(store) -> None:
    """The last token is written where the window of 24 ends, and attends to nothing there."""
    prefix = store.load("visible")
    assert text_room(prefix) == text_room(store.outline("visible")) == 15
    check_text(prefix, 5, 10)
    with pytest.raises(
        TooLong, match=r"fit the sliding window: 15 tokens .* prompt of 5 and 11 to"
    ):
        check_text(prefix, 5, 11)
    for name in ("windowed", "plain"):
        assert text_room(store.outline(name)) is None
        check_text(store.load(name), 400, 400)


@pytest.fixture(scope="module")
def folder(windowed, tmp_path_factory) -> str:
    return str(tiny.saved(windowed, tmp_path_factory.mktemp("model")))


def test_the_server_takes_as_much_text_as_is_exact(store, folder) -> None:
    model = ServedModel.read(folder, context=400)
    assert model.geometry == Geometry(2, 2, 32, 32, folder, (24, 24))
    engine = VllmEngine(model, Scripted(geometry=model.geometry), PLACEHOLDER, store)
    try:
        visible, windows = (store.load(name) for name in ("visible", "windowed"))
        assert engine.room(5, visible) == 10
        assert engine.room(14, visible) == 1
        assert engine.room(5, windows) == 385
        assert engine.room(5, None) == 395
        with pytest.raises(TooLong, match="window policy 'visible'"):
            engine.room(15, visible)
        sampling = Sampling(max_tokens=11, temperature=0)
        for prefix, name in ((visible, "visible"), (windows, "windowed")):
            request = Request((5,) * 5, sampling, (Weighted(prefix, name=name),))
            if prefix is windows:
                engine.check(request)
            else:
                with pytest.raises(TooLong, match="a prompt of 5 and 11 to write"):
                    engine.check(request)
    finally:
        engine.close()


def test_a_prefix_that_fills_the_window_is_not_served(windowed, folder) -> None:
    """It was listed, and each of its requests refused."""
    model = ServedModel.read(folder, context=400)
    filling = tiny.prefix(windowed, 24, 1)
    model.check(filling.with_meta(windows="windowed"))
    model.check(tiny.prefix(windowed, 23, 1).with_meta(windows="visible"))
    with pytest.raises(MismatchError, match="24 virtual tokens .* a sliding window of 24, so"):
        model.check(filling.with_meta(windows="visible"))


def test_offline_prompts_are_refused_before_they_are_sent(store, folder) -> None:
    prefixes = OfflinePrefixes(store.folder, folder)
    assert len(prefixes.prompt("visible", "abcde", 9).token_ids) == 10 + len("abcde")
    with pytest.raises(TooLong, match="window policy 'visible'"):
        prefixes.prompt("visible", "abcde", 11)
    assert prefixes.prompt("windowed", "abcde" * 20, 100)
    sampling = SimpleNamespace(max_tokens=100, prompt_logprobs=None)
    with pytest.raises(DataError, match="input 1: .* window policy 'visible'"):
        prefixes.generate(None, [("visible", "abcde")], sampling)
