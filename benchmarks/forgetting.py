"""What brings down what a prefix forgets, and what it costs of the task: E2E of benchmarks/methods.py.

    python benchmarks/forgetting.py [--shared ../shared] [--runs "prefix+kl=1 soap 0.06,lora soap 0.004"]
        [--seeds 0,1,2]

Each run is one training of benchmarks/methods.py, on the same rows and for as many steps, at the size
that a budget of as many numbers allows. Rates are given: they are those that methods.py finds best
where it was run, and lower ones beside them.

Forgotten is by how much the NLL of a token of text that has nothing to do with the task is higher than
that of the frozen model, in nats. Finished runs are kept beside those of methods.py.
"""

from __future__ import annotations

import argparse
import json

import methods
import torch
from common import machine, table
from transformers.utils import logging

RUNS = (
    "prefix soap 0.06",
    "prefix soap 0.03",
    "prefix+length=26 soap 0.06",
    "prefix+length=8 soap 0.06",
    "prefix+layers=last:15 soap 0.06",
    "prefix+dropout=0.1 soap 0.06",
    "prefix+parameterization=gated soap 0.06",
    "prefix+kl=0.3 soap 0.06",
    "prefix+kl=1 soap 0.06",
    "prefix+init=demonstrations soap 0.06",
    "prefix+init=demonstrations+kl=0.3 soap 0.06",
    "lora soap 0.008",
    "lora+kl=1 soap 0.008",
)
"""Method, optimiser and rate."""


def main() -> None:
    """Run what is missing, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    methods.common_options(parser)
    parser.add_argument("--runs", default=",".join(RUNS))
    parser.add_argument("--seeds", default="0")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    print(json.dumps(machine()))
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    rows = [
        methods.one("e2e", run, seed, arguments)
        for run in arguments.runs.split(",")
        for seed in seeds
    ]
    print(table(rows))


if __name__ == "__main__":
    main()
