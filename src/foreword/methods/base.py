"""`Method`: a way to adapt a frozen backbone. It starts, is trained, and leaves a value.

Method.start     settings and rows  ->  a start: what rows are read behind, and their head
Start.learning   the start          ->  a learner, applied to the backbone for a block
Learner          a batch            ->  its loss;  at any time its value
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from foreword.attention.checkpointing import CheckpointInEvaluation, without_evaluation
from foreword.backbone import Backbone
from foreword.data import Encoded
from foreword.head import Head
from foreword.objectives.base import Batch, Objective
from foreword.objectives.encode import InFront
from foreword.objectives.settings import DataSettings
from foreword.prefix import Prefix

S = TypeVar("S", bound=DataSettings)
V = TypeVar("V")

Rows = Sequence[Mapping[str, Any]]

_HOOKS = ("_require_grads_hooks", "_require_grads_hook")
"""Where a model keeps the hooks that make its embeddings' output need a gradient."""


class Learner(nn.Module, ABC, Generic[V]):
    """What the Trainer trains: a method's parameters, and by their side the backbone that they adapt.

    The backbone is not a submodule, so the state dict, the optimiser and every checkpoint hold what is
    trained alone, and the backbone stays in evaluation mode.

    Args:
        backbone: The backbone.
        objective: What its loss is.
    """

    noun: ClassVar[str] = "what is trained"
    """What it is called in errors."""
    partly_used: ClassVar[bool] = False
    """Whether a pass may leave parameters without a gradient, which several processes must know."""
    turns_matrices: ClassVar[bool] = True
    """Whether SOAP turns matrices, too, not only stacks of them (H, P, D)."""

    def __init__(self, backbone: Backbone, objective: Objective) -> None:
        super().__init__()
        self._beside = (backbone, objective)
        self.seen_rows = 0
        self.seen_tokens = 0
        self._hooks: dict[str, Any] = {}
        self._checkpointed: list[Any] = []

    @property
    def backbone(self) -> Backbone:
        """The backbone that is adapted."""
        return self._beside[0]

    @property
    def objective(self) -> Objective:
        """What the loss is."""
        return self._beside[1]

    @abstractmethod
    def applied(self, batch: Batch) -> AbstractContextManager[Head | None]:
        """The backbone under what is trained, for one batch, and the head as it is now."""

    @abstractmethod
    def value(self) -> V:
        """What is trained as it is now, with nothing of the graph, on the CPU."""

    @abstractmethod
    def save(self, value: V, path: Path) -> None:
        """Write a value to a file."""

    @abstractmethod
    def load(self, path: Path) -> V:
        """Read what `save` wrote.

        Raises:
            ForewordError: The file is damaged.
        """

    def forward(self, **batch: Tensor) -> dict[str, Tensor]:
        """Summed loss of a batch, and the number of its targets."""
        backbone, objective = self._beside
        with self.applied(batch) as head:
            loss, targets = objective.loss(backbone.model, batch, head, training=self.training)
        if self.training and objective.regularizer is not None:
            beside = objective.regularizer.batch()
            with self.applied(beside):
                loss = loss + targets * objective.regularizer.loss(backbone.model, beside)
        rows, tokens = objective.size(batch)
        self.seen_rows += rows
        self.seen_tokens += tokens
        return {"loss": loss, "targets": torch.tensor(targets)}

    def activation_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """Checkpoint the backbone's layers; their dropout stays off, as in evaluation mode.

        Layers are checkpointed in training mode only, and what they run is run in evaluation mode.
        """
        model = self.backbone.model
        self._hooks = {name: model.__dict__.get(name) for name in _HOOKS}
        enable = getattr(model, "activation_checkpointing_enable", None)
        (enable or model.gradient_checkpointing_enable)(*args, **kwargs)
        self._checkpointed = _checkpointed(model)
        for layer in self._checkpointed:
            layer.training = True
            function = layer._gradient_checkpointing_func
            layer._gradient_checkpointing_func = CheckpointInEvaluation(layer, function)

    gradient_checkpointing_enable = activation_checkpointing_enable

    def activation_checkpointing_disable(self) -> None:
        """Undo `activation_checkpointing_enable`."""
        model: Any = self.backbone.model
        disable = getattr(model, "activation_checkpointing_disable", None)
        (disable or model.gradient_checkpointing_disable)()
        for layer in self._checkpointed:
            function = layer._gradient_checkpointing_func
            layer._gradient_checkpointing_func = without_evaluation(function)
        self._checkpointed.clear()
        self._remove_hooks(model)
        model.eval()

    def _remove_hooks(self, model: Any) -> None:
        """Take off what made embeddings need gradients, which transformers leaves on, and no more."""
        now = model.__dict__.get("_require_grads_hooks")
        if now and now is not self._hooks.get("_require_grads_hooks"):
            model.disable_input_require_grads()
        for name in _HOOKS:
            model.__dict__.pop(name, None)
            if self._hooks.get(name) is not None:
                model.__dict__[name] = self._hooks[name]


def _checkpointed(model: Any) -> list[Any]:
    """The layers of a model that can be checkpointed; what holds them only looks whether they are."""
    modules = list(model.modules())
    layers = [module for module in modules if isinstance(module, GradientCheckpointingLayer)]
    return layers or [each for each in modules if getattr(each, "gradient_checkpointing", False)]


@dataclass(frozen=True)
class Applied:
    """A backbone under what a method left.

    Attributes:
        backbone: The backbone, changed or not.
        prefix: The prefix to use with it, or None.
        in_front: What rows are read behind, with the head as it was trained.
    """

    backbone: Backbone
    prefix: Prefix | None
    in_front: InFront


@dataclass(frozen=True)
class Traits:
    """What can be done with what a method leaves.

    Attributes:
        shares_batch: Whether rows of different tasks can go through the model in one batch.
        merges: Whether it can be merged into the weights, after which it costs nothing.
        composes: Whether several can be put together without training.
        switches_off: Whether the frozen model is there again, bit for bit, at once.
    """

    shares_batch: bool
    merges: bool
    composes: bool
    switches_off: bool


class Start(ABC, Generic[S, V]):
    """Where a method starts on a backbone and rows."""

    settings: S
    """The settings with what the start decided."""
    in_front: InFront
    """What rows are read behind."""
    digest: str
    """Tells this start from others, so that a run goes on from its own checkpoints only."""
    numbers: int
    """How many numbers the finished value has, head included."""

    @property
    def trained(self) -> int:
        """How many numbers are trained: those of the value, unless others make them."""
        return self.numbers

    @abstractmethod
    def learning(
        self, objective: Objective, rows: Sequence[Encoded], rate: float
    ) -> AbstractContextManager[Learner[V]]:
        """What is trained, on the backbone's device, and the backbone ready for it within a block.

        Args:
            objective: What its loss is.
            rows: Encoded training rows, to measure on.
            rate: Peak learning rate, for what must move by another.
        """

    @abstractmethod
    def applied(self, value: V) -> AbstractContextManager[Applied]:
        """The backbone under a value within a block, to score rows and write with."""

    def merged(self, value: V) -> AbstractContextManager[Applied] | None:
        """A copy of the backbone with a value merged into its weights; None where none can be."""
        return None


class Method(ABC, Generic[S, V]):
    """A way to adapt a frozen backbone to rows."""

    name: ClassVar[str]
    """Its word in recipes and on the command line."""
    settings: ClassVar[type[DataSettings]]
    """What its settings are."""
    selects: ClassVar[bool] = False
    """Whether rows may select parts of what is trained by their attributes."""

    def check(self, settings: S) -> None:
        """Check what can be known of settings before anything is computed, once the task is decided.

        Raises:
            TrainingError: They do not go together.
        """

    @abstractmethod
    def start(self, backbone: Backbone, settings: S, rows: Rows) -> Start[S, V]:
        """Where training starts.

        Args:
            backbone: The backbone.
            settings: The settings, with the task decided.
            rows: The training rows.
        """
