"""`foreword train`."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from foreword.backbone import Backbone, describe_dtype
from foreword.cli.console import TrainingBar, note, out, working
from foreword.cli.options import BackboneOptions, StoreOptions
from foreword.errors import FormatError, StoreError
from foreword.store import PrefixStore, taken
from foreword.train import TrainingStopped, TrainResult, TrainSettings
from foreword.train import train as run_training


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
        Rows: a .jsonl, .json, .csv or .parquet file, a shipped set (foreword/e2e:train), or
        name[:split] of the datasets library.
    """
    place = store.open()
    refuse_taken(place, arguments)
    with working("loading the backbone"):
        loaded = backbone.load()
    note(describe_dtype(loaded))
    result = train_in_store(place, loaded, data, settings, arguments)
    path = place.path(arguments.name)
    training = result.prefix.meta.training
    out.print(
        f"{arguments.name}: {result.prefix.parameters:,} parameters in {path} "
        f"({path.stat().st_size / 1e6:.2f} MB), {training['steps']} steps in {result.seconds:.0f} s, "
        f"final loss {training['final_loss']:.4f}; {result.report}"
    )


def refuse_taken(store: PrefixStore, arguments: TrainArguments) -> None:
    """See that the name may be used, before anything long starts.

    A prefix that a stopped run left may be replaced by resuming that run.
    """
    resumed = arguments.resume and _is_unfinished(store, arguments.name)
    if arguments.name in store and not arguments.overwrite and not resumed:
        raise StoreError(taken(arguments.name, store.folder))


def run_folder(store: PrefixStore, name: str) -> Path:
    """Where the checkpoints of a run go until it is done."""
    _ = store.path(name)  # refuses names that lead elsewhere
    return store.folder / ".runs" / name


def train_in_store(
    store: PrefixStore,
    backbone: Backbone,
    data: str,
    settings: TrainSettings,
    arguments: TrainArguments,
) -> TrainResult:
    """Train under a progress bar and keep the prefix, also when training was stopped early.

    Raises:
        TrainingStopped: Training ended before its time; the best prefix so far is in the store.
    """
    folder = run_folder(store, arguments.name)
    bar = TrainingBar()
    try:
        result = run_training(
            backbone,
            data,
            settings,
            evaluation=arguments.evaluation,
            folder=folder,
            resume=arguments.resume,
            logs=Path("runs") / arguments.name,
            callbacks=[bar],
            store=store,
        )
    except TrainingStopped as stopped:
        raise _kept(store, arguments.name, stopped) from stopped.__cause__
    finally:
        bar.stop()
    store.save(arguments.name, result.prefix, overwrite=True)
    shutil.rmtree(folder, ignore_errors=True)
    return result


def _kept(store: PrefixStore, name: str, stopped: TrainingStopped) -> TrainingStopped:
    """Keep the best prefix of a stopped run, beside a finished one of the same name if there is one."""
    if name in store and not _is_unfinished(store, name):
        name = f"{name}-stopped"
    store.save(name, stopped.result.prefix, overwrite=True)
    again = isinstance(stopped.__cause__, KeyboardInterrupt | StoreError)
    how = "; to go on, give the same command with --resume" if again else ""
    message = f"{stopped}. The best prefix so far is kept as {name!r}{how}"
    return TrainingStopped(message, stopped.result)


def _is_unfinished(store: PrefixStore, name: str) -> bool:
    """Whether the prefix of this name is what a stopped run left."""
    if name not in store:
        return False
    try:
        return store.load(name).meta.training.get("stopped") is not None
    except FormatError:
        return False
