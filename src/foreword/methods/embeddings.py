"""Learned embeddings in training, with a head if the task needs one, and what they leave.

In a decoder they see nothing of what follows them, so that they are the prefix of the keys and values
that the frozen model makes of them: whatever writes, scores or serves under a prefix does so under them.
In models whose other layers are recurrent a prefix leaves these out, and so do the embeddings here.
In encoders they see the text, and stand in front of it in every pass.

Shapes: P virtual tokens, D size of an embedding.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from foreword.attention.attachment import Attachment
from foreword.attention.bound import bind
from foreword.backbone import Backbone
from foreword.errors import StoreError, first_line
from foreword.files import write_whole
from foreword.head import Head
from foreword.methods.base import Learner
from foreword.methods.heads import TrainedHead, numbers_of
from foreword.methods.in_front import in_front
from foreword.methods.prefix.learner import detached
from foreword.objectives.base import Batch, Objective
from foreword.prefix import Prefix


@dataclass(frozen=True)
class Prompt:
    """Learned embeddings.

    Attributes:
        embeddings_PD: Float32 on the CPU.
        head: The head, if there is one.
        prefix: The keys and values that a decoder makes of them, with the head; None of other kinds.
    """

    embeddings_PD: Tensor
    head: Head | None
    prefix: Prefix | None = None

    @property
    def numbers(self) -> int:
        """How many numbers it has, head included."""
        return self.embeddings_PD.numel() + numbers_of(self.head)


class PromptLearner(Learner[Prompt]):
    """The module that makes embeddings, and a head.

    Args:
        backbone: The backbone.
        objective: What the loss is.
        encoder: Gives embeddings (1, P, D) of indices (1, P).
        length: P.
        head: The head, in training.
    """

    def __init__(
        self,
        backbone: Backbone,
        objective: Objective,
        encoder: nn.Module,
        length: int,
        head: TrainedHead | None,
    ) -> None:
        super().__init__(backbone, objective)
        self.encoder = encoder
        self.length = length
        self.trained_head = head

    @property
    def head(self) -> Head | None:
        """The head as it is now, with its graph."""
        return None if self.trained_head is None else self.trained_head.head

    def embeddings(self) -> Tensor:
        """The embeddings as they are now, (P, D) with gradients."""
        indices = torch.arange(self.length, device=self.backbone.device)[None]
        made: Tensor = self.encoder(indices)[0]
        return made

    @abstractmethod
    def left(self, embeddings_PD: Tensor, head: Head | None) -> Prompt:
        """What embeddings on the backbone's device, and a head, leave."""

    @torch.no_grad()
    def value(self) -> Prompt:
        """The embeddings as they are now, without the module that made them."""
        return self.left(self.embeddings(), self.head)

    def save(self, value: Prompt, path: Path) -> None:
        """Write embeddings and head as safetensors."""
        head = () if value.head is None else value.head.tensors
        named = zip(("embeddings", "weight", "bias"), (value.embeddings_PD, *head), strict=False)
        write_whole(path, save({name: tensor.contiguous() for name, tensor in named}))

    @torch.no_grad()
    def load(self, path: Path) -> Prompt:
        """Read them; the head's labels are those of the start."""
        try:
            found = load(path.read_bytes())
            embeddings_PD = found["embeddings"].to(self.backbone.device)
            head = self.head and self.head.made_of(found["weight"], found["bias"])
        except Exception as error:  # safetensors has an exception of its own
            raise StoreError(f"cannot read {path}: {first_line(error)}") from error
        return self.left(embeddings_PD, head)


class DecoderLearner(PromptLearner):
    """Embeddings in front of a decoder's input, as the prefix that they are.

    Args:
        attachment: Where passes of the backbone find their prefix.
        others: As `PromptLearner` takes them.
    """

    def __init__(self, attachment: Attachment, *others: Any) -> None:
        super().__init__(*others)
        self._attachment = (attachment,)

    def _prefix(self, embeddings_PD: Tensor, head: Head | None) -> Prefix:
        return prefix_of(self.backbone, self._attachment[0], embeddings_PD).with_head(head)

    @contextmanager
    def applied(self, batch: Batch) -> Iterator[Head | None]:
        """The backbone under the keys and values of the embeddings, which have their graph."""
        prefix = self._prefix(self.embeddings(), self.head)
        with self._attachment[0].using(bind(prefix, self.backbone.sites, live=True)):
            yield prefix.head

    def left(self, embeddings_PD: Tensor, head: Head | None) -> Prompt:
        """The embeddings, and their keys and values, made anew."""
        prefix = detached(self._prefix(embeddings_PD, head))
        return Prompt(_on_cpu(embeddings_PD), prefix.head, prefix)


class EncoderLearner(PromptLearner):
    """Embeddings in front of what an encoder reads, in every pass."""

    @contextmanager
    def applied(self, batch: Batch) -> Iterator[Head | None]:
        """The backbone behind the embeddings, which have their graph."""
        with in_front(self.backbone, self.embeddings()):
            yield self.head

    def left(self, embeddings_PD: Tensor, head: Head | None) -> Prompt:
        """The embeddings and the head."""
        if head is not None:
            head = head.made_of(*map(_on_cpu, head.tensors))
        return Prompt(_on_cpu(embeddings_PD), head)


def _on_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().float().cpu().clone()


def prefix_of(backbone: Backbone, attachment: Attachment, embeddings_PD: Tensor) -> Prefix:
    """The keys and values that a decoder makes of embeddings in front of a text, with their graph."""
    length = len(embeddings_PD)
    first = -length if backbone.positions == "free" else 0
    calls: list[Any] = []
    with attachment.using(None), attachment.observing(calls.append):
        backbone.model(
            inputs_embeds=embeddings_PD[None].to(backbone.dtype),
            attention_mask=torch.ones(1, length, dtype=torch.long, device=backbone.device),
            position_ids=torch.arange(first, first + length, device=backbone.device)[None],
            use_cache=False,
        )
    by_name = {call.name: call for call in reversed(calls)}
    keys = tuple(by_name[site.name].key_BHKD[0] for site in backbone.sites)
    values = tuple(by_name[site.name].value_BHKE[0] for site in backbone.sites)
    return Prefix(backbone.sites, keys, values, backbone.meta())
