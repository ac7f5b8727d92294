"""How a module of an attached model finds the forward pass that it is called in."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from foreword.attention.frame import Frame
from foreword.errors import BypassError

_frames: dict[int, Frame] = {}
"""The forward pass that each attached model is in, by the key of its `Running`.

Not a context variable, which torch.compile cannot trace, and not an attribute of the model, whose
tensors torch.compile takes to have one shape for ever: each length of a prefix would compile again.
"""

_keys = itertools.count()


class Running:
    """Which forward pass an attached model is in. One for the model, shared by all its modules.

    Recomputation in another thread (backward passes on a GPU) finds it too; so an attached model runs
    in one thread at a time.
    """

    def __init__(self) -> None:
        self.key = next(_keys)
        weakref.finalize(self, _frames.pop, self.key, None).atexit = False

    def __deepcopy__(self, memo: dict[int, object]) -> Running:
        """A copied model runs by itself."""
        copied = memo[id(self)] = Running()
        return copied

    @property
    def frame(self) -> Frame | None:
        """The forward pass, or None outside one."""
        return _frames.get(self.key)

    @frame.setter
    def frame(self, frame: Frame | None) -> None:
        if frame is None:
            _frames.pop(self.key, None)
        else:
            _frames[self.key] = frame

    @contextmanager
    def inside(self, frame: Frame | None) -> Iterator[None]:
        """Run a block as part of `frame`."""
        before, self.frame = self.frame, frame
        try:
            yield
        finally:
            self.frame = before


@dataclass(frozen=True)
class Place:
    """What a module of an attached model knows: its name, and the model's forward pass."""

    name: str
    running: Running


_PLACE = "_foreword_place"
"""Attribute of each module of an attached model: its `Place`."""


def set_place(module: nn.Module, place: Place | None) -> None:
    """Tell a module its place in an attached model, or (None) that it has none any more."""
    if place is None:
        module.__dict__.pop(_PLACE, None)
    else:
        module.__dict__[_PLACE] = place


def is_nowhere(module: nn.Module) -> bool:
    """Whether a module is part of no attached model."""
    return getattr(module, _PLACE, None) is None


def frame_of(module: nn.Module) -> tuple[Frame, str]:
    """The forward pass that an attention module is called in, and the module's name.

    Raises:
        BypassError: The module is called outside a forward pass of an attached model.
    """
    place: Place | None = getattr(module, _PLACE, None)
    frame = None if place is None else place.running.frame
    if place is None or frame is None:
        raise BypassError(
            f"{type(module).__name__} was called outside a forward pass of the model that carries "
            "the prefix. Call the whole model; for gradient checkpointing use "
            "model.gradient_checkpointing_enable(); a config object shared by two models must be "
            "copied first (copy.deepcopy)"
        )
    return frame, place.name
