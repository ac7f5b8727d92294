"""Rows of different length in one forward pass without padding.

The model sees the new tokens of all rows one after the other, as one row of T tokens, so that what it
does token by token (all of it but attention) runs once, and not over the padding of rows. At its
attention calls the tokens part into segments, and each row attends to its own keys.

Shapes: T tokens of the pass; for one segment B rows, Q new tokens of the longest one, K columns, N
tokens; S slots of the shelf that its rows are on, R room of each; H heads, D key dimension, E value
dimension.

Source of running all rows' tokens as one: Yu et al., "Orca", OSDI 2022, section 3.2 (selective
batching).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from foreword.attention.frame import Frame


@dataclass(frozen=True)
class Segment:
    """Some of a pass's rows, which attention computes together.

    Attributes:
        frame: Their own part of the pass: their prefixes and positions.
        tokens: Which of the T tokens they are, where each row has one; else for each of the B * Q
            places the token that stands there (any, where a row is shorter than Q), int64.
        real: Of the B * Q places those with a token, int64, or None where all have.
        queries: New tokens of the longest row or more, Q.
        shelf: Gives, for the keys or values that the model hands to attention, those of all slots of
            the rows' shelf, (S, H, R, D).
        slots: Which of them are the rows'.
        columns: Columns that are read of each, K.
        masks: By module name the additive mask (B, 1, Q, K).
    """

    frame: Frame
    tokens: slice | Tensor
    real: Tensor | None
    queries: int
    shelf: Callable[[Tensor], Tensor]
    slots: slice | Tensor
    columns: int
    masks: Mapping[str, Tensor]

    def split(self, query_1HTD: Tensor) -> Tensor:
        """Queries (1, H, T, D) of the pass as (B, H, Q, D) of the segment."""
        query_NHD = query_1HTD[0].transpose(0, 1)[self.tokens]
        return query_NHD.view(-1, self.queries, *query_NHD.shape[1:]).transpose(1, 2)

    def held(self, states: Tensor) -> Tensor:
        """Keys or values of the rows, (B, H, K, D), by what the model hands to attention."""
        return self.shelf(states)[self.slots][:, :, : self.columns]

    def joined(self, out_BQHE: Tensor) -> Tensor:
        """Outputs (B, Q, H, E) of the segment as those of its tokens, (N, H, E)."""
        out_NHE = out_BQHE.flatten(0, 1)
        return out_NHE if self.real is None else out_NHE.index_select(0, self.real)
