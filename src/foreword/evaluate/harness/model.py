"""`PrefixLM`: lm-eval's own model of transformers, over a backbone that runs under a prefix.

It is imported where lm-eval is installed alone. Shapes: B rows, T tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lm_eval.models.huggingface import HFLM
from torch import Tensor

from foreword.backbone import Backbone
from foreword.errors import DataError
from foreword.prefix import Bos
from foreword.progress import Progress


class PrefixLM(HFLM):  # type: ignore[misc]
    """Answers lm-eval's requests with the backbone as it is attached to now.

    Texts become tokens as lm-eval has it. Where a request has no context, a first token (BOS, or else
    EOS) stands in for it.

    Args:
        backbone: The backbone.
        bos: BOS policy of the prefix that a decoder runs under; None: the tokenizer's own.
        room: Most tokens of a request, those that are written included.
        batch_size: Requests in one pass.
        progress: Told how far it is.

    Attributes:
        cut: Requests that lost tokens from their left.
    """

    def __init__(
        self, backbone: Backbone, bos: Bos | None, room: int, batch_size: int, progress: Progress
    ) -> None:
        super().__init__(
            backbone.model,
            backend="causal" if backbone.kind == "decoder" else "seq2seq",
            tokenizer=copy.deepcopy(backbone.tokenizer),  # which lm-eval gives a padding token
            max_length=room,
            batch_size=batch_size,
            softmax_dtype="float32",
            add_bos_token=None if bos is None else bos == "input",
        )
        self._device = backbone.device
        self._progress = progress
        self._part, self._done, self._total = "", 0.0, 0
        self._per_row = 1.0
        self.cut = 0

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> Any:
        """Log-probability of each request's text after its context, and whether it is the likeliest."""
        with self._telling("scoring", requests):
            return super().loglikelihood(requests, disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> Any:
        """Log-probability of each request's text."""
        with self._telling("scoring", requests):
            return super().loglikelihood_rolling(requests, disable_tqdm)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> Any:
        """What is written after each request's context."""
        with self._telling("generating", requests):
            return super().generate_until(requests, disable_tqdm)

    @contextmanager
    def _telling(self, what: str, requests: Sequence[Any]) -> Iterator[None]:
        """Tell of a part's beginning and end; `_went_on` tells of what is between."""
        self._part, self._done, self._total = what, 0.0, len(requests)
        self._progress(what, 0, self._total)
        yield
        self._progress(what, self._total, self._total)

    def _went_on(self, rows: int) -> None:
        """Count a pass. A long text takes several, so that the end is told by `_telling` alone."""
        self._done = min(self._done + rows * self._per_row, self._total - 1)
        if self._done >= 1:
            self._progress(self._part, int(self._done), self._total)

    def _model_call(self, inps: Tensor, *given: Any, **named: Any) -> Tensor:
        logits_BTV: Tensor = super()._model_call(inps, *given, **named)
        self._went_on(len(inps))
        return logits_BTV

    def _model_generate(
        self, context: Tensor, max_length: int, stop: list[str], **named: Any
    ) -> Tensor:
        if self.backend == "seq2seq":
            # lm-eval adds the length of the input, so that how much is written depends on the batch.
            max_length += 1 - context.shape[1]
        ids_BT: Tensor = super()._model_generate(context, max_length, stop, **named)
        self._went_on(len(context))
        return ids_BT

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = True, override_bs: int | None = None
    ) -> Any:
        for _, context, text in requests:
            if len(text) > self.max_length:
                raise DataError(
                    f"a text of {len(text)} tokens is to be scored whole, and the context leaves "
                    f"{self.max_length}; choose another task, or use fewer virtual tokens"
                )
            given = len(context) if self.backend == "seq2seq" else len(context) + len(text) - 1
            self.cut += given > self.max_length
        # Of texts that differ in their last token alone, all but one are answered from its pass.
        passes = {(*context, *text[:-1]) for _, context, text in requests}
        self._per_row = len(requests) / len(passes) if self.backend == "causal" else 1.0
        return super()._loglikelihood_tokens(requests, True, override_bs)

    def tok_batch_encode(
        self,
        strings: list[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Ids and mask (B, T) of contexts that are written after, the last tokens of each."""
        ids_BT, mask_BT = super().tok_batch_encode(strings, padding_side, None, truncation)
        if left_truncate_len is None:
            return ids_BT, mask_BT
        self.cut += int((mask_BT.sum(dim=1) > left_truncate_len).sum())
        return ids_BT[:, -left_truncate_len:], mask_BT[:, -left_truncate_len:]
