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
from foreword.methods.heads import TrainedHead, numbers_of, trained_head
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
        return sum(tensor.numel() for tensor in self.tensors.values()) + numbers_of(self.head)


class AddedLearner(Learner[Added]):
    """The parameters that were added, in the order in which the model names them, and a head.

    Args:
        backbone: The backbone, its model with the added layers.
        objective: What the loss is.
        added: The parameters by name.
        head: The head, in training.
    """

    partly_used = True

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
        if set(found) != set(self.names) or bool(weights) != (self.trained_head is not None):
            raise StoreError(f"{path} has other tensors than this training; start anew")
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
        trained = trained_head(self.backbone, self.in_front.head, rows, rate)
        torch.manual_seed(self.settings.seed)
        with self.added() as (backbone, parameters), backbone.attached(None):
            if trained is not None:
                trained.to(backbone.device)
            yield AddedLearner(backbone, objective, parameters, trained)

    @contextmanager
    def applied(self, value: Added) -> Iterator[Applied]:
        """The backbone with the layers as they were trained."""
        with self.added() as (backbone, parameters):
            _copy(value, parameters)
            yield Applied(backbone, None, replace(self.in_front, head=value.head))


class PeftStart(AddedStart[S]):
    """Layers of the peft library.

    Args:
        backbone: The backbone.
        settings: The settings.
        config: A peft config.
        layers: Names of the layers that it is for.
        head: Where the head starts, if there is one.
    """

    def __init__(
        self, backbone: Backbone, settings: S, config: Any, layers: Sequence[str], head: Head | None
    ) -> None:
        self.backbone = backbone
        self.settings = settings
        self.config = config
        self.layers = list(layers)
        self.in_front = InFront(backbone.bos, 0, head)
        told = {
            "backbone": backbone.fingerprint,
            "settings": settings.as_json(),
            "layers": self.layers,
        }
        self.digest = hashlib.sha256(canonical_json(told)).hexdigest()
        with self.added() as (_, parameters):
            self.numbers = sum(parameter.numel() for parameter in parameters.values())
        self.numbers += numbers_of(head)

    @contextmanager
    def merged(self, value: Added) -> Iterator[Applied]:
        """A copy of the backbone, its weights with what was added, so that it costs nothing to run."""
        own = self.backbone
        model = copy.deepcopy(own.model)
        other = Backbone(model, own.tokenizer, name=own.name, revision=own.revision)
        beside = copy.copy(self)
        beside.backbone = other
        with beside._injected() as (tuner, parameters):
            _copy(value, parameters)
            tuner.merge_adapter()
            yield Applied(other, None, replace(self.in_front, head=value.head))

    @contextmanager
    def added(self) -> Iterator[tuple[Backbone, Parameters]]:
        """What peft adds for a block, and takes out again."""
        with self._injected() as (_, parameters):
            yield self.backbone, parameters

    @contextmanager
    def _injected(self) -> Iterator[tuple[Any, Parameters]]:
        """An object of peft around what it adds for a block, and the parameters by name.

        Whatever happens, the layers are the model's own again afterwards, and what needed gradients
        does.

        Raises:
            TrainingError: Nothing is put into such layers.
        """
        tuners = peft_library().mapping.PEFT_TYPE_TO_TUNER_MAPPING
        model = self.backbone.model
        refuse_adapted(self.backbone)
        own = {name: model.get_submodule(name) for name in self.layers}
        required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        frozen = {id(parameter) for parameter, _ in required}
        training = model.training
        try:
            try:
                injected = tuners[self.config.peft_type](model, self.config, "default")
            except (ValueError, TypeError) as error:
                raise TrainingError(
                    f"peft adds nothing to the layers of {self.backbone.name!r}: {first_line(error)}. "
                    "Choose other targets, or another method"
                ) from error
            model.train(training)
            added = {}
            for name, parameter in model.named_parameters():
                if id(parameter) not in frozen and parameter.requires_grad:
                    parameter.data = parameter.data.float()
                    added[name] = parameter
            yield injected, added
        finally:
            for name, module in own.items():
                above, _, child = name.rpartition(".")
                setattr(model.get_submodule(above), child, module)
            for parameter, needs in required:
                parameter.requires_grad_(needs)
            model.__dict__.pop("peft_config", None)


def refuse_adapted(backbone: Backbone) -> None:
    """Check that a backbone's weights are its own, and in memory.

    Raises:
        TrainingError: It has an adapter of the peft library, or parts of it are not loaded.
    """
    model = backbone.model
    if any(hasattr(module, "adapter_layer_names") for module in model.modules()):
        raise TrainingError(
            f"the backbone {backbone.name!r} has an adapter of the peft library already, and none is "
            "trained beside it. Merge it (merge_and_unload), or load the backbone without"
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise TrainingError(
            f"parts of the backbone {backbone.name!r} are not in memory (they are offloaded), and this "
            "method adds to them. Load it whole, or train a prefix"
        )


def peft_library() -> Any:
    """The peft library.

    Raises:
        TrainingError: It is not installed.
    """
    try:
        import peft
        import peft.mapping
    except ImportError as error:
        raise TrainingError(
            "this method needs the package peft; run: pip install 'foreword[compare]'"
        ) from error
    return peft


def _copy(value: Added, parameters: Parameters) -> None:
    """Give parameters their trained values; none needs a gradient then.

    Raises:
        TrainingError: The values are those of other layers, or of another size.
    """
    has = {name: tuple(tensor.shape) for name, tensor in value.tensors.items()}
    wanted = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    if has != wanted:
        raise TrainingError(
            f"what was trained has {len(has)} tensors, which are not the {len(wanted)} that this start "
            "adds; apply it to a start of the same settings and backbone"
        )
    for name, parameter in parameters.items():
        parameter.requires_grad_(False).copy_(value.tensors[name])
