"""Reporters: where the loss is logged beside the terminal."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, WandbCallback
from transformers.integrations.integration_utils import WandbLogModel

from foreword.errors import TrainingError, first_line
from foreword.train.settings import Reporting

LOGS = Path("runs")
"""Where TensorBoard's files go by default. The last part of another folder names the run."""
PROJECT = "foreword"
"""Project on Weights & Biases, unless WANDB_PROJECT is set."""
START, END = 30, 120
"""Seconds that Weights & Biases may take to start, and to send the rest when training is over."""


def reporters(
    report_to: Reporting, config: Mapping[str, Any], logs: Path, stack: ExitStack
) -> list[TrainerCallback]:
    """What logs the loss elsewhere than to the terminal, until `stack` is left.

    Args:
        report_to: Where.
        config: The run's settings.
        logs: Where TensorBoard's files go; its last part names the run.
        stack: Ends it.

    Raises:
        TrainingError: The package is not installed.
    """
    if report_to == "none":
        return []
    try:
        if report_to == "wandb":
            reporter = WandbReporter(config, None if logs == LOGS else logs.name)
            stack.callback(reporter.close)
            return [reporter]
        board = TensorBoardCallback()
    except (ImportError, RuntimeError) as error:
        package = report_to
        raise TrainingError(
            f"report_to={package!r} needs the package {package}; run: pip install {package}"
        ) from error
    board.logging_dir = board.logging_dir or str(logs)
    return [board]


class WandbReporter(WandbCallback):  # type: ignore[misc]
    """transformers' callback, without its uploads: no model, no gradients, no terminal output.

    Args:
        config: The run's settings.
        name: The run's name; by default Weights & Biases makes one.
    """

    def __init__(self, config: Mapping[str, Any], name: str | None) -> None:
        super().__init__()
        self.config = config
        self.name = name
        self.run: Any = None
        self._log_model = WandbLogModel.FALSE  # whatever the environment says

    def setup(self, args: Any, state: Any, model: Any, **kwargs: Any) -> None:
        """Start a run, unless the caller has one open.

        Raises:
            TrainingError: There is no login, or no network.
        """
        self._initialized = True
        wandb = self._wandb
        if wandb.run is None:
            self.run = self._start()
        wandb.config.update(dict(self.config), allow_val_change=True)
        wandb.define_metric("train/global_step")
        wandb.define_metric("*", step_metric="train/global_step", step_sync=True)

    def _start(self) -> Any:
        wandb = self._wandb
        try:
            return wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                name=self.name,
                settings=wandb.Settings(init_timeout=START, finish_timeout=END, console="off"),
            )
        except Exception as error:  # of its own, of its service's, of the network's
            said = first_line(error).rstrip(".")
            raise TrainingError(
                f"Weights & Biases does not start: {said}. Log in (wandb login), or set "
                "WANDB_MODE=offline and send the run later (wandb sync)"
            ) from error

    def close(self) -> None:
        """End the run, if it is ours. What cannot be sent must not cost the prefix."""
        run, self.run = self.run, None
        if run is not None:
            with suppress(Exception):
                run.finish()
