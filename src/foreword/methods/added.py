"""Parameters that are added to a model's layers, trained beside the frozen rest of it."""

from __future__ import annotations

import copy
import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from foreword.backbone import Backbone
from foreword.data import Encoded
from foreword.errors import StoreError, TrainingError, first_line
from foreword.files import write_whole
from foreword.head import Head
from foreword.methods.base import Applied, Learner, Start
from foreword.methods.heads import HEAD_RATE, TrainedHead, scale_of
from foreword.objectives.base import Batch, Objective
from foreword.objectives.encode import InFront
from foreword.objectives.settings import DataSettings
from foreword.prefix import canonical_json

S = TypeVar("S", bound=DataSettings)

Parameters = Mapping[str, nn.Parameter]

HEAD = ("head.weight", "head.bias")
"""Names of a head's tensors beside those of the layers."""


@dataclass(frozen=True)
class Added:
    """What is trained of a model with more parameters in its layers.

    Attributes:
        tensors: By the parameter's name in the model, float32 on the CPU.
        head: The head, if there is one.
    """

    tensors: Mapping[str, Tensor]
    head: Head | None

    @property
    def numbers(self) -> int:
        """How many numbers it has, head included."""
        head = () if self.head is None else self.head.tensors
        return sum(tensor.numel() for tensor in (*self.tensors.values(), *head))


class AddedLearner(Learner[Added]):
    """The parameters that peft added, in the order in which the model names them, and a head.

    Args:
        backbone: The backbone, its model with the added layers.
        objective: What the loss is.
        added: The parameters by name.
        head: The head, in training.
    """

    def __init__(
        self,
        backbone: Backbone,
        objective: Objective,
        added: Parameters,
        head: TrainedHead | None,
    ) -> None:
        super().__init__(backbone, objective)
        self.names = list(added)
        self.added = nn.ParameterList(added.values())
        self.trained_head = head

    @contextmanager
    def applied(self, batch: Batch) -> Iterator[Head | None]:
        """The model is changed already."""
        yield None if self.trained_head is None else self.trained_head.head

    def value(self) -> Added:
        """The parameters as they are now."""
        tensors = (parameter.detach().cpu().clone() for parameter in self.added)
        head = None if self.trained_head is None else self.trained_head.head
        if head is not None:
            head = head.made_of(*(tensor.detach().cpu().clone() for tensor in head.tensors))
        return Added(dict(zip(self.names, tensors, strict=True)), head)

    def save(self, value: Added, path: Path) -> None:
        """Write the tensors as safetensors."""
        head = () if value.head is None else value.head.tensors
        tensors = {**value.tensors, **dict(zip(HEAD, head, strict=False))}
        write_whole(path, save({name: tensor.contiguous() for name, tensor in tensors.items()}))

    def load(self, path: Path) -> Added:
        """Read them; the head's labels are those of the start."""
        try:
            with safe_open(path, "pt") as file:
                found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except Exception as error:  # safetensors has an exception of its own
            raise StoreError(f"cannot read {path}: {first_line(error)}") from error
        weights = [found.pop(name) for name in HEAD if name in found]
        head = None if self.trained_head is None else self.trained_head.head.made_of(*weights)
        return Added(found, head)


class AddedStart(Start[S, Added]):
    """A model as it is, with parameters added that change nothing yet."""

    backbone: Backbone

    @abstractmethod
    def added(self) -> AbstractContextManager[tuple[Backbone, Parameters]]:
        """The backbone with the parameters in its model for a block, and these by name, float32."""

    @contextmanager
    def learning(
        self, objective: Objective, rows: Sequence[Encoded], rate: float
    ) -> Iterator[AddedLearner]:
        """The layers as the seed makes them, and a head at the natural rate of heads."""
        head = self.in_front.head
        trained = None
        if head is not None:
            scale = scale_of(self.backbone, None, rows)
            trained = TrainedHead(head, scale, HEAD_RATE / rate)
        torch.manual_seed(self.settings.seed)
        with self.added() as (backbone, parameters), backbone.attached(None):
            learner = AddedLearner(backbone, objective, parameters, trained)
            yield learner.to(backbone.device)

    @contextmanager
    def applied(self, value: Added) -> Iterator[Applied]:
        """The backbone with the layers as they were trained."""
        with self.added() as (backbone, parameters):
            for name, parameter in parameters.items():
                parameter.requires_grad_(False).copy_(value.tensors[name])
            yield Applied(backbone, None, replace(self.in_front, head=value.head))


class PeftStart(AddedStart[S]):
    """Layers of the peft library.

    Args:
        backbone: The backbone.
        settings: The settings.
        config: A peft config.
        head: Where the head starts, if there is one.
    """

    def __init__(self, backbone: Backbone, settings: S, config: Any, head: Head | None) -> None:
        self.backbone = backbone
        self.settings = settings
        self.config = config
        self.in_front = InFront(backbone.bos, 0, head)
        told = {"backbone": backbone.fingerprint, "config": _plain(config.to_dict())}
        self.digest = hashlib.sha256(canonical_json(told)).hexdigest()
        with self.added() as (_, parameters):
            self.numbers = sum(parameter.numel() for parameter in parameters.values())
        self.numbers += 0 if head is None else sum(tensor.numel() for tensor in head.tensors)

    @contextmanager
    def merged(self, value: Added) -> Iterator[Applied]:
        """A copy of the backbone, its weights with what was added, so that it costs nothing to run."""
        own = self.backbone
        model = copy.deepcopy(own.model)
        other = Backbone(model, own.tokenizer, name=own.name, revision=own.revision)
        beside = copy.copy(self)
        beside.backbone = other
        with beside._injected() as (tuner, parameters):
            for name, parameter in parameters.items():
                parameter.requires_grad_(False).copy_(value.tensors[name])
            tuner.merge_adapter()
            yield Applied(other, None, replace(self.in_front, head=value.head))

    @contextmanager
    def added(self) -> Iterator[tuple[Backbone, Parameters]]:
        """What peft adds for a block, and takes out again."""
        with self._injected() as (_, parameters):
            yield self.backbone, parameters

    @contextmanager
    def _injected(self) -> Iterator[tuple[Any, Parameters]]:
        """Peft's own object around what it adds for a block, and the parameters by name."""
        from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

        model = self.backbone.model
        held = model.__dict__.get("peft_config")
        if held is not None:
            raise TrainingError(
                f"the backbone {self.backbone.name!r} has an adapter of the peft library already, so "
                "none is trained beside it. Merge it (merge_and_unload), or load the backbone without"
            )
        training = model.training
        tuner = PEFT_TYPE_TO_TUNER_MAPPING[self.config.peft_type]
        injected = tuner(model, self.config, "default")
        try:
            model.train(training)
            added = {}
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.float()
                    added[name] = parameter
            yield injected, added
        finally:
            injected.unload()
            model.__dict__.pop("peft_config", None)


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config as JSON values, in an order that does not change."""
    return {
        name: sorted(value) if isinstance(value, set) else value
        for name, value in config.items()
        if value is None or isinstance(value, str | int | float | bool | list | set)
    }
