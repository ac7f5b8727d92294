"""The engine: many requests at once on one backbone, each with its own prefix."""

from foreword.engine.engine import Engine, EngineClosed
from foreword.engine.request import Completion, Event, Request, Sampling, TokenLogprobs, Weighted
from foreword.engine.scheduler import Limits

__all__ = [
    "Completion",
    "Engine",
    "EngineClosed",
    "Event",
    "Limits",
    "Request",
    "Sampling",
    "TokenLogprobs",
    "Weighted",
]
