"""The sparse objective against the plain one: all logits, shifted, cross-entropy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import foreword
from foreword.data import Collator, Encoded, Encoder, Task
from foreword.data.encode import IGNORED
from foreword.errors import UnsupportedModel
from foreword.objectives.supervised import score
from tests.tasks.models import tiny_encoder

TEXT = "Some text that a prefix is captured from."


class Headless(nn.Module):
    """A model that does not say which module its output layer is."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.config = model.config

    def forward(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool) -> Any:
        """All logits."""
        return self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)


class Sliced(Headless):
    """A model whose output layer is given something else than one vector per position."""

    def get_output_embeddings(self) -> nn.Module:
        """A module that is never called with the hidden states."""
        return nn.Identity()


@pytest.fixture
def batch(tiny: foreword.Backbone) -> dict[str, Tensor]:
    """Rows of unequal length: templated ones, a conversation, and labels with gaps."""
    chat = Encoder(tiny.tokenizer, Task(), bos="none", limit=99)
    plain = Encoder(tiny.tokenizer, Task("{a}", "{b}"), bos="none", limit=99)
    turns = [("user", "a"), ("assistant", "bc"), ("user", "d"), ("assistant", "e")]
    messages = [{"role": role, "content": content} for role, content in turns]
    gaps = [IGNORED, IGNORED, 9, IGNORED, 11, 12]
    return Collator(1)(
        [
            plain.row({"a": "name[Zizzi] -> ", "b": "Zizzi."}),
            chat.row({"messages": messages}),
            plain.row({"a": "x", "b": "y"}),
            Encoded([7, 8, 9, 10, 11, 12], gaps),
        ]
    )


def reference(backbone: foreword.Backbone, prefix: Any, batch: dict[str, Tensor]) -> Tensor:
    """NLL (B, T - 1) with zeros where nothing is predicted, and the likeliest tokens."""
    with backbone.attached(prefix), torch.no_grad():
        logits = backbone.model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
        ).logits
    nll = nn.functional.cross_entropy(
        logits[:, :-1].transpose(1, 2).float(),
        batch["labels"][:, 1:],
        ignore_index=IGNORED,
        reduction="none",
    )
    return torch.stack([nll, logits[:, :-1].argmax(-1).float()])


@pytest.mark.parametrize("prefixed", [False, True])
@pytest.mark.parametrize("wrap", [None, Headless, Sliced])
def test_scores_equal_the_plain_reference(
    tiny: foreword.Backbone, batch: dict[str, Tensor], prefixed: bool, wrap: Any
) -> None:
    prefix = tiny.capture(TEXT) if prefixed else None
    nll, likeliest = reference(tiny, prefix, batch)
    labels = batch["labels"][:, 1:]
    rows, columns = (labels != IGNORED).nonzero(as_tuple=True)
    model = wrap(tiny.model) if wrap else tiny.model
    with tiny.attached(prefix), torch.no_grad():
        scores = score(model, batch)
    assert scores.row_N.tolist() == rows.tolist()
    torch.testing.assert_close(scores.nll_N, nll[rows, columns], atol=1e-5, rtol=1e-5)
    assert scores.hit_N.tolist() == (likeliest[rows, columns] == labels[rows, columns]).tolist()
    assert float(scores.nll_N.sum()) == pytest.approx(float(nll.sum()), rel=1e-5)


def test_the_kind_is_the_measured_one() -> None:
    """Encoders that were saved with a head for language modelling were taken for decoders."""
    bert = tiny_encoder().model
    bert.config.architectures = ["BertLMHeadModel"]
    ids = torch.ones(1, 3, dtype=torch.long)
    with pytest.raises(UnsupportedModel, match="an encoder predicts no text"):
        score(bert, {"input_ids": ids, "attention_mask": ids, "labels": ids})


def test_the_prefix_moves_the_scores(tiny: foreword.Backbone, batch: dict[str, Tensor]) -> None:
    prefix = tiny.capture(TEXT)
    alone, under = reference(tiny, None, batch)[0], reference(tiny, prefix, batch)[0]
    assert float((alone - under).abs().max()) > 0.01


def test_hits_are_seen(tiny: foreword.Backbone, batch: dict[str, Tensor]) -> None:
    likeliest = reference(tiny, None, batch)[1].long()
    wanted = batch["labels"][:, 1:] != IGNORED
    batch["labels"][:, 1:][wanted] = likeliest[wanted]
    batch["labels"][2, 1] = (likeliest[2, 0] + 1) % 258
    with torch.no_grad():
        scores = score(tiny.model, batch)
    assert int(scores.hit_N.sum()) == len(scores.hit_N) - 1
    assert scores.row_N[~scores.hit_N].tolist() == [2]


def test_logits_are_computed_at_targets_only(
    tiny: foreword.Backbone, batch: dict[str, Tensor]
) -> None:
    head, seen = tiny.model.get_output_embeddings(), []
    hook = head.register_forward_hook(lambda _, inputs, out: seen.append(tuple(out.shape)))
    with torch.no_grad():
        score(tiny.model, batch)
    hook.remove()
    targets = int((batch["labels"][:, 1:] != IGNORED).sum())
    assert seen == [(1, targets, 258)]
    assert targets < batch["labels"].numel() / 2
    assert not head._forward_pre_hooks


def test_a_gradient_goes_to_the_model_as_from_the_plain_reference(
    tiny: foreword.Backbone, batch: dict[str, Tensor]
) -> None:
    weight = tiny.model.model.norm.weight.requires_grad_()
    (own,) = torch.autograd.grad(score(tiny.model, batch).nll_N.sum(), weight)
    logits = tiny.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    loss = nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1),
        batch["labels"][:, 1:].flatten(),
        ignore_index=IGNORED,
        reduction="sum",
    )
    (expected,) = torch.autograd.grad(loss, weight)
    torch.testing.assert_close(own, expected, atol=1e-4, rtol=1e-4)
