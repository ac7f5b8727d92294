"""Forward passes of the engine: several rows, each with its own prefix, place and length.

The transformers model runs as it is. It is given new tokens, their positions, a mask over the slots'
columns and the slot cache; the prefixes join at its attention calls.

Shapes: B rows, Q new tokens of the longest row, K columns, V vocabulary, N wanted positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foreword.backbone import Backbone
from foreword.backbone.attachment import Attachment
from foreword.backbone.head import head_sees
from foreword.backbone.signature import parameters_of
from foreword.engine.bank import Bank
from foreword.engine.cache import SlotCache, Step, visible
from foreword.errors import UnsupportedModel, first_line
from foreword.frame import as_additive
from foreword.prefix import Prefix

KINDS = ("full_attention", "sliding_attention")
"""Kinds of layers whose masks are known."""

PROBE = (5, 7, 11, 13, 17)
"""Tokens that the proof runs on."""

EXACT, ROUNDED = 1e-4, 2**-4
"""Largest difference allowed in the proof, relative to the largest logit, in float32 and else."""


@dataclass(frozen=True)
class Row:
    """One row of a pass.

    Attributes:
        slot: Where its keys and values are.
        start: Tokens that it has there.
        tokens: New tokens.
        prefix: What stands in front of it.
        wanted: How many of the last new tokens' logits are asked for.
    """

    slot: int
    start: int
    tokens: tuple[int, ...]
    prefix: Prefix | None
    wanted: int = 1


class Runner:
    """Runs rows on a backbone that is attached for as long as the runner is open.

    Args:
        backbone: The backbone, which nothing else may use meanwhile.
        attachment: Its attachment.
        slots: Rows that the cache has room for.

    Raises:
        UnsupportedModel: The model keeps more than keys and values of its attention calls.
    """

    def __init__(self, backbone: Backbone, attachment: Attachment, slots: int) -> None:
        self.backbone = backbone
        self.attachment = attachment
        self.model = backbone.model
        self.device = backbone.device
        config = self.model.config.get_text_config()
        self.kinds = tuple(dict.fromkeys(getattr(config, "layer_types", None) or ()))
        if "position_ids" not in parameters_of(type(self.model)):
            raise self._unsupported("it takes no position_ids")
        if other := [kind for kind in self.kinds if kind not in KINDS]:
            raise self._unsupported(f"it has {other[0]} layers")
        self.cache = SlotCache(int(config.num_hidden_layers), slots)
        self.bank = Bank(backbone.sites)
        self.is_eager = config._attn_implementation == "foreword_eager"
        windows = {site.window for site in backbone.sites if site.window is not None}
        self.window = max(windows, default=None)
        with torch.inference_mode():
            self._prove()

    def _prove(self) -> None:
        """See that rows of different length give the logits that each gives alone.

        Raises:
            UnsupportedModel: They do not, or the model cannot be run that way.
        """
        rows = [Row(0, 0, PROBE, None), Row(1, 0, PROBE[2:], None)]
        try:
            self.run(rows)
            found = self.run([Row(one.slot, len(one.tokens), PROBE[:1], None) for one in rows])
        except Exception as error:
            raise self._unsupported(first_line(error)) from error
        for row, logits_1V in zip(rows, found, strict=True):
            ids = torch.tensor([[*row.tokens, PROBE[0]]], device=self.device)
            with self.attachment.using(None):
                alone_V = self.model(input_ids=ids, use_cache=False).logits[0, -1].float()
            largest = max(1.0, float(alone_V.abs().max()))
            moved = float((logits_1V[0] - alone_V).abs().max()) / largest
            if not moved <= (EXACT if self.model.dtype == torch.float32 else ROUNDED):
                raise self._unsupported(
                    f"a row's logits move by {moved:.1e} of the largest beside another row"
                )

    def _unsupported(self, why: str) -> UnsupportedModel:
        kind = type(self.model).__name__
        return UnsupportedModel(
            f"family {self.backbone.family!r} ({kind}) cannot be served in mixed batches: {why}"
        )

    def run(self, rows: Sequence[Row]) -> list[Tensor]:
        """Logits float32 (wanted, V) of each row, of its last new tokens."""
        queries = max(len(row.tokens) for row in rows)
        step = Step(tuple(r.slot for r in rows), tuple(r.start for r in rows), queries)
        self.cache.at(step)
        ids_BQ = torch.zeros(len(rows), queries, dtype=torch.long)
        wanted_BQ = torch.zeros(len(rows), queries, dtype=torch.bool)
        for index, row in enumerate(rows):
            ids_BQ[index, : len(row.tokens)] = torch.tensor(row.tokens)
            wanted_BQ[index, len(row.tokens) - row.wanted : len(row.tokens)] = True
        start_B = torch.tensor(step.starts)
        positions_BQ = start_B[:, None] + torch.arange(queries)
        bound = self.bank.bound([row.prefix for row in rows])
        wanted_BQ = wanted_BQ.to(self.device)
        with self.attachment.using(bound), head_sees(self.model, wanted_BQ) as narrowed:
            logits = self.model(
                input_ids=ids_BQ.to(self.device),
                attention_mask=self._masks(step),
                position_ids=positions_BQ.to(self.device),
                past_key_values=self.cache,
                use_cache=True,
            ).logits
        logits_NV = logits[0] if narrowed else logits[wanted_BQ]
        return list(logits_NV.float().split([row.wanted for row in rows]))

    def _masks(self, step: Step) -> Any:
        """The mask, or one for each kind of layer where the model has several."""
        full = self._mask(step, None)
        if not self.kinds or self.kinds == ("full_attention",):
            return full if self.window is None else self._mask(step, self.window)
        sliding = self._mask(step, self.window)
        return {kind: full if kind == "full_attention" else sliding for kind in self.kinds}

    def _mask(self, step: Step, window: int | None) -> Tensor:
        seen = visible(step, window, self.device)
        return as_additive(seen, self.model.dtype) if self.is_eager else seen
