"""What vLLM is asked offline, and the texts that are made of what it gives; no vLLM is needed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import foreword
from foreword.data.written import Written
from foreword.engine.vllm import OfflinePrefixes
from foreword.engine.vllm.asking import Asked
from foreword.engine.vllm.batch import Batch
from foreword.engine.vllm.refusals import check_options
from foreword.engine.vllm.requests import PrefixedPrompt
from foreword.errors import DataError, MismatchError, ServeError
from foreword.generate import Generated
from foreword.options import GenerateOptions
from foreword.store import PrefixStore
from tests.conftest import CHAT, byte_tokenizer
from tests.engine.vllm import tiny


@pytest.fixture(scope="module")
def backbone() -> foreword.Backbone:
    made = tiny.backbone()
    made.tokenizer.chat_template = CHAT.replace("</s>", "i")
    return made


@pytest.fixture
def store(tmp_path, backbone) -> PrefixStore:
    made = PrefixStore(tmp_path / "store")
    prefix = tiny.prefix(backbone, 5, 0)
    made.save("trained", prefix.with_meta(recipe={"prompt": "{mr} ->", "target": " {ref}"}))
    made.save("chat", prefix.with_meta(recipe={"prompt": None, "target": None}))
    return made


@pytest.fixture
def prefixes(tmp_path, store, backbone) -> OfflinePrefixes:
    return OfflinePrefixes(store.folder, str(tiny.saved(backbone, tmp_path / "model")))


@pytest.fixture
def llm(monkeypatch) -> Scripted:
    """A vLLM stands in `sys.modules` as well, for its parameters."""
    module = ModuleType("vllm")
    module.SamplingParams = SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    return Scripted()


def ids_of(text: str) -> list[int]:
    return list(byte_tokenizer()(text, add_special_tokens=False)["input_ids"])


class Scripted:
    """Stands for vLLM: writes one text, as often as it is asked to."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, Any]] = []
        self.ids, self.finish = ids_of(" Greek food"), "length"

    def generate(self, prompts, parameters, use_tqdm) -> list[Any]:
        self.asked = list(zip(prompts, parameters, strict=True))
        one = {"token_ids": self.ids, "finish_reason": self.finish, "stop_reason": None}
        return [
            SimpleNamespace(outputs=[SimpleNamespace(**one) for _ in range(getattr(own, "n", 1))])
            for own in parameters
        ]


def test_texts_are_made_of_tokens_as_the_embedded_backbone_makes_them(prefixes, llm) -> None:
    """Without outer spaces; up to an end, which a token or a text of the chat template may be."""
    asked = [("trained", "name[Zizzi]"), ("chat", "hello"), (None, "a")]
    assert prefixes.generated(llm, asked) == 3 * [[Generated("Greek food", "length")]]
    llm.ids, llm.finish = [*ids_of("Greek"), 1], "stop"
    assert prefixes.generated(llm, asked) == 3 * [[Generated("Greek", "stop")]]
    llm.finish = "length"  # an end that vLLM did not stop at is one all the same
    assert prefixes.generated(llm, asked) == 3 * [[Generated("Greek", "stop")]]
    llm.ids = ids_of("Thai food")
    ((found,),) = prefixes.generated(llm, [("chat", "hello")])
    assert found == Generated("Tha", "stop")


def test_options_mean_on_vllm_what_they_mean_elsewhere(prefixes, llm) -> None:
    prefixes.generated(llm, [("trained", "a"), ("chat", "a")], GenerateOptions(max_new_tokens=9))
    first, second = (own for _, own in llm.asked)
    assert (first.max_tokens, first.temperature, first.n, first.seed) == (9, 0.0, 1, None)
    assert (first.ignore_eos, first.stop_token_ids, first.detokenize) == (True, [1], False)
    assert not hasattr(first, "stop")
    assert (second.stop, second.detokenize, second.skip_special_tokens) == (["i"], True, True)
    drawn = GenerateOptions(
        do_sample=True, temperature=0.7, top_k=5, top_p=0.9, seed=-3, num_return_sequences=2
    )
    found = prefixes.generated(llm, [(None, "a")] * 3, drawn)
    assert [len(texts) for texts in found] == [2, 2, 2]
    one = llm.asked[0][1]
    assert (one.temperature, one.top_k, one.top_p, one.n) == (0.7, 5, 0.9, 2)
    assert [own.seed for _, own in llm.asked] == [2**63 - 3, 2**63 - 1, 1]


def test_special_tokens_that_are_text_are_looked_at_for_stops(prefixes) -> None:
    written = Written(prefixes.tokenizer, kept=frozenset({0}), stop=("i",))
    asked = Asked(PrefixedPrompt((7,)), written)
    assert asked.arguments(GenerateOptions(), 0)["skip_special_tokens"] is False


def test_the_frozen_model_is_given_the_prefixs_templates_and_no_prefix(
    prefixes, llm, backbone
) -> None:
    prefixes.generated(llm, [("trained", "Zizzi")], frozen=True)
    ((prompt, own),) = llm.asked
    assert prompt == {"prompt_token_ids": backbone.tokens("Zizzi ->")}
    assert own.extra_args is None


def test_a_prefixs_file_is_looked_at_once_for_all_its_inputs(prefixes, llm, monkeypatch) -> None:
    looked: list[str] = []
    outline = prefixes.store.outline
    monkeypatch.setattr(prefixes.store, "outline", lambda n: looked.append(n) or outline(n))
    prefixes.generated(llm, [("trained", str(number)) for number in range(50)])
    assert looked == ["trained"]


@pytest.mark.parametrize("finish", ["error", "abort"])
def test_a_request_that_failed_is_an_error_which_names_its_input(prefixes, llm, finish) -> None:
    llm.finish = finish
    said = "2 of 2 inputs failed on vLLM; the first is input 1: .*its log says why"
    with pytest.raises(ServeError, match=said):
        prefixes.generated(llm, [("trained", "a"), (None, "a")])


def test_what_vllm_lacks_is_refused_by_name() -> None:
    for name, value in {
        "num_beams": 2,
        "no_repeat_ngram_size": 3,
        "batch_size": 1,
        "repetition_penalty": 1.1,
    }.items():
        option = name.replace("_", "-")
        with pytest.raises(DataError, match=rf"{name} \(--{option}\) .*for Foreword's own engine"):
            check_options(GenerateOptions(**{name: value}), frozen=False)
    check_options(GenerateOptions(repetition_penalty=1.1), frozen=True)
    check_options(GenerateOptions(do_sample=True, num_return_sequences=3, seed=4), frozen=False)


def test_a_prefix_of_another_geometry_is_refused_before_anything_is_sent(
    prefixes, llm, store
) -> None:
    store.save("other", tiny.prefix(tiny.backbone(num_key_value_heads=4), 5, 0))
    with pytest.raises(MismatchError, match="key/value heads"):
        prefixes.generated(llm, [("other", "a")])
    assert not llm.asked


@pytest.fixture
def started(monkeypatch, llm) -> list[Any]:
    """What vLLM is started with by a `Batch`."""
    found: list[Any] = []
    runtime = ModuleType("foreword.engine.vllm.runtime")

    @contextmanager
    def running(arguments: Any) -> Iterator[Scripted]:
        found.append(arguments)
        yield llm

    runtime.read_offline_flags = lambda flags, own: ((flags, own), 64)  # type: ignore[attr-defined]
    runtime.running = running  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "foreword.engine.vllm.runtime", runtime)
    monkeypatch.setattr("foreword.engine.vllm.batch.check_installed", lambda: None)
    return found


def test_a_batch_starts_vllm_once_all_its_inputs_are_known_to_fit(
    prefixes, store, started, llm
) -> None:
    source = prefixes.tokenizer.name_or_path
    batch = Batch(source, store, ("--enforce-eager",), "r1", "float32")
    assert batch.generated([("trained", "a")], GenerateOptions(max_new_tokens=9)) == [
        [Generated("Greek food", "length")]
    ]
    ((flags, own),) = started
    assert flags == ("--enforce-eager",)
    assert {name: own[name] for name in ("model", "dtype", "revision")} == {
        "model": source,
        "dtype": "float32",
        "revision": "r1",
    }
    assert own["kv_transfer_config"]["kv_connector"] == "ForewordPrefixes"
    with pytest.raises(DataError, match="input 1: 60 new tokens leave no room .* context of 59"):
        batch.generated([("trained", "a")], GenerateOptions(max_new_tokens=60))
    assert len(started) == 1
