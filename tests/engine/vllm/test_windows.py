"""Models with sliding windows or recurrent layers in vLLM, against transformers: `make test-vllm`.

vLLM drops a prefix from a window as it drops text, so prefixes of window policy ``windowed`` are served
whatever the length, and those of policy ``visible`` while they fit the window.
"""

from __future__ import annotations

import importlib.util
from itertools import product
from pathlib import Path

import pytest
import torch

import foreword
from foreword.engine import Request, Sampling, Weighted
from foreword.engine.vllm.windows import text_room
from foreword.store import PrefixStore
from tests.conftest import byte_tokenizer
from tests.engine.lone import alone
from tests.engine.vllm import tiny

if importlib.util.find_spec("vllm") is None:
    pytest.skip("needs vLLM: make test-vllm", allow_module_level=True)

from tests.engine.vllm.test_engines import LLAMA, NEW, expected, run

WINDOW = 48
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
GEMMA3 = {**LLAMA, "sliding_window": WINDOW, "layer_types": MIXED, "query_pre_attn_scalar": 32}
WINDOWED: dict[str, tuple[str, dict]] = {
    "some layers": ("Gemma3TextConfig", GEMMA3),
    "all layers": ("MistralConfig", {**LLAMA, "sliding_window": WINDOW}),
}
FALCON = {
    **LLAMA,
    "mamba_d_ssm": 128,
    "mamba_n_heads": 4,
    "mamba_d_head": 32,
    "mamba_n_groups": 1,
    "mamba_d_state": 16,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_chunk_size": 16,
}
DELTA = {
    **LLAMA,
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "num_experts": 2,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "partial_rotary_factor": 0.5,
}
LATENT = {
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 32,
    "v_head_dim": 32,
    "first_k_dense_replace": 2,
    "max_position_embeddings": 512,
}
LENGTHS = (1, 5, 16, 37, 40, 64, 100)
TEXTS = ("a", "name[Zizzi] ->", "The quick brown fox jumps over the lazy dog. " * 2)
CHUNKS = {"max_num_batched_tokens": 64}
ALONE = {"enable_prefix_caching": False}


def filled(made: foreword.Backbone, folder: Path) -> PrefixStore:
    """Prefixes of each length and both window policies, ``w1`` to ``v100``, some of policy offset."""
    store = PrefixStore(folder)
    for seed, length in enumerate(LENGTHS):
        prefix = tiny.prefix(made, length, seed, "offset" if seed % 3 == 2 else "free")
        store.save(f"w{length}", prefix.with_meta(windows="windowed"))
        store.save(f"v{length}", prefix.with_meta(windows="visible"))
    return store


def damage(path: Path) -> None:
    """Change a number of a prefix, which its digest tells."""
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("kind", WINDOWED)
def test_a_window_drops_a_prefix_in_vllm_as_it_does_in_transformers(kind, tmp_path) -> None:
    """Prompts in chunks; each request twice, so that blocks are shared where vLLM can."""
    made = tiny.of_family(*WINDOWED[kind])
    store, model = filled(made, tmp_path / "store"), tiny.saved(made, tmp_path / "model")
    names = [None, *(f"{policy}{length}" for policy, length in product("wv", LENGTHS))]
    asked = [(name, made.tokens(text)) for name, text in product(names, TEXTS)]
    damage(store.save("damaged", tiny.prefix(made, 40, 90).with_meta(windows="windowed")))
    bad = [("damaged", [7, 8]), ("nobody", [7])]
    found = run(model, store, [*bad, *asked, *asked], CHUNKS, processes=False)
    assert found["tokens"][:2] == ["error", "error"]
    first, second = found["tokens"][2 : len(asked) + 2], found["tokens"][len(asked) + 2 :]
    assert first == second
    served = 0
    for (name, ids), tokens in zip(asked, first, strict=True):
        room = None if name is None else text_room(store.outline(name))
        if room is not None and len(ids) + NEW > room:
            assert tokens == "error", name
        else:
            served += 1
            assert tokens == expected(made, store, name, ids), (name, len(ids))
    assert served == 3 * 8 + 5  # visible: two texts behind one token, two behind 5, one behind 16
    assert "altered or damaged" in found["log"]
    assert "no prefix is called 'nobody'" in found["log"]
    assert "window policy 'visible'" in found["log"]
    long = made.tokens(TEXTS[2])
    parted = [expected(made, store, name, long) for name in ("w40", "v40")]
    assert parted[0] != parted[1]  # what was refused would have been another text


def test_requests_that_lost_their_blocks_get_their_windowed_prefix_again(tmp_path) -> None:
    made = tiny.of_family(*WINDOWED["some layers"])
    store, model = filled(made, tmp_path / "store"), tiny.saved(made, tmp_path / "model")
    asked = [(f"w{length}", made.tokens(f"name[{length}] ->")) for length in LENGTHS]
    wanted = [expected(made, store, *one) for one in asked]
    found = run(model, store, asked, {"num_gpu_blocks_override": 30}, processes=False)
    assert found["preempted"] > 0
    assert found["tokens"] == wanted


def test_two_workers_fail_a_windowed_prefix_alone(tmp_path) -> None:
    """Tensor parallel 2, where requests wait until both workers have loaded their prefix."""
    made = tiny.of_family(*WINDOWED["some layers"])
    store, model = filled(made, tmp_path / "store"), tiny.saved(made, tmp_path / "model")
    damage(store.save("damaged", tiny.prefix(made, 40, 90).with_meta(windows="windowed")))
    good = [(name, made.tokens(TEXTS[1])) for name in (None, "w37", "w40", "w100", "v5")]
    wanted = [expected(made, store, *one) for one in good]
    asked = [("damaged", [7, 8]), *good]
    found = run(model, store, asked, {"tensor_parallel_size": 2}, processes=True)
    assert found["tokens"] == ["error", *wanted]


def test_recurrent_layers_begin_as_if_there_were_no_prefix(tmp_path) -> None:
    """Mamba-2 beside attention. Each request twice, in blocks that hold states of earlier ones."""
    made = tiny.of_family("FalconH1Config", FALCON)
    store, model = PrefixStore(tmp_path / "store"), tiny.saved(made, tmp_path / "model")
    for seed, length in enumerate(LENGTHS):
        store.save(f"p{length}", tiny.prefix(made, length, seed, "offset"))
    names = [None, *(f"p{length}" for length in LENGTHS)]
    asked = [(name, made.tokens(text)) for name, text in product(names, TEXTS)]
    wanted = [expected(made, store, *one) for one in asked]
    found = run(model, store, [*asked, *asked], CHUNKS | ALONE, processes=False)
    assert found["tokens"] == [*wanted, *wanted]


def test_gated_delta_layers_begin_as_if_there_were_no_prefix(tmp_path) -> None:
    """Which vLLM computes in bfloat16 alone on a CPU: its choices are the best but for rounding."""
    made = tiny.of_family("Qwen3NextConfig", DELTA)
    made.model.bfloat16().float()
    made = foreword.Backbone(made.model, byte_tokenizer(), name="qwen3_next")
    store, model = PrefixStore(tmp_path / "store"), tiny.saved(made, tmp_path / "model")
    for seed, length in enumerate(LENGTHS):
        prefix = tiny.prefix(made, length, seed, "offset" if seed % 2 else "free")
        store.save(f"p{length}", prefix.to(torch.bfloat16))
    names = [None, *(f"p{length}" for length in LENGTHS)]
    asked = [(name, made.tokens(text)) for name, text in product(names, TEXTS)]
    engine = {"dtype": "bfloat16", **CHUNKS, **ALONE}
    found = run(model, store, [*asked, *asked], engine, processes=False)
    below: dict[str, float] = {"none": 0.0, "prefix": 0.0, "control": 0.0}
    for (name, ids), tokens in zip([*asked, *asked], found["tokens"], strict=True):
        sampling = Sampling(max_tokens=NEW, temperature=0)
        bare = Request(tuple(ids), sampling)
        held = Request(tuple(ids), sampling, (Weighted(store.load(name)),)) if name else bare
        gap, without = (alone(made, one, tuple(tokens)) for one in (held, bare))
        kind = "prefix" if name else "none"
        below[kind] = max(below[kind], gap)
        below["control"] = max(below["control"], without)
    assert max(below["none"], below["prefix"]) < 0.1 < 1 < below["control"], below


REFUSED = {
    "latent": ("DeepseekV3Config", LATENT, {"dtype": "bfloat16"}, "latent attention .MLA."),
    "shared": ("FalconH1Config", FALCON, {}, "Start vLLM with --no-enable-prefix-caching"),
    "unmanaged": (
        "Gemma3TextConfig",
        GEMMA3,
        {"disable_hybrid_kv_cache_manager": True},
        "Leave out --disable-hybrid-kv-cache-manager",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_an_engine_that_could_not_be_exact_does_not_start(kind, tmp_path) -> None:
    name, sizes, engine, said = REFUSED[kind]
    made = tiny.of_family(name, sizes)
    store, model = PrefixStore(tmp_path / "store"), tiny.saved(made, tmp_path / "model")
    with pytest.raises(AssertionError, match=f"this model has [^\n]*{said}"):
        run(model, store, [[None, [7]]], engine, processes=False)
