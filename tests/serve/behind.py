"""The engines that the server is tested over, with the same model behind each."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import foreword
from foreword.backbone.served import Served
from foreword.engine import Engine, EngineClient, Event, Limits, Request, Stats
from foreword.engine.checks import CLOSED
from foreword.engine.request import EngineClosed
from foreword.engine.streaming import Sink, streamed
from foreword.engine.vllm.engine import VllmEngine
from foreword.engine.vllm.model import ServedModel
from foreword.prefix import Prefix
from foreword.serve.registry import Registry
from foreword.serve.remote import RemotePrefixes
from foreword.serve.residency import Residency
from foreword.store import PrefixStore
from tests.engine.vllm import tiny

CONTEXT = 256
"""Most tokens, prefix and text together."""

HAS_VLLM = importlib.util.find_spec("vllm") is not None


ECHO = pytest.mark.engines(
    "embedded",
    reason="vLLM never computes what stands in a prefix's place, so a prompt under one has no "
    "log-probabilities there; that it is refused is tested over HTTP in test_engines",
)
"""A test of a prompt's log-probabilities under a prefix."""


def tiny_backbone() -> foreword.Backbone:
    """The model of all these tests, in transformers."""
    return tiny.backbone(9, max_position_embeddings=CONTEXT)


def smaller_backbone() -> foreword.Backbone:
    """One of fewer layers, whose prefixes do not fit."""
    made = tiny.backbone(num_hidden_layers=2)
    return foreword.Backbone(made.model, made.tokenizer, name="smaller")


@dataclass(frozen=True)
class Behind:
    """What stands behind the application.

    Attributes:
        name: What kind of engine it is.
        backbone: The model in transformers, which no engine runs: prefixes and expected texts are its.
        served: What the server knows of the model.
        engine: The engine.
        store: A store that the engine reads.
        again: Makes another engine on the same model, and what the server knows of it.
    """

    name: str
    backbone: foreword.Backbone
    served: Served
    engine: EngineClient
    store: PrefixStore
    again: Callable[[], tuple[Served, EngineClient]]

    def embedded(self) -> Engine:
        """Another engine, of the embedded kind, which a test may watch from inside."""
        engine = self.again()[1]
        assert isinstance(engine, Engine)
        return engine

    def registry(self, store: PrefixStore | None = None) -> Registry:
        """What the server of this engine knows prefixes by, of its store or another."""
        store = store or self.store
        return RemotePrefixes(store) if self.name == "vllm" else Residency(store)

    def emptied(self) -> PrefixStore:
        """The store, without what is in it."""
        return emptied(self.store)


def emptied(store: PrefixStore) -> PrefixStore:
    """A store without its files."""
    for path in store.folder.iterdir():
        path.unlink()
    return store


def embedded() -> tuple[Served, EngineClient]:
    """Foreword's own engine."""
    backbone = tiny_backbone()
    return backbone, Engine(backbone, Limits(rows=4, prompt_tokens=32))


class Lent:
    """A vLLM that several applications share: what is closed is the share alone.

    Args:
        engine: The engine over vLLM.
    """

    def __init__(self, engine: VllmEngine) -> None:
        self.engine = engine
        self.accepts, self.failure = True, ""
        self.features = engine.features

    @property
    def stats(self) -> Stats:
        """How vLLM is doing."""
        return self.engine.stats

    def when_lost(self, call: Callable[[], None]) -> None:
        """As the engine."""
        self.engine.when_lost(call)

    def check(self, request: Request) -> None:
        """As the engine."""
        if not self.accepts:
            raise EngineClosed(CLOSED)
        self.engine.check(request)

    def room(self, size: int, prefix: Prefix | None) -> int:
        """As the engine."""
        return self.engine.room(size, prefix)

    def left(self, size: int, prefix: Prefix | None) -> int:
        """As the engine."""
        return self.engine.left(size, prefix)

    def submit(self, request: Request, sink: Sink) -> None:
        """As the engine."""
        self.check(request)
        self.engine.submit(request, sink)

    def stream(self, *requests: Request) -> AsyncGenerator[Event]:
        """As the engine."""
        return streamed(self.submit, self.cancel, requests)

    def cancel(self, name: str) -> None:
        """As the engine."""
        self.engine.cancel(name)

    def close(self) -> None:
        """Take no more requests."""
        self.accepts = False


@dataclass(frozen=True)
class Vllm:
    """A vLLM that runs as long as the tests do.

    Attributes:
        served: What the server knows of the model.
        engine: The engine.
        store: The store that its workers read.
    """

    served: ServedModel
    engine: VllmEngine
    store: PrefixStore

    @classmethod
    def start(cls, folder: Path) -> Vllm:
        """Start it, with a model and an empty store in a folder."""
        store = PrefixStore(folder / "stores" / "store")
        store.folder.mkdir(parents=True)
        return cls(*tiny.launched(tiny_backbone(), folder / "model", store), store)

    def lent(self) -> tuple[Served, EngineClient]:
        """A share of it."""
        return self.served, Lent(self.engine)


def is_idle(engine: Any) -> bool:
    """Whether an engine has nothing under way."""
    if isinstance(engine, Engine):
        return engine.scheduler.is_idle
    whole = engine.engine if isinstance(engine, Lent) else engine
    return not (whole._jobs or whole._runtime._llm.output_processor.has_unfinished_requests())
