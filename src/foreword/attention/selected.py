"""Forward passes under a prefix with control, of which each row selects some pieces.

Shapes: B rows of the batch, R different selections among them, A most pieces that one has, P length of
the longest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import Tensor

from foreword.arithmetic.selection import part_at, places_at
from foreword.attention.bound import Bound, Part, bind_rows, live_identity
from foreword.prefix import Prefix, Site

Selection = tuple[int, ...]
"""Numbers of the pieces that a row selects beside the shared one, rising."""


def selections(pieces_BA: Tensor | None, rows: int) -> list[Selection]:
    """What each row of a batch selects, as `Collator` writes it: (B, A) int64, filled up with 0.

    Args:
        pieces_BA: Numbers of pieces, or None where no row selects any.
        rows: B.
    """
    if pieces_BA is None:
        return [()] * rows
    return [tuple(filter(None, numbers)) for numbers in pieces_BA.tolist()]


def bind_selected(
    prefix: Prefix,
    sites: Sequence[Site],
    chosen_B: Sequence[Selection],
    *,
    live: bool = False,
    kept: Sequence[bool] | None = None,
) -> Bound:
    """For each row of a batch what it selects of a prefix with control; equal selections are one.

    Args:
        prefix: The prefix.
        sites: The backbone's sites.
        chosen_B: The selection of each row.
        live: Whether the prefix is in training; see `bind`.
        kept: Which of all virtual tokens of the prefix are seen; all by default.

    Raises:
        MismatchError: The backbone has no site of one of the prefix's labels.
    """
    distinct_R = sorted(set(chosen_B))
    parts_R = [part_at(prefix, chosen) for chosen in distinct_R]
    identity = live_identity() if live else _identity(prefix, chosen_B)
    bound = bind_rows(parts_R, sites, identity=identity)
    rows = {chosen: row for row, chosen in enumerate(distinct_R)}
    bound = bound.chosen([rows[chosen] for chosen in chosen_B], identity)
    if kept is None:
        return bound
    kept_R = [
        [flag for a, b in places_at(prefix.meta, one) for flag in kept[a:b]] for one in distinct_R
    ]
    return dataclasses.replace(bound, parts=tuple(_seen(part, kept_R) for part in bound.parts))


def bind_each(prefix: Prefix, sites: Sequence[Site], chosen_B: Sequence[Selection]) -> Bound:
    """As `bind_selected`, where a row of the batch may stand for several, as `generate` expands them."""
    parts = {chosen: part_at(prefix, chosen) for chosen in set(chosen_B)}
    each_B = [parts[chosen] for chosen in chosen_B]
    return bind_rows(each_B, sites, identity=_identity(prefix, chosen_B))


def _identity(prefix: Prefix, chosen_B: Sequence[Selection]) -> str:
    """The digest of a prefix, and what rows select of it."""
    return f"{prefix.digest}-{list(chosen_B)}"


def _seen(part: Part, kept_R: Sequence[Sequence[bool]]) -> Part:
    """A part of which only some virtual tokens are seen; what fills up shorter rows is none."""
    width = max(map(len, kept_R))
    kept_RP = tuple((*kept, *[False] * (width - len(kept))) for kept in kept_R)
    sites = {name: dataclasses.replace(site, kept_RP=kept_RP) for name, site in part.sites.items()}
    return dataclasses.replace(part, sites=sites)
