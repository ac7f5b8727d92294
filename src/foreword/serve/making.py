"""`Making`: compositions that need the backbone, made between the engine's steps: sums and cascades."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar
from weakref import WeakValueDictionary

from foreword.backbone.cascade import shifts_of
from foreword.engine.protocol import TextFeatures
from foreword.errors import ExpressionError, MismatchError, PrefixError, UnsupportedModel
from foreword.prefix import Prefix
from foreword.serve.composed import Compositions, Key, Model, Wanted
from foreword.serve.crews import Crews
from foreword.serve.failures import Failure
from foreword.train.begun import check_recomputable, with_start

T = TypeVar("T")


@contextmanager
def blaming_model() -> Iterator[None]:
    """In a block, what is wrong with an expression or its prefixes is the request's fault.

    Raises:
        Failure: Something was.
    """
    try:
        yield
    except (ExpressionError, PrefixError, MismatchError, UnsupportedModel) as error:
        raise Failure(400, f"model: {error.for_commands}", "model") from error


class Making:
    """Makes what requests want, once for all who want the same. For one event loop at a time.

    Every pass of the backbone is the engine's, and one start or one rotation long: requests that run
    wait for it as they do for a chunk of a prompt. So does what a cascade does last, with the rotations
    that are known by then: it turns the keys, and joins them.

    Args:
        compositions: Where what was made is kept.
        features: What computes; None where the engine computes nothing.
        crews: Who does what would hold up the event loop.
    """

    def __init__(
        self, compositions: Compositions, features: TextFeatures | None, crews: Crews
    ) -> None:
        self.compositions = compositions
        self.features = features
        self.crews = crews
        self._locks: WeakValueDictionary[Key, asyncio.Lock] = WeakValueDictionary()

    async def made(self, wanted: Wanted) -> Model:
        """What a request runs under that wants a composition.

        Raises:
            Failure: Its prefixes do not go together, or a start cannot be recomputed.
            EngineClosed: The engine takes no more requests.
            ForewordError: It could not be computed.
        """
        make = self._summed if wanted.mode == "sum" else self._cascaded
        with blaming_model():
            return wanted.met(await self._once(wanted.key, partial(make, wanted)))

    async def _once(self, key: Key, make: Callable[[], Awaitable[Prefix]]) -> Prefix:
        """What is kept by a key, or else is made; of several at once the first makes it."""
        lock = self._locks.setdefault(key, asyncio.Lock())
        async with lock:
            found = self.compositions.kept(key)
            if found is None:
                made = await make()
                found = await self.crews.disk.do(partial(self.compositions.keep, key, made))
        return found

    async def _summed(self, wanted: Wanted) -> Prefix:
        started = {name: await self._started(name, one) for name, one in wanted.stored.items()}
        return await self.crews.disk.do(lambda: wanted.made(wanted.parts(started)))

    async def _started(self, name: str, prefix: Prefix) -> Prefix:
        """A prefix with its start, which is kept: sums of other weights have it, too."""
        engine = self._engine
        what = f"the start of {name}"

        async def make() -> Prefix:
            return await self._computed(partial(with_start, engine.backbone, prefix), what)

        try:
            await self.crews.disk.do(partial(check_recomputable, prefix, engine.most))
            return await self._once(("start", prefix.digest), make)
        except (PrefixError, MismatchError) as error:
            raise error.about(name) from error

    async def _cascaded(self, wanted: Wanted) -> Prefix:
        backbone = self._engine.backbone
        parts = await self.crews.disk.do(wanted.parts)
        ordered = [*parts.values()]
        await self.crews.disk.do(lambda: [one.digest for one in ordered])
        length = sum(one.length for one in ordered)
        if length + 2 > backbone.context:
            raise PrefixError(
                f"{wanted.model} has {length} virtual tokens, and the context of {backbone.name!r} has "
                f"{backbone.context}; a prompt and its answer need 2 of them at least. Name fewer"
            )
        for one, by in zip(ordered, shifts_of(backbone, ordered), strict=True):
            await self._computed(partial(backbone.turned, one, by), f"the place of {wanted.model}")
        return await self._computed(lambda: wanted.made(parts, backbone), wanted.model)

    @property
    def _engine(self) -> TextFeatures:
        assert self.features is not None
        return self.features

    async def _computed(self, work: Callable[[], T], what: str) -> T:
        """What the engine makes; called off when nobody waits for it any more."""
        return await asyncio.wrap_future(self._engine.made(work, what))
