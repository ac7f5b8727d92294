"""`Features`: what is computed with the backbone beside requests, in the engine's thread between steps.

Shapes: B = 1 row, T tokens, D hidden size.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from foreword.attention.attachment import Attachment
from foreword.backbone import Backbone
from foreword.backbone.kinds import KINDS
from foreword.engine.checks import check_known
from foreword.engine.request import EngineClosed
from foreword.engine.slots.scheduler import Limits
from foreword.errors import DataError, ForewordError, TooLong, first_line
from foreword.head import pooled

log = logging.getLogger("foreword.engine")
T = TypeVar("T")


class Features:
    """Means of texts' last hidden states, and other work: one piece between two steps stalls nobody.

    Args:
        backbone: The backbone.
        attachment: Its attachment.
        limits: What the engine computes at once.
        hand_on: Has something done by the engine's thread, if the engine takes requests.
    """

    def __init__(
        self,
        backbone: Backbone,
        attachment: Attachment,
        limits: Limits,
        hand_on: Callable[[Callable[[], None]], None],
    ) -> None:
        self.backbone = backbone
        self.attachment = attachment
        self.limits = limits
        self._hand_on = hand_on
        self._asked: deque[tuple[Callable[[], Any], str, Future[Any]]] = deque()

    # -- from any thread -------------------------------------------------------------------------

    @property
    def most(self) -> int:
        """Tokens of the longest text: nobody waits longer for one than for a chunk of a prompt."""
        return min(self.backbone.context, self.limits.prompt_tokens)

    def of(self, ids: Sequence[int]) -> Future[Tensor]:
        """The mean of a text's last hidden states under no prefix, float32 (D,), on the CPU.

        Raises:
            EngineClosed: The engine takes no more requests.
            TooLong: The tokens are more than the context or a step has room for.
            DataError: There are none, or one is not in the vocabulary.
        """
        tokens = tuple(ids)
        if not tokens:
            raise DataError("a text whose features are asked for has no tokens; give at least one")
        if len(tokens) > self.most:
            raise TooLong(
                f"the text has {len(tokens)} tokens; the backbone's context is {self.backbone.context}, "
                f"and a step takes {self.limits.prompt_tokens} tokens of prompts. Shorten it"
            )
        check_known(tokens, self.backbone.vocabulary)
        return self._ask(lambda: self._computed(tokens), "the text's features")

    def made(self, work: Callable[[], T], what: str) -> Future[T]:
        """What some work with the backbone gives, which is done in one piece.

        Raises:
            EngineClosed: The engine takes no more requests.
        """
        return self._ask(partial(_outside_inference, work), what)

    def _ask(self, work: Callable[[], T], what: str) -> Future[T]:
        found: Future[T] = Future()
        self._hand_on(lambda: self._asked.append((work, what, found)))
        return found

    # -- in the engine's thread ------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """Whether nothing is asked for."""
        return not self._asked

    def step(self) -> None:
        """Do the next piece of work, if there is one; what goes wrong is told to who asked for it."""
        if self.is_idle:
            return
        work, what, found = self._asked.popleft()
        if not found.set_running_or_notify_cancel():
            return
        refusal: ForewordError
        try:
            made = work()
        except ForewordError as error:  # of what was asked for
            refusal = error
        except Exception as error:  # the engine goes on
            log.exception("%s could not be computed", what)
            refusal = ForewordError(f"{what} could not be computed: {first_line(error)}")
        else:
            found.set_result(made)
            return
        # Outside of the handler, where the error would keep what the pass had made.
        refusal.__cause__ = refusal.__context__ = None
        found.set_exception(refusal.with_traceback(None))

    def give_up(self, why: str) -> None:
        """Tell all who wait that the engine goes on no more."""
        while self._asked:
            *_, found = self._asked.popleft()
            if found.set_running_or_notify_cancel():
                found.set_exception(EngineClosed(why))

    def _computed(self, tokens: tuple[int, ...]) -> Tensor:
        ids_BT = torch.tensor([tokens], device=self.backbone.device)
        mask_BT = torch.ones_like(ids_BT)
        kind, model = KINDS[self.backbone.kind], self.backbone.model
        with self.attachment.using(None):
            hidden_BTD = kind.hidden(model, {"input_ids": ids_BT, "attention_mask": mask_BT})
        return pooled(hidden_BTD, mask_BT, "mean")[0].cpu()


def _outside_inference(work: Callable[[], T]) -> T:
    """What some work gives, as ordinary tensors, which outlive the engine."""
    with torch.inference_mode(False), torch.no_grad():
        return work()
