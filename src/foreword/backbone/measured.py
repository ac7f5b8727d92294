"""What was measured of a model, kept with it, and attachments that know it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedModel

from foreword.attention.attachment import Attachment, attachment_of
from foreword.backbone.kinds import Kind, kind_of
from foreword.backbone.probe import Measured, attach_proven
from foreword.weights.own import unwrapped

_MEASURED = "_foreword_measured"
"""Attribute of a model: what the probe found."""


def measure(model: PreTrainedModel) -> Measured:
    """What the probe finds, measured once per model."""
    known = model.__dict__.get(_MEASURED)
    if isinstance(known, Measured):
        return known
    attachment, measured = attach_proven(model)
    attachment.remove()
    model.__dict__[_MEASURED] = measured
    return measured


def kind_measured(model: nn.Module) -> Kind:
    """The kind of a model as it was measured; by its config, of one that never was."""
    known = model.__dict__.get(_MEASURED)
    return known.kind if isinstance(known, Measured) else kind_of(model.config)


def forget(model: PreTrainedModel) -> None:
    """Let the model be measured anew when it is asked of next."""
    model.__dict__.pop(_MEASURED, None)


@contextmanager
def attached(model: PreTrainedModel) -> Iterator[Attachment]:
    """The model's attachment for a block: the one that it has, or one that ends with the block."""
    existing = attachment_of(model)
    if existing is not None:
        yield existing
        return
    measured = measure(model)
    attachment = Attachment(model)
    measured.tell(attachment)
    try:
        yield attachment
    finally:
        attachment.remove()


@contextmanager
def attaching(model: nn.Module) -> Iterator[Attachment]:
    """The model's attachment, to be bound in the block; a new one is taken off if the block raises."""
    inner = unwrapped(model)
    attachment = attachment_of(inner)
    fresh = attachment is None
    if attachment is None:
        attachment, measured = attach_proven(inner)
        inner.__dict__[_MEASURED] = measured
    try:
        yield attachment
    except BaseException:
        if fresh:
            attachment.remove()
        raise
