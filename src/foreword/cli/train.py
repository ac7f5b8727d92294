"""`foreword train`."""

from __future__ import annotations

import itertools
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from foreword.cli.console import FIRST, heard, note, say, working
from foreword.cli.cores import warn_of_others
from foreword.cli.inputs import rows_from
from foreword.cli.options import BackboneOptions, StoreOptions
from foreword.errors import FormatError, NameTaken, StoreError
from foreword.interrupt import undisturbed
from foreword.methods.prefix.named import check_start
from foreword.objectives.columns import check_attributes, check_columns
from foreword.store import PrefixStore, taken
from foreword.train.settings import TrainSettings
from foreword.train.summary import summary

if TYPE_CHECKING:
    from foreword.backbone import Backbone
    from foreword.data.given import Data
    from foreword.prefix import Prefix
    from foreword.train import TrainingStopped, TrainResult


RESUME = "to go on, give the same command with --resume"
"""What to do after a stop that is nobody's mistake."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class TrainArguments:
    """What to train on, and under which name to keep it."""

    name: str
    """Name of the prefix in the store."""

    evaluation: Annotated[str | None, Parameter(name="--eval")] = None
    """Rows to choose the best prefix by; never trained on."""

    resume: bool = False
    """Go on from the newest whole checkpoint of a run with this name that was cut off."""

    overwrite: bool = False
    """Replace a prefix of this name."""

    config: Path | None = None
    """YAML file with the same options; those on the command line come first."""


def train(
    data: str,
    /,
    *,
    arguments: TrainArguments,
    settings: Annotated[TrainSettings, Parameter(name="*")] = TrainSettings(),  # noqa: B008
    backbone: BackboneOptions = BackboneOptions(),  # noqa: B008
    store: StoreOptions = StoreOptions(),  # noqa: B008
) -> None:
    """Train a prefix on a task's rows and keep it in the store.

    Parameters
    ----------
    data
        Rows: a .jsonl, .json, .csv (with commas or semicolons), .tsv or .parquet file, a shipped set
        (foreword/e2e:train), or name[:split] of the datasets library.
    """
    place = store.open()
    refuse_taken(place, arguments)
    check_start(settings, place)
    rows, evaluation = _checked_rows(data, settings, arguments)
    with working("loading the backbone"):
        loaded = backbone.load()
    from foreword.backbone import describe_dtype

    note(describe_dtype(loaded))
    warn_of_others()
    result = train_in_store(place, loaded, rows, settings, arguments, evaluation)
    if not FIRST:
        return
    path = place.path(arguments.name)
    training = result.prefix.meta.training
    say(
        f"{arguments.name}: {result.prefix.parameters:,} parameters in {path} "
        f"({path.stat().st_size / 1e6:.2f} MB), {training['steps']} steps in {result.seconds:.0f} s, "
        f"{summary(training)}; {result.report}"
    )


def _checked_rows(
    data: str, settings: TrainSettings, arguments: TrainArguments
) -> tuple[Data, Data | None]:
    """Training and evaluation rows, with the columns that the templates name, or that tasks read.

    Raises:
        DataError: A source cannot be read, or lacks a column.
        TrainingError: The settings need evaluation rows, and there are none.
    """
    settings.check_evaluation(is_given=arguments.evaluation is not None)
    rows = rows_from(data)
    evaluation = None if arguments.evaluation is None else rows_from(arguments.evaluation)
    check_columns(settings, rows, evaluation or [])
    check_attributes(settings, rows)
    return rows, evaluation


def refuse_taken(store: PrefixStore, arguments: TrainArguments) -> None:
    """Check that the name may be used, before anything long starts.

    A prefix that a stopped run left may be replaced by resuming that run.
    """
    resumed = arguments.resume and _is_unfinished(store, arguments.name)
    if arguments.name in store and not arguments.overwrite and not resumed:
        raise NameTaken(taken(arguments.name, store.folder))


def run_folder(store: PrefixStore, name: str) -> Path:
    """Where the checkpoints of a run go until it is done."""
    _ = store.path(name)  # refuses names that lead elsewhere
    return store.folder / ".runs" / name


def train_in_store(
    store: PrefixStore,
    backbone: Backbone,
    data: Data,
    settings: TrainSettings,
    arguments: TrainArguments,
    evaluation: Data | None = None,
    *,
    remedy: str = RESUME,
) -> TrainResult:
    """Train under a progress bar and keep the prefix, also when training was stopped early.

    Of several processes that train together, the first shows and keeps things. The remedy is what
    somebody whose run was stopped can do, in words.

    Raises:
        TrainingStopped: Training ended before its time; the best prefix so far is in the store.
    """
    from foreword.cli.bar import TrainingBar
    from foreword.train import TrainingStopped
    from foreword.train import train as run_training
    from foreword.train.folder import discard

    folder = run_folder(store, arguments.name)
    bar = TrainingBar()
    try:
        with heard("foreword.train"):
            result = run_training(
                backbone,
                data,
                settings,
                evaluation=evaluation,
                folder=folder,
                resume=arguments.resume,
                logs=Path("runs") / arguments.name,
                callbacks=[bar] if FIRST else [],
                store=store,
            )
    except TrainingStopped as stopped:
        if not FIRST:
            raise
        with undisturbed():
            kept = _kept(store, arguments.name, settings.init, stopped, remedy)
        raise kept from stopped.__cause__
    finally:
        bar.stop()
    if FIRST:
        _save(store, arguments, settings.init, result.prefix)
        discard(folder)
    return result


def _save(store: PrefixStore, arguments: TrainArguments, init: str, prefix: Prefix) -> None:
    """Keep a trained prefix; never in the place of one that came while it was trained.

    Raises:
        NameTaken: One came, and the trained one is kept under another name.
    """
    name = arguments.name
    try:
        store.save(name, prefix, overwrite=arguments.overwrite or _is_unfinished(store, name))
    except NameTaken as error:
        free = _save_free(store, name, init, prefix, "trained")
        raise NameTaken(f"{error}. The prefix that was trained is kept as {free!r}") from None


def _kept(
    store: PrefixStore, name: str, init: str, stopped: TrainingStopped, remedy: str
) -> TrainingStopped:
    """Keep the best prefix of a stopped run, never in the place of a finished one or of its start."""
    from foreword.train import TrainingStopped

    again = isinstance(stopped.__cause__, KeyboardInterrupt | StoreError | RuntimeError)
    how = f"; {remedy}" if again else ""
    try:
        free = _save_free(store, name, init, stopped.result.prefix, "stopped")
    except StoreError as error:
        what = f"The best prefix so far could not be kept: {error}{how}"
        return TrainingStopped(f"{stopped}. {what}", stopped.result)
    message = f"{stopped}. The best prefix so far is kept as {free!r}{how}"
    return TrainingStopped(message, stopped.result)


def _save_free(store: PrefixStore, name: str, init: str, prefix: Prefix, word: str) -> str:
    """Keep a prefix under the name, or one like it, where nothing is but what a stopped run left."""
    numbered = (f"{name}-{word}-{number}" for number in itertools.count(2))
    for candidate in itertools.chain([name, f"{name}-{word}"], numbered):
        is_start = init == candidate or Path(init).absolute() == store.path(candidate).absolute()
        if is_start:
            continue
        with suppress(NameTaken):
            store.save(candidate, prefix, overwrite=_is_unfinished(store, candidate))
            return candidate
    raise AssertionError


def _is_unfinished(store: PrefixStore, name: str) -> bool:
    """Whether the prefix of this name is what a stopped run left."""
    if name not in store:
        return False
    try:
        return store.load(name).meta.training.get("stopped") is not None
    except FormatError:
        return False
