"""Texts drawn from one prefix, or from several mixed by their log-probabilities.

Shapes: K branches, N texts, T tokens so far, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from foreword.attention.bound import Bound, Dial, SiteTensors, bound_to
from foreword.backbone import Backbone
from foreword.backbone.output_layer import head_sees_last
from foreword.data import left_padded
from foreword.data.collate import padding_of
from foreword.data.written import Written
from foreword.prefix import Prefix

BATCH = 288
"""Texts that are written at once, in every branch."""


@dataclass(frozen=True)
class Branch:
    """One of the models whose log-probabilities are summed.

    Attributes:
        prefix: Its prefix, or one for each text (`drawn`); None: the frozen model alone.
        weight: What its log-probabilities are multiplied by.
        prompt: Token ids that it reads instead of each text's own prompt.
        bias: Added to the scores of all of its virtual tokens, of one branch alone.
    """

    prefix: Prefix | Sequence[Prefix] | None
    weight: float = 1.0
    prompt: tuple[int, ...] | None = None
    bias: float = 0.0


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


class _Rows:
    """Rows of tokens that a backbone reads, each going on until it is left out."""

    def __init__(self, backbone: Backbone, read: Sequence[Sequence[int]]) -> None:
        assert backbone.tokenizer is not None
        given = left_padded(read, padding_of(backbone.tokenizer, backbone.vocabulary))
        self.model = backbone.model
        self.ids_BT, self.mask_BT = given["input_ids"], given["attention_mask"]
        self.cache: Any = None

    def logits(self) -> Tensor:
        """Of the next token of each row, (B, V); the backbone reads what it has not read yet."""
        with head_sees_last(self.model):
            out = self.model(
                input_ids=self.ids_BT,
                attention_mask=self.mask_BT,
                past_key_values=self.cache,
                use_cache=True,
            )
        self.cache = out.past_key_values
        logits_BV: Tensor = out.logits[:, -1].float()
        return logits_BV

    def go_on(self, rows_B: Tensor, token_B: Tensor) -> None:
        """Only these rows go on, each with its next token."""
        self.cache.batch_select_indices(rows_B)
        self.ids_BT, mask_BT = token_B[:, None], self.mask_BT[rows_B]
        self.mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(mask_BT), 1)], dim=1)


def _part(branch: Branch, part: slice) -> Branch:
    """The branch of some of the texts."""
    own = branch.prefix
    return branch if own is None or isinstance(own, Prefix) else replace(branch, prefix=own[part])


def _different(branches: Sequence[Branch], texts: int) -> tuple[list[Branch], list[int]]:
    """Branches of one prefix each, and which of them each text of each branch has."""
    every: list[Branch] = []
    for branch in branches:
        own = branch.prefix
        if own is None or isinstance(own, Prefix):
            every += [branch] * texts
        else:
            every += [replace(branch, prefix=prefix) for prefix in own]
    places: dict[tuple[int, float], int] = {}
    found: list[Branch] = []
    for branch in every:
        name = (id(branch.prefix), branch.bias)
        if name not in places:
            places[name] = len(found)
            found.append(branch)
    return found, [places[id(branch.prefix), branch.bias] for branch in every]


@torch.inference_mode()
def drawn_each(
    backbone: Backbone,
    branches: Sequence[Branch],
    prompt: Sequence[int],
    written: Written,
    *,
    count: int,
    seed: int,
    most: int,
) -> list[list[str]]:
    """As `drawn`, of each branch alone, whatever its weight: so many texts of each, all in one batch."""
    read = [list(branch.prompt or prompt) for branch in branches for _ in range(count)]
    rows = _Rows(backbone, read)
    draws = [torch.Generator().manual_seed(seed) for _ in branches]
    bound, ending = _bound(backbone, branches), torch.tensor(sorted(written.ends))
    made: list[list[int]] = [[] for _ in read]
    place_N = torch.arange(len(read))  # of the texts that go on
    with backbone.inferring(None) as attachment:
        for _ in range(most):
            of_N = place_N // count
            with attachment.using(_of_rows(bound, of_N.tolist(), len(branches))):
                logits_NV = rows.logits()
            parts = [logits_NV[of_N == which] for which in range(len(branches))]
            chosen = [_chosen(part, draw) for part, draw in zip(parts, draws, strict=True)]
            token_N = torch.cat(chosen)  # rows stand in the order of their branches
            for place, token in zip(place_N.tolist(), token_N.tolist(), strict=True):
                made[place].append(token)
            going = (~torch.isin(token_N, ending)).nonzero()[:, 0]
            if not len(going):
                break
            rows.go_on(going, token_N[going])
            place_N = place_N[going]
    texts = [written.text(row) for row in made]
    return [texts[first : first + count] for first in range(0, len(texts), count)]


def _of_rows(bound: Bound | None, rows: Sequence[int], branches: int) -> Bound | None:
    """The same for a batch whose rows are of these branches, with their strengths."""
    if bound is None or branches == 1:
        return bound
    dials = tuple(
        Dial(
            dial.value_R[list(rows)],
            tuple(dial.columns_R[row] for row in rows),
            tuple(dial.copied_R[row] for row in rows),
        )
        for dial in bound.dials
    )
    return replace(bound, row_of_B=tuple(rows), dials=dials)


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
    rows = _Rows(backbone, [one.prompt or prompt for one in branches for prompt in prompts])
    weights = [branch.weight for branch in branches]
    ending = torch.tensor(sorted(ends))
    made: list[list[int]] = [[] for _ in prompts]
    place_N = torch.arange(len(prompts))  # of the texts that go on
    different, row_of = _different(branches, len(prompts))
    bound = _bound(backbone, different)
    with backbone.inferring(None) as attachment:
        for _ in range(most):
            with attachment.using(_of_rows(bound, row_of, len(different))):
                token_N = _chosen(_mixed(rows.logits(), weights), generator)
            for place, token in zip(place_N.tolist(), token_N.tolist(), strict=True):
                made[place].append(token)
            going_N = ~torch.isin(token_N, ending)
            if not bool(going_N.any()):
                break
            going = going_N.repeat(len(branches)).nonzero()[:, 0]
            rows.go_on(going, token_N[going_N].repeat(len(branches)))
            place_N = place_N[going_N]
            row_of = [row_of[row] for row in going.tolist()]
    return made


def _bound(backbone: Backbone, branches: Sequence[Branch]) -> Bound | None:
    """What the branches attend to, a row for each where there are several."""
    prefixes: list[Prefix | None] = []
    for branch in branches:
        assert branch.prefix is None or isinstance(branch.prefix, Prefix), "see `_different`"
        prefixes.append(branch.prefix)
    if all(prefix is None for prefix in prefixes):
        return None
    alone = prefixes[0] if len(prefixes) == 1 else None
    bound = bound_to(alone or prefixes, backbone.sites)
    bias = branches[0].bias if alone is not None else 0.0
    return _biased(bound, bias) if bias else bound


def _biased(bound: Bound, bias: float) -> Bound:
    """The same with a bias on all scores of virtual tokens."""

    def at(site: SiteTensors) -> SiteTensors:
        rows, _, length, _ = site.key_RHPD.shape
        return replace(site, bias_RP=torch.full((rows, length), bias))

    parts = (
        replace(part, sites={name: at(site) for name, site in part.sites.items()})
        for part in bound.parts
    )
    return replace(bound, parts=tuple(parts), identity=f"{bound.identity} {bias}")


def _mixed(logits: Tensor, weights: Sequence[float]) -> Tensor:
    """The weighted sum (N, V) of the log-probabilities of logits (K * N, V)."""
    log_p_KNV: Tensor = logits.log_softmax(-1).unflatten(0, (len(weights), -1))
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
