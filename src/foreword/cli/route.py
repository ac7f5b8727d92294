"""`foreword route`."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from foreword.cli.console import note, say, show, table, working
from foreword.cli.inputs import InputOptions, rows_from
from foreword.cli.options import BackboneOptions, StoreOptions
from foreword.cli.routing import backbone_of
from foreword.data.inputs import is_lines, read_lines
from foreword.errors import DataError, NameTaken
from foreword.store import PrefixStore

if TYPE_CHECKING:
    from foreword.backbone import Backbone
    from foreword.data.template import Input
    from foreword.router import Router


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class RouteArguments:
    """The router, and what is done with it."""

    router: Annotated[Path, Parameter(name="--with")]
    """The router's file."""

    fit: tuple[str, ...] = ()
    """NAME=ROWS: make the router; inputs of the prefix NAME are like those of its training rows, or of a
    .txt file with one input per line. For each prefix once."""

    test: tuple[str, ...] = ()
    """NAME=ROWS: say how many of these held-out inputs are routed to NAME. For each prefix once."""

    overwrite: bool = False
    """Replace the router's file."""

    as_json: Annotated[bool, Parameter(name="--json")] = False
    """Print one JSON object per input, with the scores of all prefixes; of --test one with shares."""


def route(
    text: str | None = None,
    /,
    *,
    arguments: RouteArguments,
    inputs: InputOptions = InputOptions(),  # noqa: B008
    backbone: BackboneOptions = BackboneOptions(),  # noqa: B008
    store: StoreOptions = StoreOptions(),  # noqa: B008
) -> None:
    """Say which prefix an input is for: one line of output per input.

    First a router is made of training rows, with --fit for each prefix; then it is asked. It compares
    the frozen model's features of an input with those of each prefix's training inputs.

    Parameters
    ----------
    text
        The input, as the prefixes are given it: without a template.
    """
    place = store.open()
    given = None if arguments.fit or arguments.test else inputs.read(text)
    if given is None and (text is not None or inputs.file is not None):
        raise DataError("inputs are routed without --fit and --test; make the router first")
    fitted, tested = (_inputs(place, pairs) for pairs in (arguments.fit, arguments.test))
    if fitted and arguments.router.exists() and not arguments.overwrite:
        raise NameTaken(f"{arguments.router} is there already; choose another file, or --overwrite")
    router, loaded = _opened(place, arguments, fitted, backbone)
    if tested:
        _tell(router.accuracy(loaded, tested), as_json=arguments.as_json)
    if given is None:
        return
    for one in router.route(loaded, given):
        shown = json.dumps(dataclasses.asdict(one), ensure_ascii=False)
        say(shown if arguments.as_json else f"{one.name}  {math.exp(one.scores[one.name]):.3f}")


def _opened(
    store: PrefixStore,
    arguments: RouteArguments,
    fitted: Mapping[str, list[Input]],
    options: BackboneOptions,
) -> tuple[Router, Backbone]:
    """The router, made or read, and its backbone."""
    from foreword.router import Router

    if not fitted:
        router = Router.load(arguments.router)
        return router, backbone_of(router, options)
    prefix = store.load(next(iter(fitted)))
    with working("loading the backbone"):
        loaded = options.load(prefix)
    with working("reading inputs"):
        router = Router.fit(loaded, fitted)
    router.save(arguments.router, overwrite=arguments.overwrite)
    texts = ", ".join(
        f"{name} ({count})" for name, count in zip(router.names, router.texts, strict=True)
    )
    note(f"a router for {texts} in {arguments.router}")
    return router, loaded


def _inputs(store: PrefixStore, pairs: Sequence[str]) -> dict[str, list[Input]]:
    """By prefix its inputs, as --fit and --test name them.

    Raises:
        DataError: A pair is ill-formed or there twice, or its rows lack a column.
        NameUnknown: There is no such prefix.
    """
    found: dict[str, list[Input]] = {}
    for pair in pairs:
        name, equals, source = pair.partition("=")
        if not (name and equals and source) or name in found:
            raise DataError(f"expected NAME=ROWS, each name once; found {pair!r}")
        _ = store.outline(name)
        found[name] = [*(read_lines(source) if is_lines(source) else _of_rows(store, name, source))]
    return found


def _of_rows(store: PrefixStore, name: str, source: str) -> list[str]:
    """Inputs in training rows of a prefix: the columns that its prompt names."""
    rows = rows_from(source)
    from foreword.predict import templates_of
    from foreword.prompts import task_of
    from foreword.router import inputs_in

    prefix = store.load(name)
    task = task_of(prefix) if prefix.head is None else templates_of(prefix)
    if task.prompt is None:
        raise DataError(
            f"{name} has no prompt template that says which column is the input; give its inputs as "
            "a .txt file, one per line"
        )
    return inputs_in(rows, task.prompt + (task.second or ""))


def _tell(shares: Mapping[str, float], *, as_json: bool) -> None:
    """How many inputs went where they belong."""
    if as_json:
        say(json.dumps(shares, ensure_ascii=False))
        return
    made = table("", "inputs of", "routed to it %")
    for name, share in shares.items():
        made.add_row(name, f"{share:.1f}")
    made.add_row("mean", f"{sum(shares.values()) / len(shares):.1f}")
    show(made)
