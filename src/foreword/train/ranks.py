"""The processes that train one prefix together, as torchrun or accelerate launch started them."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from torch import distributed

from foreword.errors import ForewordError, TrainingError
from foreword.interrupt import Terminated
from foreword.train.launched import count, index

T = TypeVar("T")


def _refuse_other_launches() -> None:
    """Accelerate would shard what is trained; the backbone beside it would stay whole."""
    for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() in ("1", "true", "yes"):
            raise TrainingError(
                f"accelerate's configuration asks for {name}, which would shard the prefix and not "
                "the backbone; launch without it, and shard the backbone with fully_shard if it is "
                "too large for one device"
            )


@dataclass
class Ranks:
    """What the processes of one run agree on. With one process, everything here is that process's.

    Raises:
        TrainingError: The launcher was told to shard what is trained.

    Attributes:
        device: Where training runs.
        count: Number of processes.
        index: Number of this one. The first, 0, writes all files.
    """

    device: torch.device
    count: int = field(default_factory=count)
    index: int = field(default_factory=index)
    _asked: int = 0

    def __post_init__(self) -> None:
        _refuse_other_launches()
        if self.count > 1:
            PartialState(cpu=self.device.type == "cpu")  # joins the group, unless that is done

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.index == 0

    def gathered(self, value: T) -> list[T]:
        """The value of each process, in order."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        distributed.all_gather_object(values, value)
        return values

    def first_does(self, action: Callable[[], T]) -> T:
        """What an action gives on the first process, on all; so does the error that it raises."""
        if self.count == 1:
            return action()
        outcome = self._tried(action) if self.first else None
        result, error = self.gathered(outcome)[0] or (None, None)
        if error is not None:
            raise error
        return result  # type: ignore[return-value]

    def all_do(self, action: Callable[[], T]) -> T:
        """What an action gives on this process; the first error of any is raised on all."""
        if self.count == 1:
            return action()
        result, error = self._tried(action)
        for found in self.gathered(error):
            if found is not None:
                raise found
        return result  # type: ignore[return-value]

    def _tried(self, action: Callable[[], T]) -> tuple[T | None, ForewordError | None]:
        try:
            return action(), None
        except ForewordError as error:
            return None, error
        except Exception as error:  # one that may not survive the way to the others
            return None, TrainingError(f"process {self.index}: {type(error).__name__}: {error}")

    def any(self, found: bool) -> bool:
        """Whether something holds on any process.

        Raises:
            KeyboardInterrupt: One of them was asked to stop, so all do, at the same step.
        """
        if self.count == 1:
            return found
        flags = torch.tensor([int(found), self._asked], device=self.device)
        distributed.all_reduce(flags, distributed.ReduceOp.MAX)
        anywhere, asked = flags.tolist()
        if asked:
            raise Terminated if asked == signal.SIGTERM else KeyboardInterrupt
        return bool(anywhere)

    @contextmanager
    def stopping_together(self) -> Iterator[None]:
        """In a block, Ctrl-C and SIGTERM wait for `any`, so that no process leaves the others hanging.

        The second such signal is not waited for. One process alone stops at once, as ever.
        """
        if self.count == 1 or threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, _: FrameType | None) -> None:
            if self._asked:
                raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
            self._asked = number

        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
