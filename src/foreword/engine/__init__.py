"""The engines behind one protocol: Foreword's own (slots/), and vLLM (vllm/)."""

from typing import TYPE_CHECKING

from foreword.lazy import offer

if TYPE_CHECKING:
    from foreword.engine.protocol import EngineClient, Loads, Stats
    from foreword.engine.request import (
        Completion,
        EngineClosed,
        Event,
        Request,
        Sampling,
        TokenLogprobs,
        Weighted,
    )
    from foreword.engine.slots.engine import Engine
    from foreword.engine.slots.scheduler import Limits

__all__ = [
    "Completion",
    "Engine",
    "EngineClient",
    "EngineClosed",
    "Event",
    "Limits",
    "Loads",
    "Request",
    "Sampling",
    "Stats",
    "TokenLogprobs",
    "Weighted",
]

offer(
    __name__,
    {
        "Completion": "foreword.engine.request",
        "Engine": "foreword.engine.slots.engine",
        "EngineClient": "foreword.engine.protocol",
        "EngineClosed": "foreword.engine.request",
        "Event": "foreword.engine.request",
        "Limits": "foreword.engine.slots.scheduler",
        "Loads": "foreword.engine.protocol",
        "Request": "foreword.engine.request",
        "Sampling": "foreword.engine.request",
        "Stats": "foreword.engine.protocol",
        "TokenLogprobs": "foreword.engine.request",
        "Weighted": "foreword.engine.request",
    },
)
