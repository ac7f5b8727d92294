"""`foreword generate`."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from foreword.cli.composing import Composing, loaded, outlines_of, refuse_composing
from foreword.cli.console import err, note, printed_aside, quiet_libraries, say
from foreword.cli.engines import EngineName, refuse_embedded, refuse_flags
from foreword.cli.inputs import InputOptions, check_inputs
from foreword.cli.options import BackboneOptions, StoreOptions, check_reach, folder_of
from foreword.cli.routing import generated_routed, input_alone
from foreword.data.template import Input
from foreword.engine.vllm.refusals import check_installed, check_options
from foreword.engine.vllm.requests import check_served
from foreword.errors import WRITES_NONE, DataError, MismatchError
from foreword.options import GenerateOptions
from foreword.store import PrefixStore

if TYPE_CHECKING:
    from foreword.generate import Generated

FLAG = re.compile(r"--?[A-Za-z]")
"""How a flag of vLLM's begins, and no text before "--": there it would be an option."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class GenerateArguments:
    """What answers, and how it is shown."""

    engine: EngineName = "embedded"
    """What computes: Foreword's own backbone, or vLLM, for many inputs; its own flags follow after
    "--"."""

    prefix: Annotated[bool, Parameter(negative="--no-prefix")] = True
    """Use the prefix; --no-prefix shows what the frozen model says to the same prompt."""

    router: Path | None = None
    """File of a router, made by foreword route: it chooses the prefix of each input, in the place of
    NAME. Inputs are texts, and routed without a template."""

    as_json: Annotated[bool, Parameter(name="--json")] = False
    """Print a JSON object for each input, on a line of its own: {"input": ..., "outputs": [...],
    "finish": [...]}, where finish says of each output whether the model ended it (stop) or it had all of
    its tokens (length); with --router also "prefix", the one that it was routed to. A text may have
    several lines, so plain output does not line up with its inputs."""

    strict: bool = False
    """Refuse a backbone with other weights than the prefix was made on, instead of warning."""


def generate(
    name: str | None = None,
    text: str | None = None,
    /,
    *flags: str,
    inputs: InputOptions = InputOptions(),  # noqa: B008
    arguments: GenerateArguments = GenerateArguments(),
    composing: Composing = Composing(),  # noqa: B008
    options: Annotated[GenerateOptions, Parameter(name="*")] = GenerateOptions(),  # noqa: B008
    backbone: BackboneOptions = BackboneOptions(),  # noqa: B008
    store: StoreOptions = StoreOptions(),  # noqa: B008
) -> None:
    """Generate text with a prefix: one block of output per input.

    Parameters
    ----------
    name
        Name of the prefix in the store, or an expression of several, such as `"0.7*formal - toxic"`.
        Left out with --router.
    text
        The input: the value of the one column that the prompt template names, or a JSON object with
        several. In a chat task, the user's message.
    flags
        With --engine vllm more of vLLM's own flags, after "--", such as -- --max-model-len 4096.
    """
    composing.check(_named(name) if arguments.router is None else None)
    on_vllm = arguments.engine == "vllm"
    if on_vllm:
        text, flags = _apart(text, flags)
        _check_one(flags)
        refuse_embedded(arguments, backbone)
        refuse_composing(_named(name), composing)
        check_options(options, frozen=not arguments.prefix)
        check_installed()
    else:
        _check_one(flags)
        refuse_flags(flags)
    place = store.open()
    names: Sequence[str | None]
    if arguments.router is None:
        under = _named(name)
        given = _read(under, text, place, inputs, arguments, composing)
        names = [None] * len(given)
        if on_vllm:
            made = _on_vllm(under, given, arguments, options, backbone, place, flags)
        else:
            made = _embedded(under, given, arguments, composing, options, backbone, place)
    else:
        given = inputs.read(input_alone(place, name, text, inputs))
        _tell_frozen(arguments)
        names, made = generated_routed(
            place,
            arguments.router,
            given,
            composing,
            options,
            backbone,
            frozen=not arguments.prefix,
            strict=arguments.strict,
        )
    for one, routed, texts in zip(given, names, made, strict=True):
        if arguments.as_json:
            say(_as_json(one, routed, texts))
            continue
        for each in texts:
            say(each.text)


def _read(
    name: str,
    text: str | None,
    store: PrefixStore,
    inputs: InputOptions,
    arguments: GenerateArguments,
    composing: Composing,
) -> list[Input]:
    """The inputs, which have what the prefix's templates name; and it is one that writes text."""
    outline = outlines_of(store, name, composing.way)[0]
    if outline.head is not None and arguments.prefix:
        raise MismatchError(WRITES_NONE.format(outline.head["task"]))
    if arguments.engine == "vllm" and arguments.prefix:
        check_served(outline)
    given = inputs.read(text)
    check_inputs(outline.meta, given)
    return given


def _embedded(
    name: str,
    given: Sequence[Input],
    arguments: GenerateArguments,
    composing: Composing,
    options: GenerateOptions,
    backbone: BackboneOptions,
    store: PrefixStore,
) -> list[list[Generated]]:
    """The texts of each input, from Foreword's own backbone."""
    prefix, model = loaded(store, name, composing, backbone)
    _tell_frozen(arguments)
    used = prefix if arguments.prefix else None
    from foreword.generate import generated

    return generated(model, given, used, options, like=prefix, strict=arguments.strict)


def _named(name: str | None) -> str:
    """The name of a prefix, which only a router makes superfluous.

    Raises:
        DataError: There is none.
    """
    if name is None:
        raise DataError("name a prefix of the store, or let a router choose it: --router FILE")
    return name


def _apart(text: str | None, flags: tuple[str, ...]) -> tuple[str | None, tuple[str, ...]]:
    """The text and vLLM's flags, the first of which stands in the text's place where none is given."""
    return (None, (text, *flags)) if text is not None and FLAG.match(text) else (text, flags)


def _check_one(flags: Sequence[str]) -> None:
    """Check that what follows a text is a flag of vLLM's, and no more of the text.

    Raises:
        DataError: It is none.
    """
    if flags and not FLAG.match(flags[0]):
        raise DataError(
            f"{flags[0]!r} stands where one text was expected at most; put a text of several words in "
            "quotes, and several texts in a file (--input)"
        )


def _on_vllm(
    name: str,
    given: Sequence[Input],
    arguments: GenerateArguments,
    options: GenerateOptions,
    backbone: BackboneOptions,
    store: PrefixStore,
    flags: Sequence[str],
) -> list[list[Generated]]:
    """The texts of each input, from vLLM, which is asked all of them at once."""
    source, revision = backbone.named(store.outline(name).meta)
    check_reach(source, revision)
    from foreword.engine.vllm.batch import Batch

    quiet_libraries()
    batch = Batch(folder_of(source), store, flags, revision, backbone.dtype)
    _tell_frozen(arguments)
    note("vLLM starts, and answers all inputs at once")
    asked, frozen = [(name, one) for one in given], not arguments.prefix
    with printed_aside():
        return batch.generated(asked, options, frozen=frozen, progress=err.is_terminal)


def _tell_frozen(arguments: GenerateArguments) -> None:
    if not arguments.prefix:
        note("the frozen model, without the prefix:")


def _as_json(given: Input, routed: str | None, texts: Sequence[Generated]) -> str:
    """An input, the prefix that it was routed to, if it was, and its texts, as JSON on one line."""
    found = {
        "input": given,
        **({} if routed is None else {"prefix": routed}),
        "outputs": [one.text for one in texts],
        "finish": [one.finish for one in texts],
    }
    return json.dumps(found, ensure_ascii=False, default=str)
