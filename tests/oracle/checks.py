"""The oracle's measurements: prefixed runs against the reference, and the negative controls."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from unittest import mock

import torch
from torch import Tensor
from transformers import PreTrainedModel

from foreword.attention.bound import SiteTensors, bind
from foreword.attention.frame import Frame
from foreword.backbone import Backbone
from foreword.prefix import Positions, Prefix, WindowPolicy
from tests.oracle.explicit import explicit_gradients
from tests.oracle.families import LENGTH, VOCABULARY, Family, attention_of
from tests.oracle.reference import gradients_through_cache, in_context, nll

EXACT = 1e-5
MOVED = 1e-3
NEW_TOKENS = 6
ROWS = (19, 24, 21)
"""Lengths of the three rows: all more than twice the window, none alike."""


@dataclass(frozen=True)
class Case:
    """A family's model with a text, three rows and the text's prefix."""

    family: Family
    backbone: Backbone
    text: Tensor
    rows: tuple[Tensor, ...]
    windows: WindowPolicy

    @property
    def model(self) -> PreTrainedModel:
        """The transformers model."""
        return self.backbone.model

    @property
    def visible(self) -> bool:
        """Whether windows leave the prefix alone."""
        return self.windows == "visible"

    def prefix(self, positions: Positions | None = None) -> Prefix:
        """The text's own keys and values."""
        captured = self.backbone.capture(self.text.tolist(), positions)
        return captured.with_meta(windows=self.windows)

    def references(self) -> list[Tensor]:
        """Per row the logits (T, V) with the text in context."""
        return [
            in_context(self.family, self.model, self.text, row, visible=self.visible)
            for row in self.rows
        ]


def case(family: Family, windows: WindowPolicy = "visible", seed: int = 0) -> Case:
    """A family's case, the same for the same seed."""
    model = family.build(attention_of(family), seed)
    generator = torch.Generator().manual_seed(seed + 1)

    def tokens(count: int) -> Tensor:
        return torch.randint(3, VOCABULARY, (count,), generator=generator)

    return Case(family, Backbone(model), tokens(LENGTH), tuple(tokens(n) for n in ROWS), windows)


def padded(rows: tuple[Tensor, ...], side: str) -> tuple[Tensor, Tensor]:
    """Rows as one batch: ids (B, T) and mask (B, T), padded on the named side."""
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        place = slice(longest - len(row), longest) if side == "left" else slice(0, len(row))
        ids[index, place] = row
        mask[index, place] = 1
    return ids, mask


def difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """Largest difference over rows, relative to max(1, largest expected)."""
    largest = max(1.0, *(float(e.abs().max()) for e in expected))
    pairs = zip(found, expected, strict=True)
    return max(float((f - e).abs().max()) for f, e in pairs) / largest


Prefixes = Prefix | Sequence[Prefix | None] | None


def forward(case: Case, prefix: Prefixes, side: str, shift: int = 0) -> list[Tensor]:
    """Per row the logits (T, V) of one padded batch under the prefix, or each row's own."""
    ids, mask = padded(case.rows, side)
    inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
    if shift:
        inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0) + shift
    with case.backbone.attached(prefix), torch.no_grad():
        logits = case.model(**inputs).logits
    return [logits[index][mask[index].bool()] for index in range(len(case.rows))]


def forward_error(case: Case, side: str, positions: Positions | None = None) -> float:
    """The prefixed batch against each row alone with the text in context."""
    return difference(forward(case, case.prefix(positions), side), case.references())


def rows_error(case: Case) -> float:
    """A batch with a prefix, none, and a shorter prefix against each row alone in its own context."""
    texts = (case.text, case.text[:0], case.text[:-2])
    own = [
        case.backbone.capture(text.tolist()).with_meta(windows=case.windows) if len(text) else None
        for text in texts
    ]
    expected = [
        in_context(case.family, case.model, text, row, visible=case.visible)
        for text, row in zip(texts, case.rows, strict=True)
    ]
    return difference(forward(case, own, "left"), expected)


def generation_error(case: Case, *, use_cache: bool) -> float:
    """Logits of every greedy step, prefixed and batched, against a full reference forward."""
    ids, mask = padded(case.rows, "left")
    with case.backbone.attached(case.prefix()), warnings.catch_warnings():
        out = case.model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            use_cache=use_cache,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
    new = out.sequences[:, ids.shape[1] :]
    found, expected = [], []
    for index, row in enumerate(case.rows):
        whole = torch.cat([row, new[index]])
        logits = in_context(case.family, case.model, case.text, whole, visible=case.visible)
        expected.append(logits[len(row) - 1 : -1])
        found.append(torch.stack([step[index] for step in out.logits]))
    return difference(found, expected)


def checkpoint_activations(model: PreTrainedModel, *, enable: bool) -> None:
    """Switch gradient checkpointing, which transformers 5.23 renamed."""
    verb = "enable" if enable else "disable"
    new = getattr(model, f"activation_checkpointing_{verb}", None)
    (new or getattr(model, f"gradient_checkpointing_{verb}"))()


def gradient_error(case: Case, *, checkpointing: bool = False) -> float:
    """Gradient of a row's NLL in keys and values, against `past_key_values` of the same tensors.

    Relative to the largest gradient of its tensor.
    """
    prefix, row = case.prefix(), case.rows[0]
    keys, values = list(prefix.keys), list(prefix.values)
    first = prefix.length if prefix.meta.positions == "offset" else 0
    if case.family.gradients == "explicit" or case.family.recurrent:
        loss, expected = explicit_gradients(
            case.model, case.backbone.sites, keys, values, row, visible=case.visible
        )
    else:
        loss, expected = gradients_through_cache(
            case.family, case.model, keys, values, row, first_position=first, visible=case.visible
        )
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (*keys, *values)]
    half = len(keys)
    live = Prefix(prefix.sites, tuple(leaves[:half]), tuple(leaves[half:]), prefix.meta)
    bound = bind(live, case.backbone.sites, live=True)
    if checkpointing:
        checkpoint_activations(case.model, enable=True)
        case.model.train()
    with case.backbone.attached(None) as attachment:
        with attachment.using(bound):
            logits = case.model(input_ids=row[None], use_cache=False).logits
        own = nll(logits[0], row)
        found = torch.autograd.grad(own, leaves)
    if checkpointing:
        checkpoint_activations(case.model, enable=False)
        case.model.eval()
    assert abs(float(own.detach() - loss)) <= 1e-5 * max(1.0, abs(float(loss)))
    worst = 0.0
    for ours, theirs in zip(found, expected, strict=True):
        scale = float(theirs.abs().max())
        assert scale > 0, "the reference's gradient is zero, so the comparison says nothing"
        worst = max(worst, float((ours - theirs).abs().max()) / max(scale, 1.0))
    return worst


def negative_controls(case: Case) -> dict[str, float]:
    """How far each deliberate mistake moves the logits: every one must be seen by the oracle."""
    right, expected = case.prefix(), case.references()
    keys, values = list(right.keys), list(right.values)
    swapped_keys, swapped_values = swapped(keys), swapped(values)
    shorter = Prefix(
        right.sites,
        tuple(k[:, 1:] for k in keys),
        tuple(v[:, 1:] for v in values),
        right.meta,
    )
    shift = {"offset": 1, "free": 0}[right.meta.positions]
    mistakes = {
        "position off by one": _shifted(case, right),
        "layers swapped": forward(
            case, Prefix(right.sites, swapped_keys, swapped_values, right.meta), "left"
        ),
        "one column masked": forward(case, shorter, "left", shift=shift),
        "prefix dropped": forward(case, None, "left", shift=right.length if shift else 0),
    }
    return {
        name: max(float((f - e).abs().max()) for f, e in zip(found, expected, strict=True))
        for name, found in mistakes.items()
    }


def swapped(tensors: list[Tensor]) -> tuple[Tensor, ...]:
    """Tensors by site, those of the first two sites of one geometry exchanged."""
    shapes = [tensor.shape for tensor in tensors]
    first, second = next(
        (i, j) for j in range(len(shapes)) for i in range(j) if shapes[i] == shapes[j]
    )
    swapped = list(tensors)
    swapped[first], swapped[second] = tensors[second], tensors[first]
    return tuple(swapped)


def _shifted(case: Case, prefix: Prefix) -> list[Tensor]:
    """Logits under a prefix that stands one position off."""
    if not case.family.alibi:
        return forward(case, prefix, "left", shift=1)
    places = Frame.places

    def nearer(frame: Frame, site: SiteTensors, device: torch.device) -> Tensor:
        return places(frame, site, device) + 1

    with mock.patch.object(Frame, "places", nearer):
        return forward(case, prefix, "left")
