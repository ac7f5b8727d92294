"""Mixtures beside transformers: `generate` runs the leading branch, a logits processor the others.

Shapes: B rows of a batch, texts or beams of one input beside each other; T columns of the prompts; N new
tokens; V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)

from foreword.attention.attachment import Attachment
from foreword.attention.bound import Bound, bound_to
from foreword.backbone import Backbone
from foreword.backbone.kinds.base import IGNORED, with_positions
from foreword.data import Encoded, Encoder, Task, left_padded
from foreword.data.collate import right_padded
from foreword.mixture import Mixture, combined
from foreword.options import GenerateOptions
from foreword.prefix import Prefix
from foreword.prompts import encoder_for, refuse_head, under_bos


def check_branches(backbone: Backbone, mixture: Mixture, *, strict: bool = False) -> None:
    """Check that every prefix of a mixture writes text and fits a backbone.

    Raises:
        MismatchError: One does not, or carries a head.
    """
    for _, prefix in mixture.parts:
        refuse_head(prefix)
        backbone.check(prefix, strict=strict)


def leading(given: Prefix | Mixture | None) -> Prefix | None:
    """What tells how texts begin and end: the prefix, or a mixture's leading one."""
    return given.prefix if isinstance(given, Mixture) else given


def encoder_under(
    backbone: Backbone,
    given: Prefix | Mixture | None,
    task: Task,
    like: Prefix | Mixture | None = None,
) -> Encoder:
    """As `encoder_for`; under a mixture all branches have room for what it encodes."""
    encoder = encoder_for(backbone, leading(given), task, leading(like))
    mixture = like if given is None else given
    if isinstance(mixture, Mixture):
        own = encoder.bos
        taken = []
        for branch in mixture.branches:
            bos = backbone.bos if branch.under is None else branch.under.meta.bos
            length = 0 if branch.under is None else branch.under.length
            taken.append(length + (bos == "input" != own))
        context = min(encoder.room.context, backbone.context - max(taken))
        encoder.room = replace(encoder.room, context=context)
    return encoder


def rows_under(
    backbone: Backbone, rows: Sequence[Encoded], mixture: Mixture
) -> list[list[Encoded]]:
    """Rows that were encoded for the leading prefix, as each branch is given them, by its BOS."""
    lead = mixture.branches[0].under
    return [
        [_moved(row, under_bos(backbone, row.input_ids, lead, branch.under)) for row in rows]
        for branch in mixture.branches
    ]


def _moved(row: Encoded, ids: list[int]) -> Encoded:
    """A row with a token more or less in front, which is not predicted."""
    added = len(ids) - len(row.input_ids)
    if not added or (added < 0 and row.labels[1] != IGNORED):  # which nothing would stand before
        return row
    labels = [IGNORED, *row.labels] if added > 0 else row.labels[1:]
    return replace(row, input_ids=ids, labels=labels)


def processors(
    backbone: Backbone,
    attachment: Attachment,
    mixture: Mixture,
    prompts: Sequence[Sequence[int]],
    pad: int,
    given: int,
    options: GenerateOptions,
) -> dict[str, Any]:
    """Arguments of transformers' `generate` by which a batch is written under a mixture.

    It must run under the mixture's first branch. Penalties count after the mixing.

    Args:
        backbone: The backbone.
        attachment: Its attachment.
        mixture: The mixture, of at least two branches.
        prompts: Token ids of the batch's inputs, as the leading prefix is given them.
        pad: The padding token.
        given: Columns that every text begins with: those of the prompts, or what a decoder begins with.
        options: How to generate.
    """
    lead, *others = mixture.branches
    beside = [
        _Beside.of(
            backbone,
            attachment,
            branch.under,
            [under_bos(backbone, ids, lead.under, branch.under) for ids in prompts],
            pad,
        )
        for branch in others
    ]
    each: list[LogitsProcessor] = [Mixing(beside, mixture.coefficients, given)]
    if options.repetition_penalty != 1:
        each.append(RepetitionPenaltyLogitsProcessor(float(options.repetition_penalty)))
    if options.no_repeat_ngram_size:
        each.append(NoRepeatNGramLogitsProcessor(options.no_repeat_ngram_size))
    return {
        "logits_processor": LogitsProcessorList(each),
        "repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0,
    }


class Mixing(LogitsProcessor):  # type: ignore[misc]
    """Makes a mixture's log-probabilities of the leading branch's logits and of what the others give.

    Args:
        beside: The other branches.
        coefficients: Of all branches, the leading one's first.
        given: Columns that every text begins with.
    """

    def __init__(
        self, beside: Sequence[_Beside], coefficients: Sequence[float], given: int
    ) -> None:
        self.beside = beside
        self.coefficients = coefficients
        self.given = given

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Log-probabilities (B, V) of ids (B, T + N) and the leading branch's scores (B, V)."""
        own = torch.log_softmax(scores.float(), dim=-1)
        others = (one.logprobs(input_ids, self.given) for one in self.beside)
        return combined((own, *others), self.coefficients).log_softmax(dim=-1)


@dataclass(eq=False)
class _Beside:
    """A branch beside the one that `generate` runs, with a cache of its own.

    Attributes:
        backbone: The backbone.
        attachment: Its attachment.
        bound: What the branch is bound to; None for no prefix.
        inputs: Token ids and mask of the inputs, each once.
        cache: Keys and values of what it has seen; None before the first pass.
        states: What an encoder made of the inputs, a row for each text.
        seen_BN: The new tokens that it has seen.
    """

    backbone: Backbone
    attachment: Attachment
    bound: Bound | None
    inputs: dict[str, Tensor]
    cache: Any = None
    states: Tensor | None = None
    seen_BN: Tensor | None = None

    @classmethod
    def of(
        cls,
        backbone: Backbone,
        attachment: Attachment,
        prefix: Prefix | None,
        prompts: Sequence[Sequence[int]],
        pad: int,
    ) -> _Beside:
        """The branch of a prefix, or of none, for prompts."""
        padded = left_padded if backbone.kind == "decoder" else right_padded
        inputs = {name: t.to(backbone.device) for name, t in padded(prompts, pad).items()}
        bound = None if prefix is None else bound_to(prefix, backbone.sites)
        return cls(backbone, attachment, bound, inputs)

    def logprobs(self, ids: Tensor, given: int) -> Tensor:
        """Log-probabilities (B, V), float32, of the token after ids (B, T + N) that `generate` has.

        Args:
            ids: What `generate` has written so far.
            given: Columns that are not new: those of its prompts, or of a decoder's beginning.
        """
        new_BN = ids[:, given:]
        self._follow(new_BN)
        size = ids.shape[0] // len(self.inputs["input_ids"])
        mask_BT = self.inputs["attention_mask"].repeat_interleave(size, dim=0)
        with self.attachment.using(self.bound), torch.no_grad():
            if self.backbone.kind == "decoder":
                output = self._decoder(new_BN, mask_BT, size)
            else:
                output = self._behind_encoder(ids, mask_BT, size)
        self.cache, self.seen_BN = output.past_key_values, new_BN
        return output.logits[:, -1].float().log_softmax(dim=-1)  # type: ignore[no-any-return]

    def _follow(self, new_BN: Tensor) -> None:
        """Have in each row of the cache what the row has seen: beams change places, split and end."""
        seen = self.seen_BN
        if self.cache is None or seen is None:
            return
        before = new_BN[:, : seen.shape[1]]
        if torch.equal(before, seen):
            return
        rows = torch.arange(len(seen), device=seen.device) * len(self.inputs["input_ids"])
        group = rows // len(seen)
        alike = (before[:, None] == seen[None]).all(dim=-1) & (group[:, None] == group[None])
        if bool(alike.any(dim=-1).all()):
            self.cache.reorder_cache(alike.int().argmax(dim=-1))
        else:
            self.cache = None

    def _decoder(self, new_BN: Tensor, mask_BT: Tensor, size: int) -> Any:
        """A pass over what the cache does not hold."""
        prompt_BT = self.inputs["input_ids"].repeat_interleave(size, dim=0)
        ids = torch.cat([prompt_BT, new_BN], dim=1)
        mask = torch.cat([mask_BT, torch.ones_like(new_BN)], dim=1)
        model = self.backbone.model
        call = with_positions(model, {"input_ids": ids, "attention_mask": mask})
        held = 0 if self.cache is None else int(self.cache.get_seq_length())
        for name in call.keys() - {"attention_mask"}:
            call[name] = call[name][:, held:]
        return model(**call, past_key_values=self.cache, use_cache=True)

    def _behind_encoder(self, ids: Tensor, mask_BT: Tensor, size: int) -> Any:
        """The same behind an encoder, which runs once."""
        model = self.backbone.model
        if self.states is None or len(self.states) != len(ids):
            encoded: Any = model.get_encoder()(**self.inputs)
            self.states = encoded[0].repeat_interleave(size, dim=0)
        held = 0 if self.cache is None else int(self.cache.get_seq_length())
        return model(
            encoder_outputs=(self.states,),
            attention_mask=mask_BT,
            decoder_input_ids=ids[:, held:],
            past_key_values=self.cache,
            use_cache=True,
        )
