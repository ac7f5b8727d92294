"""The engine: many requests at once on one backbone, each with its own prefix."""

from foreword.engine.protocol import EngineClient, Stats
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
    "Request",
    "Sampling",
    "Stats",
    "TokenLogprobs",
    "Weighted",
]
