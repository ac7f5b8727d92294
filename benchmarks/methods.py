"""Methods at equal size, each at its best rate and optimiser: what `foreword compare` says of each set.

    python benchmarks/methods.py [--models FOLDER] [--shared ../shared] [--sets e2e,code]
        [--methods prefix,lora] [--steps N] [--curve] [--latency]

FOLDER holds minilm-l6-v2 and flan-t5-small, for the sets sst2, xquad and dialogsum; e2e and code are on
the embedded backbone. Everything is float32, which every machine has, with one thread, so that several
of these can run beside each other, each with some of the --methods.

- e2e: E2E (Novikova et al., 2017), two references an input; 60 steps of 8 rows.
- code: the bodies of the functions of the package rich (MIT), after their head and docstring.
- sst2, xquad: sentences and questions for the encoder; dialogsum: summaries by the encoder-decoder.

With --curve, e2e is also trained on 50 and on 200 rows, and with one pass over all of them, at the rates
that it chose, with one seed: the first 480 are those of the table.

Finished runs are kept in benchmarks/results/methods-SET.jsonl and not repeated, whichever machine made
them; at the end of a set its table is printed as Markdown, and its page written beside the runs. Times
and latencies that were measured beside other runs say little: --latency drops those that are kept and
measures them anew, so let nothing else run then.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import SHARED, Row, machine, read_rows, shuffled, table
from transformers.utils import logging

import foreword
from foreword.compare.page import page_of
from foreword.compare.plan import Asked
from foreword.compare.result import Comparison, Side
from foreword.compare.run import compare, compare_one
from foreword.objectives.settings import DataSettings

RESULTS = Path(__file__).parent / "results"

LORAS = (
    "lora",
    "lora+targets=attention",
    "lora+targets=query-value",
    "lora+targets=mlp",
    "lora+rslora=true",
)
OTHERS = (
    "adapter",
    "ia3",
    "p-tuning-v2",
    "prompt-tuning+length=100",
    "p-tuning+length=32",
    "full",
)


@dataclass(frozen=True)
class Set:
    """A task on a backbone.

    Attributes:
        backbone: Its folder; None is the embedded one.
        settings: How rows are read.
        rows: Reads the rows.
        test: Reads the rows to test on; None: a tenth of the inputs is set aside.
        methods: What is compared.
        budget: Most numbers that are trained.
        steps: Steps of each training.
        more: Further fields of what is asked.
    """

    backbone: str | None
    settings: DataSettings
    rows: Callable[[Path], list[Row]]
    test: Callable[[Path], list[Row]] | None
    methods: tuple[str, ...]
    budget: int
    steps: int
    more: dict[str, Any] = field(default_factory=dict)


def e2e_train(shared: Path) -> list[Row]:
    """Two references of each input of the development set."""
    return few_of(read_rows(shared / "data/data2text/e2e_dev.jsonl"), "mr", 2)


def e2e_test(shared: Path) -> list[Row]:
    """Three references of each of 100 inputs of the test set."""
    rows = few_of(shuffled(read_rows(shared / "data/data2text/e2e_test.jsonl")), "mr", 3)
    inputs = list(dict.fromkeys(row["mr"] for row in rows))[:100]
    return [row for row in rows if row["mr"] in set(inputs)]


def few_of(rows: list[Row], column: str, most: int) -> list[Row]:
    """At most so many rows of each input, in order."""
    seen: dict[str, int] = {}
    found = []
    for row in rows:
        seen[row[column]] = seen.get(row[column], 0) + 1
        if seen[row[column]] <= most:
            found.append(row)
    return found


def code(shared: Path) -> list[Row]:
    """Functions of the installed package rich with a docstring: what stands before the body, and it."""
    spec = importlib.util.find_spec("rich")
    assert spec is not None
    assert spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0])
    rows = []
    for file in sorted(folder.glob("*.py")):
        text = file.read_text(encoding="utf-8")
        lines = text.splitlines(keepends=True)
        for head, body in bodies(ast.parse(text)):
            before, inside = "".join(lines[head[0] : head[1]]), "".join(lines[body[0] : body[1]])
            if len(before) < 600 and 40 < len(inside) < 500:
                rows.append({"head": before.rstrip("\n"), "body": "\n" + inside.rstrip("\n")})
    return rows


def bodies(tree: ast.Module) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Of each function with a docstring the lines up to its end, and those after it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) and len(node.body) > 1:
            end = node.body[0].end_lineno or 0
            yield (node.lineno - 1, end), (end, node.end_lineno or end)


def of_file(name: str) -> Callable[[Path], list[Row]]:
    """Reads a file of the shared data."""
    return lambda shared: shuffled(read_rows(shared / "data" / name))


SETS = {
    "e2e": Set(
        None,
        DataSettings(prompt="{mr} ->", target=" {ref}"),
        e2e_train,
        e2e_test,
        ("prefix", "lora", "lora+targets=attention", *OTHERS, "in-context", "frozen"),
        610_560,
        60,
    ),
    "code": Set(
        None,
        DataSettings(prompt="{head}", target="{body}", max_length=160),
        code,
        None,
        ("prefix", "lora", "adapter", "full", "in-context", "frozen"),
        610_560,
        60,
        {"batch_size": 4},
    ),
    "sst2": Set(
        "minilm-l6-v2",
        DataSettings(task="classify"),
        of_file("classification/sst2_train.jsonl"),
        of_file("classification/sst2_test.jsonl"),
        ("prefix", "lora", "lora+targets=attention", "adapter", "ia3", "p-tuning-v2", "full"),
        147_456,
        200,
    ),
    "xquad": Set(
        "minilm-l6-v2",
        DataSettings(task="answer"),
        of_file("qa/xquad_en.jsonl"),
        None,
        ("prefix", *LORAS, "adapter", "full"),
        147_456,
        200,
    ),
    "dialogsum": Set(
        "flan-t5-small",
        DataSettings(prompt="Summarise: {dialogue}", target="{summary}", max_length=384),
        of_file("summarization/dialogsum_dev.jsonl"),
        None,
        ("prefix", "lora", "adapter", "full", "frozen"),
        344_064,
        60,
        {"batch_size": 4},
    ),
}


def folder_of(name: str, arguments: argparse.Namespace) -> Path:
    """Where a set's checkpoints are, with its finished runs, which are kept in the results."""
    folder: Path = arguments.work / name
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "runs.jsonl"
    if not kept.is_symlink():
        kept.unlink(missing_ok=True)
        kept.symlink_to(RESULTS / f"methods-{name}.jsonl")
    return folder


def backbone_of(name: str, arguments: argparse.Namespace) -> foreword.Backbone:
    """A set's backbone."""
    made = SETS[name].backbone
    chosen = [] if made is None else [str(arguments.models / made)]
    return foreword.load(*chosen, dtype="float32")


def compared(name: str, arguments: argparse.Namespace, methods: tuple[str, ...]) -> Comparison:
    """A set's comparison: what is missing of it is made."""
    made = SETS[name]
    folder = folder_of(name, arguments)
    return compare(
        backbone_of(name, arguments),
        made.rows(arguments.shared),
        made.settings,
        Asked(methods, made.budget, steps=arguments.steps or made.steps, **made.more),
        folder=folder,
        test=None if made.test is None else made.test(arguments.shared),
        command=f"python benchmarks/methods.py --sets {name}",
        tell=partial(say, name),
    )


def one(name: str, run: str, seed: int, arguments: argparse.Namespace) -> Row:
    """The figures of one training of a set: its method, optimiser and rate."""
    made = SETS[name]
    word = run.split(" ")[0]
    found = compare_one(
        backbone_of(name, arguments),
        made.rows(arguments.shared),
        made.settings,
        Asked((word,), made.budget, steps=arguments.steps or made.steps, **made.more),
        f"{run} seed {seed}",
        folder=folder_of(name, arguments),
        test=None if made.test is None else made.test(arguments.shared),
        tell=partial(say, name),
    )
    forgotten = {f"forgotten, {text}": nats for text, nats in found.forgotten.items()}
    figures = {
        key: value
        for key, value in found.figures.items()
        if key in ("nll", "bleu", "accuracy", "f1")
    }
    held = {"held-out NLL": found.held}
    return {"run": run, "seed": seed, **held, **figures, **forgotten, "seconds": found.seconds}


def say(of: str, what: str) -> None:
    """Tell of a run before it begins."""
    print(of, what, flush=True)


CURVE = {50: 60, 200: 60, None: 123}
"""By rows to train on the steps of a training, as many as on 480 rows; None: one pass over all."""

CURVED = ("prefix", "lora", "full")
"""What is trained on fewer rows; the LoRA that e2e finds best takes the place of lora."""


def curve(found: Comparison, arguments: argparse.Namespace) -> None:
    """Print NLL and BLEU of E2E by the rows to train on."""
    made = SETS["e2e"]
    backbone, test = backbone_of("e2e", arguments), e2e_test(arguments.shared)
    loras = [side for side in found.sides if side.name.startswith("lora") and side.seeds]
    best = min(loras, key=lambda side: (side.figure("nll") or (float("inf"),))[0])
    sides = [best if side.name == "lora" else side for side in found.sides if side.name in CURVED]
    rows = []
    for count, steps in CURVE.items():
        asked = Asked(("in-context",), made.budget, steps=steps, rows=count)
        given = made.rows(arguments.shared), made.settings, asked
        for side in sides:
            seed = compare_one(
                backbone,
                *given,
                f"{side.name} {side.optimizer} {side.rate:g} seed 0",
                folder=folder_of("e2e", arguments),
                test=test,
                tell=partial(say, f"e2e, {count or 'all'} rows:"),
            )
            row = row_of(replace(side, seeds=(seed,)), "bleu")
            rows.append({"rows": count or "all", **row})
        shown = compare(backbone, *given, folder=folder_of("e2e", arguments), test=test)
        rows.append({"rows": count or "all", **row_of(shown.sides[0], "bleu")})
    print(table(rows))


def drop_costs(name: str) -> None:
    """Forget the times and latencies of a set."""
    file = RESULTS / f"methods-{name}.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["of"].get("what") not in ("costs", "time")]
    file.write_text("".join(kept))


def row_of(side: Side, metric: str) -> Row:
    """A line of the table."""
    if side.failed is not None:
        return {"method": side.label, "failed": side.failed}

    def spread(found: tuple[float, float] | None, form: str) -> str:
        return "" if found is None else f"{form} ± {form}".format(*found)

    text = side.forgot("text")
    return {
        "method": side.label,
        "trained": f"{side.trained:,}",
        "optimiser, rate": f"{side.optimizer} {side.rate:g}" if side.rate else "",
        "NLL": spread(side.figure("nll"), "{:.3f}"),
        metric: spread(side.figure(metric), "{:.3f}"),
        "forgotten": "" if text is None else f"{text[0]:+.3f}",
        "training, s": f"{side.seeds[0].seconds:.0f}" if side.trained else "",
        "decode, 1 row": "" if side.latency is None else f"{side.latency.decode[1]:.2f}",
    }


def report(name: str, found: Comparison) -> None:
    """Print a set's table, and write its page."""
    print(f"\n## {name}, {found.steps} steps, {found.made}, {found.machine}\n")
    print(table([row_of(side, found.metric.name) for side in found.sides]))
    print(*found.verdict, sep="\n")
    page = RESULTS / f"methods-{name}.html"
    page.write_text(page_of(found), encoding="utf-8")


def common_options(parser: argparse.ArgumentParser) -> None:
    """Where things are."""
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--steps", type=int, help="of each training, to try the benchmark")
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()) / "foreword-methods"
    )


def main() -> None:
    """Run what is missing, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    common_options(parser)
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--methods", help="only these of each set")
    parser.add_argument("--curve", action="store_true", help="train on fewer rows, too")
    parser.add_argument("--latency", action="store_true", help="measure times anew")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    print(json.dumps(machine()))
    for name in arguments.sets.split(","):
        methods = SETS[name].methods
        if arguments.methods:
            wanted = arguments.methods.split(",")
            methods = tuple(method for method in methods if method in wanted)
        if arguments.latency:
            drop_costs(name)
        found = compared(name, arguments, methods)
        report(name, found)
        if arguments.curve and name == "e2e":
            curve(found, arguments)


if __name__ == "__main__":
    main()
