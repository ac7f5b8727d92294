"""`foreword`: the verbs, and how errors reach the user."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import yaml
from cyclopts import (
    App,
    ArgumentCollection,
    CoercionError,
    CycloptsError,
    Parameter,
    UnknownOptionError,
)
from cyclopts.config import Yaml
from cyclopts.panel import CycloptsPanel
from rich.panel import Panel

from foreword.arguments import shown
from foreword.cli.backbones import backbones
from foreword.cli.compare import compare
from foreword.cli.compose import compose
from foreword.cli.console import FIRST, complain, err
from foreword.cli.demo import demo
from foreword.cli.evaluate import evaluate
from foreword.cli.export import export
from foreword.cli.generate import generate
from foreword.cli.headings import help_of
from foreword.cli.import_ import import_
from foreword.cli.inspect import inspect
from foreword.cli.list import list_
from foreword.cli.map import map_
from foreword.cli.predict import predict
from foreword.cli.pull import pull
from foreword.cli.push import push
from foreword.cli.remove import remove
from foreword.cli.route import route
from foreword.cli.serve import serve
from foreword.cli.train import train
from foreword.data.strict_json import refuse_repeats
from foreword.errors import DataError, ForewordError, Notice, StoreError
from foreword.interrupt import Terminated, terminable
from foreword.objectives.settings import task_meant
from foreword.train.foreign import ours
from foreword.version import __version__

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells give it."""
TERMINATED = 143
"""Exit code after SIGTERM."""

VERBS = (
    train,
    generate,
    predict,
    evaluate,
    compare,
    inspect,
    list_,
    remove,
    push,
    pull,
    compose,
    map_,
    route,
    import_,
    export,
    serve,
    backbones,
    demo,
)


def _own_option(error: CycloptsError) -> str | None:
    """What an unknown option of training, which is another library's, is here; None if it is none."""
    if error.root_input_tokens is None or error.root_input_tokens[:1] != ["train"]:
        return None
    if not isinstance(error, UnknownOptionError):
        return None
    return ours(error.token.keyword or error.token.value)


def _panel(error: CycloptsError) -> Panel:
    """An error as cyclopts shows it, but for its guess at an option where the right one is known.

    It guesses among the error's `argument_collection`.
    """
    if _own_option(error) and isinstance(error, UnknownOptionError):
        error.argument_collection = ArgumentCollection()  # type: ignore[no-untyped-call]
    return CycloptsPanel(error)


app = App(
    name="foreword",
    help="Prefix tuning: train, inspect and use small learned prefixes on one frozen backbone.",
    version=__version__,
    help_format="markdown",
    default_parameter=Parameter(negative=""),
    suppress_keyboard_interrupt=False,
    error_formatter=_panel,
)
for _verb in VERBS:
    _name = _verb.__name__.rstrip("_")
    app.command(_verb, name=_name, **help_of(_name))


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit code.

    0: done; 1: refused, with one message; 2: the command line is wrong; 130: Ctrl-C; 143: SIGTERM.
    """
    with warnings.catch_warnings(), terminable():
        warnings.simplefilter("once", Notice)
        warnings.showwarning = _show_warning
        return _main(list(arguments))


def _main(tokens: list[str]) -> int:
    try:
        app["train"].config = _config_of(tokens)
        app(tokens, exit_on_error=False, result_action="return_none")
    except CycloptsError as error:
        _hint(error)
        return 2
    except ForewordError as error:
        complain(f"error: {error.for_commands}")
        return _code(error.__cause__)
    except KeyboardInterrupt as error:
        complain("interrupted")
        return _code(error)
    return 0


def _hint(error: CycloptsError) -> None:
    """Say what a word of another library is called here; the error itself is on the terminal."""
    if isinstance(error, CoercionError) and error.token is not None:
        if error.token.keyword == "--task" and (meant := task_meant(error.token.value)):
            complain(meant)
    elif isinstance(error, UnknownOptionError) and (own := _own_option(error)):
        option = error.token.keyword or error.token.value
        complain(f"{option.partition('=')[0].strip('[]')} is called --{own.replace('_', '-')} here")


def _code(cause: BaseException | None) -> int:
    if isinstance(cause, Terminated):
        return TERMINATED
    return INTERRUPTED if isinstance(cause, KeyboardInterrupt) else 1


def _config_of(tokens: Sequence[str]) -> tuple[Yaml, ...]:
    """What `--config FILE.yaml` of the train verb holds, as defaults below the command line."""
    if tokens[:1] != ["train"]:
        return ()
    split = [part for token in tokens for part in token.split("=", 1)]
    if "--config" not in split[:-1]:
        return ()
    path = Path(split[split.index("--config") + 1])
    if not os.path.isfile(path):
        raise StoreError(f"--config {path}: there is no such file; check the path")
    _check_options(path)
    return (Yaml(path, must_exist=True, use_commands_as_keys=False),)


def _check_options(path: Path) -> None:
    """Check that a YAML file holds options by name, each once, before cyclopts makes them arguments.

    Raises:
        DataError: It does not.
    """
    try:
        text = path.read_text(encoding="utf-8")
        found, root = yaml.safe_load(text), yaml.compose(text, Loader=yaml.SafeLoader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())
        raise DataError(f"--config {path}: cannot be read as YAML: {said}") from error
    named = isinstance(found, dict) and all(isinstance(name, str) for name in found)
    if found is not None and not named:
        raise DataError(
            f"--config {path}: expected options, each on a line as in 'length: 16'; found "
            f"{shown(found)}"
        )
    if isinstance(root, yaml.MappingNode):
        refuse_repeats([str(key.value) for key, _ in root.value], f"--config {path}")


def _show_warning(
    message: Warning | str, category: type[Warning], *rest: object, **more: object
) -> None:
    """Our own warnings as one line; those of libraries are theirs to fix."""
    if FIRST and category.__module__.startswith("foreword"):
        err.print(f"warning: {message}", style="yellow")


def run() -> None:
    """Entry point of the installed command."""
    sys.exit(main(sys.argv[1:]))
