"""The default recipe on E2E: trained on the development set, measured once on the test set.

    python benchmarks/e2e.py ../shared/data/data2text
    python benchmarks/e2e.py ../shared/data/data2text --steps 40 --inputs 20

DIR holds e2e_dev.jsonl (4,672 rows) and e2e_test.jsonl (4,693 rows, 630 inputs), each row with columns
mr and ref. Training and test inputs are disjoint in the published split; that is checked here. Prints
one JSON object; nothing is kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
from pathlib import Path

import torch
import transformers

import foreword
from foreword.evaluate.e2e import slot_report

DESCRIPTION = (
    "Turn the facts about a restaurant into one fluent sentence that names it and states "
    "every fact."
)


def main() -> None:
    """Train, evaluate, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--inputs", type=int)
    arguments = parser.parse_args()
    train = foreword.read_rows(str(arguments.folder / "e2e_dev.jsonl"))
    test = foreword.read_rows(str(arguments.folder / "e2e_test.jsonl"))
    shared = {row["mr"] for row in train} & {row["mr"] for row in test}
    assert not shared, f"{len(shared)} inputs are in both sets"

    backbone = foreword.load()
    settings = foreword.TrainSettings(
        prompt="{mr} ->",
        target=" {ref}",
        init_text=DESCRIPTION,
        epochs=arguments.epochs,
        steps=arguments.steps,
    )
    result = foreword.train(backbone, train, settings)
    options = foreword.GenerateOptions(max_new_tokens=80, batch_size=32)
    found = foreword.evaluate(
        backbone, result.prefix, test, options=options, limit=arguments.inputs
    )
    mrs = [prompt.removesuffix(" ->") for prompt in found.prompts]
    slots = slot_report(mrs, found.outputs)
    report = {
        "backbone": backbone.name,
        "dtype": str(backbone.dtype),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": platform.machine(),
        "settings": settings.as_json(),
        "training": dict(result.prefix.meta.training),
        "rows": found.rows,
        "inputs": found.inputs,
        "targets": found.targets,
        "prefix": dataclasses.asdict(found.prefix),
        "base": dataclasses.asdict(found.base) if found.base else None,
        "slots": dataclasses.asdict(slots),
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
