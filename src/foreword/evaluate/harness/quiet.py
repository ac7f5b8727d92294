"""What lm-eval does to a process beside measuring, undone: lines, bars, processes, and seeds.

Some of its bars no setting turns off, it prints on standard output, and for the standard error of some
metrics it starts a process per core.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import random
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

_LOGGERS = ("lm_eval", "datasets", "evaluate")


@contextmanager
def hushed() -> Iterator[None]:
    """In a block, lm-eval and the libraries that load its data say nothing, and start no processes."""
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        for name in _LOGGERS:
            stack.enter_context(_without_lines(name))
        stack.enter_context(_without_bars())
        stack.enter_context(_in_one_process())
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        yield


@contextmanager
def _without_lines(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextmanager
def _without_bars() -> Iterator[None]:
    """In a block, every bar of tqdm that is made is disabled, whatever its maker asks for."""
    init = tqdm.__init__

    def disabled(self: Any, *args: Any, **options: Any) -> None:
        init(self, *args, **{**options, "disable": True})

    tqdm.__init__ = disabled
    try:
        yield
    finally:
        tqdm.__init__ = init


@contextmanager
def _in_one_process() -> Iterator[None]:
    """In a block, lm-eval draws the samples of a bootstrap in this process."""
    before = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        yield
    finally:
        os.environ.pop("DISABLE_MULTIPROC")
        if before is not None:
            os.environ["DISABLE_MULTIPROC"] = before


@contextmanager
def seeded(python: int, other: int, device: torch.device) -> Iterator[None]:
    """In a block, the generators of Python, NumPy and torch begin at seeds; then they are as before.

    Args:
        python: Python's seed.
        other: NumPy's and torch's.
        device: Where the backbone draws.
    """
    kept, numpy_kept = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            random.seed(python)
            np.random.seed(other)
            torch.manual_seed(other)
            yield
    finally:
        random.setstate(kept)
        np.random.set_state(numpy_kept)
