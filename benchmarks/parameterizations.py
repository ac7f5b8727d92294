"""What each parameterisation, start and subset comes to after the same few steps on E2E.

    python benchmarks/parameterizations.py [STEPS]

Every run has the same rows in the same order, batches of 8 and one seed; the length is 16 unless the run
says otherwise. NLL per target token is over rows that are held out. One JSON object per run as it ends,
so that a stopped benchmark keeps what it has.
"""

from __future__ import annotations

import json
import sys

import foreword

STEPS = 40
HELD_OUT = 160
TEXT = "Turn the facts about a restaurant into one fluent sentence that names it and states every fact."
RUNS: dict[str, dict[str, object]] = {
    "direct": {},
    "direct, first token frozen": {"frozen": 1},
    "direct, dropout 0.1": {"dropout": 0.1},
    "direct, last 15 layers": {"layers": "last:15"},
    "direct, first 15 layers": {"layers": "first:15"},
    "mlp": {"parameterization": "mlp"},
    "gated": {"parameterization": "gated"},
    "gated, lr 0.1": {"parameterization": "gated", "lr": 0.1},
    "demonstrations, length 96": {"init": "demonstrations", "init_text": None, "length": 96},
    "text, length 96": {"length": 96},
}


def main() -> None:
    """Run and print."""
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else STEPS
    backbone = foreword.load(dtype="bfloat16")
    rows = foreword.read_rows("foreword/e2e:heldout")[::3][:HELD_OUT]
    for name, changes in RUNS.items():
        fields = {
            "prompt": "{mr} ->",
            "target": " {ref}",
            "init_text": TEXT,
            "length": 16,
            "lr": 0.03,
            "steps": steps,
            "checkpoint_every": steps,
            **changes,
        }
        settings = foreword.TrainSettings(**fields)  # type: ignore[arg-type]
        result = foreword.train(backbone, "foreword/e2e:train", settings, evaluation=rows)
        training = result.prefix.meta.training
        report = {
            "run": name,
            "steps": steps,
            "length": result.prefix.length,
            "sites": len(result.prefix.sites),
            "trained_parameters": training["trained_parameters"],
            "file_parameters": result.prefix.parameters,
            "first_loss": result.history[0]["loss"],
            "held_out_nll": training["best_eval_nll"],
            "seconds": result.seconds,
        }
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
