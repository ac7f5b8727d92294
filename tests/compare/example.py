"""A comparison with made-up figures, to try tables, pages and the verdict on."""

from __future__ import annotations

from foreword.compare.result import Comparison, Latency, Metric, Seed, Side, Tried
from foreword.methods.base import Traits

PREFIX = Side(
    name="prefix",
    label="prefix tuning, 16 virtual tokens",
    trained=184_320,
    stored_bytes=368_640,
    settings={"length": 16},
    traits=Traits(shares_batch=True, merges=False, composes=True, switches_off=True),
    optimizer="soap",
    rate=0.06,
    search=(
        Tried("soap", 0.06, 1.31, "foreword compare rows.jsonl --only 'prefix soap 0.06 seed 0'"),
        Tried("soap", 0.12, 1.36),
        Tried("soap", 0.03, 1.35),
        Tried("adamw", 0.03, 1.40),
        Tried("adamw", 0.06, 1.42),
        Tried("adamw", 0.015, 1.44),
    ),
    seeds=tuple(
        Seed(
            seed=seed,
            held=1.31 + 0.01 * seed,
            figures={"nll": 1.30 + 0.01 * seed, "bleu": 36.0 + seed},
            forgotten={"text": 0.05, "instructions": 0.04 + 0.01 * seed},
            seconds=31.5,
            tokens_per_second=1500.0,
            peak_bytes=900 * 2**20,
            history=tuple((step, 3.0 - 1.5 * step / 90) for step in range(1, 91)),
            command=f"foreword compare rows.jsonl --only 'prefix soap 0.06 seed {seed}'",
        )
        for seed in range(3)
    ),
    latency=Latency(prefill={1: 1.08, 32: 1.05}, decode={1: 1.06, 32: 1.04}),
    memory_bytes=300 * 2**20,
)
LORA = Side(
    name="lora",
    label="LoRA, all linear layers, rank 2",
    trained=189_000,
    stored_bytes=756_000,
    settings={"rank": 2, "targets": "all-linear"},
    traits=Traits(shares_batch=False, merges=True, composes=True, switches_off=True),
    optimizer="adamw",
    rate=0.004,
    interior=False,
    search=(Tried("adamw", 0.004, 1.29), Tried("adamw", 0.008, None), Tried("adamw", 0.002, 1.33)),
    seeds=tuple(
        Seed(
            seed=seed,
            held=1.29 + 0.02 * seed,
            figures={"nll": 1.28 + 0.02 * seed, "bleu": 36.5 + seed},
            forgotten={"text": 0.02, "instructions": 0.01},
            seconds=35.0,
            tokens_per_second=1350.0,
            history=tuple((step, 3.0 - 1.6 * step / 90) for step in range(1, 91)),
        )
        for seed in range(3)
    ),
    latency=Latency(prefill={1: 1.25, 32: 1.12}, decode={1: 1.35, 32: 1.2}),
    merged=Latency(prefill={1: 1.0, 32: 1.0}, decode={1: 1.0, 32: 1.0}),
    memory_bytes=350 * 2**20,
)
FULL = Side(
    "full", "full fine-tuning", trained=134_515_008, failed="out of memory <at 2 GB> & more"
)
FROZEN = Side(
    name="frozen",
    label="the frozen model, asked",
    traits=Traits(shares_batch=True, merges=True, composes=False, switches_off=True),
    seeds=(Seed(seed=0, held=3.2, figures={"nll": 3.25, "bleu": 4.2}, seconds=0.0),),
    latency=Latency(prefill={1: 1.0, 32: 1.0}, decode={1: 1.0, 32: 1.0}),
    memory_bytes=270 * 2**20,
)
EXAMPLE = Comparison(
    backbone={
        "name": "smollm2-135m-instruct",
        "family": "llama",
        "kind": "decoder",
        "dtype": "bfloat16",
        "parameters": 134_515_008,
    },
    data={"name": "rows.jsonl", "train": 400, "held": 40, "test": 43},
    task="causal",
    metric=Metric("bleu", "BLEU", higher=True),
    steps=90,
    sides=(PREFIX, LORA, FULL, FROZEN),
    machine="2 cores with AVX2",
    made="2026-11-30",
    version="0.0",
    command="foreword compare rows.jsonl --prompt '{mr} ->' --target ' {ref}'",
    budget=190_000,
    equal=("rows and their order", "steps", "precision"),
    unequal=("LoRA's parameters are 103% of the prefix's",),
    verdict=("LoRA is ahead by 0.5 BLEU, which is within the spread of the seeds.",),
)
