"""What a module's forward takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

from torch import nn


def parameters_of(kind: type[nn.Module]) -> tuple[str, ...]:
    """Names of the parameters of a module class's forward, in order, self aside."""
    return _parameters(kind.forward)


@cache
def _parameters(forward: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(forward).parameters)[1:]
