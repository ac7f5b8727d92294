"""`Engine`: many requests at once on one backbone, each with its own prefix.

Every step runs all rows that decode in one forward pass, whatever their prefixes, and beside it a
chunk of the prompts that wait (Yu et al., "Orca", OSDI 2022, section 3.1: scheduling at every step).
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor

from foreword.attention.bound import effective
from foreword.backbone import Backbone
from foreword.data.written import Written, written_for
from foreword.described import Described
from foreword.engine.base import OpenEngine
from foreword.engine.checks import (
    CLOSED,
    check_tokens,
    opened,
    room_after,
    strength_of,
    whole_prefix,
)
from foreword.engine.protocol import Stats
from foreword.engine.request import Completion, Event, FinishReason, NotServed, Request, completion
from foreword.engine.slots.branching import branch_requests
from foreword.engine.slots.features import Features
from foreword.engine.slots.inbox import Inbox
from foreword.engine.slots.job import Job, Mix
from foreword.engine.slots.runner import PROBE, Row, Runner, probed
from foreword.engine.slots.sampler import Stack, chosen, likeliest, logprobs_of
from foreword.engine.slots.scheduler import Limits, Scheduler
from foreword.engine.streaming import Sink
from foreword.engine.threads import give_up_pool
from foreword.errors import TooLong, first_line
from foreword.prompts import PLAIN, refuse_head, task_of
from foreword.weights.packing import packed

log = logging.getLogger("foreword.engine")


class Engine(OpenEngine):
    """Serves requests on a backbone, in a thread of its own.

    The backbone belongs to the engine until it is closed: nothing else may run it.

    Args:
        backbone: The backbone.
        limits: What may run at once.

    Attributes:
        steps: Steps so far.
        failure: Why the engine was lost, or empty. One that is lost has told every request, and takes
            no more.

    Raises:
        UnsupportedModel: The backbone's family cannot be served in mixed batches.

    Examples:
        >>> with foreword.Engine(backbone) as engine:  # doctest: +SKIP
        ...     engine.generate([Request(tuple(ids), prefixes=(Weighted(prefix),))])
    """

    def __init__(self, backbone: Backbone, limits: Limits | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.limits = limits = limits or Limits()
        backbone.needs("decoder", what="serving in mixed batches")
        example = backbone.capture(PROBE)
        with ExitStack() as stack:  # which undoes what was done, if one of these fails
            attachment = stack.enter_context(backbone.inferring(None))
            _ = backbone.fingerprint, backbone.context, backbone.width  # before weights are packed
            stack.enter_context(packed(backbone.model, partial(probed, backbone, attachment)))
            self.runner = Runner(
                backbone, attachment, self.limits.cache_tokens, example, self.limits.copied
            )
            self._stack = stack.pop_all()
        self._logits = Stack()
        self.scheduler: Scheduler[Job] = Scheduler(
            self.runner.cache,
            self.limits,
            lambda job, error: self._finish(job, "error", first_line(error)),
        )
        self.steps = 0
        self._inbox = Inbox(self._rest)
        self.features: Features = Features(
            backbone, attachment, limits, lambda call: self._hand_on(lambda: self._inbox.put(call))
        )
        self._stopping = False
        give_up_pool()
        self._thread = threading.Thread(target=self._loop, name="foreword-engine", daemon=True)
        self._thread.start()

    # -- from any thread -------------------------------------------------------------------------

    @property
    def stats(self) -> Stats:
        """How it is doing."""
        scheduler = self.scheduler
        waiting, running = len(scheduler.waiting), scheduler.begun
        return Stats(waiting, running, self.steps, self.runner.cache.bytes)

    def submit(self, request: Request, sink: Sink) -> None:
        """Take a request; `sink` gets its events.

        Raises:
            ForewordError: The request cannot be taken, see `check`.
        """
        request = opened(request)
        self.check(request)
        branches = branch_requests(request, self.backbone)
        room, written = self._room_of(branches), self._written(request)
        rows = [self._job(one, room, sink, written) for one in branches]
        if len(rows) > 1:
            mix = Mix(tuple(branch.coefficient for branch in request.branches))
            for row in rows:
                row.together, row.mix = tuple(rows), mix
        self._hand_on(lambda: self._inbox.put(lambda: self.scheduler.waiting.append(rows[0])))

    def _job(self, request: Request, room: int, sink: Sink, written: Written) -> Job:
        """A row that can be given `room` tokens after its prompt."""
        context = len(request.prompt) + room
        ahead = self.runner.columns_of(request.prefix)
        return Job(request, list(request.prompt), context, ahead, sink=sink, written=written)

    def _room_of(self, branches: Sequence[Request]) -> int:
        """Tokens that the context leaves after every branch's prompt."""
        return min(self.room(len(one.prompt), one.prefix) for one in branches)

    def _written(self, request: Request) -> Written:
        """How a request's text ends, and which of its tokens are text."""
        prefix = request.prefix
        task = PLAIN if prefix is None else task_of(prefix)
        return written_for(self.backbone, prefix, task).ended_by(request.ends)

    def check(self, request: Request) -> None:
        """Check whether `submit` would take a request now.

        Raises:
            EngineClosed: The engine takes no more requests.
            MismatchError: One of its prefixes does not fit the backbone.
            TooLong: There is no room for it.
            NotServed: Something is asked for that a mixture does not have.
            UnsupportedModel: A prefix has pieces of which a request must choose, or too many strengths.
            DataError: A token is not in the vocabulary.
        """
        self._check_open()
        request = opened(request)
        branches = branch_requests(request, self.backbone)
        for one in branches:
            prefix = whole_prefix(one)
            if prefix is not None:
                refuse_head(prefix)
                self.backbone.check(prefix)
                _ = effective(prefix.strength(strength_of(one)))
        self._check_place(request, branches)
        check_tokens(request, self.backbone.vocabulary)

    def _check_place(self, request: Request, branches: Sequence[Request]) -> None:
        """Check that the engine could hold all rows of a request at once.

        Raises:
            TooLong: There is no room for their tokens.
            NotServed: They are too many.
        """
        count, limits = len(branches), self.limits
        added = min(self._room_of(branches), request.sampling.max_tokens)
        most = sum(len(one.prompt) + added + self.runner.columns_of(one.prefix) for one in branches)
        if most > limits.cache_tokens:
            each = "" if count == 1 else f" of {count} branches"
            raise TooLong(
                f"prefix, prompt and output{each} may come to {most} tokens; the engine has room for "
                f"{limits.cache_tokens}"
            )
        if count > limits.rows:
            raise NotServed(
                "prefixes",
                f"this mixture is computed in {count} rows, and the engine runs {limits.rows}; name "
                "fewer prefixes, or give it more rows",
            )

    def cancel(self, name: str) -> None:
        """End a request; its last event says ``cancelled``. One that has ended is left alone."""

        def cancel() -> None:
            for job in self.scheduler.find(lambda one: one.request.name == name):
                self._finish(job, "cancelled")

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

    def close(self, *, drain: bool = True) -> None:
        """Take no more requests, end those under way (or, without `drain`, cancel them), and stop."""
        if self._shut():
            self._inbox.put(self._drain if drain else self._abort)
        self._thread.join()
        self._stack.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(drain=kind is None)

    def room(self, size: int, prefix: Described | None) -> int:
        """Tokens that the context leaves after a prompt of `size` tokens behind a prefix.

        Raises:
            TooLong: None.
        """
        return room_after(self.backbone.context, size, prefix)

    def left(self, size: int, prefix: Described | None) -> int:
        """Tokens that the engine's memory leaves after a prompt of `size` tokens behind a prefix."""
        return self.limits.cache_tokens - size - self.runner.columns_of(prefix)

    # -- in the engine's thread ------------------------------------------------------------------

    def _loop(self) -> None:
        try:
            with torch.inference_mode():
                while self._listen():
                    self._step()
        except BaseException as error:
            self._lose(f"the engine stopped: {first_line(error)}")
            raise

    def _lose(self, failure: str) -> None:
        """Tell every request, and who asked for it, that the engine goes on no more.

        Nothing is computed, moved or freed on the way: what failed once may fail again.
        """
        self._shut(failure)
        while self._inbox.do_next(wait=False):
            pass
        self.features.give_up(failure)
        for job in self.scheduler.find(lambda _: True):
            self._finish(job, "error", failure)
        self._tell_lost()

    def _listen(self) -> bool:
        """Do what other threads asked for, waiting while there is nothing else; whether to go on."""
        while not (self._is_idle and self._stopping):
            if not self._inbox.do_next(wait=self._is_idle):
                return True
        return False

    @property
    def _is_idle(self) -> bool:
        return self.scheduler.is_idle and self.features.is_idle

    def _rest(self) -> None:
        """Keep no memory that only steps need."""
        self.runner.cache.rest()
        if self.backbone.device.type == "cuda":  # whose allocator keeps what is freed
            torch.cuda.empty_cache()

    def _drain(self) -> None:
        self._stopping = True

    def _abort(self, reason: FinishReason = "cancelled", error: str = "") -> None:
        self._stopping = True
        self.features.give_up(CLOSED)
        for job in self.scheduler.find(lambda _: True):
            self._finish(job, reason, error)

    def _step(self) -> None:
        """One step: a token for every row that decodes, and a chunk of the prompts."""
        self.steps += 1
        self.features.step()
        decoding = self.scheduler.decoding()
        self.scheduler.admit()
        self._begin_as_others()
        self._took(self._run([*((job, 1) for job in decoding), *self.scheduler.chunks()]))

    def _run(self, parts: Sequence[tuple[Job, int]]) -> list[tuple[Job, int, Tensor | str]]:
        """Each job's next tokens, and their logits or what went wrong.

        If a pass fails, each job runs alone, and those that fail alone have failed.
        """
        if not parts:
            return []
        try:
            logits = self.runner.run([self._row(job, size) for job, size in parts])
            return [(*part, logits_NV) for part, logits_NV in zip(parts, logits, strict=True)]
        except Exception as error:  # the engine goes on
            found = first_line(error)
        # Outside of the handler, where the error would keep what the pass had made.
        if len(parts) > 1:
            return [each for part in parts for each in self._run([part])]
        return [(*parts[0], found)]

    def _row(self, job: Job, size: int) -> Row:
        assert job.slot is not None
        if job.front is None:
            request = job.request
            job.front = self.runner.place(job.slot, whole_prefix(request), strength_of(request))
        part = tuple(job.tokens[job.computed : job.computed + size])
        whole = job.request.sampling.prompt_logprobs is not None and not job.is_decoding
        return Row(job.slot, job.computed, part, job.front, size if whole else 1)

    def _took(self, found: Sequence[tuple[Job, int, Tensor | str]]) -> None:
        """Count what a pass computed, and go on."""
        self._discard([(job, logits) for job, _, logits in found if isinstance(logits, str)])
        ready: list[tuple[Job, Tensor]] = []
        for job, size, logits in found:
            if isinstance(logits, str):
                continue
            is_new = not job.is_decoding
            job.computed += size
            if is_new:
                self._guarded([job], partial(job.note_prompt, size, logits))
            if job.is_decoding and not job.has_ended:
                if is_new:
                    self._guarded([job], partial(self._open, job, logits[-1]))
                alike = self._begun_as(job) if is_new else []
                ready += [(one, logits[-1]) for one in (job, *alike) if not one.has_ended]
        self._advance(ready)

    def _open(self, job: Job, logits_V: Tensor) -> None:
        """A job's prompt is computed: it decodes from now on."""
        self.scheduler.promote(job)
        job.opening = logits_V.clone()  # which keeps the pass's other logits from staying

    def _begun_as(self, job: Job) -> list[Job]:
        """Jobs that have a place and begin as one whose prompt is computed now; theirs is, too."""
        if job.has_ended:
            return []
        alike = self._begun(lambda one: one.beginning == job.beginning)
        for one in alike:
            if not one.has_ended:
                self._guarded([one], partial(self._begin_as, one, job))
        return alike

    def _begun(self, matches: Callable[[Job], bool]) -> list[Job]:
        """Jobs that have a place and whose prompt is not computed yet."""
        return [one for one in self.scheduler.running if not one.is_decoding and matches(one)]

    def _begin_as(self, job: Job, other: Job) -> None:
        """Take over the prompt that another job has computed, bit for bit."""
        assert job.slot is not None
        assert other.slot is not None
        size = len(job.request.prompt)
        self.runner.cache.copy(other.slot, job.slot, other.ahead + size)
        job.front, job.computed, job.opening = other.front, size, other.opening
        job.prompt_logprobs = list(other.prompt_logprobs)
        self.scheduler.promote(job)

    def _begin_as_others(self) -> None:
        """Let jobs that have their place only now begin with what others computed for them."""
        opened = {
            job.beginning: (job, job.opening)
            for job in self.scheduler.running
            if job.opening is not None
        }
        ready = []
        for job in self._begun(lambda one: one.beginning in opened):
            if job.has_ended:  # with another branch of its mixture
                continue
            other, opening_V = opened[job.beginning]
            self._guarded([job], partial(self._begin_as, job, other))
            if not job.has_ended:
                ready.append((job, opening_V))
        self._advance(ready)

    def _discard(self, failed: Sequence[tuple[Job, str]]) -> None:
        """End jobs that failed; no slot keeps what is not a number, for its next request."""
        for job in (row for one, _ in failed for row in one.rows):
            if job.slot is not None:
                job.slot.shelf.clear(job.slot)
        for job, error in failed:
            self._finish(job, "error", error)

    def _guarded(self, jobs: Sequence[Job], action: Callable[[], None]) -> None:
        """Run an action; what it raises ends these jobs and no others."""
        try:
            action()
        except Exception as error:  # the engine goes on
            for job in jobs:
                self._finish(job, "error", first_line(error))

    def _advance(self, ready: Sequence[tuple[Job, Tensor]]) -> None:
        """Choose the next token of each request whose rows have their logits, and tell."""
        if any(job.mix is not None for job, _ in ready):
            ready = [each for job, logits_V in ready for each in self._spoken(job, logits_V)]
        if ready:
            self._draw(ready)

    def _spoken(self, job: Job, logits_V: Tensor) -> list[tuple[Job, Tensor]]:
        """A row with its logits; of a mixture's the first one with those of all, after the last one."""
        if job.mix is None:
            return [(job, logits_V)]
        try:
            mixed_V = None if job.has_ended else job.hear(logits_V)
        except Exception as error:  # the engine goes on
            self._finish(job, "error", first_line(error))
            return []
        return [] if mixed_V is None else [(job.lead, mixed_V)]

    def _draw(self, ready: Sequence[tuple[Job, Tensor]]) -> None:
        """Choose the next token of each request by its logits, and tell."""
        try:
            logits_BV = self._logits.of([logits_V for _, logits_V in ready])
            draws = [job.drawing(logits_BV.device) for job, _ in ready]
            changed_BV, best = likeliest(logits_BV, draws)
            are_numbers = logits_BV.amax(dim=-1).isfinite().tolist()
        except Exception as error:  # the engine goes on
            found = first_line(error)
        else:
            self._choose([job for job, _ in ready], logits_BV, changed_BV, best, are_numbers)
            return
        if len(ready) > 1:
            for each in ready:
                self._draw([each])
        else:
            self._finish(ready[0][0], "error", found)

    def _choose(
        self,
        jobs: Sequence[Job],
        logits_BV: Tensor,
        changed_BV: Tensor,
        best: Sequence[int],
        are_numbers: Sequence[bool],
    ) -> None:
        """Take each row's token and tell it, or that its logits are no numbers."""
        wrong = [job for job, fine in zip(jobs, are_numbers, strict=True) if not fine]
        self._discard([(job, "the model's logits are not numbers") for job in wrong])
        for row, job in enumerate(jobs):
            if are_numbers[row]:
                take = partial(self._take, job, logits_BV[row], changed_BV[row], best[row])
                self._guarded([job], take)

    def _take(self, job: Job, logits_V: Tensor, changed_V: Tensor, best: int) -> None:
        self._tell(job, chosen(changed_V, best, job.drawing(logits_V.device)), logits_V)

    def _tell(self, job: Job, token: int, logits_V: Tensor) -> None:
        sampling = job.request.sampling
        first = len(job.tokens) == len(job.request.prompt)
        for row in job.rows:
            row.tokens.append(token)
        generated = len(job.tokens) - len(job.request.prompt)
        ends = token in job.written.ends and not sampling.ignore_eos
        text = "" if ends else job.spelled(token, self.backbone.tokenizer)
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

    def _finish(self, job: Job, reason: FinishReason, error: str = "") -> None:
        """Free the place of a row's request and tell its end, once."""
        job = job.lead
        if job.has_ended:
            return
        for row in job.rows:
            row.has_ended = True
        if not self.failure:  # else nothing is moved any more
            self.scheduler.release(job)
        try:
            rest = "" if job.text is None else job.text.end()
            job.sink(Event(job.request.name, text=rest, finish=reason, error=error))
        except Exception:  # who asked is gone, and the engine goes on
            log.exception("the end of %s could not be told", job.request.name)
