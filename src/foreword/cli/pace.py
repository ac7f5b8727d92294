"""How long a step of training takes on this machine."""

from __future__ import annotations

import time

from transformers import TrainerCallback

TRIED = 3
"""Steps that are timed to say how long the whole would take."""


class Pace(TrainerCallback):  # type: ignore[misc]
    """Times the first steps, and ends training after them.

    Attributes:
        step: Seconds of a step, without the first one, which prepares what the others use.
        steps: Steps of the whole training.
    """

    def __init__(self) -> None:
        self.step = 0.0
        self.steps = 0
        self._first = 0.0

    def on_step_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN003, ANN201
        """Note the time of the first step's end, and of the last one's."""
        if state.global_step == 1:
            self._first = time.perf_counter()
        if state.global_step == TRIED:
            self.step = (time.perf_counter() - self._first) / (TRIED - 1)
            self.steps = state.max_steps
            control.should_training_stop = True
