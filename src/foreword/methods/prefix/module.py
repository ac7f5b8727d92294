"""What the Trainer trains: a prefix's parameters beside the frozen backbone that reads rows under it."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from foreword.attention.attachment import Attachment
from foreword.attention.bound import bind
from foreword.attention.selected import bind_selected, selections
from foreword.backbone import Backbone
from foreword.methods.prefix.dropout import PrefixDropout
from foreword.methods.prefix.parameterization import Parameterization
from foreword.objectives.class_weights import weighted
from foreword.objectives.supervised import score
from foreword.prefix import Prefix

_HOOKS = ("_require_grads_hooks", "_require_grads_hook")
"""Where a model keeps the hooks that make its embeddings' output need a gradient."""


class PrefixModule(nn.Module):
    """What the Trainer trains: a parameterisation, and by its side the backbone that it prefixes.

    The backbone is not a submodule, so the state dict, the optimiser and every checkpoint hold the
    parameterisation alone (and how often tokens were dropped), and the backbone stays in evaluation
    mode. `weights_L`, if there are any, say how much a row counts in training by its class; they are
    made of the rows, and no state.
    """

    def __init__(
        self,
        parameterization: Parameterization,
        backbone: Backbone,
        attachment: Attachment,
        dropout: PrefixDropout,
        weights_L: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.parameterization = parameterization
        self.weights_L = weights_L
        self.dropout = dropout
        self._beside = (backbone, attachment)
        self.seen_rows = 0
        self.seen_tokens = 0
        self._hooks: dict[str, Any] = {}

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        token_type_ids: Tensor | None = None,
        pieces: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Summed NLL of the targets of a right-padded batch (B, T), and their number."""
        backbone, attachment = self._beside
        prefix = self.parameterization.materialise()
        kept = self.dropout(prefix.length)
        if prefix.meta.combination == "control":
            chosen_B = selections(pieces, len(input_ids))
            bound = bind_selected(prefix, backbone.sites, chosen_B, live=True, kept=kept)
        else:
            bound = bind(prefix, backbone.sites, live=True, kept=kept)
        with attachment.using(bound):
            scores = score(
                backbone.model, input_ids, attention_mask, labels, prefix.head, token_type_ids
            )
        self.seen_rows += int(input_ids.shape[0])
        self.seen_tokens += int(attention_mask.sum())
        nll_N = scores.nll_N
        if self.weights_L is not None and self.training:
            nll_N = weighted(nll_N, labels[scores.row_N, 0], self.weights_L)
        return {"loss": nll_N.sum(), "targets": torch.tensor(len(scores.nll_N))}

    def activation_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """Checkpoint the backbone's layers; their dropout stays off, as in evaluation mode."""
        model = self._beside[0].model
        self._hooks = {name: model.__dict__.get(name) for name in _HOOKS}
        enable = getattr(model, "activation_checkpointing_enable", None)
        (enable or model.gradient_checkpointing_enable)(*args, **kwargs)
        for layer in model.modules():
            if getattr(layer, "gradient_checkpointing", False):
                layer.training = True

    gradient_checkpointing_enable = activation_checkpointing_enable

    def activation_checkpointing_disable(self) -> None:
        """Undo `activation_checkpointing_enable`."""
        model = self._beside[0].model
        disable = getattr(model, "activation_checkpointing_disable", None)
        (disable or model.gradient_checkpointing_disable)()
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


def detached(prefix: Prefix) -> Prefix:
    """The prefix as plain float32 tensors on the CPU, without gradients."""

    def plain(tensor: Tensor) -> Tensor:
        return tensor.detach().float().cpu().clone()

    head = prefix.head
    return dataclasses.replace(
        prefix,
        keys=tuple(map(plain, prefix.keys)),
        values=tuple(map(plain, prefix.values)),
        head=None if head is None else head.made_of(*map(plain, head.tensors)),
    )
