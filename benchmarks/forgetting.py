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
from functools import partial

import methods
import torch
from common import Row, machine, table
from transformers.utils import logging

import foreword
from foreword.compare.plan import Asked
from foreword.compare.run import compare_one

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
    "prefix+kl=3 soap 0.06",
    "lora soap 0.004",
    "lora+kl=1 soap 0.004",
)
"""Method, optimiser and rate."""


def one(run: str, seed: int, arguments: argparse.Namespace) -> Row:
    """The figures of a training."""
    made = methods.SETS["e2e"]
    word = run.split(" ")[0]
    found = compare_one(
        foreword.load(dtype="float32"),
        made.rows(arguments.shared),
        made.settings,
        Asked((word,), made.budget, steps=arguments.steps or made.steps),
        f"{run} seed {seed}",
        folder=methods.folder_of("e2e", arguments),
        test=methods.e2e_test(arguments.shared),
        tell=partial(methods.say, "e2e"),
    )
    return {
        "run": run,
        "seed": seed,
        "held-out NLL": found.held,
        "NLL": found.figures["nll"],
        "BLEU": found.figures["bleu"],
        "forgotten, text": found.forgotten["text"],
        "instructions": found.forgotten["instructions"],
        "training, s": found.seconds,
    }


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
    rows = [one(run, seed, arguments) for run in arguments.runs.split(",") for seed in seeds]
    print(table(rows))


if __name__ == "__main__":
    main()
