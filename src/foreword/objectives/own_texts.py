"""Texts that the frozen model writes, on which training may keep it near what it was.

The texts begin with a random token and are drawn from the model itself, so no data is needed (LLM-QAT,
Liu et al. 2023, arXiv 2305.17888). What is made small on them beside the task's loss is the divergence
of the trained model from the frozen one (Learning without Forgetting, Li and Hoiem 2016,
arXiv 1606.09282).

Shapes: N texts, T tokens, K likeliest tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from foreword.backbone import Backbone
from foreword.backbone.measured import kind_measured
from foreword.errors import TrainingError
from foreword.objectives.base import Batch, Regularizer
from foreword.objectives.encode import InFront
from foreword.objectives.settings import DataSettings

TEXTS, TOKENS = 64, 48
"""How many texts are written, and the tokens of each; shorter where the context is."""
LIKELIEST = 64
"""Tokens of which the frozen model's probability is remembered one by one; all others count as one."""
EACH_STEP = 2
"""Texts that one forward pass of training takes beside its rows."""
LEAST = 1e-6
"""Probability of all other tokens together at least, whose logarithm is taken."""


@dataclass(frozen=True)
class OwnTexts(Regularizer):
    """The divergence of a model from the frozen one on the frozen one's own texts.

    It is the Kullback-Leibler divergence KL(frozen || trained) of the next token's distributions, in
    nats, where the `LIKELIEST` tokens count by themselves and the others together: never more than
    that over all tokens.

    Attributes:
        weight: How much a nat of it counts beside a nat of the task's loss.
        ids_NT: The texts, int64.
        likeliest_NTK: The frozen model's likeliest tokens after each of them, int64.
        logprobs_NTK: Their log-probabilities, float32.
        skipped: First tokens that the trained model does not read, for what is in front has them.
    """

    weight: float
    ids_NT: Tensor
    likeliest_NTK: Tensor
    logprobs_NTK: Tensor
    skipped: int = 0

    def batch(self) -> Batch:
        """Some of the texts, drawn by torch's generator, whose state checkpoints keep."""
        chosen = torch.randperm(len(self.ids_NT))[:EACH_STEP].to(self.ids_NT.device)
        ids_BT = self.ids_NT[chosen, self.skipped :]
        return {
            "input_ids": ids_BT,
            "attention_mask": torch.ones_like(ids_BT),
            "labels": ids_BT,
            "likeliest": self.likeliest_NTK[chosen, self.skipped :],
            "logprobs": self.logprobs_NTK[chosen, self.skipped :],
        }

    def loss(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """The weighted divergence per token of a batch: a float32 scalar with its graph."""
        logits_BTV = model(**kind_measured(model).read(batch), use_cache=False).logits
        return self.weight * divergence(logits_BTV, batch["likeliest"], batch["logprobs"]).mean()


def divergence(logits: Tensor, likeliest_K: Tensor, logprobs_K: Tensor) -> Tensor:
    """KL divergence of logits from remembered probabilities, in nats, float32, by place.

    Args:
        logits: (..., V), of any dtype.
        likeliest_K: (..., K), the tokens whose probability is remembered.
        logprobs_K: (..., K), the logarithm of these, float32.
    """
    ours_K = logits.float().log_softmax(-1).gather(-1, likeliest_K)
    p_K = logprobs_K.exp()
    inside = (p_K * (logprobs_K - ours_K)).sum(-1)
    rest, our_rest = _rest(p_K), _rest(ours_K.exp())
    return inside + rest * (rest.log() - our_rest.log())


def _rest(p_K: Tensor) -> Tensor:
    """The probability of all other tokens."""
    return (1 - p_K.sum(-1)).clamp(min=LEAST)


def own_texts(backbone: Backbone, settings: DataSettings, in_front: InFront) -> OwnTexts | None:
    """Texts of a frozen backbone, if the settings want a model that is kept near it.

    Args:
        backbone: The backbone, with nothing in front of it and nothing changed.
        settings: The settings; their seed decides the texts.
        in_front: What rows are read behind.

    Raises:
        TrainingError: The backbone does not go on with texts.
    """
    check_kept(backbone, settings)
    if not settings.kl:
        return None
    return OwnTexts(
        settings.kl,
        *written(backbone, settings.seed),
        skipped=int(in_front.bos == "prefix" and backbone.bos == "input"),
    )


def check_kept(backbone: Backbone, settings: DataSettings) -> None:
    """Check that a model can be kept near what it was, if the settings want that.

    Raises:
        TrainingError: The backbone does not go on with texts.
    """
    if settings.kl and backbone.kind != "decoder":
        raise TrainingError(
            f"kl keeps a model near what it was on texts that it writes itself, which takes a decoder; "
            f"{backbone.name or backbone.family!r} is an {backbone.kind}. Leave kl out"
        )


@torch.no_grad()
def written(backbone: Backbone, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Texts drawn from a model, and what it thought at each token.

    Args:
        backbone: A decoder.
        seed: Seed of the draws.

    Returns:
        Tokens (N, T), then the likeliest tokens (N, T, K) after each of them, and the logarithms of
        their probabilities.
    """
    random = torch.Generator().manual_seed(seed)
    tokens = min(TOKENS, backbone.context // 2)
    texts = [_begun(backbone, random)]
    thought: list[tuple[Tensor, Tensor]] = []
    cache: Any = None
    with backbone.attached(None):
        while sum(text.shape[1] for text in texts) <= tokens:
            output = backbone.model(input_ids=texts[-1], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            logprobs_NTV = output.logits.float().log_softmax(-1)
            logprobs_NTK, likeliest_NTK = logprobs_NTV.topk(min(LIKELIEST, logprobs_NTV.shape[-1]))
            thought.append((likeliest_NTK, logprobs_NTK))
            chances_NV = logprobs_NTV[:, -1].exp().cpu()
            texts.append(torch.multinomial(chances_NV, 1, generator=random).to(backbone.device))
    likeliest_NTK, logprobs_NTK = (torch.cat(one, dim=1) for one in zip(*thought, strict=True))
    return torch.cat(texts[:-1], dim=1), likeliest_NTK, logprobs_NTK


def _begun(backbone: Backbone, random: torch.Generator) -> Tensor:
    """First tokens of the texts, (N, 1) or behind a BOS (N, 2): any but those that mark something."""
    tokenizer: Any = backbone.tokenizer
    known = range(backbone.vocabulary if tokenizer is None else len(tokenizer))
    marks = set() if tokenizer is None else set(tokenizer.all_special_ids)
    plain = torch.tensor([token for token in known[: backbone.vocabulary] if token not in marks])
    first_N1 = plain[torch.randint(len(plain), (TEXTS, 1), generator=random)]
    if backbone.bos == "input":
        first_N1 = torch.cat([torch.full_like(first_N1, tokenizer.bos_token_id), first_N1], 1)
    return first_N1.to(backbone.device)
