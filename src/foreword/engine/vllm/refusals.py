"""What vLLM must be and what it lacks, checked before anything large is imported."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import fields

from foreword.errors import DataError, ServeError
from foreword.options import GenerateOptions

OTHERS: Mapping[str, str] = {
    "batch_size": "vLLM makes its batches itself; give --max-num-seqs after --",
    "num_beams": "nothing takes its place, for no search by beams goes through vLLM's connectors; leave "
    "it out, or draw with do_sample",
    "no_repeat_ngram_size": "nothing takes its place; leave it out",
}
"""Options of generating that vLLM does not have, and what to do instead."""


def check_installed() -> None:
    """Check that vLLM can be imported.

    Raises:
        ServeError: It is not installed.
    """
    if importlib.util.find_spec("vllm") is None:
        raise ServeError(
            "--engine vllm needs vLLM 0.32, which is not installed here. It pins its own PyTorch, so "
            "give it an environment of its own, and Foreword beside it: pip install 'vllm==0.32.0' "
            "'foreword[vllm]' (docs/how-to/vllm.md)"
        )


def check_options(options: GenerateOptions, *, frozen: bool) -> None:
    """Check that options of generating mean on vLLM what they mean elsewhere.

    Args:
        options: The options.
        frozen: Whether the model alone writes, without a prefix.

    Raises:
        DataError: One does not; the message says what to do.
    """
    neutral = {field.name: field.default for field in fields(options)}
    for name, other in OTHERS.items():
        if getattr(options, name) != neutral[name]:
            raise DataError(f"{_spelled(name)} is for Foreword's own engine; on vLLM {other}")
    if options.repetition_penalty != 1 and not frozen:
        raise DataError(
            f"{_spelled('repetition_penalty')} under a prefix is for Foreword's own engine: vLLM would "
            "count the placeholders that stand for virtual tokens; leave it out"
        )


def _spelled(name: str) -> str:
    """An option as Python's callers and the command line know it."""
    return f"{name} (--{name.replace('_', '-')})"
