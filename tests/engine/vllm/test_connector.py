"""The connector in vLLM itself, on a CPU, against transformers under Foreword: `make test-vllm`."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from itertools import product

import pytest
import torch

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
}
vllm = pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

import foreword  # noqa: E402
from foreword.engine import Request, Sampling, Weighted  # noqa: E402
from foreword.engine.vllm import (  # noqa: E402
    OfflinePrefixes,
    PrefixedPrompt,
    connector,
    prefixed,
    requests,
)
from foreword.engine.vllm.connector import check_backend  # noqa: E402
from foreword.errors import UnsupportedModel  # noqa: E402
from foreword.head import Head  # noqa: E402
from foreword.store import PrefixStore  # noqa: E402
from tests.engine.lone import generated  # noqa: E402
from tests.engine.vllm import tiny  # noqa: E402

NEW = 12
TEXTS = ("a", "name[Zizzi], food[Thai] ->", "The quick brown fox jumps over the lazy dog. " * 2)


@pytest.fixture(scope="module")
def backbone() -> foreword.Backbone:
    return tiny.backbone()


@pytest.fixture(scope="module")
def store(tmp_path_factory, backbone) -> PrefixStore:
    return tiny.store(backbone, tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def prefixes(tmp_path_factory, backbone, store) -> OfflinePrefixes:
    folder = tiny.saved(backbone, tmp_path_factory.mktemp("model"))
    return OfflinePrefixes(store.folder, str(folder), context=256)


@pytest.fixture(scope="module")
def llm(prefixes):
    """One engine for all tests."""
    return tiny.offline(prefixes)


@pytest.fixture(autouse=True)
def _empty_cache(llm):
    llm.reset_prefix_cache()


def greedy(**changes) -> vllm.SamplingParams:
    return vllm.SamplingParams(
        **{"temperature": 0, "max_tokens": NEW, "ignore_eos": True} | changes
    )


def expected(backbone, prefix: foreword.Prefix | None, ids) -> tuple[int, ...]:
    """What transformers' own `generate` writes under the prefix."""
    held = (Weighted(prefix),) if prefix is not None else ()
    sampling = Sampling(max_tokens=NEW, temperature=0)
    return generated(backbone, Request(tuple(ids), sampling, held))


def written(llm, asked: list[PrefixedPrompt], **changes) -> list[tuple[int, ...] | str]:
    """What vLLM writes; the finish reason of a request that failed."""
    sampling = [greedy(extra_args=one.extra_args, **changes) for one in asked]
    outputs = llm.generate([one.prompt for one in asked], sampling, use_tqdm=False)
    firsts = [output.outputs[0] for output in outputs]
    return ["error" if o.finish_reason == "error" else tuple(o.token_ids) for o in firsts]


def connector_of(llm, role: str):
    """The connector beside the scheduler, or in the worker."""
    from vllm.distributed.kv_transfer import get_kv_transfer_group

    if role == "worker":
        return get_kv_transfer_group()
    return llm.llm_engine.engine_core.engine_core.scheduler.connector


def pairs(prefixes, backbone) -> list[tuple[str | None, list[int]]]:
    names = [None, *(f"p{length}" for length in tiny.LENGTHS)]
    return [(name, backbone.tokens(text)) for text, name in product(TEXTS, names)]


def asked_for(prefixes, name: str | None, ids: list[int]) -> PrefixedPrompt:
    outline = None if name is None else prefixes.store.outline(name)
    return prefixed(ids, prefixes.placeholder, name or "", outline)


# -- the same tokens -----------------------------------------------------------------------------


def test_eight_prefixes_and_none_in_one_batch_write_what_transformers_writes(
    llm, prefixes, backbone, monkeypatch
) -> None:
    """All lengths, prompts in chunks, and a second pass that finds whole blocks in the cache."""
    rows = pairs(prefixes, backbone)
    wanted = [
        expected(backbone, prefixes.store.load(name) if name else None, ids) for name, ids in rows
    ]
    asked = [asked_for(prefixes, name, ids) for name, ids in rows]
    worker, tokens = connector_of(llm, "worker"), [0, 0]
    write = worker._write
    for turn in range(2):

        def counted(ready, turn=turn) -> int:
            tokens[turn] += sum(load.length - load.start for load, _ in ready)
            return write(ready)

        monkeypatch.setattr(worker, "_write", counted)
        found = written(llm, asked)
        wrong = [rows[i][0] for i, one in enumerate(found) if one != wanted[i]]
        assert not wrong, f"pass {turn}"
    sizes = [(int(name[1:]), len(ids)) for name, ids in rows if name]
    cached = [min(length, (length + size - 1) // 32 * 32) for length, size in sizes]
    left = sum(length for length, _ in sizes) - sum(cached)
    assert tokens[0] > tokens[1] == left  # the second pass finds whole blocks
    by_text = len(rows) // len(TEXTS)
    assert all(len(set(wanted[i : i + by_text])) > 6 for i in range(0, len(rows), by_text))


def test_several_answers_to_one_request_are_each_under_the_prefix(llm, prefixes, backbone) -> None:
    ids = backbone.tokens(TEXTS[1])
    one = asked_for(prefixes, "p37", ids)
    sampling = vllm.SamplingParams(
        n=2, temperature=1e-4, seed=1, max_tokens=NEW, ignore_eos=True, extra_args=one.extra_args
    )
    (output,) = llm.generate([one.prompt], sampling, use_tqdm=False)
    wanted = expected(backbone, prefixes.store.load("p37"), ids)
    assert [tuple(each.token_ids) for each in output.outputs] == [wanted, wanted]


def test_the_helper_fills_the_templates_that_the_prefix_was_trained_with(
    llm, prefixes, backbone, store
) -> None:
    recipe = {"prompt": "{mr} ->", "target": " {ref}"}
    trained = store.load("p16").with_meta(recipe=recipe)
    store.save("trained", trained)
    rows = [("trained", "name[Zizzi]"), ("trained", {"mr": "food[Thai]"}), (None, "A word")]
    outputs = prefixes.generate(llm, rows, greedy())
    texts = [("name[Zizzi] ->", trained), ("food[Thai] ->", trained), ("A word", None)]
    wanted = [expected(backbone, prefix, backbone.tokens(text)) for text, prefix in texts]
    assert [tuple(output.outputs[0].token_ids) for output in outputs] == wanted


def test_a_request_that_would_not_read_the_cache_gets_its_prefix_all_the_same(
    llm, prefixes, backbone
) -> None:
    ids = backbone.tokens(TEXTS[1])
    wanted = expected(backbone, prefixes.store.load("p64"), ids)
    one = asked_for(prefixes, "p64", ids)
    assert written(llm, [one, one], skip_reading_prefix_cache=True) == [wanted, wanted]


# -- isolation -----------------------------------------------------------------------------------


def test_the_same_placeholders_under_two_prefixes_give_each_its_own_text(
    llm, prefixes, backbone, store, monkeypatch
) -> None:
    """Without the salt the second reads the first's blocks: what the salt is there for."""
    for name, seed in (("one", 90), ("other", 91)):
        store.save(name, tiny.prefix(backbone, 64, seed))
    ids = backbone.tokens(TEXTS[1])
    wanted = [expected(backbone, store.load(name), ids) for name in ("one", "other")]
    assert wanted[0] != wanted[1]
    asked = [asked_for(prefixes, name, ids) for name in ("one", "other")]
    assert [written(llm, [one])[0] for one in asked] == wanted
    bare = [replace(one, salt=None) for one in asked]
    assert [written(llm, [one])[0] for one in bare] == wanted
    monkeypatch.setattr(requests.Named, "salt", lambda self, given=None: "the same for all")
    llm.reset_prefix_cache()
    assert [written(llm, [one])[0] for one in bare] == [wanted[0], wanted[0]]


def test_placeholders_without_a_prefix_never_read_its_blocks(
    llm, prefixes, backbone, monkeypatch
) -> None:
    """Not even under the salt that the prefix's blocks have, were they not refused."""
    ids = backbone.tokens(TEXTS[1])
    one = asked_for(prefixes, "p64", ids)
    under = written(llm, [one])[0]
    plain = expected(backbone, None, one.token_ids)
    assert written(llm, [replace(one, prefix=None)])[0] == "error"
    monkeypatch.setattr(connector, "check_text_alone", lambda *given: None)
    assert written(llm, [replace(one, prefix=None)])[0] == plain != under


def test_a_prefix_that_was_replaced_is_never_served_as_the_old_one(
    llm, prefixes, backbone, store, caplog
) -> None:
    old, new = (tiny.prefix(backbone, 32, seed) for seed in (50, 51))
    ids = backbone.tokens(TEXTS[1])
    store.save("changing", old)
    before = asked_for(prefixes, "changing", ids)
    wanted = [expected(backbone, prefix, ids) for prefix in (old, new)]
    assert written(llm, [before]) == [wanted[0]]
    store.save("changing", new, overwrite=True)
    after = asked_for(prefixes, "changing", ids)
    with caplog.at_level(logging.ERROR, "vllm.foreword"):
        assert written(llm, [before, after]) == ["error", wanted[1]]
    assert "was replaced" in caplog.text


@pytest.mark.parametrize("name", ["p16", "p64"])
def test_a_file_replaced_after_the_scheduler_saw_it_fails_its_requests_alone(
    llm, prefixes, backbone, store, monkeypatch, caplog, name
) -> None:
    """The worker proves what it reads; its blocks are given up, and are read again once all is well."""
    prefix = tiny.prefix(backbone, int(name[1:]), 60)
    store.save(f"late-{name}", prefix)
    ids, others = backbone.tokens(TEXTS[1]), backbone.tokens(TEXTS[0])
    asked = asked_for(prefixes, f"late-{name}", ids)
    beside = asked_for(prefixes, "p37", others)
    wanted = expected(backbone, store.load("p37"), others)
    outline = store.outline(f"late-{name}")
    store.save(f"late-{name}", tiny.prefix(backbone, prefix.length, 61), overwrite=True)
    with monkeypatch.context() as patch:
        patch.setattr(
            connector_of(llm, "scheduler")._outlines,
            "get",
            lambda asked_name: (
                outline if asked_name.startswith("late") else store.outline(asked_name)
            ),
        )
        with caplog.at_level(logging.ERROR, "vllm.foreword"):
            assert written(llm, [asked, beside, asked]) == ["error", wanted, "error"]
    assert "was replaced" in caplog.text
    store.save(f"late-{name}", prefix, overwrite=True)
    assert written(llm, [asked]) == [expected(backbone, prefix, ids)]


# -- refusals ------------------------------------------------------------------------------------


def headed(prefix: foreword.Prefix) -> foreword.Prefix:
    weight, bias = torch.zeros(2, 64), torch.zeros(2)
    return prefix.with_head(Head("classify", ("a", "b"), "mean", weight, bias))


def spoilt(backbone, store, kind: str) -> None:
    """A prefix in the store that cannot be served, called by its fault."""
    prefix = tiny.prefix(backbone, 16, 70)
    made = {
        "head": lambda: headed(prefix),
        "gated": lambda: prefix.with_meta(softmax="own"),
        "fewer-layers": lambda: prefix.only(["decoder.0", "decoder.2"]),
        "other-geometry": lambda: tiny.prefix(tiny.backbone(num_key_value_heads=4), 16, 70),
    }[kind]()
    store.save(kind, made, overwrite=True)


FAULTS = {
    "head": "carries a head",
    "gated": "softmax of its own",
    "fewer-layers": "has 2 sites",
    "other-geometry": "key/value heads",
    "unknown": "no prefix is called 'unknown'",
    "../p16": "is not a name for a prefix",
    "damaged": "altered or damaged",
    "digest": "was replaced",
    "no-digest": "must be an object",
    "too-few": "begins with 16 placeholders",
    "no-text": "at least one token behind",
    "logprobs": "prompt_logprobs",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_request_that_cannot_be_served_fails_alone(
    llm, prefixes, backbone, store, caplog, fault
) -> None:
    ids = backbone.tokens(TEXTS[1])
    good = asked_for(prefixes, "p16", ids)
    wanted = expected(backbone, store.load("p16"), ids)
    marks, named = good.token_ids[:16], good.prefix
    assert named is not None
    params, tokens, sampling = named.params, good.token_ids, greedy()
    if fault in ("head", "gated", "fewer-layers", "other-geometry"):
        spoilt(backbone, store, fault)
        params = replace(named, name=fault, digest=store.outline(fault).digest).params
    elif fault == "damaged":
        path = store.save("damaged", store.load("p16"), overwrite=True)
        content = bytearray(path.read_bytes())
        content[-3] ^= 1
        path.write_bytes(content)
        params = replace(named, name="damaged").params
    elif fault in ("unknown", "../p16"):
        params = replace(named, name=fault).params
    elif fault == "digest":
        params = replace(named, digest="0" * 64).params
    elif fault == "no-digest":
        params = {"prefix": "p16"}
    elif fault == "too-few":
        tokens = (*marks[:15], *ids)
    elif fault == "no-text":
        tokens = marks
    elif fault == "logprobs":
        sampling = greedy(prompt_logprobs=1)
    sampling.extra_args = {"kv_transfer_params": params}
    prompts = [good.prompt, {"prompt_token_ids": list(tokens)}, {"prompt_token_ids": ids}]
    with caplog.at_level(logging.ERROR, "vllm.foreword"):
        if fault == "damaged":  # an earlier test's copy of it would do as well
            connector_of(llm, "worker")._loaded._kept.clear()
            prompts = prompts[1:]
            outputs = llm.generate(prompts, [sampling, greedy()], use_tqdm=False)
        else:
            under = greedy(extra_args=good.extra_args)
            outputs = llm.generate(prompts, [under, sampling, greedy()], use_tqdm=False)
            assert tuple(outputs.pop(0).outputs[0].token_ids) == wanted
    assert outputs[0].outputs[0].finish_reason == "error"
    assert tuple(outputs[1].outputs[0].token_ids) == expected(backbone, None, ids)
    assert FAULTS[fault] in caplog.text
    assert written(llm, [good]) == [wanted]


def test_a_prompt_of_one_token_under_an_unknown_prefix_fails_alone(llm, prefixes) -> None:
    """Nothing is left to compute of it once its one token is said to be loaded."""
    params = {"kv_transfer_params": {"prefix": {"name": "unknown", "digest": "0" * 64}}}
    (output,) = llm.generate([{"prompt_token_ids": [7]}], greedy(extra_args=params), use_tqdm=False)
    assert output.outputs[0].finish_reason == "error"


def test_placeholders_without_a_prefix_fail_alone(llm, prefixes) -> None:
    prompts = [[prefixes.placeholder] * 16 + [7, 8], [7, 8]]
    one, other = llm.generate([{"prompt_token_ids": ids} for ids in prompts], greedy())
    assert one.outputs[0].finish_reason == "error"
    assert other.outputs[0].finish_reason == "length"


def test_a_prefix_that_cannot_be_written_fails_its_requests_alone(
    llm, prefixes, monkeypatch, caplog
) -> None:
    """It ended the engine."""

    def broken(ready) -> int:
        raise RuntimeError("out of memory")

    worker = connector_of(llm, "worker")
    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR, "vllm.foreword"):
        patch.setattr(worker, "_write", broken)
        (output,) = prefixes.generate(llm, [("p5", "a text of its own")], greedy())
    assert output.outputs[0].finish_reason == "error"
    assert "out of memory" in caplog.text
    (output,) = prefixes.generate(llm, [("p5", "a text of its own")], greedy())
    assert output.outputs[0].finish_reason == "length"


def test_a_backend_that_has_no_way_to_write_before_a_step_is_refused() -> None:
    layer = torch.nn.Identity()
    layer.impl = object()
    with pytest.raises(UnsupportedModel, match="backend of attention object"):
        check_backend([layer])


def test_prefixes_are_refused_before_anything_is_sent(llm, prefixes, backbone, store) -> None:
    spoilt(backbone, store, "gated")
    with pytest.raises(foreword.ForewordError, match="softmax of its own"):
        prefixes.generate(llm, [("gated", "a")], greedy())
    with pytest.raises(foreword.ForewordError, match="prompt_logprobs under a prefix"):
        prefixes.generate(llm, [("p16", "a")], greedy(prompt_logprobs=1))
    with pytest.raises(foreword.ForewordError, match="no prefix is called 'nobody'"):
        prefixes.generate(llm, [("nobody", "a")], greedy())


def test_keys_that_cannot_be_turned_are_refused_by_name(
    llm, prefixes, backbone, store, monkeypatch, caplog
) -> None:
    """As those of a model with absolute positions; a prefix of policy `offset` is served there."""
    loaded = connector_of(llm, "worker")._loaded
    loaded._kept.clear()
    why = foreword.errors.UnsupportedModel("this model adds absolute positions")
    monkeypatch.setattr(loaded, "place", replace(loaded.place, turning=why))
    ids = backbone.tokens(TEXTS[0])
    free, offset = (asked_for(prefixes, name, ids) for name in ("p16", "p32"))
    assert store.outline("p32").meta.positions == "offset"
    with caplog.at_level(logging.ERROR, "vllm.foreword"):
        found = written(llm, [free, offset])
    assert found == ["error", expected(backbone, store.load("p32"), ids)]
    assert "position policy 'free'" in caplog.text


def test_turns_are_those_that_foreword_measures(llm, backbone) -> None:
    """By each length, in every layer."""
    turning = connector_of(llm, "worker")._loaded.place.turning
    for length in tiny.LENGTHS:
        prefix = tiny.prefix(backbone, length, length)
        moved = backbone.moved(prefix, "offset")
        for layer, (key, wanted) in enumerate(zip(prefix.keys, moved.keys, strict=True)):
            torch.testing.assert_close(
                turning.turned(layer, key, length), wanted, atol=2e-5, rtol=0
            )
