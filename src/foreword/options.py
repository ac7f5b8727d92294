"""`GenerateOptions`: how text is generated, checked before anything large is imported."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from foreword.arguments import check_count, check_fields
from foreword.errors import DataError

BATCH = 32
"""Rows in one batch where labels or losses are computed, unless another number is given."""


@dataclass(frozen=True)
class GenerateOptions:
    """How text is generated; the names are transformers' own.

    What is not asked for here is neutral, whatever the model's own generation config says.

    Raises:
        DataError: A number is out of range, or is about drawing while nothing is drawn.
    """

    max_new_tokens: int = 128
    """Most tokens to add."""

    do_sample: bool = False
    """Draw tokens at random instead of taking the likeliest."""

    temperature: float = 1.0
    """Divides the logits before drawing; needs do_sample."""

    top_k: int = 50
    """Draw from so many likeliest tokens; 0 for all. Needs do_sample."""

    top_p: float = 1.0
    """Draw from the likeliest tokens that together have this probability; needs do_sample."""

    num_beams: int = 1
    """Beams of a beam search."""

    num_return_sequences: int = 1
    """Texts per input."""

    repetition_penalty: float = 1.0
    """Above 1, makes tokens that were there less likely."""

    no_repeat_ngram_size: int = 0
    """No run of so many tokens stands twice."""

    seed: int = 0
    """Seed of the drawing."""

    batch_size: int = 16
    """Inputs in one batch."""

    def __post_init__(self) -> None:
        check_fields(self, DataError)
        for name in ("max_new_tokens", "num_beams", "num_return_sequences", "batch_size"):
            check_count(name, getattr(self, name), DataError)
        for name in ("top_k", "no_repeat_ngram_size"):
            check_count(name, getattr(self, name), DataError, least=0)
        check_count("seed", self.seed, DataError, -(2**63), 2**64 - 1)
        for name in ("temperature", "top_p", "repetition_penalty"):
            if not 0 < getattr(self, name) < math.inf:
                raise DataError(f"{name} must be above 0 and finite; found {getattr(self, name)}")
        if self.top_p > 1:
            raise DataError(f"top_p must be at most 1; found {self.top_p}")
        if not self.do_sample:
            self._refuse_drawing()
        drawn_alone = self.do_sample and self.num_beams == 1
        if self.num_return_sequences > self.num_beams and not drawn_alone:
            raise DataError(
                f"{self.num_return_sequences} texts per input need at least as many beams, or "
                f"do_sample without beams; found num_beams={self.num_beams}"
            )

    def _refuse_drawing(self) -> None:
        """Refuse what is set of drawing, which would do nothing."""
        neutral = {field.name: field.default for field in fields(self)}
        for name in ("temperature", "top_k", "top_p"):
            if getattr(self, name) != neutral[name]:
                raise DataError(
                    f"{name} is for drawing at random, and nothing is drawn (do_sample is off); set "
                    f"do_sample as well (--do-sample), or leave {name} out"
                )

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of transformers' `generate`."""
        given: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "do_sample": self.do_sample,
            "num_beams": self.num_beams,
            "num_return_sequences": self.num_return_sequences,
            "repetition_penalty": float(self.repetition_penalty),  # which takes no whole number
            "no_repeat_ngram_size": self.no_repeat_ngram_size,
            "temperature": None,
            "top_k": None,
            "top_p": None,
        }
        if self.do_sample:
            given.update(
                temperature=float(self.temperature), top_k=self.top_k, top_p=float(self.top_p)
            )
        return given
