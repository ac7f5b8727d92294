"""`foreword compare`."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from foreword.cli.console import note, say, show, working
from foreword.cli.inputs import rows_from
from foreword.cli.options import BackboneOptions
from foreword.errors import DataError, TrainingError
from foreword.files import write_whole
from foreword.objectives.columns import check_columns
from foreword.objectives.settings import DataSettings

if TYPE_CHECKING:
    from foreword.compare.plan import Asked, Plan
    from foreword.compare.result import Comparison
    from foreword.data.given import Rows

FOLDER = Path("comparison")
"""Where a comparison is kept where nobody says."""

JSON, PAGE = "comparison.json", "comparison.html"
"""Files of a comparison, beside the runs that it was made of."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class CompareArguments:
    """What is compared, and how long it may take."""

    methods: str = "prefix,lora,frozen"
    """Methods, with commas between: prefix, prompt-tuning, p-tuning, p-tuning-v2, lora, adapter, ia3,
    full, in-context, frozen, and those that other packages bring; settings of a method follow it, as in
    lora+targets=attention."""

    budget: int | None = None
    """Most numbers that a method may train; default: those of a prefix of 16 virtual tokens, or
    the least that each method needs."""

    minutes: float = 15.0
    """Time that all of it may take, by which the steps of each training are chosen."""

    steps: int | None = None
    """Steps of each training, in place of --minutes."""

    seeds: int = 3
    """Trainings that count for each method, at its best rate."""

    rows: int | None = None
    """Rows to train on at most; what is held out and tested on stays the same."""

    batch_size: int = 8
    """Rows of a step."""

    max_new_tokens: int = 64
    """Longest text that is written, in tokens."""

    test: str | None = None
    """Rows to measure on; default: a tenth of the inputs is set aside."""

    output: Path = FOLDER
    """Folder of the figures and the page. What was measured there before is not measured again."""

    only: str | None = None
    """Make one run of a report again, such as "lora soap 0.004 seed 1"; with --steps."""

    as_json: Annotated[bool, Parameter(name="--json")] = False
    """Print everything as JSON."""

    @property
    def asked(self) -> Asked:
        """The same as the library has it."""
        from foreword.compare.plan import Asked

        return Asked(
            methods=tuple(name.strip() for name in self.methods.split(",")),
            budget=self.budget,
            minutes=self.minutes,
            steps=self.steps,
            seeds=self.seeds,
            rows=self.rows,
            batch_size=self.batch_size,
            max_new_tokens=self.max_new_tokens,
        )


def compare(
    data: str,
    /,
    *,
    arguments: CompareArguments = CompareArguments(),
    settings: Annotated[DataSettings, Parameter(name="*")] = DataSettings(),  # noqa: B008
    backbone: BackboneOptions = BackboneOptions(),  # noqa: B008
) -> None:
    """Compare methods on a task's rows: quality, parameters, time, memory, latency, forgetting.

    Every method gets the same rows, steps and numbers to train, both optimisers, and a search for its
    learning rate. A comparison that was stopped goes on where it was with the same command.

    Parameters
    ----------
    data
        Rows, as in training.
    """
    rows, test = _checked_rows(data, settings, arguments)
    asked = arguments.asked
    with working("loading the backbone"):
        model = backbone.load()
    from foreword.backbone import describe_dtype
    from foreword.compare.run import compare as run_comparison
    from foreword.compare.run import compare_one
    from foreword.train.lock import alone_in

    note(describe_dtype(model))
    given = model, rows, settings, asked
    kept: dict[str, Any] = {"folder": arguments.output, "test": test, "tell": note}
    with alone_in(arguments.output, busy=_busy(arguments.output)):
        if arguments.only is not None:
            seed = compare_one(*given, arguments.only, **kept)
            say(json.dumps(dataclasses.asdict(seed), indent=1))
            return
        found = run_comparison(*given, command=_command(), planned=_say_plan, **kept)
        _keep(found, arguments.output)
    if arguments.as_json:
        say(json.dumps(found.as_json(), indent=1))
    else:
        _show(found, arguments.output)
    if all(side.failed for side in found.sides):
        raise TrainingError("nothing could be compared: every method failed, as the report says")


def _checked_rows(
    data: str, settings: DataSettings, arguments: CompareArguments
) -> tuple[Rows, Rows | None]:
    """Rows, and those to test on, with the columns that the templates name, or that tasks read.

    Raises:
        DataError: A source cannot be read, or lacks a column.
        TrainingError: Attributes are named, which only a prefix has.
    """
    if settings.attributes is not None:
        raise TrainingError(
            "attributes are control prefixes' own, and no other method has them; leave --attributes out"
        )
    rows = rows_from(data)
    test = None if arguments.test is None else rows_from(arguments.test)
    check_columns(settings, rows, test or [])
    if test is not None and not test:
        raise DataError("there are no rows to test on (--test)")
    return rows, test


def _busy(folder: Path) -> str:
    """What to say where another comparison is in the folder, whose runs would look as if they failed."""
    return (
        f"another comparison is under way in {folder}; wait until it ends, or choose another folder "
        "(--output)"
    )


def _command() -> str:
    """The command line as it was given, for whoever makes a run again."""
    return shlex.join(["foreword", *sys.argv[1:]])


def _say_plan(plan: Plan) -> None:
    note(f"this will take {plan}")


def _keep(found: Comparison, folder: Path) -> None:
    """Write the figures and the page."""
    from foreword.compare.page import page_of

    write_whole(folder / JSON, json.dumps(found.as_json(), indent=1).encode())
    write_whole(folder / PAGE, page_of(found).encode())


def _show(found: Comparison, folder: Path) -> None:
    """Print the table and the verdict."""
    from foreword.compare.figures import spelled
    from foreword.compare.table import table_of

    show(table_of(found))
    for sentence in found.verdict:
        say(spelled(sentence))
    note(f"figures: {folder / JSON}; page: {folder / PAGE}")
