"""From prefixes to what a forward pass attends to: `Bound`.

Shapes: R rows, H key/value heads, P length of the longest row, D key or value dimension.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from foreword.errors import MismatchError, RowsError
from foreword.frame import Bound, SiteTensors
from foreword.prefix import Prefix, Site, Softmax

_live = itertools.count()


def bind(
    prefix: Prefix,
    sites: Sequence[Site],
    *,
    live: bool = False,
    identity: str | None = None,
    kept: Sequence[bool] | None = None,
) -> Bound:
    """One prefix for every row of the batch.

    Args:
        prefix: The prefix; each of its sites is one of the backbone's, by label.
        sites: The backbone's sites.
        live: Whether the prefix is in training: its tensors carry gradients, and its identity is
            made up, because hashing it at every step would cost more than the step.
        identity: Name of the prefix's present value where the caller keeps count; else see `live`.
        kept: Which of the P virtual tokens are seen; all by default.

    Raises:
        MismatchError: The backbone has no site of one of the prefix's labels.
    """
    if identity is None:
        identity = f"live-{next(_live)}" if live else prefix.digest
    tensors = {
        site.name: SiteTensors(key[None], value[None], (prefix.length,), site.window)
        for site, key, value in zip(_placed(prefix, sites), prefix.keys, prefix.values, strict=True)
    }
    joint = prefix.meta.softmax == "joint"
    return Bound(
        sites=tensors if joint else {},
        rows=None,
        offset_R=(_offset(prefix),),
        windowed_R=(_windowed(prefix),),
        identity=identity,
        own={} if joint else tensors,
        kept_P=None if kept is None else tuple(kept),
    )


def bind_rows(prefixes: Sequence[Prefix | None], sites: Sequence[Site]) -> Bound:
    """A prefix of its own, or none, for each row; they may be on different sites.

    Raises:
        RowsError: No row has a prefix.
        MismatchError: The backbone has no site of one of the prefixes' labels.
    """
    if all(prefix is None for prefix in prefixes):
        raise RowsError("expected a prefix for at least one row; every row has None")
    digests = ",".join("" if p is None else p.digest for p in prefixes)
    return Bound(
        sites=_rows_at(prefixes, sites, "joint"),
        rows=len(prefixes),
        offset_R=tuple(0 if p is None else _offset(p) for p in prefixes),
        windowed_R=tuple(p is not None and _windowed(p) for p in prefixes),
        identity=hashlib.sha256(digests.encode()).hexdigest(),
        own=_rows_at(prefixes, sites, "own"),
    )


def _rows_at(
    prefixes: Sequence[Prefix | None], sites: Sequence[Site], softmax: Softmax
) -> dict[str, SiteTensors]:
    """The rows' tensors by module name, of the prefixes with this softmax, where there are any."""
    rows: dict[str, list[tuple[Tensor, Tensor] | None]] = {}
    for row, prefix in enumerate(prefixes):
        if prefix is None or prefix.meta.softmax != softmax:
            continue
        pairs = zip(prefix.keys, prefix.values, strict=True)
        for site, pair in zip(_placed(prefix, sites), pairs, strict=True):
            rows.setdefault(site.name, [None] * len(prefixes))[row] = pair
    windows = {site.name: site.window for site in sites}
    return {name: _site_rows(pairs, windows[name]) for name, pairs in rows.items()}


def _site_rows(pairs: Sequence[tuple[Tensor, Tensor] | None], window: int | None) -> SiteTensors:
    keys = [None if pair is None else pair[0] for pair in pairs]
    values = [None if pair is None else pair[1] for pair in pairs]
    lengths = tuple(0 if key is None else int(key.shape[1]) for key in keys)
    return SiteTensors(_stack(keys), _stack(values), lengths, window)


def _placed(prefix: Prefix, sites: Sequence[Site]) -> list[Site]:
    """The backbone's site for each of the prefix's, found by label."""
    by_label = {site.label: site for site in sites}
    unknown = [site.label for site in prefix.sites if site.label not in by_label]
    if unknown:
        raise MismatchError(
            f"the prefix has a site {unknown[0]}, which the backbone with its {len(sites)} sites has "
            f"not; it was made on {prefix.meta.backbone!r} ({prefix.meta.family})"
        )
    return [by_label[site.label] for site in prefix.sites]


def _offset(prefix: Prefix) -> int:
    return prefix.length if prefix.meta.positions == "offset" else 0


def _windowed(prefix: Prefix) -> bool:
    return prefix.meta.windows == "windowed"


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
