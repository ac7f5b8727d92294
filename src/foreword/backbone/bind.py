"""From prefixes to what a forward pass attends to: `Bound`.

Shapes: R rows, H key/value heads, P length of the longest row, D key or value dimension.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from foreword.attention import Bound, SiteTensors
from foreword.errors import RowsError
from foreword.prefix import Prefix, Site

_live = itertools.count()


def bind(
    prefix: Prefix, sites: Sequence[Site], *, live: bool = False, identity: str | None = None
) -> Bound:
    """One prefix for every row of the batch.

    Args:
        prefix: The prefix, of the backbone's geometry.
        sites: The backbone's sites; the prefix's tensors go to them in order.
        live: Whether the prefix is in training: its tensors carry gradients, and its identity is
            made up, because hashing it at every step would cost more than the step.
        identity: Name of the prefix's present value where the caller keeps count; else see `live`.
    """
    if identity is None:
        identity = f"live-{next(_live)}" if live else prefix.digest
    offset = prefix.length if prefix.meta.positions == "offset" else 0
    tensors = {
        site.name: SiteTensors(key[None], value[None], site.window)
        for site, key, value in zip(sites, prefix.keys, prefix.values, strict=True)
    }
    windowed = prefix.meta.windows == "windowed"
    return Bound(tensors, None, (offset,), (prefix.length,), (windowed,), identity)


def bind_rows(prefixes: Sequence[Prefix | None], sites: Sequence[Site]) -> Bound:
    """A prefix of its own, or none, for each row.

    Raises:
        RowsError: No row has a prefix.
    """
    present = [prefix for prefix in prefixes if prefix is not None]
    if not present:
        raise RowsError("expected a prefix for at least one row; every row has None")
    lengths = tuple(0 if p is None else p.length for p in prefixes)
    offsets = tuple(
        p.length if p is not None and p.meta.positions == "offset" else 0 for p in prefixes
    )
    windowed = tuple(p is not None and p.meta.windows == "windowed" for p in prefixes)
    tensors = {}
    for index, site in enumerate(sites):
        keys = [None if p is None else p.keys[index] for p in prefixes]
        values = [None if p is None else p.values[index] for p in prefixes]
        tensors[site.name] = SiteTensors(_stack(keys), _stack(values), site.window)
    digests = ",".join("" if p is None else p.digest for p in prefixes)
    identity = hashlib.sha256(digests.encode()).hexdigest()
    return Bound(tensors, len(prefixes), offsets, lengths, windowed, identity)


def _stack(rows: Sequence[Tensor | None]) -> Tensor:
    """Rows (H, P_r, D) of different length as one (R, H, P, D), zeros where a row is shorter."""
    present = [row for row in rows if row is not None]
    heads, _, dim = present[0].shape
    width = max(row.shape[1] for row in present)
    out = present[0].new_zeros(len(rows), heads, width, dim, dtype=torch.float32)
    for index, row in enumerate(rows):
        if row is not None:
            out[index, :, : row.shape[1]] = row
    return out
