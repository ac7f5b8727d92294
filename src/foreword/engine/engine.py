"""`Engine`: many requests at once on one backbone, each with its own prefix.

Every step runs all rows that decode in one forward pass, whatever their prefixes, and beside it a
chunk of the prompts that wait (Yu et al., "Orca", OSDI 2022, section 3.1: scheduling at every step).
"""

from __future__ import annotations

import asyncio
import itertools
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from foreword.attention.attachment import Attachment
from foreword.backbone import Backbone
from foreword.data.written import Written, written_for
from foreword.engine.detokeniser import Detokeniser
from foreword.engine.request import (
    Completion,
    Event,
    FinishReason,
    Request,
    TokenLogprobs,
)
from foreword.engine.runner import PROBE, Row, Runner
from foreword.engine.sampler import Draw, logprobs_of, sample
from foreword.engine.scheduler import Active, Limits, Scheduler
from foreword.engine.threads import give_up_pool
from foreword.errors import DataError, ServeError, first_line
from foreword.generate import PLAIN, refuse_head, task_of
from foreword.prefix import Prefix
from foreword.weights.packing import packed

Sink = Callable[[Event], None]
"""Called with each event of a request, in the engine's thread; it must not block."""

CLOSED = "the engine takes no more requests: it is being closed"


class EngineClosed(ServeError):
    """A request came to an engine that takes no more."""


@dataclass
class _Job(Active):
    """A request under way, with what its output needs."""

    sink: Sink = field(default=lambda _: None)
    draw: Draw | None = None
    text: Detokeniser | None = None
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    has_ended: bool = False
    written: Written = field(default_factory=lambda: Written(None))

    def drawing(self, device: torch.device) -> Draw:
        """What its tokens are drawn with."""
        if self.draw is None:
            self.draw = Draw.begin(self.request.sampling, device)
        return self.draw


def _logits(backbone: Backbone, attachment: Attachment) -> Tensor:
    """What the model gives for a few tokens."""
    with torch.inference_mode(), attachment.using(None):
        ids = torch.tensor([PROBE], device=backbone.device)
        logits: Tensor = backbone.model(input_ids=ids, use_cache=False).logits
    return logits


class Engine:
    """Serves requests on a backbone, in a thread of its own.

    The backbone belongs to the engine until it is closed: nothing else may run it.

    Args:
        backbone: The backbone.
        limits: What may run at once.

    Raises:
        UnsupportedModel: The backbone's family cannot be served in mixed batches.

    Examples:
        >>> with foreword.Engine(backbone) as engine:  # doctest: +SKIP
        ...     engine.generate([Request(tuple(ids), prefixes=(Weighted(prefix),))])
    """

    def __init__(self, backbone: Backbone, limits: Limits | None = None) -> None:
        self.backbone = backbone
        self.limits = limits or Limits()
        backbone.needs("decoder", what="serving in mixed batches")
        example = backbone.capture(PROBE)
        with ExitStack() as stack:  # which undoes what was done, if one of these fails
            attachment = stack.enter_context(backbone.attached(None))
            _ = backbone.fingerprint, backbone.context  # before the weights are packed
            stack.enter_context(packed(backbone.model, partial(_logits, backbone, attachment)))
            self.runner = Runner(
                backbone, attachment, self.limits.rows, example, self.limits.copied
            )
            self._stack = stack.pop_all()
        self.scheduler = Scheduler(self.runner.cache, self.limits)
        self.steps = 0
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._accepts, self._stopping = True, False
        self._door = threading.Lock()  # what is accepted is in the inbox before the order to stop
        give_up_pool()
        self._thread = threading.Thread(target=self._loop, name="foreword-engine", daemon=True)
        self._thread.start()

    # -- from any thread -------------------------------------------------------------------------

    @property
    def accepts(self) -> bool:
        """Whether requests are taken."""
        return self._accepts

    def submit(self, request: Request, sink: Sink) -> None:
        """Take a request; `sink` gets its events.

        Raises:
            ForewordError: The request cannot be taken, see `check`.
        """
        self.check(request)
        size = len(request.prompt)
        context = size + self.room(size, request.prefix)
        ahead = self.runner.columns_of(request.prefix)
        written = self._written(request)
        job = _Job(request, list(request.prompt), context, ahead, sink=sink, written=written)
        with self._door:
            if not self._accepts:
                raise EngineClosed(CLOSED)
            self._inbox.put(lambda: self.scheduler.waiting.append(job))

    def _written(self, request: Request) -> Written:
        """How a request's text ends, and which of its tokens are text."""
        prefix = request.prefix
        task = PLAIN if prefix is None else task_of(prefix)
        written = written_for(self.backbone, prefix, task)
        return replace(written, ends=written.ends | (request.ends - written.kept))

    def check(self, request: Request) -> None:
        """Check whether `submit` would take a request now.

        Raises:
            EngineClosed: The engine takes no more requests.
            MismatchError: Its prefix does not fit the backbone.
            DataError: There is no room for it, or a token is not in the vocabulary.
        """
        if not self._accepts:
            raise EngineClosed(CLOSED)
        prefix, size = request.prefix, len(request.prompt)
        if prefix is not None:
            refuse_head(prefix)
            self.backbone.check(prefix)
        most = size + min(self.room(size, prefix), request.sampling.max_tokens)
        most += self.runner.columns_of(prefix)
        if most > self.limits.cache_tokens:
            raise DataError(
                f"prefix, prompt and output may come to {most} tokens; the engine has room for "
                f"{self.limits.cache_tokens}"
            )
        vocabulary = int(self.backbone.model.get_input_embeddings().weight.shape[0])
        named = itertools.chain(request.prompt, request.sampling.logit_bias)
        wrong = next((token for token in named if not 0 <= token < vocabulary), None)
        if wrong is not None:
            raise DataError(f"token {wrong} is not in the vocabulary of {vocabulary}")

    def cancel(self, name: str) -> None:
        """End a request; its last event says ``cancelled``. One that has ended is left alone."""

        def cancel() -> None:
            for job in self.scheduler.find(lambda one: one.request.name == name):
                self._finish(job, "cancelled")  # type: ignore[arg-type]

        self._inbox.put(cancel)

    def generate(self, requests: Iterable[Request]) -> list[Completion]:
        """Answers to requests, in their order; one that fails says so in its ``error``."""
        requests = list(requests)
        found: list[list[Event]] = [[] for _ in requests]
        ended: queue.SimpleQueue[Event] = queue.SimpleQueue()

        def note(events: list[Event], event: Event) -> None:
            events.append(event)
            if event.finish is not None:  # waking this thread at each token would take it a core
                ended.put(event)

        for request, events in zip(requests, found, strict=True):
            self.submit(request, partial(note, events))
        for _ in requests:
            ended.get()
        return [completion(request, each) for request, each in zip(requests, found, strict=True)]

    async def stream(self, request: Request) -> AsyncIterator[Event]:
        """A request's events as they come; leaving the loop early cancels it."""
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event] = asyncio.Queue()

        def sink(event: Event) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        self.submit(request, sink)
        finished = False
        try:
            while not finished:
                event = await events.get()
                finished = event.finish is not None
                yield event
        finally:
            if not finished:
                self.cancel(request.name)

    def close(self, *, drain: bool = True) -> None:
        """Take no more requests, end those under way (or, without `drain`, cancel them), and stop."""
        with self._door:
            if self._accepts:
                self._accepts = False
                self._inbox.put(self._drain if drain else self._abort)
        self._thread.join()
        self._stack.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(drain=kind is None)

    def room(self, size: int, prefix: Prefix | None) -> int:
        """Tokens that the context leaves after a prompt of `size` tokens behind a prefix.

        Raises:
            DataError: None.
        """
        length = prefix.length if prefix is not None else 0
        room = self.backbone.context - length - size
        if room < 1:
            raise DataError(
                f"the prompt has {size} tokens and the prefix {length}; the backbone's context of "
                f"{self.backbone.context} leaves no room to go on. Shorten the prompt"
            )
        return room

    # -- in the engine's thread ------------------------------------------------------------------

    def _loop(self) -> None:
        try:
            with torch.inference_mode():
                while self._listen():
                    self._step()
        except BaseException as error:
            with self._door:
                self._accepts = False
            while not self._inbox.empty():
                self._inbox.get()()
            self._abort("error", f"the engine stopped: {first_line(error)}")
            raise

    def _listen(self) -> bool:
        """Do what other threads asked for, waiting while there is nothing else; whether to go on."""
        while not (self.scheduler.is_idle and self._stopping):
            if self.scheduler.is_idle and self._inbox.empty():
                give_up_pool()
            try:
                self._inbox.get(block=self.scheduler.is_idle)()
            except queue.Empty:
                return True
        return False

    def _drain(self) -> None:
        self._stopping = True

    def _abort(self, reason: FinishReason = "cancelled", error: str = "") -> None:
        self._stopping = True
        for job in self.scheduler.find(lambda _: True):
            self._finish(job, reason, error)  # type: ignore[arg-type]

    def _step(self) -> None:
        """One step: a token for every row that decodes, and a chunk of the prompts."""
        self.steps += 1
        self.scheduler.admit()
        self.runner.cache.fit(self.scheduler.longest)
        decoding = self.scheduler.running[: self.scheduler.decoding]
        parts: list[Any] = [*((job, 1) for job in decoding), *self.scheduler.chunks()]
        self._took(self._run(parts))

    def _run(self, parts: Sequence[tuple[_Job, int]]) -> list[tuple[_Job, int, Tensor | str]]:
        """Each job's next tokens, and their logits or what went wrong.

        If a pass fails, each job runs alone, and those that fail alone have failed.
        """
        try:
            logits = self.runner.run([self._row(job, size) for job, size in parts])
            return [(*part, logits_NV) for part, logits_NV in zip(parts, logits, strict=True)]
        except Exception as error:  # the engine goes on
            if len(parts) > 1:
                return [each for part in parts for each in self._run([part])]
            return [(*parts[0], first_line(error))]

    def _row(self, job: _Job, size: int) -> Row:
        if job.front is None:
            job.front = self.runner.place(job.slot, job.request.prefix)
        part = tuple(job.tokens[job.computed : job.computed + size])
        whole = job.request.sampling.prompt_logprobs is not None and not job.is_decoding
        return Row(job.slot, job.computed, part, job.front, size if whole else 1)

    def _took(self, found: Sequence[tuple[_Job, int, Tensor | str]]) -> None:
        """Count what a pass computed, and go on."""
        # Before any job ends: slots move then, and with them what is computed.
        for job, size, _ in found:
            job.computed += size
        for job, _, error in found:
            if isinstance(error, str):
                self._finish(job, "error", error)
        given = [(job, size, logits) for job, size, logits in found if isinstance(logits, Tensor)]
        if not given:
            return
        last_BV = torch.stack([logits_NV[-1] for _, _, logits_NV in given])
        are_numbers = last_BV.amax(dim=-1).isfinite().tolist()  # one wait for the device
        self._discard([job for (job, *_), fine in zip(given, are_numbers, strict=True) if not fine])
        for job, size, logits_NV in given:
            if len(job.tokens) == len(job.request.prompt) and not job.has_ended:
                self._guarded([job], partial(self._note_prompt, job, size, logits_NV))
        ready = [
            (job, row)
            for row, (job, *_) in enumerate(given)
            if job.is_decoding and not job.has_ended
        ]
        for job, _ in ready:
            if job.slot >= self.scheduler.decoding:
                self.scheduler.promote(job)
        rows = [row for _, row in ready]
        logits_BV = last_BV if len(rows) == len(given) else last_BV[rows]
        self._advance([job for job, _ in ready], logits_BV)

    def _discard(self, jobs: Sequence[_Job]) -> None:
        """End jobs whose logits are not numbers; no slot keeps what would spoil its next request."""
        for job in jobs:
            self.runner.cache.clear(job.slot)
            self._finish(job, "error", "the model's logits are not numbers")
        if jobs:  # one may have moved to another's slot before its own turn came
            for slot in range(len(self.scheduler.running), self.limits.rows):
                self.runner.cache.clear(slot)

    def _guarded(self, jobs: Sequence[_Job], action: Callable[[], None]) -> None:
        """Run an action; what it raises ends these jobs and no others."""
        try:
            action()
        except Exception as error:  # the engine goes on
            for job in jobs:
                self._finish(job, "error", first_line(error))

    def _note_prompt(self, job: _Job, size: int, logits_NV: Tensor) -> None:
        """Keep the log-probabilities of the prompt's tokens that this chunk tells."""
        top = job.request.sampling.prompt_logprobs
        if top is None:
            return
        prompt, first = job.request.prompt, job.computed - size
        if first == 0:
            job.prompt_logprobs.append(TokenLogprobs(prompt[0], float("nan"), ()))
        following = prompt[first + 1 : first + size + 1]
        job.prompt_logprobs += [
            logprobs_of(logits_V, token, top)
            for logits_V, token in zip(logits_NV, following, strict=False)
        ]

    def _advance(self, jobs: Sequence[_Job], logits_BV: Tensor) -> None:
        """Choose the next token of each row, and tell."""
        if not jobs:
            return
        tokens = sample(logits_BV, [job.drawing(logits_BV.device) for job in jobs])
        for job, token, logits_V in zip(jobs, tokens, logits_BV, strict=True):
            self._guarded([job], partial(self._tell, job, token, logits_V))

    def _tell(self, job: _Job, token: int, logits_V: Tensor) -> None:
        sampling = job.request.sampling
        first = len(job.tokens) == len(job.request.prompt)
        job.tokens.append(token)
        generated = len(job.tokens) - len(job.request.prompt)
        ends = token in job.written.ends and not sampling.ignore_eos
        text = "" if ends else self._text(job, token)
        told = (
            () if sampling.logprobs is None else (logprobs_of(logits_V, token, sampling.logprobs),)
        )
        event = Event(
            job.request.name,
            (token,),
            text,
            told,
            prompt_logprobs=tuple(job.prompt_logprobs)
            if first and sampling.prompt_logprobs is not None
            else None,
        )
        job.sink(event)
        if ends or (job.text is not None and job.text.stopped):
            self._finish(job, "stop")
        elif generated >= sampling.max_tokens or len(job.tokens) >= job.context:
            self._finish(job, "length")

    def _text(self, job: _Job, token: int) -> str:
        if self.backbone.tokenizer is None:
            return ""
        if job.text is None:
            stop = (*job.request.sampling.stop, *job.written.stop)
            job.text = Detokeniser(self.backbone.tokenizer, stop, job.written.kept)
        return job.text.add([token])

    def _finish(self, job: _Job, reason: FinishReason, error: str = "") -> None:
        """Free the job's place and tell its end, once."""
        if job.has_ended:
            return
        job.has_ended = True
        self.scheduler.release(job)
        rest = "" if job.text is None else job.text.end()
        job.sink(Event(job.request.name, text=rest, finish=reason, error=error))


def completion(request: Request, events: Sequence[Event]) -> Completion:
    """A request's events put together."""
    last = events[-1]
    assert last.finish is not None
    return Completion(
        request=request.name,
        tokens=tuple(token for event in events for token in event.tokens),
        text="".join(event.text for event in events),
        finish=last.finish,
        prompt_tokens=len(request.prompt),
        logprobs=tuple(one for event in events for one in event.logprobs),
        prompt_logprobs=next(
            (e.prompt_logprobs for e in events if e.prompt_logprobs is not None), None
        ),
        error=last.error,
    )
