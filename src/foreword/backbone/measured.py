"""What was measured of a model, kept with it, and attachments that know it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedModel

from foreword.attention.attachment import Attachment, attachment_of
from foreword.backbone.kinds import Kind, kind_of
from foreword.backbone.probe import Measured, attach_proven
from foreword.weights.own import joinable

_MEASURED = "_foreword_measured"
"""Attribute of a model: what the probe found."""


_INSTALLING = threading.RLock()
"""Held while a model is measured, and while it is looked up whether it has hooks, and given some."""


def measure(model: PreTrainedModel) -> Measured:
    """What the probe finds, measured once per model."""
    with _INSTALLING:
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
    """The model's attachment for a block: the one that it has, or one that ends with the last block."""
    with _INSTALLING:
        attachment = attachment_of(model)
        if attachment is None or not attachment.borrow():
            measured = measure(model)
            attachment = Attachment(model)
            measured.tell(attachment)
            attachment.borrow()
    try:
        yield attachment
    finally:
        attachment.give_back()


@contextmanager
def attaching(model: nn.Module) -> Iterator[Attachment]:
    """The model's attachment, to be held in the block; a new one is taken off if the block raises."""
    inner = joinable(model)
    with _INSTALLING:
        attachment = attachment_of(inner)
        if attachment is not None and attachment.borrow():  # else another thread takes it off now
            try:
                yield attachment
            finally:
                attachment.give_back()
            return
        attachment, measured = attach_proven(inner)
        inner.__dict__[_MEASURED] = measured
        try:
            yield attachment
        except BaseException:
            attachment.remove()
            raise


def detaching(model: PreTrainedModel) -> None:
    """Take the model's attachment off, if it has one.

    Raises:
        BusyError: Another thread is in a forward pass, or this or another one holds a block open.
    """
    with _INSTALLING:
        attachment = attachment_of(model)
        if attachment is not None:
            attachment.part()
        forget(model)
