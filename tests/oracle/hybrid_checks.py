"""The oracle's measurements where a text in context is no reference, for the families of `hybrids`.

Each row alone, uncached, with attention written out, is the reference for batches, padding and
caches; what the base model does with padding is its own affair, and is measured beside it.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from foreword.prefix import Prefix
from tests.oracle.checks import NEW_TOKENS, Case, difference, forward, padded, swapped
from tests.oracle.explicit import explicit_logits


def references(case: Case, prefix: Prefix | None, rows: tuple[Tensor, ...]) -> list[Tensor]:
    """Per row, alone, the logits (T, V) with the prefix's tensors written into attention."""
    keys, values = ((), ()) if prefix is None else (prefix.keys, prefix.values)
    sites = () if prefix is None else prefix.sites
    with torch.no_grad():
        return [explicit_logits(case.model, sites, keys, values, row) for row in rows]


def batch_error(case: Case, side: str) -> float:
    """A padded batch under one prefix against each row alone."""
    prefix = case.prefix()
    return difference(forward(case, prefix, side), references(case, prefix, case.rows))


def own_rows_error(case: Case) -> float:
    """A padded batch with a prefix, none, and a shorter prefix, against each row alone."""
    own = (case.prefix(), None, case.backbone.capture(case.text[:-2].tolist()))
    expected = [
        references(case, prefix, (row,))[0] for prefix, row in zip(own, case.rows, strict=True)
    ]
    return difference(forward(case, own, "left"), expected)


def steps_error(case: Case, *, use_cache: bool) -> float:
    """Logits of every greedy step, batched, against each row alone."""
    prefix = case.prefix()
    ids, mask = padded(case.rows, "left")
    with case.backbone.attached(prefix), warnings.catch_warnings():
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
    whole = tuple(torch.cat([row, new[index]]) for index, row in enumerate(case.rows))
    logits = references(case, prefix, whole)
    expected = [one[len(row) - 1 : -1] for one, row in zip(logits, case.rows, strict=True)]
    found = [torch.stack([step[index] for step in out.logits]) for index in range(len(whole))]
    return difference(found, expected)


def controls(case: Case) -> dict[str, float]:
    """How far each deliberate mistake moves the logits."""
    right = case.prefix()
    expected = references(case, right, case.rows)
    keys, values = list(right.keys), list(right.values)
    exchanged = Prefix(right.sites, swapped(keys), swapped(values), right.meta)
    shorter = Prefix(
        right.sites,
        tuple(key[:, 1:] for key in keys),
        tuple(value[:, 1:] for value in values),
        right.meta,
    )
    mistakes = {
        "layers swapped": forward(case, exchanged, "left"),
        "one column masked": forward(case, shorter, "left"),
        "prefix dropped": forward(case, None, "left"),
    }
    if not case.family.positionless:
        mistakes["position off by one"] = forward(case, right, "left", shift=1)
    return {
        name: max(float((f - e).abs().max()) for f, e in zip(found, expected, strict=True))
        for name, found in mistakes.items()
    }
