"""How much attention a backbone's heads give to a prefix.

Shapes: A query heads, Q tokens of the input, P prefix length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foreword.backbone import Backbone
from foreword.data.template import Input, as_row
from foreword.errors import UnsupportedModel
from foreword.prefix import Prefix
from foreword.prompts import encoder_for, task_of


@dataclass(frozen=True)
class PrefixAttention:
    """Attention weights that the tokens of one input give to a prefix.

    Attributes:
        sites: Labels of the backbone's sites, in call order.
        heads: Per site and query head the weight of all virtual tokens together, mean over the
            input's tokens, 0 to 1; None at a site where the prefix has nothing.
        tokens: Per virtual token its weight, mean over sites, heads and the input's tokens.
        inputs: Tokens of the input.
    """

    sites: tuple[str, ...]
    heads: tuple[tuple[float, ...] | None, ...]
    tokens: tuple[float, ...]
    inputs: int

    @property
    def mean(self) -> float:
        """Weight of the prefix, mean over all its sites, their heads and the input's tokens."""
        weights = [weight for heads in self.heads if heads is not None for weight in heads]
        return sum(weights) / len(weights)

    def top(self, count: int) -> list[tuple[str, float]]:
        """The sites that give the prefix most, mean over their heads, with that mean."""
        pairs = zip(self.sites, self.heads, strict=True)
        means = [(site, sum(heads) / len(heads)) for site, heads in pairs if heads is not None]
        return sorted(means, key=lambda pair: -pair[1])[:count]

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "mean": self.mean,
            "inputs": self.inputs,
            "sites": dict(zip(self.sites, self.heads, strict=True)),
            "tokens": self.tokens,
        }


def attention_to(
    backbone: Backbone, prefix: Prefix, given: Input, *, strict: bool = False
) -> PrefixAttention:
    """Measure the attention that an input gives to a prefix.

    The weights are those that the backbone's eager attention computes in one forward pass over the
    input, put into the prefix's own template.

    Args:
        backbone: The backbone, loaded with ``attention="eager"``; left as it was found.
        prefix: The prefix.
        given: Text or a row, as `foreword.generate` takes it.
        strict: Refuse a backbone with other weights than the prefix was made on.

    Raises:
        UnsupportedModel: The backbone gives no attention weights, or the prefix has a softmax of its
            own.
        DataError: The input does not fit the template or the context.
        MismatchError: The prefix does not fit the backbone.
    """
    _refuse_own_softmax(prefix)
    backbone.check(prefix, strict=strict)
    task = task_of(prefix)
    ids = encoder_for(backbone, prefix, task).prompt(as_row(given, task), 1)
    input_ids = torch.tensor([ids], device=backbone.device)
    with torch.no_grad(), backbone.inferring(prefix):
        output = backbone.model(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            use_cache=False,
            output_attentions=True,
        )
    sites = tuple(site.label for site in backbone.sites)
    weights = _checked(backbone, sites, getattr(output, "attentions", None))
    own = {site.label for site in prefix.sites}
    return summarised(sites, weights, own, prefix.length)


def summarised(
    sites: Sequence[str], weights: Sequence[Tensor], own: set[str], length: int
) -> PrefixAttention:
    """The means over weights (1, A, Q, P + Q) of each site; sites not in `own` have no prefix."""
    heads: list[tuple[float, ...] | None] = []
    tokens_XP = []
    for site, weight_1AQK in zip(sites, weights, strict=True):
        if site not in own:
            heads.append(None)
            continue
        prefix_AP = weight_1AQK[0, :, :, :length].double().mean(dim=1)
        heads.append(tuple(prefix_AP.sum(-1).tolist()))
        tokens_XP.append(prefix_AP)
    return PrefixAttention(
        tuple(sites),
        tuple(heads),
        tuple(torch.cat(tokens_XP).mean(0).tolist()),
        int(weights[0].shape[2]),
    )


def _refuse_own_softmax(prefix: Prefix) -> None:
    """A gated prefix's weights are no share of the tokens' softmax, so there is no such picture."""
    if prefix.meta.softmax == "own":
        raise UnsupportedModel(
            "this prefix has a softmax of its own beside that of the text, so attention is not shared "
            "between both; there is nothing to measure"
        )


def _checked(backbone: Backbone, sites: Sequence[str], weights: Any) -> list[Tensor]:
    """The weights of every site, in order."""
    found = [weight for weight in weights or () if weight is not None]
    if len(found) != len(sites):
        raise UnsupportedModel(
            f"family {backbone.family!r} gives the attention weights of {len(found)} of its "
            f"{len(sites)} sites, so its attention cannot be shown"
        )
    return found
