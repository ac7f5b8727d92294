"""`Objective`: what a batch's loss is, whatever is trained by it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor
from transformers import PreTrainedModel

from foreword.data import Encoded
from foreword.head import Head

Batch = Mapping[str, Tensor]
"""What a collator makes of examples, by the names that the objective knows."""


class Regularizer(ABC):
    """What a step of training makes small beside the loss of its rows, on a batch of its own."""

    @abstractmethod
    def batch(self) -> Batch:
        """The next batch, on the model's device."""

    @abstractmethod
    def loss(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """What is added to the mean loss of the rows, under what is trained: a float32 scalar."""


class Objective(ABC):
    """What training makes small."""

    regularizer: Regularizer | None = None
    """What is made small beside it, in training alone."""

    @abstractmethod
    def loss(
        self, model: PreTrainedModel, batch: Batch, head: Head | None, *, training: bool
    ) -> tuple[Tensor, int]:
        """Summed loss of a batch, a float32 scalar with its graph, and the number of targets in it.

        Args:
            model: The backbone's model, under what is trained.
            batch: The batch, on the model's device.
            head: The head that is trained, if there is one.
            training: Whether a step is taken by it; evaluation weighs no rows.
        """

    @abstractmethod
    def size(self, batch: Batch) -> tuple[int, int]:
        """Rows of a batch, and the tokens or other inputs that the model reads for them."""

    @abstractmethod
    def length(self, example: Encoded) -> int:
        """How long an example is, so that those of like length are put together."""
