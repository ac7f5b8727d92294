"""`foreword demo`: the main job in a few minutes, on real data and a real model."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import Parameter

from foreword.cli.console import note, out, say, table, working
from foreword.cli.cores import warn_of_others
from foreword.cli.evaluate import counted
from foreword.cli.options import BackboneOptions, StoreOptions
from foreword.cli.progress import parts
from foreword.cli.train import TrainArguments, train_in_store
from foreword.data.references import one_each
from foreword.data.sources import read_rows
from foreword.options import GenerateOptions
from foreword.train.settings import TrainSettings
from foreword.weights import embedded

if TYPE_CHECKING:
    from foreword.backbone import Backbone
    from foreword.evaluate import Evaluation
    from foreword.prefix import Prefix
    from foreword.train import TrainResult

NAME = "e2e-demo"
TRAINING = "foreword/e2e:train"
DESCRIPTION = (
    "Turn the facts about a restaurant into one fluent sentence that names it and states "
    "every fact."
)
SETTINGS = TrainSettings(
    prompt="{mr} ->", target=" {ref}", length=16, init_text=DESCRIPTION, epochs=2
)
HELD_OUT = "foreword/e2e:heldout"
SHOWN = 3
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Strengths that the dial is shown at."""
DIALLED = 16
"""References that it is shown on."""
AFRESH = "the same command starts the demo afresh"
"""What to do after a stop: the demo does not resume."""

EVALUATION = 80
"""What the whole evaluation costs, in steps of training: 75 with AVX512-BF16, 79 with AVX2."""

PATIENCE = 220.0
"""Seconds of training and evaluation beyond which the demo is a short one."""


@dataclass(frozen=True)
class Scale:
    """How much of the demo is run.

    Attributes:
        settings: The recipe.
        inputs: Unseen inputs, or None for all.
        scored_references: References of each whose NLL is taken, or None for all.
    """

    settings: TrainSettings = SETTINGS
    inputs: int | None = None
    scored_references: int | None = None


SHORT = Scale(replace(SETTINGS, steps=40), inputs=32, scored_references=1)
"""What a slow machine does in less than four minutes."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class DemoArguments:
    """Where the demo leaves its picture and figures."""

    output: Path = Path("demo-output")
    """Folder for loss.png and figures.json."""

    steps: int | None = None
    """Fewer steps than the demo's two epochs, to try it quickly."""

    inputs: int | None = None
    """Fewer unseen inputs than the 64 that there are, to try it quickly."""

    full: bool = False
    """Run all of it, however slow the machine is."""


def demo(
    *,
    arguments: DemoArguments = DemoArguments(),
    backbone: BackboneOptions = BackboneOptions(),  # noqa: B008
    store: StoreOptions = StoreOptions(),  # noqa: B008
) -> None:
    """Train a prefix of 16 on real restaurant data, then show what it does."""
    began = time.perf_counter()
    from foreword.backbone import describe_dtype
    from foreword.evaluate import evaluate_text
    from foreword.evaluate.picture import loss_curve

    with working(f"loading {backbone.backbone or embedded.NAME}"):
        loaded = backbone.load()
    if loaded.name == embedded.NAME:
        say(f"Backbone: {embedded.NOTE}.")
    say(describe_dtype(loaded))
    warn_of_others()
    rows = len(read_rows(TRAINING))
    say(
        f"Data: E2E restaurant descriptions, {rows} rows (CC BY-SA 4.0, Novikova et al., 2017).",
    )
    scale = _scale(loaded, arguments)
    place = store.open()
    run = TrainArguments(name=NAME, overwrite=True)
    result = train_in_store(place, loaded, TRAINING, scale.settings, run, remedy=AFRESH)
    say("Evaluating on inputs that it has not seen, with the prefix and without.")
    with parts() as progress:
        found = evaluate_text(
            loaded,
            result.prefix,
            HELD_OUT,
            options=GenerateOptions(max_new_tokens=80, batch_size=32),
            limit=scale.inputs,
            scored_references=scale.scored_references,
            progress=progress,
        )
    with working("turning the dial"):
        dial = _dial(loaded, result.prefix)
    total = time.perf_counter() - began
    size = place.path(NAME).stat().st_size
    _show(loaded, result, found, size, total)
    arguments.output.mkdir(parents=True, exist_ok=True)
    picture = arguments.output / "loss.png"
    loss_curve(result.history, picture, title=f"{NAME}: training loss")
    figures = {**_figures(loaded, result, found, size, total), "dial": dial}
    (arguments.output / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    say(f"\nLoss curve: {picture}")
    say(f'Try it: foreword generate {NAME} "name[The Eagle], food[Thai]" --strength 0.8')
    strengths, nlls = zip(*dial.items(), strict=True)
    say(
        f"Dial: at strength {', '.join(f'{one:g}' for one in strengths)} the NLL of {DIALLED} "
        f"references is {', '.join(f'{nll:.2f}' for nll in nlls)}."
    )


def _dial(backbone: Backbone, prefix: Prefix) -> dict[float, float]:
    """By strength of the prefix the NLL per target token of a few unseen references."""
    from foreword.evaluate.run import scored
    from foreword.prompts import encoder_for, task_of

    task = task_of(prefix)
    rows = one_each(read_rows(HELD_OUT), task)[:DIALLED]
    encoded, _ = encoder_for(backbone, prefix, task).rows(rows)
    return {one: scored(backbone, prefix.strength(one), encoded, DIALLED)[0] for one in STRENGTHS}


def _scale(backbone: Backbone, arguments: DemoArguments) -> Scale:
    """As much as was asked for; if nothing was, what the machine does in reasonable time."""
    if arguments.steps is not None or arguments.inputs is not None:
        settings = SETTINGS if arguments.steps is None else replace(SETTINGS, steps=arguments.steps)
        return Scale(settings, arguments.inputs)
    if arguments.full:
        return Scale()
    from foreword.cli.pace import TRIED, Pace
    from foreword.train import train

    pace = Pace()
    with working(f"timing {TRIED} steps"):
        train(backbone, TRAINING, SETTINGS, callbacks=[pace])
    seconds = pace.step * (pace.steps + EVALUATION)
    if seconds <= PATIENCE:
        return Scale()
    say(
        f"A step takes {pace.step:.1f} s here, so the whole demo would take about {seconds / 60:.0f} "
        f"minutes. This is a short one: {SHORT.settings.steps} steps, {SHORT.inputs} inputs, the NLL of "
        "one reference each. For the whole: foreword demo --full"
    )
    return SHORT


def _show(
    backbone: Backbone, result: TrainResult, found: Evaluation, size: int, total: float
) -> None:
    for index in range(min(SHOWN, found.inputs)):
        say(f"\nInput           {found.prompts[index]}")
        say(f"Frozen model    {_one_line(found.base_outputs[index])}")
        say(f"With prefix     {found.outputs[index]}")
    from foreword.describe import formula

    base = found.base
    assert base is not None
    steps = result.prefix.meta.training["steps"]
    made = table(f"\n{steps} steps; {counted(found)}, unseen", "", "frozen", "prefix")
    for label, name, form in (
        ("NLL per target token", "nll", "{:.3f}"),
        ("perplexity", "perplexity", "{:.2f}"),
        ("BLEU (multi-reference)", "bleu", "{:.1f}"),
        ("ROUGE-L", "rouge_l", "{:.1f}"),
    ):
        pair = (form.format(getattr(model, name)) for model in (base, found.prefix))
        made.add_row(label, *pair)
    frozen, ours = _slots(found, found.base_outputs), _slots(found, found.outputs)
    made.add_row("restaurant named %", f"{frozen[0]:.1f}", f"{ours[0]:.1f}")
    made.add_row("slot recall %", f"{frozen[1]:.1f}", f"{ours[1]:.1f}")
    share = 100 * result.prefix.parameters / backbone.parameters
    made.add_row("trainable parameters", "0", f"{result.prefix.parameters:,}")
    made.add_row("share of the backbone %", "0", f"{share:.3f}")
    made.add_row("file, bytes", "", f"{size:,}")
    made.add_row("seconds of training", "", f"{result.seconds:.0f}")
    made.add_row("seconds of evaluation", f"{base.seconds:.0f}", f"{found.prefix.seconds:.0f}")
    out.print(made)
    say(f"Parameters: {formula(result.prefix)}")
    say(f"All in all {total:.0f} s.")
    note("slot recall is measured by the plain matcher in foreword/evaluate/e2e.py")


def _slots(found: Evaluation, outputs: list[str]) -> tuple[float, float]:
    """Restaurant named and slot recall, both in percent."""
    from foreword.evaluate.e2e import slot_report

    report = slot_report([prompt.removesuffix(" ->") for prompt in found.prompts], outputs)
    return report.named, report.recall


def _one_line(text: str, most: int = 160) -> str:
    flat = " / ".join(line for line in text.splitlines() if line.strip())
    return flat if len(flat) <= most else flat[: most - 1] + "…"


def _figures(
    backbone: Backbone, result: TrainResult, found: Evaluation, size: int, total: float
) -> dict[str, Any]:
    """What was measured, as JSON values."""
    base = found.base
    assert base is not None
    named, recall = _slots(found, found.outputs)
    return {
        "backbone": backbone.name,
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "inputs": found.inputs,
        "references": sum(map(len, found.references)),
        "scored_references": found.rows,
        "steps": result.prefix.meta.training["steps"],
        "nll": {"frozen": base.nll, "prefix": found.prefix.nll},
        "bleu": {"frozen": base.bleu, "prefix": found.prefix.bleu},
        "rouge_l": {"frozen": base.rouge_l, "prefix": found.prefix.rouge_l},
        "named": named,
        "slot_recall": recall,
        "parameters": result.prefix.parameters,
        "bytes": size,
        "training_seconds": result.seconds,
        "total_seconds": total,
    }
