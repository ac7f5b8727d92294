"""`Job`: a row under way, with what its output needs: its draws, its text, its prompt's probabilities.

Shapes: N tokens of a chunk of the prompt, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from foreword.data.written import Written
from foreword.engine.request import TokenLogprobs
from foreword.engine.slots.detokeniser import Detokeniser
from foreword.engine.slots.sampler import Draw, logprobs_of
from foreword.engine.slots.scheduler import Active
from foreword.engine.streaming import Sink
from foreword.mixture import combined


@dataclass(eq=False)
class Mix:
    """What the branches of a request say of its next token, until all have spoken.

    Attributes:
        coefficients: What each one's log-probabilities are multiplied by.
        said: By branch its log-probabilities (V,), float32.
    """

    coefficients: tuple[float, ...]
    said: dict[int, Tensor] = field(default_factory=dict)

    def hear(self, branch: int, logits_V: Tensor) -> Tensor | None:
        """Take what a branch says; what they say together (V,), float32, once it is the last one."""
        self.said[branch] = torch.log_softmax(logits_V.float(), dim=-1)
        if len(self.said) < len(self.coefficients):
            return None
        # In the order of the branches and not of their coming, so that sums round alike.
        logprobs = [self.said[place] for place in range(len(self.coefficients))]
        self.said.clear()
        return combined(logprobs, self.coefficients)


@dataclass(eq=False)
class Job(Active):
    """A row under way, with what its output needs.

    Of a mixture's branches the first one is told and has the text.

    Attributes:
        sink: Who is told.
        draw: What its tokens are drawn with, once the first one is.
        text: What makes text of them, once there is one.
        prompt_logprobs: Of the prompt's tokens that are computed, where they were asked for.
        has_ended: Whether its end was told.
        written: How its text ends, and which of its tokens are text.
        mix: What the branches of its mixture say; None for a plain request.
    """

    sink: Sink = field(default=lambda _: None)
    draw: Draw | None = None
    text: Detokeniser | None = None
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    has_ended: bool = False
    written: Written = field(default_factory=lambda: Written(None))
    mix: Mix | None = None

    def hear(self, logits_V: Tensor) -> Tensor | None:
        """A branch's logits for the next token; the mixture's, once all branches' are there."""
        assert self.mix is not None
        return self.mix.hear(self.together.index(self), logits_V)

    def drawing(self, device: torch.device) -> Draw:
        """What its tokens are drawn with."""
        if self.draw is None:
            self.draw = Draw.begin(self.request.sampling, device)
        return self.draw

    def note_prompt(self, size: int, logits_NV: Tensor) -> None:
        """Keep the log-probabilities of the prompt's tokens that the last `size` computed tell."""
        top = self.request.sampling.prompt_logprobs
        if top is None:
            return
        prompt, first = self.request.prompt, self.computed - size
        if first == 0:
            self.prompt_logprobs.append(TokenLogprobs(prompt[0], float("nan"), ()))
        following = prompt[first + 1 : first + size + 1]
        self.prompt_logprobs += [
            logprobs_of(logits_V, token, top)
            for logits_V, token in zip(logits_NV, following, strict=False)
        ]

    def spelled(self, token: int, tokenizer: Any) -> str:
        """Text that can be shown after one more token; none without a tokenizer."""
        if tokenizer is None:
            return ""
        if self.text is None:
            stop = (*self.request.sampling.stop, *self.written.stop)
            self.text = Detokeniser(tokenizer, stop, self.written.kept)
        return self.text.add([token])
