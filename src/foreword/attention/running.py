"""Who runs an attached model: the forward pass of each thread, and how a module finds its own."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import nn

from foreword.errors import BypassError

if TYPE_CHECKING:
    from foreword.attention.frame import Frame


@dataclass(eq=False)
class _Frames:
    """The forward passes that one thread is in, by the key of the model's `Running`."""

    thread: threading.Thread
    by_key: dict[int, Frame] = field(default_factory=dict)


_every: weakref.WeakSet[_Frames] = weakref.WeakSet()
"""Those of all threads; read and added to under `_listing`."""

_listing = threading.RLock()  # whose holder may be collecting garbage, and so come to `_forget`


def _of_all_threads() -> list[_Frames]:
    with _listing:
        return list(_every)


class _Here(threading.local):
    """This thread's.

    Not a context variable, which torch.compile cannot trace, and not an attribute of the model, whose
    tensors torch.compile takes to have one shape for ever: each length of a prefix would compile again.
    """

    def __init__(self) -> None:
        self.frames = _Frames(threading.current_thread())
        with _listing:
            _every.add(self.frames)


_here = _Here()
_keys = itertools.count()


class Running:
    """Which forward passes an attached model is in, one for each thread, and who holds blocks open.

    One for the model, shared by all its modules. Recomputation in another thread (backward passes on
    a GPU) brings its forward's frame with it, see `inside`.

    Attributes:
        key: Its own number.
        lock: Held while a pass begins or ends and while hooks are put in or taken out.
        open: Number of open blocks by thread: what runs in them is bound to a prefix of their own.
    """

    def __init__(self) -> None:
        self.key = next(_keys)
        self.lock = threading.RLock()
        self.open: Counter[threading.Thread] = Counter()
        weakref.finalize(self, _forget, self.key).atexit = False

    def __deepcopy__(self, memo: dict[int, object]) -> Running:
        """A copied model runs by itself."""
        copied = memo[id(self)] = Running()
        return copied

    def __reduce__(self) -> tuple[type[Running], tuple[()]]:
        """So does one that was pickled."""
        return Running, ()

    @property
    def frame(self) -> Frame | None:
        """This thread's forward pass, or None outside one."""
        return _here.frames.by_key.get(self.key)

    @frame.setter
    def frame(self, frame: Frame | None) -> None:
        if frame is None:
            _here.frames.by_key.pop(self.key, None)
        else:
            _here.frames.by_key[self.key] = frame

    @contextmanager
    def inside(self, frame: Frame | None) -> Iterator[None]:
        """Run a block as part of `frame`."""
        before, self.frame = self.frame, frame
        try:
            yield
        finally:
            self.frame = before

    @contextmanager
    def block(self) -> Iterator[None]:
        """Count a block of this thread as open."""
        thread = threading.current_thread()  # an engine is closed by another thread than opened it
        with self.lock:
            self.open[thread] += 1
        try:
            yield
        finally:
            with self.lock:
                self.open[thread] -= 1
                self.open += Counter()  # which drops what is at zero

    def elsewhere(self) -> set[str]:
        """Names of the other living threads that are in a forward pass or hold a block open."""
        own = threading.current_thread()
        passing = {frames.thread for frames in _of_all_threads() if self.key in frames.by_key}
        with self.lock:
            busy = passing | set(self.open)
        return {thread.name for thread in busy if thread is not own and thread.is_alive()}


def _forget(key: int) -> None:
    """Drop what threads still have of a model that is gone."""
    for frames in _of_all_threads():
        frames.by_key.pop(key, None)


@dataclass(frozen=True)
class Place:
    """What a module of an attached model knows: its name, and the model's forward passes."""

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
            "the prefix. Call the whole model, and attach before threads run it; for gradient "
            "checkpointing use model.gradient_checkpointing_enable(); a config object shared by two "
            "models must be copied first (copy.deepcopy)"
        )
    return frame, place.name
