"""Texts that vLLM writes offline, in Python and on the command line, against Foreword's own backbone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm")

import vllm

import foreword
from foreword.cli.main import main
from foreword.engine.vllm import OfflinePrefixes
from foreword.errors import DataError, ServeError
from foreword.generate import generated
from foreword.options import GenerateOptions
from foreword.store import PrefixStore
from tests.conftest import CHAT
from tests.engine.vllm import tiny

OPTIONS = GenerateOptions(max_new_tokens=24)
INPUTS = [
    "a",
    "name[Zizzi], food[Thai]",
    "The quick brown fox jumps over the lazy dog. " * 2,
    "xyz",
    "once",
    "Hello there",
]
RECIPES: dict[str, dict[str, Any]] = {
    "trained": {"prompt": "{mr} ->", "target": " {ref}"},
    "chat": {"prompt": None, "target": None},
    "captured": {},
}
FLAGS = ("--enforce-eager", "--max-model-len=256", "--max-num-seqs=8", "--block-size=32")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> foreword.Backbone:
    """A model that ends some texts, and by its own config at '(' and '=' too, where no training does.

    Its chat template ends turns with the letter 'i', which is no special token.
    """
    made = tiny.backbone(1)
    with torch.no_grad():
        made.model.lm_head.weight[1] *= 2
    made.model.generation_config.eos_token_id = [1, *made.tokens("("), *made.tokens("=")]
    made.tokenizer.chat_template = CHAT.replace("</s>", "i")
    folder = tiny.saved(made, tmp_path_factory.mktemp("model"))
    return foreword.load(str(folder), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def store(backbone, tmp_path_factory) -> PrefixStore:
    """Prefixes of 37, 64 and 5 virtual tokens, where vLLM's blocks have 32."""
    made = PrefixStore(tmp_path_factory.mktemp("store"))
    for name, length, seed in (("trained", 37, 2), ("chat", 64, 3), ("captured", 5, 4)):
        prefix = tiny.prefix(backbone, length, seed, "offset" if name == "captured" else "free")
        made.save(name, prefix.with_meta(recipe=RECIPES[name], backbone=backbone.name))
    return made


@pytest.fixture(scope="module")
def prefixes(backbone, store) -> OfflinePrefixes:
    return OfflinePrefixes(store.folder, backbone.name, context=256)


@pytest.fixture(scope="module", autouse=True)
def _environment() -> Iterator[None]:
    """Engines in processes of their own, as users have them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        patch.setenv("VLLM_NO_USAGE_STATS", "1")
        yield


@pytest.fixture(scope="module")
def llm(prefixes) -> Iterator[Any]:
    made = vllm.LLM(
        prefixes.tokenizer.name_or_path,
        dtype="float32",
        enforce_eager=True,
        max_num_seqs=8,
        block_size=32,
        disable_log_stats=True,
        **prefixes.engine_arguments(),
    )
    torch.set_num_threads(1)
    yield made
    made.llm_engine.engine_core.shutdown()


def pairs() -> list[tuple[str | None, str]]:
    return [(name, text) for text in INPUTS for name in (*RECIPES, None)]


def expected(backbone, store, options=OPTIONS, *, frozen=False) -> list[list[Any]]:
    """What `foreword.generate` gives for each of `pairs`, alone."""
    found = []
    for name, text in pairs():
        prefix = None if name is None else store.load(name)
        used = None if frozen else prefix
        found += generated(backbone, [text], used, options, like=prefix)
    return found


def whole(text: str) -> str:
    return text.strip().rstrip("\ufffd")


# -- in Python -----------------------------------------------------------------------------------


def test_texts_and_their_ends_are_those_of_the_embedded_backbone(
    llm, prefixes, backbone, store
) -> None:
    """Special ends, the text that ends a turn of the chat template, and none of the model's own."""
    wanted = expected(backbone, store)
    assert prefixes.generated(llm, pairs(), OPTIONS) == wanted
    ended = {
        (name, one.finish)
        for (name, _), texts in zip(pairs(), wanted, strict=True)
        for one in texts
    }
    assert {(name, end) for name in ("trained", "chat") for end in ("stop", "length")} <= ended
    assert any("(" in one.text[:-1] for texts in wanted for one in texts)


def test_the_frozen_model_answers_in_each_prefixs_templates_and_ends_as_it_does(
    llm, prefixes, backbone, store
) -> None:
    wanted = expected(backbone, store, frozen=True)
    assert prefixes.generated(llm, pairs(), OPTIONS, frozen=True) == wanted
    assert wanted != expected(backbone, store)
    assert {one.finish for texts in wanted for one in texts} == {"stop", "length"}


def test_what_vllm_gives_ends_where_training_says(llm, prefixes, backbone, store) -> None:
    """`generate` gives vLLM's own outputs; stops of the caller's own end them as well."""
    sampling = vllm.SamplingParams(temperature=0, max_tokens=24)
    outputs = prefixes.generate(llm, pairs(), sampling)
    wanted = [texts[0] for texts in expected(backbone, store)]
    firsts = [output.outputs[0] for output in outputs]
    # vLLM leaves out bytes at the end that are no whole character.
    assert [whole(one.text) for one in firsts] == [whole(one.text) for one in wanted]
    assert [one.finish_reason for one in firsts] == [one.finish for one in wanted]
    assert (sampling.ignore_eos, sampling.stop, sampling.stop_token_ids) == (False, [], [])

    (token,) = backbone.tokens("~")
    own = vllm.SamplingParams(temperature=0, max_tokens=24, stop_token_ids=[token])
    (output,) = prefixes.generate(llm, [("trained", INPUTS[1])], own)
    text = expected(backbone, store)[len(INPUTS[:1]) * 4][0].text
    assert "~" in text
    assert output.outputs[0].text == text.partition("~")[0]


def test_ends_are_left_out_where_they_are_ignored(llm, prefixes) -> None:
    sampling = vllm.SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    outputs = prefixes.generate(llm, [("trained", "a"), ("chat", "a")], sampling)
    assert [len(output.outputs[0].token_ids) for output in outputs] == [24, 24]


def test_several_answers_are_drawn_from_seeds_of_their_own(llm, prefixes) -> None:
    options = GenerateOptions(
        max_new_tokens=8, do_sample=True, temperature=1.5, top_k=0, num_return_sequences=3, seed=7
    )
    asked = [("trained", INPUTS[1])] * 2
    first = prefixes.generated(llm, asked, options)
    assert [len(texts) for texts in first] == [3, 3]
    assert len({one.text for texts in first for one in texts}) == 6
    assert prefixes.generated(llm, asked, options) == first
    assert prefixes.generated(llm, [(None, "a")], options)[0] != first[0]


def test_nearly_nothing_is_drawn_but_the_likeliest_of_one(llm, prefixes, backbone, store) -> None:
    """top_k of 1 leaves one token, whatever the temperature."""
    options = GenerateOptions(max_new_tokens=24, do_sample=True, top_k=1, num_return_sequences=2)
    wanted = [2 * texts for texts in expected(backbone, store)]
    assert prefixes.generated(llm, pairs(), options) == wanted


def test_a_repetition_penalty_of_the_model_alone_is_the_embedded_ones(
    llm, prefixes, backbone
) -> None:
    options = GenerateOptions(max_new_tokens=24, repetition_penalty=1.3)
    wanted = generated(backbone, [INPUTS[1]], None, options)
    assert wanted != generated(backbone, [INPUTS[1]], None, OPTIONS)
    assert prefixes.generated(llm, [(None, INPUTS[1])], options) == wanted
    with pytest.raises(DataError, match=r"\(--repetition-penalty\) under a prefix .* placeholders"):
        prefixes.generated(llm, [("trained", "a")], options)


def test_a_request_that_fails_is_named_with_its_reason(
    llm, prefixes, backbone, store, monkeypatch
) -> None:
    """Its file is replaced after it was asked for."""
    store.save("changing", tiny.prefix(backbone, 16, 6))
    outline = store.outline("changing")
    store.save("changing", tiny.prefix(backbone, 16, 7), overwrite=True)
    with monkeypatch.context() as patch:
        late = {"changing": outline}
        seen = prefixes.store.outline
        patch.setattr(prefixes.store, "outline", lambda name: late.pop(name, None) or seen(name))
        outputs = prefixes.generate(
            llm,
            [("changing", "a"), ("trained", "a")],
            vllm.SamplingParams(temperature=0, max_tokens=4),
        )
        assert outputs[0].outputs[0].finish_reason == "error"
        assert "'changing' was asked for with digest" in outputs[0].outputs[0].stop_reason
        assert outputs[1].outputs[0].finish_reason in ("stop", "length")
        late = {"changing": outline}
        with pytest.raises(
            ServeError, match=r"1 of 2 inputs failed on vLLM; the first is input 2: .* was replaced"
        ):
            prefixes.generated(llm, [("trained", "a"), ("changing", "a")], OPTIONS)


def test_what_cannot_be_asked_is_refused_before_anything_is_sent(prefixes) -> None:
    refused = {
        "vLLM takes at most 2; found 3": GenerateOptions(do_sample=True, temperature=3.0),
        r"num_beams \(--num-beams\) is for Foreword's own engine": GenerateOptions(num_beams=2),
        "no_repeat_ngram_size": GenerateOptions(no_repeat_ngram_size=2),
        "give --max-num-seqs": GenerateOptions(batch_size=3),
        "input 1: 400 new tokens leave no room": GenerateOptions(max_new_tokens=400),
    }
    for said, options in refused.items():
        with pytest.raises(DataError, match=said):
            prefixes.asked([("trained", "a")], options)


# -- on the command line -------------------------------------------------------------------------


def printed(*arguments: str) -> str:
    """What `foreword generate` prints on standard output."""
    command = [sys.executable, "-W", "ignore", "-m", "foreword", "generate", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize("frozen", [False, True])
def test_the_command_prints_the_very_lines_that_the_embedded_backbone_gives(
    backbone, store, tmp_path: Path, frozen: bool
) -> None:
    """As JSON with the prefix, and as text without it; nothing of vLLM's stands between them."""
    rows = [{"mr": text} for text in INPUTS]
    file = tmp_path / ("lines.txt" if frozen else "rows.jsonl")
    file.write_text("\n".join(INPUTS if frozen else map(json.dumps, rows)))
    name = "chat" if frozen else "trained"
    found = printed(
        *(name, "--input", str(file), "--store", str(store.folder), "--dtype", "float32"),
        *("--max-new-tokens", "24", "--engine", "vllm", "--no-prefix" if frozen else "--json"),
        *("--", *FLAGS),
    )
    prefix = store.load(name)
    if frozen:
        texts = generated(backbone, INPUTS, None, OPTIONS, like=prefix)
        assert found == "".join(f"{one.text}\n" for (one,) in texts)
        return
    made = generated(backbone, rows, prefix, OPTIONS)
    wanted = [
        {"input": row, "outputs": [one.text], "finish": [one.finish]}
        for row, (one,) in zip(rows, made, strict=True)
    ]
    assert [json.loads(line) for line in found.splitlines()] == wanted


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--max-new-tokens", "30", "--", "--max-model-len=60"], "input 1: 30 new tokens leave no"),
        (["--do-sample", "--temperature", "3"], "vLLM takes at most 2"),
        (["--", "--dtype=float16"], "--dtype is not for vLLM's flags: foreword generate sets it"),
        (["--", "--max-model-len=9999"], "vLLM did not start"),
    ],
)
def test_these_are_refused_before_vllm_starts(
    store, capfd, monkeypatch, arguments: list[str], said: str
) -> None:
    monkeypatch.setattr(vllm.LLM, "from_engine_args", lambda *_: pytest.fail("started"))
    command = ["generate", "trained", "a", "--store", str(store.folder), "--engine", "vllm"]
    assert main([*command, *arguments]) == 1
    out, err = capfd.readouterr()
    assert said in " ".join(err.split())
    assert out == ""
