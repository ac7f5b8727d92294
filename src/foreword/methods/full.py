"""Full fine-tuning: every weight is trained, in float32, on a copy of the model."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from foreword.backbone import Backbone
from foreword.errors import TrainingError
from foreword.head import Head
from foreword.methods.added import Added, AddedStart, Parameters, refuse_adapted
from foreword.methods.base import Method, Rows
from foreword.methods.heads import new_head, numbers_of
from foreword.objectives.encode import InFront
from foreword.objectives.settings import DataSettings


@dataclass(frozen=True, kw_only=True)
class FullSettings(DataSettings):
    """Full fine-tuning, on the rows that the data settings read; it has no sizes to choose."""


class FullMethod(Method[FullSettings, Added]):
    """Every weight of the backbone."""

    name = "full"
    settings = FullSettings

    def start(self, backbone: Backbone, settings: FullSettings, rows: Rows) -> FullStart:
        """The weights as they are.

        Raises:
            TrainingError: They are quantised, offloaded, or have an adapter beside them.
        """
        if backbone.quantization is not None:
            raise TrainingError(
                f"the backbone {backbone.name or backbone.family!r} is quantised "
                f"({backbone.quantization}), and whole numbers are not trained; load it without"
            )
        refuse_adapted(backbone)
        return FullStart(backbone, settings, new_head(backbone, settings, rows))


class FullStart(AddedStart[FullSettings]):
    """The weights of a backbone.

    Args:
        backbone: The backbone.
        settings: The settings.
        head: Where the head starts, if there is one.
    """

    def __init__(self, backbone: Backbone, settings: FullSettings, head: Head | None) -> None:
        self.backbone = backbone
        self.settings = settings
        self.in_front = InFront(backbone.bos, 0, head)
        self.digest = hashlib.sha256(backbone.fingerprint.encode()).hexdigest()
        self.numbers = backbone.parameters + numbers_of(head)

    @contextmanager
    def added(self) -> Iterator[tuple[Backbone, Parameters]]:
        """A copy of the backbone in float32; shared weights stand once."""
        own = self.backbone
        model = copy.deepcopy(own.model).float().requires_grad_(True)
        other = Backbone(model, own.tokenizer, name=own.name, revision=own.revision)
        yield other, dict(model.named_parameters())
