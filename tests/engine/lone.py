"""A request alone, without the engine: what its answers are compared with."""

from __future__ import annotations

import torch

import foreword
from foreword.engine import Request


def alone(backbone: foreword.Backbone, request: Request, tokens: tuple[int, ...]) -> float:
    """How far below the best a request's tokens ever are when it runs alone, teacher-forced."""
    ids = torch.tensor([[*request.prompt, *tokens]], device=backbone.device)
    with backbone.attached(request.prefix), torch.no_grad():
        logits = backbone.model(input_ids=ids, use_cache=False).logits[0]
    scores = logits[len(request.prompt) - 1 : -1]
    chosen = scores.gather(1, torch.tensor(tokens, device=scores.device)[:, None])[:, 0]
    return float((scores.amax(dim=-1) - chosen).max())


def generated(backbone: foreword.Backbone, request: Request) -> tuple[int, ...]:
    """What transformers' own `generate` gives for the request alone."""
    ids = torch.tensor([request.prompt], device=backbone.device)
    with backbone.attached(request.prefix), torch.no_grad():
        out = backbone.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=request.sampling.max_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    return tuple(out[0, len(request.prompt) :].tolist())
