"""Under which headings the help of a verb with many options shows them.

cyclopts would take a heading from each option's annotation. The options of training and generating are
fields of classes of the library, whose own annotations say types alone, so the headings stand here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from cyclopts.help import DefaultFormatter, HelpPanel

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions

Headings = Mapping[str, str]
"""By heading the options below it, with spaces between."""

OPTIONS = "Parameters"
"""What cyclopts calls a verb's options; those under no heading stay under this one."""

_BACKBONE = {
    "Backbone": "--backbone --revision --dtype --quantize --device --attention",
    "Store": "--store",
}

_TRAIN: Headings = {
    "Data": "--eval --prompt --target --pair --max-length",
    "Recipe": "--config --task --length --parameterization --mlp-width --layers --sites --positions "
    "--windows --pooling --class-weights --attributes --attribute-length",
    "Start": "--init --init-text --frozen",
    "Loop": "--optimizer --lr --warmup --epochs --steps --batch-size --accumulate --group-by-length "
    "--dropout --kl --early-stop --checkpoint-every --gradient-checkpointing --seed --resume",
    "Output": "--name --overwrite --report-to",
    **_BACKBONE,
}

_GENERATION = (
    "--max-new-tokens --do-sample --temperature --top-k --top-p --num-beams --num-return-sequences "
    "--repetition-penalty --no-repeat-ngram-size --seed --batch-size"
)

_COMPOSING = "--strength --mode"

_GENERATE: Headings = {
    "Input and output": "--input --router --prefix --json --strict",
    "Strength and composition": _COMPOSING,
    "Engine": "--engine",
    "Generation": _GENERATION,
    **_BACKBONE,
}

_EVALUATE: Headings = {
    "Scoring and output": "--lm-eval --chat --prompt --target --limit --scored-references --base --json "
    "--strict",
    "Strength and composition": _COMPOSING,
    "Generation": _GENERATION,
    **_BACKBONE,
}

_COMPOSE: Headings = {
    "Composition": "--name --mode --data --overwrite",
    "Report": "--report --train --steps --epochs --lr --limit --max-new-tokens --json",
    **_BACKBONE,
}

_COMPARE: Headings = {
    "Methods": "--methods --budget --kl",
    "Effort": "--minutes --steps --seeds --rows --batch-size --max-new-tokens",
    "Data": "--test --task --prompt --target --pair --max-length --pooling --class-weights "
    "--attributes --seed",
    "Output": "--output --only --json",
    **{"Backbone": _BACKBONE["Backbone"]},
}

_SERVE: Headings = {
    "Engine": "--engine",
    "Models": "--router",
    "Network": "--host --port --api-key --allow-origin --keep-alive",
    "Memory": "--rows --prompt-tokens --cache-tokens --resident",
    "Limits": "--queue --max-tokens --timeout --max-body --max-upload",
    **_BACKBONE,
}

HEADINGS: Mapping[str, Headings] = {
    "train": _TRAIN,
    "generate": _GENERATE,
    "evaluate": _EVALUATE,
    "compare": _COMPARE,
    "compose": _COMPOSE,
    "serve": _SERVE,
}
"""By verb its headings; other verbs have few options."""


class UnderHeadings(DefaultFormatter):
    """cyclopts' own help, with the panel of options cut into one for each heading.

    Args:
        headings: The headings.
    """

    def __init__(self, headings: Headings) -> None:
        super().__init__()
        self.headings = headings

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        """Print a panel, or those that it is cut into."""
        for part in self.parts(panel) if panel.title == OPTIONS else [panel]:
            super().__call__(console, options, part)

    def parts(self, panel: HelpPanel) -> Iterator[HelpPanel]:
        """The panels that one is cut into; what has no heading comes last."""
        left = {entry.names[0]: entry for entry in panel.entries}
        for heading, names in self.headings.items():
            entries = [left.pop(name) for name in names.split() if name in left]
            yield panel.copy(title=heading, entries=entries)
        yield panel.copy(entries=[*left.values()])


def help_of(verb: str) -> dict[str, Any]:
    """How a verb shows its help, as arguments of `App.command`."""
    return {"help_formatter": UnderHeadings(HEADINGS[verb])} if verb in HEADINGS else {}
