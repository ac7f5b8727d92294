"""Whether a prefix under another trainer is still trained: what freezes, replaces or drops it is told.

A loss may fall without the prefix, through a LoRA beside it. So each pass in training checks that the
model still holds the prefix's parameters and that they need gradients, and each step of an optimiser
shows whether it trains them.
"""

from __future__ import annotations

import warnings
import weakref
from typing import Any

from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from foreword.errors import TrainingError
from foreword.methods.prefix.parameterization import Parameterization
from foreword.weights.own import TRAINED


class NotTrained(UserWarning):
    """An optimiser trains the model, but not the prefix that is in training there."""


class Watch:
    """Looks after the parameters of a prefix in training.

    Args:
        model: The transformers model that holds them.
        parameterization: The prefix's parameters.
    """

    def __init__(self, model: nn.Module, parameterization: Parameterization) -> None:
        self._model = model
        self._parameterization = parameterization
        self._still = {
            name for name, p in parameterization.named_parameters() if not p.requires_grad
        }
        self._trained = self._left_out = self._told = False
        self._listen()

    def __getstate__(self) -> dict[str, Any]:
        """A copy looks after its own model, by a hook of its own."""
        return {name: value for name, value in self.__dict__.items() if name != "_hook"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Go on as a copy."""
        self.__dict__.update(state)
        self._listen()

    def _listen(self) -> None:
        """Hear of every optimiser's step for as long as this object lives."""
        found = weakref.ref(self)

        def after(optimizer: Optimizer, *_: Any) -> None:
            watch = found()
            if watch is not None:
                watch.note(optimizer)

        self._hook = register_optimizer_step_post_hook(after)
        weakref.finalize(self, self._hook.remove).atexit = False

    def end(self) -> None:
        """Look after it no longer."""
        self._hook.remove()

    def note(self, optimizer: Optimizer) -> None:
        """Take in that an optimiser made a step.

        Raises:
            TrainingError: It holds parameters of the model, and none that can be trained.
        """
        held = [p for group in optimizer.param_groups for p in group["params"]]
        ours = {id(p) for p in self._parameterization.parameters()}
        if any(id(p) in ours for p in held):
            self._trained = True
            return
        models = {id(p) for p in self._model.parameters()}
        if not any(id(p) in models for p in held):
            return
        if not any(p.requires_grad for p in held):
            raise TrainingError(
                f"{type(optimizer).__name__} holds none of the prefix's parameters, and nothing else "
                "that needs gradients, so it trains nothing. Make the optimiser after "
                "attach_trainable, of model.parameters() or trained.parameterization.parameters()"
            )
        self._left_out = True

    def check(self) -> None:
        """Check, in a pass with gradients, that the prefix is trained by them.

        Raises:
            TrainingError: The model holds it no longer, or it needs no gradients any more.

        Warns:
            NotTrained: Optimisers made steps, none of them with the prefix's parameters.
        """
        if self._model._modules.get(TRAINED) is not self._parameterization:
            raise TrainingError(
                f"the model's child {TRAINED!r} is no longer the prefix in training: something took "
                "it out or put another in its place, so no trainer would find its parameters. Call "
                "foreword.detach, and attach_trainable again"
            )
        frozen = self._frozen()
        if frozen and (self._model.training or self._others_learn()):
            raise TrainingError(
                f"{len(frozen)} parameters of the prefix in training need no gradients any more "
                f"(first: {TRAINED}.{frozen[0]}): something froze them, as PEFT's get_peft_model and "
                "the peft_config of a trainer do with every parameter. For a LoRA beside the prefix "
                "make the PeftModel first, then attach_trainable(peft_model, start, freeze=False). "
                "For a prefix that shall stay as it is use foreword.attach(model, trained.prefix())"
            )
        if self._left_out and not self._trained and not self._told:
            self._told = True
            warnings.warn(
                "an optimiser made a step on this model without the parameters of the prefix in "
                "training, and none with them, so the prefix stays as it is. Give it "
                "trained.parameterization.parameters() too",
                NotTrained,
                stacklevel=2,
            )

    def _frozen(self) -> list[str]:
        """Names of the prefix's parameters that need gradients no longer."""
        return [
            name
            for name, parameter in self._parameterization.named_parameters()
            if not parameter.requires_grad and name not in self._still
        ]

    def _others_learn(self) -> bool:
        """Whether another parameter of the model needs gradients."""
        ours = {id(p) for p in self._parameterization.parameters()}
        return any(p.requires_grad for p in self._model.parameters() if id(p) not in ours)
