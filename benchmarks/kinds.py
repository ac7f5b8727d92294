"""Kinds of transformers: a prefix, LoRA of equal size and full fine-tuning, on what each kind is for.

    python benchmarks/kinds.py --models FOLDER [--shared ../shared] [--sets FOLDER] [--po FILE]
        [--quick] [--only SET] [--table]

FOLDER holds the backbones: flan-t5-small (an int8 copy that was tuned to write titles), opus-mt-zh-en
(an int8 copy) and minilm-l6-v2. FILE is a gettext catalogue of a program's texts in Chinese, which are
translated back into the program's own English; results were made with Aegisub's po/zh_CN.po (BSD, at
6f546951). That set is left out without it.

Every side trains for as many steps of as many rows with the same Trainer, rows and seed, at each of its
learning rates. The rate is chosen on held-out rows with the first seed, and the figures are those of
other rows, which nothing is chosen on. Sets that are labelled have three seeds, TREC-6 ten: two of its
500 test questions are 4% of what LoRA gains. TREC-6 and XQuAD-en are run with three times as many steps,
too, but not with --quick.

With --quick each side has one rate, one seed and 40 steps, and figures come from 64 rows at most.
Finished runs are kept in benchmarks/results/kinds.jsonl and not repeated, so the benchmark goes on
where it was cut off; --table prints what is there.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import label_sets
import label_sides
import text_sides
from common import SHARED, Results, Row, machine, read_rows, shuffled, table
from quality import split
from transformers.utils import logging

import foreword
from foreword.backbone import Backbone
from foreword.train import TrainSettings

SEEDS = (0, 1, 2)
MORE_SEEDS = tuple(range(10))
"""Where a set's test rows are so few that three seeds decide nothing."""
QUICK_STEPS, QUICK_ROWS = 40, 64
Measure = Callable[[Backbone, str, "Set", TrainSettings], Row]


@dataclass(frozen=True)
class Set:
    """A task on a backbone.

    Attributes:
        name: Its name.
        kind: What kind of transformer the backbone is.
        backbone: The backbone's folder.
        settings: The default recipe, with the task's templates and steps.
        train: Rows to train on.
        held: Rows that rates are chosen on.
        test: Rows that figures come from.
        measure: Trains a side and measures it.
        rank: Rank of a LoRA with as many parameters as the prefix.
        modules: What LoRA adapts.
        rates: Each side's learning rates, that of --quick first.
        shown: Figures of the table. By the first of them, on held-out rows, rates are chosen.
        seeds: Seeds of every side.
    """

    name: str
    kind: str
    backbone: str
    settings: TrainSettings
    train: list[Row]
    held: list[Row]
    test: list[Row]
    measure: Measure
    rank: int
    modules: tuple[str, ...]
    rates: dict[str, tuple[float, ...]]
    shown: tuple[str, ...]
    seeds: tuple[int, ...] = SEEDS


LABEL_RATES = {
    "head": (0.06, 0.2),
    "prefix": (0.06, 0.12),
    "lora": (0.003, 0.001),
    "full": (1e-4,),
}
LOWER_RATES = {**LABEL_RATES, "prefix": (0.06, 0.12, 0.03), "lora": (0.003, 0.001, 0.0003)}
"""Where the best of those was the lowest."""
LONGER: dict[str, dict[str, Any]] = {
    "trec": {"seeds": SEEDS},
    "xquad-en": {"rates": LOWER_RATES},
}
"""Sets that are run with three times as many steps, too, and what else differs then."""
TEXT_RATES = {
    "frozen": (0.0,),
    "prefix": (0.06, 0.12),
    "lora": (0.003, 0.001),
    "full": (3e-4, 1e-4),
}
MINILM: dict[str, Any] = {
    "kind": "encoder",
    "backbone": "minilm-l6-v2",
    "measure": label_sides.figures,
    "rank": 8,
    "modules": ("query", "value"),
    "rates": LABEL_RATES,
}
T5: dict[str, Any] = {
    "kind": "encoder-decoder",
    "backbone": "flan-t5-small",
    "measure": text_sides.figures,
    "rank": 7,
    "modules": ("q", "v"),
    "rates": TEXT_RATES,
    "seeds": (0,),
}


MARIAN: dict[str, Any] = {
    **T5,
    "backbone": "opus-mt-zh-en",
    "rank": 8,
    "modules": ("q_proj", "v_proj"),
}


def labelled(steps: int, batch: int = 16, **others: Any) -> TrainSettings:
    """The default recipe on labelled rows."""
    return TrainSettings(steps=steps, batch_size=batch, **others)


def written(prompt: str, target: str, steps: int = 100) -> TrainSettings:
    """The default recipe on texts."""
    return TrainSettings(prompt=prompt, target=target, steps=steps)


def translated(catalogue: Path) -> list[Row]:
    """A gettext catalogue's texts without plural forms, and their finished translations."""
    from babel.messages.pofile import read_po

    with catalogue.open("rb") as file:
        messages = [one for one in read_po(file) if one.id and one.string and not one.fuzzy]
    return [
        {"translation": one.string, "text": one.id} for one in messages if isinstance(one.id, str)
    ]


def sets(shared: Path, catalogue: Path | None) -> list[Set]:
    """The tasks, their rows split by input."""
    data = shared / "data"
    sst = data / "classification/sst2"
    trec = shuffled(read_rows(data / "classification/trec_train.jsonl"))
    wnut = data / "ner/wnut17"
    asked, xquad_test = apart(read_rows(data / "qa/xquad_en.jsonl"), "context", 48)
    xquad, xquad_held = apart(asked, "context", 24)
    e2e, e2e_held = split(read_rows(data / "data2text/e2e_dev.jsonl"), "mr")
    e2e_test = read_rows(data / "data2text/e2e_test.jsonl")
    dialogues = shuffled(read_rows(data / "summarization/dialogsum_dev.jsonl"))
    found = [
        Set(
            "sst2",
            settings=labelled(600),
            train=read_rows(Path(f"{sst}_train.jsonl")),
            held=read_rows(Path(f"{sst}_dev.jsonl")),
            test=read_rows(Path(f"{sst}_test.jsonl")),
            shown=("accuracy",),
            **MINILM,
        ),
        Set(
            "trec",
            settings=labelled(400),
            train=trec[500:],
            held=trec[:500],
            test=read_rows(data / "classification/trec_test.jsonl"),
            shown=("accuracy",),
            seeds=MORE_SEEDS,
            **MINILM,
        ),
        Set(
            "wnut17",
            settings=labelled(500),
            train=read_rows(Path(f"{wnut}_train.jsonl")),
            held=read_rows(Path(f"{wnut}_dev.jsonl")),
            test=read_rows(Path(f"{wnut}_test.jsonl")),
            shown=("f1",),
            **MINILM,
        ),
        Set(
            "xquad-en",
            settings=labelled(200, 8),
            train=xquad,
            held=xquad_held,
            test=xquad_test,
            shown=("f1", "exact_match"),
            **MINILM,
        ),
        Set(
            "e2e",
            settings=written("Describe: {mr}", "{ref}"),
            train=e2e,
            held=e2e_held[:96],
            test=inputs_of(e2e_test, "mr", 96),
            shown=("nll", "bleu"),
            **T5,
        ),
        Set(
            "dialogsum",
            settings=written("Summarise: {dialogue}", "{summary}"),
            train=dialogues[150:],
            held=dialogues[:50],
            test=dialogues[50:150],
            shown=("nll", "rouge_l"),
            **T5,
        ),
    ]
    if catalogue is not None:
        program, program_test = apart(translated(catalogue), "translation", 300)
        found.append(
            Set(
                "program texts",
                settings=written("{translation}", "{text}", 200),
                train=program[150:],
                held=program[:150],
                test=program_test,
                shown=("nll", "bleu"),
                **MARIAN,
            )
        )
    return found


def further(folder: Path) -> list[Set]:
    """Pairs, numbers and several labels, as `label_sets` reads them."""
    pairs, numbers, several = (
        split_of(folder) for split_of in (label_sets.sick, label_sets.stsb, label_sets.goemotions)
    )
    return [
        Set("sick", settings=labelled(600), shown=("accuracy", "macro_f1"), **pairs, **MINILM),
        Set("sts-b", settings=labelled(600), shown=("pearson", "spearman"), **numbers, **MINILM),
        Set(
            "goemotions",
            settings=labelled(600),
            shown=("micro_f1", "macro_f1"),
            **several,
            **MINILM,
        ),
    ]


def longer(task: Set) -> Set:
    """A set of `LONGER` with more steps."""
    steps = 3 * (task.settings.steps or 0)
    settings = replace(task.settings, steps=steps)
    return replace(task, name=f"{task.name} longer", settings=settings, **LONGER[task.name])


def apart(rows: Sequence[Row], column: str, count: int) -> tuple[list[Row], list[Row]]:
    """Shuffled rows, and those of so many inputs, which the first have none of."""
    kept = set(shuffled(sorted({row[column] for row in rows}))[:count])
    mixed = shuffled(rows)
    return (
        [row for row in mixed if row[column] not in kept],
        [row for row in mixed if row[column] in kept],
    )


def inputs_of(rows: Sequence[Row], column: str, count: int) -> list[Row]:
    """All rows of the first so many inputs."""
    kept = set(list(dict.fromkeys(row[column] for row in rows))[:count])
    return [row for row in rows if row[column] in kept]


def quick(task: Set) -> Set:
    """A set that takes a minute."""
    return replace(
        task,
        held=task.held[:QUICK_ROWS],
        test=task.test[:QUICK_ROWS],
        settings=replace(task.settings, steps=QUICK_STEPS),
        rates={side: rates[:1] for side, rates in task.rates.items()},
        seeds=SEEDS[:1],
    )


def runs(task: Set, backbone: Backbone | None, results: Results, mark: str) -> dict[str, list[Row]]:
    """By side the runs at its best rate, one for each seed; those that are missing are made."""
    found: dict[str, list[Row]] = {}
    for side, rates in task.rates.items():

        def run(rate: float, seed: int, side: str = side) -> Row | None:
            key = f"{mark}{task.name} {task.backbone} {side} {rate} seed {seed}"
            if key not in results and backbone is not None:
                settings = replace(task.settings, seed=seed)
                if rate:
                    settings = replace(settings, lr=rate)
                made = task.measure(backbone, side, task, settings)
                print(json.dumps(results.add(key, rate=rate, **machine(), **made)), flush=True)
            return results.get(key)

        tried = [line for rate in rates if (line := run(rate, task.seeds[0])) is not None]
        if not tried:
            continue
        best = (min if task.shown[0] == "nll" else max)(
            tried, key=lambda line: line[f"held_{task.shown[0]}"]
        )
        more = [run(best["rate"], seed) for seed in task.seeds[1:]] if side != "frozen" else []
        found[side] = [best, *(line for line in more if line is not None)]
    return found


def cell(lines: Sequence[Row], figure: str) -> str:
    """The mean over seeds and, of several, the standard deviation."""
    values = [line[f"test_{figure}"] for line in lines]
    digits = 3 if figure in {"nll", "pearson", "spearman"} else 1
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def lines_of(task: Set, found: dict[str, list[Row]]) -> list[Row]:
    """The table's rows for a set."""
    made = []
    for figure in task.shown:
        line = {"kind": task.kind, "backbone": task.backbone, "data": task.name, "figure": figure}
        base = "head" if "head" in task.rates else "frozen"
        titles = {base: "frozen or head alone", "prefix": "prefix", "lora": "LoRA", "full": "full"}
        for side, title in titles.items():
            line[title] = cell(found[side], figure) if side in found else "-"
        line["parameters"] = found["prefix"][0]["trained"] if "prefix" in found else "-"
        line["share of LoRA's gain"] = share(found, base, figure)
        made.append(line)
    return made


def share(found: dict[str, list[Row]], base: str, figure: str) -> str:
    """What the prefix gains over the base, of what LoRA does."""
    if not {base, "prefix", "lora"} <= set(found):
        return "-"
    start, ours, theirs = (
        statistics.mean(line[f"test_{figure}"] for line in found[side])
        for side in (base, "prefix", "lora")
    )
    return f"{100 * (ours - start) / (theirs - start):.0f}%"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, required=True, help="folder of the backbones")
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--sets", type=Path, help="folder of sick, stsb and goemotions")
    parser.add_argument("--po", type=Path, help="a gettext catalogue in Chinese")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", help="one set")
    parser.add_argument("--table", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    results = Results(Path(__file__).parent / "results" / "kinds.jsonl")
    lines: list[Row] = []
    tasks = sets(arguments.shared, arguments.po)
    if arguments.sets is not None:
        tasks += further(arguments.sets)
    if not arguments.quick:
        tasks += [longer(task) for task in tasks if task.name in LONGER]
    for task in tasks:
        if arguments.only not in (None, task.name):
            continue
        task = quick(task) if arguments.quick else task
        place = arguments.models / task.backbone
        backbone = None if arguments.table else foreword.load(str(place))
        if backbone is not None and backbone.family == "marian":
            text_sides.mend_targets(backbone)
        found = runs(task, backbone, results, "quick " if arguments.quick else "")
        if found:
            lines += lines_of(task, found)
    print(table(lines) if lines else "nothing measured yet")


if __name__ == "__main__":
    main()
