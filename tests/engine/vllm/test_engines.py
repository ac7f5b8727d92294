"""Engines of several processes and of little memory, each started for its test: `make test-vllm`."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import foreword
from foreword.engine import Request, Sampling, Weighted
from foreword.store import PrefixStore
from tests.engine.lone import generated
from tests.engine.vllm import tiny

if importlib.util.find_spec("vllm") is None:
    pytest.skip("needs vLLM: make test-vllm", allow_module_level=True)

ROOT = Path(__file__).parents[3]
NEW = 24
SMALL = {"max_model_len": 256, "max_num_seqs": 8, "block_size": 32}


@pytest.fixture(scope="module")
def backbone() -> foreword.Backbone:
    return tiny.backbone()


@pytest.fixture(scope="module")
def store(tmp_path_factory, backbone) -> PrefixStore:
    return tiny.store(backbone, tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def model(tmp_path_factory, backbone) -> Path:
    return tiny.saved(backbone, tmp_path_factory.mktemp("model"))


def run(model: Path, store: PrefixStore, asked, engine: dict, *, processes: bool) -> dict:
    """What `several` answers."""
    given = {"model": str(model), "store": str(store.folder), "asked": asked, "new": NEW}
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT))),
        "OMP_NUM_THREADS": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": str(int(processes)),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.engine.vllm.several"],
        input=json.dumps({**given, "engine": SMALL | engine}),
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    found: dict = json.loads(done.stdout)
    return found | {"log": done.stderr}


def expected(backbone, store, name: str | None, ids: list[int]) -> list[int]:
    held = () if name is None else (Weighted(store.load(name)),)
    request = Request(tuple(ids), Sampling(max_tokens=NEW, temperature=0), held)
    return list(generated(backbone, request))


def pairs(backbone) -> list[tuple[str | None, list[int]]]:
    names = [None, *(f"p{length}" for length in tiny.LENGTHS)]
    texts = [f"name[{name}], food[Thai] ->" for name in names]
    return [(name, backbone.tokens(text)) for name, text in zip(names, texts, strict=True)]


def test_two_workers_each_keep_their_own_heads(model, store, backbone) -> None:
    """Tensor parallel 2. What workers find out fails alone, as does what they are told to refuse."""
    path = store.save("damaged", tiny.prefix(backbone, 37, 99))
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    bad = [("damaged", [7, 8]), ("nobody", [7])]
    good = [*pairs(backbone), ("p5", [7])]
    wanted = [expected(backbone, store, *one) for one in good]
    found = run(model, store, [*bad, *good], {"tensor_parallel_size": 2}, processes=True)
    assert found["tokens"] == ["error", "error", *wanted]
    assert "altered or damaged" in found["log"]
    assert "no prefix is called 'nobody'" in found["log"]


LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
}
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 128,
    "rope_theta": 1e4,
}
NEOX = {
    "hidden_size": 128,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
FAMILIES: dict[str, tuple[str, dict]] = {
    "yarn": ("LlamaConfig", {**LLAMA, "rope_parameters": YARN}),
    "norms of keys": ("Qwen3Config", LLAMA),
    "interleaved and partial": ("GPTJConfig", {**tiny.GPT, "rotary_dim": 16}),
    "absolute": ("GPT2Config", tiny.GPT),
    "by transformers": ("GPTNeoXConfig", NEOX),
}
UNTURNED = {"absolute", "by transformers"}
"""Those that take prefixes of policy `offset` alone."""


@pytest.mark.parametrize("kind", FAMILIES)
def test_keys_are_turned_as_each_model_turns_them_or_not_at_all(kind, tmp_path) -> None:
    made = tiny.of_family(*FAMILIES[kind])
    store, model = PrefixStore(tmp_path / "store"), tiny.saved(made, tmp_path / "model")
    given = {"moved-5": 5, "moved-40": 40, "offset": 33}
    for seed, (name, length) in enumerate(given.items()):
        policy = "offset" if kind in UNTURNED or name == "offset" else "free"
        prefix = tiny.prefix(made, length, seed, policy)
        store.save(name, prefix.with_meta(positions="offset" if name == "offset" else "free"))
    asked = [
        (name, made.tokens(text)) for name in (None, *given) for text in ("a", "name[Zizzi] ->")
    ]
    found = run(model, store, asked, {}, processes=False)
    served = [one for one in asked if kind not in UNTURNED or one[0] in (None, "offset")]
    by_pair = {str(one): tokens for one, tokens in zip(asked, found["tokens"], strict=True)}
    assert [by_pair[str(one)] for one in served] == [expected(made, store, *one) for one in served]
    refused = [by_pair[str(one)] for one in asked if one not in served]
    assert all(one == "error" for one in refused)
    assert ("position policy 'free'" in found["log"]) == bool(refused)


def test_requests_that_lost_their_blocks_get_their_prefix_again(model, store, backbone) -> None:
    asked = pairs(backbone)
    wanted = [expected(backbone, store, *one) for one in asked]
    found = run(model, store, asked, {"num_gpu_blocks_override": 14}, processes=False)
    assert found["preempted"] > 0
    assert found["tokens"] == wanted


def test_an_engine_that_could_not_be_exact_does_not_start(tmp_path) -> None:
    made = tiny.of_family("MistralConfig", {**LLAMA, "sliding_window": 32})
    store, model = PrefixStore(tmp_path / "store"), tiny.saved(made, tmp_path / "model")
    with pytest.raises(
        AssertionError, match="prefixes on vLLM need a plain cache of full attention"
    ):
        run(model, store, [[None, [7]]], {}, processes=False)
