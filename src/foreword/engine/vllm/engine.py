"""`VllmEngine`: vLLM as the server's engine. Nothing here imports vLLM: its `Runtime` does.

vLLM's asynchronous engine lives in an event loop of its own, in a thread of its own, so that the engine
may be asked from several threads, as `EngineClient` promises, and belongs to no server's loop.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

from foreword.data.written import Written, written_for
from foreword.described import Described
from foreword.engine.base import OpenEngine
from foreword.engine.checks import check_tokens, refuse_mixture, room_after
from foreword.engine.protocol import Stats
from foreword.engine.request import Event, FinishReason, NotServed, Request
from foreword.engine.streaming import Sink
from foreword.engine.vllm.answering import Answer
from foreword.engine.vllm.geometry import Found
from foreword.engine.vllm.loaded import why_failed
from foreword.engine.vllm.model import ServedModel
from foreword.engine.vllm.requests import Named, PrefixedPrompt, check_text_alone, prefixed
from foreword.engine.vllm.sampling import parameters
from foreword.engine.vllm.windows import check_text, text_room
from foreword.errors import MismatchError, ServeError, first_line
from foreword.prompts import PLAIN, task_of
from foreword.store import PrefixStore

log = logging.getLogger("foreword.engine")

BETWEEN = 0.5
"""Seconds between looks at whether vLLM still lives."""

LAST = 5.0
"""Seconds in which vLLM's own tasks may end."""

DIED = "vLLM's engine has died; its log says why"


class Runtime(Protocol):
    """vLLM's asynchronous engine, as `foreword.engine.vllm.runtime` makes it."""

    @property
    def has_died(self) -> bool:
        """Whether it goes on no more."""

    @property
    def stats(self) -> Stats:
        """What its scheduler told last."""

    @property
    def cache_tokens(self) -> int:
        """Tokens that its key-value cache holds."""

    async def found(self) -> Found:
        """What its workers found in the running model."""

    def check(self, sampling: Mapping[str, Any]) -> None:
        """Check arguments of ``vllm.SamplingParams``.

        Raises:
            NotServed: vLLM refuses them.
        """

    def generate(
        self, asked: PrefixedPrompt, sampling: Mapping[str, Any], name: str
    ) -> AsyncGenerator[Any]:
        """Outputs of vLLM, each with what is new; leaving early ends the request."""

    def shutdown(self) -> None:
        """End vLLM's processes."""


@dataclass(eq=False)
class _Job:
    """A request under way."""

    request: Request
    sink: Sink
    answer: Answer
    written: Written
    has_ended: bool = False

    def finish(self, reason: FinishReason, error: str = "") -> None:
        """Tell the end, once."""
        if self.has_ended:
            return
        self.has_ended = True
        self._tell(self.answer.end(reason, error))

    def _tell(self, event: Event) -> None:
        try:
            self.sink(event)
        except Exception:  # who asked is gone, and the engine goes on
            log.exception("the end of %s could not be told", self.request.name)


class VllmEngine(OpenEngine):
    """Serves requests through vLLM.

    Args:
        model: The model that it runs.
        runtime: vLLM itself.
        placeholder: See `foreword.engine.vllm.placeholder_of`.
        store: Where vLLM's workers read prefixes.

    Attributes:
        model: The model, with what vLLM's workers found in it.
    """

    def __init__(
        self, model: ServedModel, runtime: Runtime, placeholder: int, store: PrefixStore
    ) -> None:
        super().__init__()
        self.placeholder = placeholder
        self.store = store
        self._runtime = runtime
        self._jobs: dict[asyncio.Task[None], _Job] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._live, name="foreword-vllm", daemon=True)
        self._thread.start()
        self.model = model.met(self._found())

    def _found(self) -> Found:
        """What vLLM's workers found when they started.

        Raises:
            ServeError: They do not tell.
        """
        try:
            return asyncio.run_coroutine_threadsafe(self._runtime.found(), self._loop).result()
        except Exception as error:  # of many kinds, from several processes
            self.close()
            raise ServeError(f"vLLM did not start: {first_line(error)}") from error

    # -- from any thread -------------------------------------------------------------------------

    @property
    def stats(self) -> Stats:
        """What vLLM's scheduler told last; it tells nothing once it has nothing to do."""
        last, open_now = self._runtime.stats, len(self._jobs)
        running = min(last.running, open_now)
        waiting = min(last.waiting, open_now - running)
        used = last.cache_bytes if open_now else 0
        return Stats(waiting, running, last.steps, used, last.loads)

    def check(self, request: Request) -> None:
        """Check whether a request would be taken now.

        Raises:
            EngineClosed: The engine takes no more requests.
            MismatchError: Its prefix does not fit, or has no name.
            TooLong: There is no room for it.
            NotServed: vLLM does not serve one of its fields.
            DataError: A token is not in the vocabulary, or the prompt begins with a placeholder.
        """
        self._check_open()
        refuse_mixture(request)
        prefix = request.prefix
        if prefix is None:
            check_text_alone(request.prompt, self.placeholder)
        else:
            self.model.check(prefix, warn=False)
            self._check_named(request)
        self.room(len(request.prompt), prefix)
        if prefix is not None:
            check_text(prefix, len(request.prompt), request.sampling.max_tokens)
        check_tokens(request, self.model.vocabulary)
        self._runtime.check(parameters(request.sampling, Written(None)))

    def _check_named(self, request: Request) -> None:
        """Check what vLLM must know of a request under a prefix."""
        if not request.prefixes[0].name:
            raise MismatchError(
                "vLLM's workers read a prefix from its store by name; found a request whose prefix has "
                "none. Give it: Weighted(prefix, name='e2e')"
            )
        if request.sampling.prompt_logprobs is not None:
            raise NotServed(
                "prompt_logprobs",
                "log-probabilities of a prompt under a prefix are not served by vLLM, which never "
                "computes the tokens in the prefix's place; use Foreword's own engine",
            )

    def room(self, size: int, prefix: Described | None) -> int:
        """Tokens that the context leaves after a prompt of `size` tokens behind a prefix.

        They are fewer where vLLM's sliding windows would drop the prefix and must not.

        Raises:
            TooLong: None.
        """
        room = room_after(self.model.context, size, prefix)
        exact = None if prefix is None else text_room(prefix)
        if prefix is None or exact is None:
            return room
        check_text(prefix, size, 1)
        return min(room, exact - size)

    def left(self, size: int, prefix: Described | None) -> int:
        """Tokens that vLLM's cache leaves after a prompt of `size` tokens behind a prefix."""
        length = 0 if prefix is None else prefix.length
        return self._runtime.cache_tokens - size - length

    def submit(self, request: Request, sink: Sink) -> None:
        """Take a request; `sink` gets its events, in the engine's thread.

        Raises:
            ForewordError: The request cannot be taken, see `check`.
        """
        self.check(request)
        written = self._written(request)
        job = _Job(request, sink, Answer(request, written), written)
        self._hand_on(lambda: self._loop.call_soon_threadsafe(self._begin, job))

    def cancel(self, name: str) -> None:
        """End a request; its last event says ``cancelled``. One that has ended is left alone."""

        def cancel() -> None:
            for task, job in self._jobs.items():
                if job.request.name == name:
                    task.cancel()

        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(cancel)

    def close(self) -> None:
        """Take no more requests, end those under way, and stop vLLM's processes."""
        self._shut()
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._drained(), self._loop).result()
        self._runtime.shutdown()
        asyncio.run_coroutine_threadsafe(self._emptied(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _written(self, request: Request) -> Written:
        """How a request's text ends, and which of its tokens are text."""
        prefix = request.prefix
        task = PLAIN if prefix is None else task_of(prefix)
        return written_for(self.model, prefix, task).ended_by(request.ends)

    # -- in the engine's thread ------------------------------------------------------------------

    def _live(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._watching = self._loop.create_task(self._watch())
        self._loop.run_forever()

    async def _watch(self) -> None:
        """Look whether vLLM lives; when it does not, tell every request, and who asked for it."""
        while not self._runtime.has_died:
            await asyncio.sleep(BETWEEN)
        self._lose()

    def _lose(self) -> None:
        if self.failure:
            return
        self._shut(DIED)
        for task in self._jobs:
            task.cancel()
        self._tell_lost()

    async def _drained(self) -> None:
        """Wait until no request is under way, and look after vLLM no more."""
        while self._jobs:
            await asyncio.wait(self._jobs)
        self._watching.cancel()
        await asyncio.wait([self._watching])

    async def _emptied(self) -> None:
        """Let the tasks that vLLM had in the loop end, which it has cancelled."""
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        if others:
            await asyncio.wait(others, timeout=LAST)

    def _begin(self, job: _Job) -> None:
        task = self._loop.create_task(self._serve(job))
        self._jobs[task] = job
        task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        """Forget a request; one that was cancelled before it began has told nothing yet."""
        job = self._jobs.pop(task)
        broken = None if task.cancelled() else task.exception()
        failure = self.failure or ("" if broken is None else first_line(broken))
        job.finish("error" if failure else "cancelled", failure)

    async def _serve(self, job: _Job) -> None:
        """Tell a request's events as vLLM gives them."""
        request, answer = job.request, job.answer
        sampling = parameters(request.sampling, job.written)
        try:
            outputs = self._runtime.generate(self._prompt(request), sampling, request.name)
            async with aclosing(outputs):
                async for output in outputs:
                    job.sink(answer.take(output))
                    if answer.finish is not None:
                        break
        except Exception as error:  # the engine goes on
            log.exception("vLLM did not serve %s", request.name)
            if self._runtime.has_died:
                self._lose()
            job.finish("error", self.failure or first_line(error))
            return
        finish = answer.finish or "error"
        why = await asyncio.to_thread(self._why, request) if finish == "error" else ""
        job.finish(finish, why)

    def _prompt(self, request: Request) -> PrefixedPrompt:
        """The prompt as vLLM takes it: placeholders in the prefix's place, which is named by digest."""
        prefix = request.prefix
        if prefix is None:
            return prefixed(request.prompt, self.placeholder)
        return prefixed(request.prompt, self.placeholder, request.prefixes[0].name, prefix)

    def _why(self, request: Request) -> str:
        """Why vLLM may have failed a request."""
        prefix = request.prefix
        named = None if prefix is None else Named(request.prefixes[0].name, prefix.digest)
        return why_failed(self.store, named)
