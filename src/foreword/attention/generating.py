"""What is refused of `generate` before transformers changes anything of the model.

Some of its ways change the model around a pass and change it back afterwards. An error of ours inside
the pass would leave the change behind; so such a way is refused by its arguments.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

from foreword.errors import BypassError

GENERATION_CONFIG = 1
"""Place of the generation config among the arguments of `generate`."""


def check_every_layer(
    model: nn.Module,
    names: Callable[[], Iterable[str]],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> None:
    """Check that a call of `generate` does not leave out layers that a prefix joins.

    As its own assistant (``assistant_early_exit``) a model runs without its last layers, by a config
    that names fewer while that pass runs.

    Args:
        model: The attached model.
        names: Gives the modules that the prefix joins; asked where layers are left out.
        args: Arguments of `generate`.
        kwargs: Arguments of `generate` by name.

    Raises:
        BypassError: It does.
    """
    layers = _early_exit(model, args, kwargs)
    if layers is None:
        return
    joined = sorted(names())
    missed = [name for name in joined if _layer(name) >= layers]
    if missed:
        raise BypassError(
            f"assistant_early_exit={layers} runs {type(model).__name__} without its last layers, and "
            f"the prefix would not be attended to at {len(missed)} of {len(joined)} sites (first: "
            f"{missed[0]}); generate without it, or call foreword.detach first"
        )


def _early_exit(model: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int | None:
    """After how many layers the model, as its own assistant, ends; None: it is none."""
    name = "assistant_early_exit"
    config = kwargs.get("generation_config")
    if config is None and len(args) > GENERATION_CONFIG:
        config = args[GENERATION_CONFIG]
    configs = (config, getattr(model, "generation_config", None))
    asked = (kwargs.get(name), *(getattr(one, name, None) for one in configs))
    found = next((value for value in asked if value is not None), None)
    return None if found is None else int(found)


def _layer(name: str) -> int:
    """Number of the layer that a module is in, by the first number in its name."""
    number = re.search(r"(?<![^.])\d+(?![^.])", name)
    return -1 if number is None else int(number.group())


def no_continuous_batching(*_: Any, **__: Any) -> Any:
    """What an attached model answers to `generate_batch` and its kin.

    Raises:
        BypassError: Always.
    """
    raise BypassError(
        "continuous batching (generate_batch) switches the attention implementation, which would drop "
        "the attached prefix; use foreword.Engine, or call foreword.detach first"
    )


REPLACED = {"init_continuous_batching": no_continuous_batching}
"""Methods of a model that an attached one answers otherwise, beside `generate`."""
