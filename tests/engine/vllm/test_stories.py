"""What befell users of adapters on vLLM, told again with prefixes: `make test-vllm`.

Each test is named after what must not happen, and its docstring tells the issue. Where it can, it shows
as well that it would see the fault: with the guard taken away, the wrong text comes.
"""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from typing import Any

import pytest

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
}
vllm = pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

import torch  # noqa: E402

import foreword  # noqa: E402
from foreword.engine import Request, Sampling, Weighted  # noqa: E402
from foreword.engine.vllm import OfflinePrefixes, PrefixedPrompt, prefixed  # noqa: E402
from foreword.engine.vllm.requests import MARK, Named  # noqa: E402
from foreword.errors import MismatchError  # noqa: E402
from foreword.store import PrefixStore  # noqa: E402
from tests.engine.lone import generated  # noqa: E402
from tests.engine.vllm import tiny  # noqa: E402

NEW = 12
RESIDENT = 2
"""Prefixes that the worker keeps, far fewer than are asked for: each is read, forgotten, read again."""

TEXT = "name[Zizzi], food[Thai] ->"
Tokens = tuple[int, ...] | str


@pytest.fixture(scope="module")
def backbone() -> foreword.Backbone:
    return tiny.backbone()


@pytest.fixture
def store(prefixes) -> PrefixStore:
    return prefixes.store


@pytest.fixture(scope="module")
def prefixes(tmp_path_factory, backbone) -> OfflinePrefixes:
    filled = tiny.store(backbone, tmp_path_factory.mktemp("store"))
    folder = tiny.saved(backbone, tmp_path_factory.mktemp("model"))
    return OfflinePrefixes(filled.folder, str(folder), context=256, resident=RESIDENT)


@pytest.fixture(scope="module")
def engine(prefixes) -> Any:
    """One with too few blocks for all requests at once."""
    return tiny.offline(prefixes, num_gpu_blocks_override=24)


@pytest.fixture(autouse=True)
def _empty(engine) -> None:
    """Nothing is left of the test before."""
    assert engine.reset_prefix_cache()
    worker()._loaded._kept.clear()


def worker() -> Any:
    from vllm.distributed.kv_transfer import get_kv_transfer_group

    return get_kv_transfer_group()


def scheduler(engine) -> Any:
    return engine.llm_engine.engine_core.engine_core.scheduler


class Live:
    """Requests that come while others are under way.

    Args:
        llm: The engine.
    """

    def __init__(self, llm: Any) -> None:
        self.engine = llm.llm_engine
        self.outputs: dict[str, Any] = {}

    def ask(self, name: str, one: PrefixedPrompt) -> None:
        sampling = vllm.SamplingParams(
            temperature=0, max_tokens=NEW, ignore_eos=True, extra_args=one.extra_args
        )
        self.engine.add_request(name, one.prompt, sampling)

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            for output in self.engine.step():
                self.outputs[output.request_id] = output

    def written(self, name: str) -> int:
        """Tokens that a request has written so far."""
        return len(self.outputs[name].outputs[0].token_ids) if name in self.outputs else 0

    def ended(self) -> dict[str, Tokens]:
        """Each request's tokens, or ``error``, once all have ended."""
        while self.engine.has_unfinished_requests():
            self.step()
        found = {name: output.outputs[0] for name, output in self.outputs.items()}
        return {
            name: "error" if one.finish_reason == "error" else tuple(one.token_ids)
            for name, one in found.items()
        }


def alone(backbone, prefix: foreword.Prefix | None, ids: list[int]) -> tuple[int, ...]:
    """What transformers writes under a prefix, with nothing beside it."""
    held = (Weighted(prefix),) if prefix is not None else ()
    return generated(backbone, Request(tuple(ids), Sampling(max_tokens=NEW, temperature=0), held))


def asked(prefixes, name: str | None, ids: list[int], tenant: str | None = None) -> PrefixedPrompt:
    outline = None if name is None else prefixes.store.outline(name)
    return prefixed(ids, prefixes.placeholder, name or "", outline, tenant)


def by_name(self: Named, given: str | None = None) -> str:
    """A cache salt as vLLM's own caches have it for adapters: of the name and not of the contents."""
    return f"{MARK}{self.name}"


# -- #42125 --------------------------------------------------------------------------------------


def reloaded(engine, prefixes, backbone, store) -> dict[str, tuple[Tokens, tuple[int, ...]]]:
    """A name's contents replaced under load, and put back; per request what came, and what should."""
    first, second = (tiny.prefix(backbone, 70, seed) for seed in (200, 201))
    ids, beside = backbone.tokens(TEXT), backbone.tokens("The quick brown fox")
    live, wanted = Live(engine), {}

    def ask(label: str, prefix: foreword.Prefix) -> None:
        live.ask(label, asked(prefixes, "tenant-adapter", ids))
        live.ask(f"{label}-beside", asked(prefixes, "p37", beside))
        wanted[label] = alone(backbone, prefix, ids)
        wanted[f"{label}-beside"] = alone(backbone, store.load("p37"), beside)

    store.save("tenant-adapter", first, overwrite=True)
    ask("warm", first)
    live.ended()
    ask("in-flight", first)
    while live.written("in-flight") < NEW // 2:
        live.step()
    store.save("tenant-adapter", second, overwrite=True)
    ask("reloaded", second)
    live.step(2)
    assert live.written("in-flight") < NEW
    live.ended()
    store.save("tenant-adapter", first, overwrite=True)
    ask("back", first)
    ask("again", first)
    found = live.ended()
    assert wanted["warm"] != wanted["reloaded"]
    return {label: (found[label], tokens) for label, tokens in wanted.items()}


def test_a_prefix_reloaded_under_its_name_never_reads_the_blocks_of_the_old_one(
    engine, prefixes, backbone, store
) -> None:
    """vllm#42125: after ``load_inplace``, blocks that the old adapter had filled served the new one.

    Blocks were named by the adapter's name. The change proposed for it (vllm#48352) goes by contents,
    and leaves out what external connectors put into the cache, as ours does; so ours names blocks by
    the prefix's digest. Here requests in flight keep the old contents, those made later have the new.
    """
    for label, (found, wanted) in reloaded(engine, prefixes, backbone, store).items():
        assert found == wanted, label


def test_with_blocks_named_by_name_the_old_prefix_comes_back(
    engine, prefixes, backbone, store, monkeypatch
) -> None:
    """The fault of vllm#42125 itself: so the test above would see it."""
    monkeypatch.setattr(Named, "salt", by_name)
    found = reloaded(engine, prefixes, backbone, store)
    assert found["warm"][0] == found["warm"][1]
    assert found["reloaded"][0] != found["reloaded"][1]


# -- #47724 --------------------------------------------------------------------------------------


def crowd(engine, prefixes, backbone) -> dict[str, tuple[Tokens, tuple[int, ...]]]:
    """Many tenants' requests, which come while others are under way, against each alone."""
    names = [None, *(f"p{length}" for length in tiny.LENGTHS)]
    texts = ["a", TEXT, "The quick brown fox jumps over the lazy dog."]
    live, wanted = Live(engine), {}
    order = [(name, text, turn) for turn in range(3) for text in texts for name in names]
    torch.manual_seed(0)
    for place in torch.randperm(len(order)).tolist():
        name, text, turn = order[place]
        label, ids = f"{name}-{texts.index(text)}-{turn}", backbone.tokens(text)
        live.ask(label, asked(prefixes, name, ids, tenant=f"tenant-{turn}"))
        prefix = None if name is None else prefixes.store.load(name)
        wanted[label] = alone(backbone, prefix, ids)
        live.step()
    found = live.ended()
    return {label: (found[label], tokens) for label, tokens in wanted.items()}


def test_no_tenant_is_served_under_the_prefix_of_another(
    engine, prefixes, backbone, monkeypatch
) -> None:
    """vllm#47724: an adapter loaded while requests ran took another's slot, and they went on under it.

    The metadata that say which request reads which slot were kept, for the batch had not changed. Here
    a prefix lies in a request's own blocks, and no batch keeps a table of prefixes; the worker holds two
    of eight, so that each is thrown out and read again while requests under it run, and blocks are so
    few that requests lose theirs.
    """
    core, count = scheduler(engine), [0]
    preempt = core._preempt_request

    def counted(*args: Any, **kwargs: Any) -> Any:
        count[0] += 1
        return preempt(*args, **kwargs)

    monkeypatch.setattr(core, "_preempt_request", counted)
    loaded = worker()._loaded
    read, reads = loaded._read, [0]

    def reading(named: Named) -> foreword.Prefix:
        reads[0] += 1
        return read(named)

    monkeypatch.setattr(loaded, "_read", reading)
    results = crowd(engine, prefixes, backbone)
    assert len(results) == 81
    wrong = [label for label, (found, wanted) in results.items() if found != wanted]
    assert not wrong
    assert count[0] > 0
    assert reads[0] > len(tiny.LENGTHS)
    assert len(loaded._kept) <= RESIDENT


def test_a_worker_that_gave_one_prefix_for_another_would_be_seen(
    engine, prefixes, backbone, monkeypatch
) -> None:
    """As in vllm#47724, with the prefix of the slot in the place of the one that was asked for."""
    loaded, outline = worker()._loaded, prefixes.store.outline
    get, other = loaded.get, Named("p64", outline("p64").digest)
    monkeypatch.setattr(loaded, "get", lambda named: get(other if named.name == "p37" else named))
    results = crowd(engine, prefixes, backbone)
    wrong = {label for label, (found, wanted) in results.items() if found != wanted}
    assert {label.partition("-")[0] for label in wrong} == {"p37"}


# -- #30931 --------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_held", [True, False], ids=["held", "not-yet-read"])
def test_two_prefixes_of_one_name_share_nothing(
    engine, prefixes, backbone, store, caplog, is_held
) -> None:
    """vllm#30931: adapters of one name and other weights shared blocks, for those go by the name.

    Two requests name the same prefix, each with the digest of the contents that it saw, and run in one
    batch. The first is served if its contents are held by the worker; else it fails, by its name.
    """
    ids = backbone.tokens(TEXT)
    one, two = (tiny.prefix(backbone, 64, seed) for seed in (210, 211))
    live = Live(engine)
    store.save("the-name", one, overwrite=True)
    if is_held:
        live.ask("before", asked(prefixes, "the-name", ids))
        live.ended()
        engine.reset_prefix_cache()
    live.ask("one", asked(prefixes, "the-name", ids))
    store.save("the-name", two, overwrite=True)
    live.ask("two", asked(prefixes, "the-name", ids))
    with caplog.at_level(logging.ERROR, "vllm.foreword"):
        found = live.ended()
    wanted = [alone(backbone, prefix, ids) for prefix in (one, two)]
    assert wanted[0] != wanted[1]
    assert [found["one"], found["two"]] == [wanted[0] if is_held else "error", wanted[1]]
    assert ("prefix 'the-name' was asked for with digest" in caplog.text) != is_held


def test_a_name_of_another_store_is_not_that_of_this_one(
    engine, prefixes, backbone, store, tmp_path, caplog
) -> None:
    """vllm#30931, of two machines: both have the name, and only the digest tells them apart."""
    ids = backbone.tokens(TEXT)
    here, there = tiny.prefix(backbone, 64, 220), tiny.prefix(backbone, 64, 221)
    elsewhere = PrefixStore(tmp_path)
    store.save("shared-name", here, overwrite=True)
    elsewhere.save("shared-name", there)
    live = Live(engine)
    live.ask("here", asked(prefixes, "shared-name", ids))
    live.ended()
    outline = elsewhere.outline("shared-name")
    live.ask("there", prefixed(ids, prefixes.placeholder, "shared-name", outline))
    live.ask("here-again", asked(prefixes, "shared-name", ids))
    with caplog.at_level(logging.ERROR, "vllm.foreword"):
        found = live.ended()
    wanted = alone(backbone, here, ids)
    assert found == {"here": wanted, "there": "error", "here-again": wanted}
    assert outline.digest[:12] in caplog.text


# -- #34186 --------------------------------------------------------------------------------------


def misfit(backbone, kind: str) -> foreword.Prefix:
    """A prefix of another model."""
    if kind == "other names":
        made = tiny.prefix(backbone, 16, 230)
        sites = tuple(replace(site, layer=site.layer + 1) for site in made.sites)
        return foreword.Prefix(sites, made.keys, made.values, made.meta)
    if kind == "encoder":
        made = tiny.prefix(backbone, 16, 230)
        sites = tuple(replace(site, stack="encoder") for site in made.sites)
        return foreword.Prefix(sites, made.keys, made.values, made.meta)
    changes: dict[str, dict[str, Any]] = {
        "fewer layers": {"num_hidden_layers": 2},
        "more layers": {"num_hidden_layers": 4},
        "more heads": {"num_key_value_heads": 4},
        "one head": {"num_key_value_heads": 1},
        "wider heads": {"head_dim": 64},
    }
    return tiny.prefix(tiny.backbone(**changes[kind]), 16, 230)


MISFITS = {
    "other names": "decoder.1 to decoder.3",
    "encoder": "of stack 'encoder'",
    "fewer layers": "has 2 sites",
    "more layers": "has 4 sites",
    "more heads": r"= (4, 32, 32)",
    "one head": r"= (1, 32, 32)",
    "wider heads": r"= (2, 64, 64)",
}


@pytest.mark.parametrize("kind", MISFITS)
def test_a_prefix_that_does_not_fit_is_never_answered_by_the_bare_model(
    engine, prefixes, backbone, store, caplog, kind
) -> None:
    """vllm#34186: an adapter whose names match no module is taken, and the bare model answers for it."""
    ids = backbone.tokens(TEXT)
    name = kind.replace(" ", "-")
    store.save(name, misfit(backbone, kind), overwrite=True)
    outline = store.outline(name)
    given = (*[prefixes.placeholder] * 16, *ids)
    live = Live(engine)
    live.ask("misfit", PrefixedPrompt(given, Named(name, outline.digest)))
    live.ask("bare", asked(prefixes, None, ids))
    live.ask("good", asked(prefixes, "p16", ids))
    with caplog.at_level(logging.ERROR, "vllm.foreword"):
        found = live.ended()
    assert found == {
        "misfit": "error",
        "bare": alone(backbone, None, ids),
        "good": alone(backbone, store.load("p16"), ids),
    }
    assert not live.outputs["misfit"].outputs[0].token_ids
    assert MISFITS[kind] in caplog.text


def test_a_prefix_of_another_tokenizer_is_refused_offline_and_by_the_connector(
    engine, prefixes, backbone, store, caplog
) -> None:
    """vllm#34186 of text: the model would answer, under a prefix that means other tokens."""
    ids = backbone.tokens(TEXT)
    made = tiny.prefix(backbone, 16, 231).with_meta(tokenizer="0" * 64)
    store.save("other-tokenizer", made, overwrite=True)
    sampling = vllm.SamplingParams(temperature=0, max_tokens=NEW)
    with pytest.raises(MismatchError, match="made with another tokenizer"):
        prefixes.generate(engine, [("other-tokenizer", TEXT)], sampling)
    live = Live(engine)
    live.ask("other", asked(prefixes, "other-tokenizer", ids))
    live.ask("good", asked(prefixes, "p16", ids))
    with caplog.at_level(logging.ERROR, "vllm.foreword"):
        found = live.ended()
    assert found == {"other": "error", "good": alone(backbone, store.load("p16"), ids)}
    assert "made with another tokenizer" in caplog.text


def test_a_connector_that_let_misfits_pass_would_be_seen(
    engine, prefixes, backbone, store, monkeypatch
) -> None:
    """The fault of vllm#34186 itself: nothing is claimed for the unknown, and the model answers."""
    ids = backbone.tokens(TEXT)
    store.save("misfit", misfit(backbone, "more heads"), overwrite=True)
    given = (*[prefixes.placeholder] * 16, *ids)
    monkeypatch.setattr(scheduler(engine).connector, "_refuse", lambda request, error: None)
    live = Live(engine)
    live.ask("misfit", PrefixedPrompt(given, Named("misfit", store.outline("misfit").digest)))
    assert live.ended() == {"misfit": alone(backbone, None, list(given))}
