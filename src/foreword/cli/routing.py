"""Texts that a router sends to prefixes, each written under its own: `foreword generate --router`."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from foreword.cli.composing import Composing
from foreword.cli.console import note, working
from foreword.cli.inputs import InputOptions, check_input
from foreword.cli.options import BackboneOptions
from foreword.data.each import of_each
from foreword.data.template import Input
from foreword.errors import WRITES_NONE, DataError, MismatchError, NameUnknown, StoreError
from foreword.options import GenerateOptions
from foreword.outline import Outline
from foreword.store import PrefixStore

if TYPE_CHECKING:
    from foreword.backbone import Backbone
    from foreword.generate import Generated
    from foreword.router import Router


def backbone_of(router: Router, options: BackboneOptions) -> Backbone:
    """The backbone that a router was fitted on, unless another is asked for."""
    if options.backbone is None:
        revision = options.revision or router.revision
        options = dataclasses.replace(options, backbone=router.backbone, revision=revision)
    with working("loading the backbone"):
        return options.load()


def input_alone(
    store: PrefixStore, name: str | None, text: str | None, inputs: InputOptions
) -> str | None:
    """The one text that a verb with a router is given, where a name stands without one.

    Raises:
        DataError: There is a name as well: the router chooses.
    """
    if name is None:
        return None
    if text is not None or inputs.file is not None or is_stored(store, name):
        raise DataError(
            f"{name!r} stands where the name of a prefix is given, and with --router the router chooses "
            "the prefix; leave one of both out. A text that is also a name goes into --input FILE or "
            "standard input"
        )
    return name


def is_stored(store: PrefixStore, name: str) -> bool:
    """Whether the store has a prefix of this name; what cannot be a name is not there."""
    try:
        return name in store
    except StoreError:
        return False


def check_names(store: PrefixStore, router: Router, file: Path) -> None:
    """Check that the store has the prefixes that a router chooses among.

    Raises:
        NameUnknown: It lacks one.
    """
    for name in router.names:
        if not is_stored(store, name):
            raise NameUnknown(
                f"the router {file} chooses among {', '.join(router.names)}, and no prefix is called "
                f"{name!r} in {store.folder}; put it there, or make a router of those that are"
            )


def generated_routed(
    store: PrefixStore,
    file: Path,
    given: Sequence[Input],
    composing: Composing,
    options: GenerateOptions,
    backbone: BackboneOptions,
    *,
    frozen: bool,
    strict: bool,
) -> tuple[list[str], list[list[Generated]]]:
    """By input the name of the prefix that it is routed to, and its texts under that.

    Args:
        store: Where the prefixes are.
        file: The router's file.
        given: Texts, as users give them.
        composing: How strong the prefixes are.
        options: How to generate.
        backbone: Which backbone.
        frozen: Show what the frozen model says to the same prompts.
        strict: Refuse a backbone with other weights than a prefix was made on.

    Raises:
        DataError: An input is a row, or does not fit the templates of its prefix.
        NameUnknown: The store lacks a prefix.
        MismatchError: The router, or a prefix, is of another backbone; or a prefix is to write that
            writes no text.
    """
    from foreword.generate import generated
    from foreword.router import Router

    router = Router.load(file)
    check_names(store, router, file)
    of_each(given, _check_text)
    model = backbone_of(router, backbone)
    names = [one.name for one in router.route(model, given)]
    counts = Counter(names)
    note("routed to " + ", ".join(f"{name} ({counts[name]})" for name in sorted(counts)))
    outlines = {name: store.outline(name) for name in counts}
    if not frozen:
        _check_that_they_write(outlines)
    pairs = zip(names, given, strict=True)
    of_each(pairs, lambda pair: check_input(outlines[pair[0]].meta, pair[1]))
    made: dict[int, list[Generated]] = {}
    for name in counts:
        prefix = store.load(name).strength(composing.strength)
        places = [place for place, own in enumerate(names) if own == name]
        used = None if frozen else prefix
        own = [given[place] for place in places]
        found = generated(model, own, used, options, like=prefix, strict=strict)
        made |= zip(places, found, strict=True)
    return names, [made[place] for place in range(len(given))]


def _check_text(one: Input) -> None:
    if not isinstance(one, str):
        raise DataError(
            "expected a text to route, found a row; give texts as users do (a .txt file, one per line)"
        )


def _check_that_they_write(outlines: Mapping[str, Outline]) -> None:
    """Check that each prefix writes text."""
    for name, outline in outlines.items():
        if outline.head is not None:
            raise MismatchError(f"{name}: {WRITES_NONE.format(outline.head['task'])}")
