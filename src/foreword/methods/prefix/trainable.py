"""A prefix in training under another trainer: transformers' Trainer, TRL, a loop of one's own.

`attach_trainable` makes the prefix's parameters the model's: its child ``foreword_prefix``. Whoever
trains the model's parameters then trains the prefix.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from foreword.attention.attachment import Attachment
from foreword.attention.bound import Bound, bind
from foreword.backbone import Backbone
from foreword.backbone.attach import check_fit
from foreword.backbone.measured import attaching, measure
from foreword.backbone.probe import evaluating
from foreword.errors import TrainingError
from foreword.methods.prefix.learner import detached
from foreword.methods.prefix.parameterization import DirectParameterization, Parameterization
from foreword.methods.prefix.watch import Watch
from foreword.prefix import Prefix, Site, check_prefix, rms
from foreword.weights.own import TRAINED
from foreword.weights.placement import input_device

_names = itertools.count()


class Trainable:
    """A prefix in training, and the model that carries it.

    Attributes:
        parameterization: What is trained. Its parameters are the model's.
    """

    def __init__(
        self,
        attachment: Attachment,
        parameterization: Parameterization,
        sites: tuple[Site, ...],
        *,
        freeze: bool,
    ) -> None:
        self.parameterization = parameterization
        self._attachment = attachment
        self._sites = sites
        self._name = f"live-trainable-{next(_names)}"
        self._last: Bound | None = None
        model = attachment.model
        self._required = [(p, p.requires_grad) for p in model.parameters()] if freeze else []
        model.add_module(TRAINED, parameterization)
        for parameter, _ in self._required:
            parameter.requires_grad_(False)
        self._watch = Watch(model, parameterization)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy goes its own way, so the caches of one are not the other's."""
        self.__dict__.update(state, _name=f"live-trainable-{next(_names)}", _last=None)

    def materialise(self) -> Prefix:
        """The prefix as it is now, with gradients into the parameters."""
        return self.parameterization.materialise()

    def prefix(self) -> Prefix:
        """The trained value: plain float32 tensors on the CPU, to be saved or attached.

        Of a model that FSDP2 shards (`fully_shard`), all processes must ask for it.
        """
        with torch.no_grad(), evaluating(self.parameterization), self._whole():
            return detached(self.materialise())

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Gather what FSDP keeps in shards: all processes must be here."""
        model = self._attachment.model
        if not isinstance(model, FSDPModule):
            yield
            return
        model.unshard()
        try:
            yield
        finally:
            model.reshard()

    @property
    def identity(self) -> str:
        """Changes when a parameter does, so that a cache filled before is refused afterwards.

        PyTorch counts changes in place, as optimisers and `load_state_dict` make them. What is written
        through a parameter's ``.data`` is not counted.
        """
        return f"{self._name}-{sum(p._version for p in self.parameterization.parameters())}"

    def __call__(self) -> Bound:
        """What the forward pass that begins now attends to: made anew, so that it has a graph.

        Raises:
            TrainingError: The pass would train something, and not the prefix; see `Watch.check`.
        """
        if torch.is_grad_enabled():
            self._watch.check()
        identity, last = self.identity, self._last
        reusable = not torch.is_grad_enabled() and not self.parameterization.training
        if reusable and last is not None and last.identity == identity:
            return last
        bound = bind(self.materialise(), self._sites, identity=identity)
        self._last = bound if reusable else None
        return bound

    def release(self) -> None:
        """Take the parameters out of the model; its own need gradients as they did before."""
        self._watch.end()
        self._attachment.model._modules.pop(TRAINED, None)
        for parameter, required in self._required:
            parameter.requires_grad_(required)


def attach_trainable(
    model: PreTrainedModel | Backbone,
    start: Prefix | Parameterization,
    *,
    freeze: bool = True,
) -> Trainable:
    """Make a prefix part of a model, to be trained by whatever trains the model.

    The parameters become the model's child ``foreword_prefix``: `model.parameters()`, optimisers,
    accelerate and Trainer find them, and so does `state_dict`. Thus checkpoints hold the whole model
    with the prefix under that name, and can be resumed from; `from_pretrained` on one loads the model
    and reports the prefix's entries as unexpected. Each outermost forward pass attends to the prefix
    as it is then. `foreword.detach` undoes all of it, and `foreword.attach` puts a finished prefix in
    its place.

    Args:
        model: A causal language model of transformers, a `PeftModel` around one, or a `Backbone`.
        start: The prefix that training starts from, or a parameterisation. Of a prefix, each site's
            keys and values are trained in units of their own RMS (1 where all are zero), in float32.
        freeze: Whether the model's own parameters stop needing gradients. With False they stay as they
            are, so that the LoRA of a `PeftModel` is trained too.

    Returns:
        The prefix in training; its `prefix()` gives the trained value.

    Raises:
        UnsupportedModel: The family, or its attention implementation, cannot carry a prefix.
        MismatchError: The prefix does not fit the model.
        TrainingError: The model has a child of that name already.

    Examples:
        >>> trained = foreword.attach_trainable(model, prefix)  # doctest: +SKIP
        >>> Trainer(model, arguments, train_dataset=rows).train()  # doctest: +SKIP
        >>> foreword.save_prefix(trained.prefix(), "mine.safetensors")  # doctest: +SKIP
    """
    given = model.model if isinstance(model, Backbone) else model
    if not isinstance(start, Parameterization):
        check_prefix(start, "start")
    with attaching(given) as attachment:
        parameterization = start if isinstance(start, Parameterization) else in_own_units(start)
        inner = attachment.model
        sites = measure(inner).sites
        with torch.no_grad():
            prefix = parameterization.materialise()
        check_fit(model, prefix)
        device = input_device(inner)
        held = inner._modules.get(TRAINED)  # a prefix that was in training until now may be there
        if hasattr(inner, TRAINED) and not isinstance(held, Parameterization):
            raise TrainingError(
                f"{type(inner).__name__} has an attribute {TRAINED!r} of its own, where the prefix in "
                "training would go; rename it"
            )
        parameterization.to(device)
        with attachment.exclusive():
            attachment.release()
            trainable = Trainable(attachment, parameterization, sites, freeze=freeze)
            attachment.hold(None, trainable)
    return trainable


def in_own_units(start: Prefix) -> DirectParameterization:
    """The prefix's keys and values, each site's divided by their RMS."""
    return DirectParameterization(
        start.to(torch.float32),
        [rms(key) or 1.0 for key in start.keys],
        [rms(value) or 1.0 for value in start.values],
    )
