"""The progress bar of training, as a callback of transformers' Trainer."""

from __future__ import annotations

from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TextColumn
from rich.progress import TimeRemainingColumn as TimeLeft
from transformers import TrainerCallback

from foreword.cli.console import err, note
from foreword.cli.cores import Pacemaker


class TrainingBar(TrainerCallback):  # type: ignore[misc]
    """A progress bar: loss, examples/s, tokens/s, time left."""

    def __init__(self) -> None:
        columns: list[ProgressColumn] = [
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[speed]}"),
            TextColumn("left"),
            TimeLeft(),
        ]
        self.bar = Progress(*columns, console=err, transient=False)
        self.task = self.bar.add_task("training", total=None, speed="", start=False)
        self._plain_every = 1
        self._pace = Pacemaker()
        self._rows_before = 0
        self._tokens_before = 0

    def on_train_begin(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN003, ANN201
        """Start the bar where training starts, which may be in the middle."""
        model = kwargs["model"]
        self._rows_before, self._tokens_before = model.seen_rows, model.seen_tokens
        self._plain_every = max(1, state.max_steps // 20)
        self.bar.update(self.task, total=state.max_steps, completed=state.global_step)
        self.bar.start_task(self.task)
        if err.is_terminal:
            self.bar.start()

    def on_log(self, args, state, control, logs=None, **kwargs):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN003, ANN201
        """Move the bar: the Trainer logs the loss of every step, and of every evaluation."""
        if logs and "eval_loss" in logs:
            note(f"step {state.global_step}: evaluation NLL {float(logs['eval_loss']):.4f}")
        if not logs or "loss" not in logs:
            return
        self._pace.step()
        model = kwargs["model"]
        elapsed = self.bar.tasks[0].elapsed or 1e-9
        rows = args.world_size * (model.seen_rows - self._rows_before) / elapsed
        tokens = args.world_size * (model.seen_tokens - self._tokens_before) / elapsed
        speed = f"loss {float(logs['loss']):.3f} {rows:.1f} examples/s {tokens:.0f} tokens/s"
        self.bar.update(self.task, completed=state.global_step, speed=speed)
        if not err.is_terminal and state.global_step % self._plain_every == 0:
            left = self.bar.tasks[0].time_remaining
            rest = "" if left is None else f", {left:.0f} s left"
            note(f"step {state.global_step}/{state.max_steps}: {speed}{rest}")

    def stop(self) -> None:
        """Leave the bar as it stands."""
        self.bar.stop()
