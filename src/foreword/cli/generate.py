"""`foreword generate`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from foreword.cli.console import note, say, working
from foreword.cli.inputs import InputOptions, check_inputs
from foreword.cli.options import BackboneOptions, StoreOptions
from foreword.data.template import Input
from foreword.errors import WRITES_NONE, MismatchError
from foreword.options import GenerateOptions

if TYPE_CHECKING:
    from foreword.generate import Generated


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class GenerateArguments:
    """Whether to answer with the prefix."""

    prefix: Annotated[bool, Parameter(negative="--no-prefix")] = True
    """Use the prefix; --no-prefix shows what the frozen model says to the same prompt."""

    as_json: Annotated[bool, Parameter(name="--json")] = False
    """Print a JSON object for each input, on a line of its own: {"input": ..., "outputs": [...],
    "finish": [...]}, where finish says of each output whether the model ended it (stop) or it had all of
    its tokens (length). A text may have several lines, so plain output does not line up with its
    inputs."""

    strict: bool = False
    """Refuse a backbone with other weights than the prefix was made on, instead of warning."""


def generate(
    name: str,
    text: str | None = None,
    /,
    *,
    inputs: InputOptions = InputOptions(),  # noqa: B008
    arguments: GenerateArguments = GenerateArguments(),
    options: Annotated[GenerateOptions, Parameter(name="*")] = GenerateOptions(),  # noqa: B008
    backbone: BackboneOptions = BackboneOptions(),  # noqa: B008
    store: StoreOptions = StoreOptions(),  # noqa: B008
) -> None:
    """Generate text with a prefix: one block of output per input.

    Parameters
    ----------
    name
        Name of the prefix in the store.
    text
        The input: the value of the one column that the prompt template names, or a JSON object with
        several. In a chat task, the user's message.
    """
    place = store.open()
    outline = place.outline(name)
    if outline.head is not None and arguments.prefix:
        raise MismatchError(WRITES_NONE.format(outline.head["task"]))
    given = inputs.read(text)
    check_inputs(outline.meta, given)
    from foreword.generate import generate as generate_texts
    from foreword.generate import generated

    prefix = place.load(name)
    with working("loading the backbone"):
        loaded = backbone.load(prefix)
    if not arguments.prefix:
        note("the frozen model, without the prefix:")
    used, strict = prefix if arguments.prefix else None, arguments.strict
    if arguments.as_json:
        made = generated(loaded, given, used, options, like=prefix, strict=strict)
        for one, texts in zip(given, made, strict=True):
            say(_as_json(one, texts))
        return
    for answers in generate_texts(loaded, given, used, options, like=prefix, strict=strict):
        for answer in answers:
            say(answer)


def _as_json(given: Input, texts: Sequence[Generated]) -> str:
    """An input and its texts as a JSON object on one line."""
    found = {
        "input": given,
        "outputs": [one.text for one in texts],
        "finish": [one.finish for one in texts],
    }
    return json.dumps(found, ensure_ascii=False, default=str)
