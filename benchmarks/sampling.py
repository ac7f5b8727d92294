"""Texts drawn from one prefix, or from several mixed by their log-probabilities.

Shapes: K branches, N texts, T tokens so far, V vocabulary, R different prefixes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from foreword.attention.bound import Bound, Dial, bound_to
from foreword.backbone import Backbone
from foreword.data import left_padded
from foreword.data.collate import padding_of
from foreword.data.written import Written
from foreword.prefix import Prefix

BATCH = 288
"""Texts that are written at once, in every branch."""
LAST = torch.tensor([-1])
"""Place whose logits are wanted. A number would slice the hidden states, and torch multiplies a slice
by a copy of the frozen output layer for each row."""


@dataclass(frozen=True)
class Branch:
    """One of the models whose log-probabilities are summed.

    Attributes:
        prefix: Its prefix, or one for each text; None: the frozen model alone.
        weight: What its log-probabilities are multiplied by.
        prompt: Token ids that it reads instead of each text's own prompt.
    """

    prefix: Prefix | Sequence[Prefix] | None
    weight: float = 1.0
    prompt: tuple[int, ...] | None = None


def drawn(
    backbone: Backbone,
    branches: Sequence[Branch],
    prompts: Sequence[Sequence[int]],
    written: Written,
    *,
    seed: int,
    most: int,
    greedy: bool = False,
) -> list[str]:
    """A text for each prompt, drawn at temperature 1 from ``softmax(sum of weight * log p)``.

    Args:
        backbone: The backbone.
        branches: What is mixed. Those with a weight of 0 are not run.
        prompts: Token ids.
        written: How texts end.
        seed: Of the draws. The same texts come from the same branches and prompts.
        most: Most tokens of a text.
        greedy: Take the likeliest token instead.
    """
    running = [branch for branch in branches if branch.weight != 0]
    generator = torch.Generator().manual_seed(seed)
    texts: list[str] = []
    for first in range(0, len(prompts), BATCH):
        part = slice(first, first + BATCH)
        own = [_part(branch, part) for branch in running]
        ends = written.ends
        ids = _batch(backbone, own, prompts[part], ends, most, None if greedy else generator)
        texts += [written.text(row) for row in ids]
    return texts


def _part(branch: Branch, part: slice) -> Branch:
    """The branch of some of the texts."""
    own = branch.prefix
    return branch if own is None or isinstance(own, Prefix) else replace(branch, prefix=own[part])


@torch.inference_mode()
def _batch(
    backbone: Backbone,
    branches: Sequence[Branch],
    prompts: Sequence[Sequence[int]],
    ends: frozenset[int],
    most: int,
    generator: torch.Generator | None,
) -> list[list[int]]:
    """Token ids of a text for each of N prompts; without a generator the likeliest."""
    assert backbone.tokenizer is not None
    pad = padding_of(backbone.tokenizer, backbone.vocabulary)
    read = [branch.prompt or prompt for branch in branches for prompt in prompts]
    given = left_padded(read, pad)
    ids, mask = given["input_ids"], given["attention_mask"]
    weights = [branch.weight for branch in branches]
    ending = torch.tensor(sorted(ends))
    made: list[list[int]] = [[] for _ in prompts]
    place_N = torch.arange(len(prompts))  # of the texts that go on
    cache = None
    bound, row_of = _bound(backbone, branches, len(prompts))
    with backbone.inferring(None) as attachment:
        for _ in range(most):
            with attachment.using(_for_rows(bound, row_of)):
                out = backbone.model(
                    input_ids=ids,
                    attention_mask=mask,
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=LAST,
                )
            cache = out.past_key_values
            token_N = _chosen(_mixed(out.logits[:, -1], weights), generator)
            for place, token in zip(place_N.tolist(), token_N.tolist(), strict=True):
                made[place].append(token)
            going_N = ~torch.isin(token_N, ending)
            if not bool(going_N.any()):
                break
            going = going_N.repeat(len(branches)).nonzero()[:, 0]
            cache.batch_select_indices(going)
            place_N = place_N[going_N]
            row_of = [row_of[row] for row in going.tolist()]
            ids = token_N[going_N].repeat(len(branches))[:, None]
            mask = mask[going]
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    return made


def _bound(
    backbone: Backbone, branches: Sequence[Branch], texts: int
) -> tuple[Bound | None, list[int]]:
    """What texts in each branch attend to, and which of the R different prefixes each of them has."""
    every: list[Prefix | None] = []
    for branch in branches:
        own = branch.prefix
        every += [own] * texts if own is None or isinstance(own, Prefix) else own
    different = list({id(prefix): prefix for prefix in every}.values())
    places = {id(prefix): row for row, prefix in enumerate(different)}
    row_of = [places[id(prefix)] for prefix in every]
    if different == [None]:
        return None, row_of
    alone = different[0] if len(different) == 1 else None
    return bound_to(alone or different, backbone.sites), row_of


def _for_rows(bound: Bound | None, row_of: Sequence[int]) -> Bound | None:
    """The same for rows of a batch that have these prefixes."""
    if bound is None or bound.rows is None:
        return bound
    dials = tuple(
        Dial(
            dial.value_R[list(row_of)],
            tuple(dial.columns_R[row] for row in row_of),
            tuple(dial.copied_R[row] for row in row_of),
        )
        for dial in bound.dials
    )
    return replace(bound, row_of_B=tuple(row_of), dials=dials)


def _mixed(logits: Tensor, weights: Sequence[float]) -> Tensor:
    """The weighted sum (N, V) of the log-probabilities of logits (K * N, V)."""
    log_p_KNV = logits.float().log_softmax(-1).unflatten(0, (len(weights), -1))
    mixed_NV = weights[0] * log_p_KNV[0]
    for weight, log_p_NV in zip(weights[1:], log_p_KNV[1:], strict=True):
        mixed_NV += weight * log_p_NV
    return mixed_NV


def _chosen(logits_NV: Tensor, generator: torch.Generator | None) -> Tensor:
    """A token for each row: the first at which the sum of the probabilities passes a draw."""
    if generator is None:
        return logits_NV.argmax(-1)
    total_NV = logits_NV.softmax(-1).cumsum(-1)
    drawn_N1 = torch.rand(len(logits_NV), 1, generator=generator) * total_NV[:, -1:]
    return torch.searchsorted(total_NV, drawn_N1, right=True)[:, 0].clamp(
        max=logits_NV.shape[1] - 1
    )
