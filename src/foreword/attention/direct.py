"""`DirectForward`: a model's `forward` called by its name, which passes by every hook.

Some libraries call ``model.forward(...)`` (sentence-transformers does). Where a transformers model is
inside, its hooks still begin the pass. Where the model is the only one (BertModel), none would; so there
such a call is led through the model's own call.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from foreword.attention.running import Running

_FORWARD = "forward"


class DirectForward:
    """What an attached model has for its `forward`.

    Args:
        model: The model.
        running: The forward pass that it is in.
    """

    def __init__(self, model: nn.Module, running: Running) -> None:
        self._model = model
        self._running = running
        self._own = model.__dict__.get(_FORWARD)
        self._attached = True
        self.__signature__ = inspect.signature(model.forward)  # trainers look for columns there
        model.__dict__[_FORWARD] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own forward, in a pass that its hooks began."""
        if self._attached and self._running.frame is None:
            return self._model(*args, **kwargs)
        if self._own is not None:
            return self._own(*args, **kwargs)
        return type(self._model).forward(self._model, *args, **kwargs)

    def remove(self) -> None:
        """Leave the model as it was found; where another took this in (accelerate), do nothing more."""
        self._attached = False
        if self._model.__dict__.get(_FORWARD) is not self:
            return
        del self._model.__dict__[_FORWARD]
        if self._own is not None:
            self._model.__dict__[_FORWARD] = self._own


def direct_forward(model: PreTrainedModel, running: Running) -> DirectForward | None:
    """Lead direct calls through the hooks, where no model inside would begin the pass."""
    inside = (module for module in model.modules() if module is not model)
    if any(isinstance(module, PreTrainedModel) for module in inside):
        return None
    return DirectForward(model, running)
