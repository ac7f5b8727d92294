"""From an HTTP request to the engine's requests, and from its events to OpenAI's answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from foreword.backbone.served import Served
from foreword.data.written import end_of_turn, stop_of_turn
from foreword.described import Described
from foreword.engine import EngineClient, Event, Request, Sampling, Weighted
from foreword.engine.checks import left_of, opened_prefixes, room_of
from foreword.engine.request import Completion, NotServed, branches_for, completion
from foreword.errors import (
    ForewordError,
    PrefixError,
    TooLong,
    UnsupportedModel,
)
from foreword.expressions import is_expression
from foreword.prompts import chat_ids, has_templates, text_ids
from foreword.serve.composed import Compositions, Model, Wanted
from foreword.serve.crews import Crews
from foreword.serve.failures import TOO_LONG, Failure
from foreword.serve.journal import Line
from foreword.serve.making import Making, blaming_model
from foreword.serve.metrics import Metrics
from foreword.serve.registry import Registry
from foreword.serve.routing import Routing
from foreword.serve.schemas import ChatRequest, CompletionRequest, Sampled

Body = CompletionRequest | ChatRequest
T = TypeVar("T")

_FIELDS = {"prompt_logprobs": "echo", "prefixes": "model", "weight": "model"}
"""By what an engine does not serve the field that asks for it, where that has another name."""

COMPOSED = "(composition)"
"""What metrics call every model that is an expression; no prefix can have this name."""

OPEN = 2**31 - 1
"""Most tokens of a choice whose request says none."""


@dataclass(frozen=True)
class Asked:
    """One HTTP request, ready for the engine.

    Attributes:
        body: What was sent.
        requests: One for each choice.
        prompts: Text of each choice's prompt, for echo.
        identity: Its id, in the answer and in the log.
        created: When it came, in seconds since 1970.
        line: What its line in the log tells.
        began: When the server took it up, in seconds by the event loop's clock.
        until: When its time is over, by the same clock.
        notices: What the client should know.
        routed: By prompt the prefix that it was routed to; none where no router was asked.
    """

    body: Sampled
    requests: tuple[Request, ...]
    prompts: tuple[str, ...]
    identity: str
    created: int
    line: Line
    began: float
    until: float
    notices: tuple[str, ...] = ()
    routed: tuple[str, ...] = ()

    @property
    def model(self) -> str:
        """The model as the answer names it: where all prompts were routed to one prefix, that one."""
        return self.routed[0] if len(set(self.routed)) == 1 else self.body.model

    def counted(self, index: int) -> str:
        """The model of a choice as metrics name it.

        Clients can spell more expressions than can be counted; what was routed counts for its prefix.
        """
        if self.routed:
            return self.routed[index // self.body.n]
        is_one = not self.requests[0].prefixes or not is_expression(self.body.model)
        return self.body.model if is_one else COMPOSED

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompts, each once, as OpenAI counts them."""
        return sum(len(one.prompt) for one in self.requests[:: self.body.n])


class Completions:
    """Answers completions and chat completions.

    Args:
        backbone: The backbone.
        engine: What runs them.
        registry: Where prefixes come from.
        metrics: What is counted.
        crews: Who does what would hold up the event loop.
        queue: Choices that may be open at once, waiting ones included.
        most_tokens: Tokens that one choice may ask for; None: what the context leaves.
        seconds: Time that one request may take, routing included.
        routing: The router that is served as a model, if one is.
    """

    def __init__(
        self,
        backbone: Served,
        engine: EngineClient,
        registry: Registry,
        metrics: Metrics,
        crews: Crews,
        *,
        queue: int = 256,
        most_tokens: int | None = None,
        seconds: float = 600.0,
        routing: Routing | None = None,
    ) -> None:
        self.backbone = backbone
        self.engine = engine
        self.registry = registry
        self.compositions = Compositions(registry, computes=engine.features is not None)
        self.making = Making(self.compositions, engine.features, crews)
        self.metrics = metrics
        self.crews = crews
        self.queue = queue
        self.most_tokens = most_tokens
        self.seconds = seconds
        self.routing = routing
        self.open = 0

    # -- what is asked ---------------------------------------------------------------------------

    def _model(self, body: Body) -> Model | Wanted:
        """What a request's model and strength stand for, or what is to be made for it.

        Raises:
            Failure: There is no such model, or it is wrong.
        """
        if body.model == self.backbone.name:
            if body.strength != 1:
                raise Failure(400, "strength: the backbone has none; name a prefix", "strength")
            return Model()
        return self._composed(body, body.model)

    def _composed(self, body: Body, name: str) -> Model | Wanted:
        given = body.lone if isinstance(body, ChatRequest) else None
        with blaming_model():
            return self.compositions.of(name, body.mode, body.strength, given)

    async def models(self, body: Body, count: int, line: Line, until: float) -> list[Model]:
        """What each of a request's prompts runs under.

        Args:
            body: What was sent.
            count: The number of its prompts.
            line: What the request's line in the log tells.
            until: When its time is over, by the event loop's clock.

        Raises:
            Failure: There is no such model, or it is wrong; or routing or composing takes too long, or
                leads to what is not there.
        """
        in_time = partial(self._in_time, count * body.n, line, until)
        if self.routing is not None and body.model == self.routing.name:
            names = await in_time(body.model, self.routing.names(body))
            return await self.crews.disk.do(partial(self._routed, body, names))
        found = await self.crews.disk.do(partial(self._model, body))
        if isinstance(found, Wanted):
            found = await in_time(COMPOSED, self.making.made(found))
        return [found] * count

    async def _in_time(
        self, count: int, line: Line, until: float, name: str, work: Awaitable[T]
    ) -> T:
        """What some work gives, if it does so before a request's time is over; else that is counted."""
        try:
            async with asyncio.timeout_at(until):
                return await work
        except TimeoutError:
            line["ended"] = "timeout"
            self.metrics.requests.labels(name, "timeout").inc(count)
            raise self._late() from None

    def _routed(self, body: Body, names: Sequence[str]) -> list[Model]:
        """The models that a router has named, by prompt."""
        for name in names:
            if name not in self.registry:
                raise Failure(
                    404,
                    f"the router {body.model!r} sends this input to {name!r}, and no prefix is called "
                    "so; put it into the store, or serve a router of the prefixes that are there",
                    "model",
                    code="model_not_found",
                )
        made = {name: self._composed(body, name) for name in dict.fromkeys(names)}
        found = {
            name: replace(one, routed=name) for name, one in made.items() if isinstance(one, Model)
        }
        return [found[name] for name in names]

    def _late(self) -> Failure:
        return Failure(504, f"the request took more than {self.seconds:g} s")

    async def asked(self, body: Body, line: Line) -> Asked:
        """The engine's requests, each of which it would take; meanwhile its choices count as open.

        Args:
            body: What was sent.
            line: What the request's line in the log tells; it has the request's id.

        Raises:
            Failure: A field asks for what is not served, or for too many choices.
            DataError: A prompt cannot be used.
            MismatchError: The prefix was made for another backbone.
            EngineClosed: The engine takes no more requests.
        """
        began = asyncio.get_running_loop().time()
        line["model"] = body.model
        if isinstance(body, ChatRequest):
            kind, count, sampling = "chatcmpl", 1, self._chat_sampling(body)
        else:
            kind, count, sampling = "cmpl", len(body.prompts), self._plain_sampling(body)
        _check_that_fields_agree(body)
        try:
            with self._held(count * body.n):
                models = await self.models(body, count, line, began + self.seconds)
                line["request"] = f"{kind}-{line['request']}"
                make = partial(self._made, body, models, sampling, line, began)
                return await self.crews.text.do(make)
        except asyncio.CancelledError:  # the client went away
            line["ended"] = "cancelled"
            raise

    def _made(
        self, body: Body, models: Sequence[Model], sampling: Sampling, line: Line, began: float
    ) -> Asked:
        """The engine's requests, in tokens, under each prompt's model."""
        identity = str(line["request"])
        field = "messages" if isinstance(body, ChatRequest) else "prompt"
        ends = self._ends(body)
        requests = []
        for place, model in enumerate(models):
            chosen = model.prefixes
            ids = self._ids(body, place, model)
            room = self._room(ids, chosen, field)
            if sampling.max_tokens == OPEN:  # then it ends where the engine's memory does, too
                room = min(room, left_of(self.engine, len(ids), chosen))
            most = max(1, min(sampling.max_tokens, room))
            for copy in range(body.n):
                seed = None if body.seed is None else body.seed + copy
                limited = replace(sampling, seed=seed, max_tokens=most)
                name = f"{identity}-{place * body.n + copy}"
                requests.append(Request(tuple(ids), limited, chosen, name, ends))
            self._check(requests[-1])
        echoed = self._echoed(body, requests)
        now = int(time.time())
        notices = tuple(dict.fromkeys(notice for model in models for notice in model.notices))
        routed = tuple(model.routed for model in models if model.routed is not None)
        if routed:
            line["routed"] = sorted(set(routed))
        until = began + self.seconds
        return Asked(
            body, tuple(requests), echoed, identity, now, line, began, until, notices, routed
        )

    def _check(self, request: Request) -> None:
        """Check that the engine would take a request: a stream's status is sent before it is asked."""
        try:
            self.engine.check(request)
        except NotServed as error:
            field = _FIELDS.get(error.field, error.field)
            raise Failure(400, f"{field}: {error.why}", field) from error
        except (UnsupportedModel, PrefixError) as error:
            raise Failure(400, f"model: {error}", "model") from error

    def _check_room_for(self, count: int) -> None:
        """Refuse more choices than may be open, before they cost anything."""
        if count > self.queue:
            message = (
                f"n: {count} choices are asked for, and {self.queue} allowed at once; ask for fewer"
            )
            raise Failure(400, message, "n")
        if self.open + count > self.queue:
            self.metrics.refused.inc()
            raise Failure(
                429,
                f"{self.open} requests are open and {self.queue} allowed; {count} more are too many. "
                "Try again later",
                headers={"Retry-After": "1"},
            )

    def _ids(self, body: Body, place: int, model: Model) -> list[int]:
        """Token ids of one prompt of a request."""
        leading = branches_for(opened_prefixes(model.prefixes))[0].under
        prefix = None if leading is None else leading.prefix
        if isinstance(body, ChatRequest):
            return self._conversation(body, prefix, model.routed or body.model)
        return self._prompt(body.prompts[place], prefix)

    def _ends(self, body: Body) -> frozenset[int]:
        """What ends an answer in a conversation: the assistant's turn as the chat template ends it."""
        tokenizer = self.backbone.tokenizer
        is_chat = isinstance(body, ChatRequest) and tokenizer is not None
        return end_of_turn(tokenizer) if is_chat else frozenset()

    def _echoed(self, body: Body, requests: Sequence[Request]) -> tuple[str, ...]:
        """Text of each choice's prompt, where it was asked for."""
        if isinstance(body, ChatRequest) or not body.echo:
            return ("",) * len(requests)
        tokenizer: Any = self.backbone.tokenizer
        return tuple(tokenizer.decode(one.prompt, skip_special_tokens=True) for one in requests)

    def _room(self, ids: Sequence[int], prefixes: Sequence[Weighted], field: str) -> int:
        try:
            room = room_of(self.engine, len(ids), prefixes)
        except TooLong as error:  # clients know the code, LiteLLM the sentence
            most = f"This model's maximum context length is {self.backbone.context} tokens"
            raise Failure(400, f"{error}. {most}", field, code=TOO_LONG) from error
        return room if self.most_tokens is None else min(room, self.most_tokens)

    def _prompt(self, prompt: str | list[int], prefix: Described | None) -> list[int]:
        """Token ids of a completion's prompt, taken as it is."""
        return text_ids(self.backbone, prefix, prompt) if isinstance(prompt, str) else prompt

    def _conversation(self, body: ChatRequest, prefix: Described | None, name: str) -> list[int]:
        """Token ids of a conversation."""
        turns = [message.turn for message in body.messages]
        if has_templates(prefix) and (len(turns) != 1 or turns[0]["role"] != "user"):
            raise Failure(
                400,
                f"messages: the prefix {name!r} was trained with a prompt template, so it is "
                "asked with one message of the user; or send the whole prompt to /v1/completions",
                "messages",
            )
        return chat_ids(self.backbone, prefix, turns)

    def _sampling(self, body: Sampled, max_tokens: int | None) -> Sampling:
        return Sampling(
            max_tokens=max(1, OPEN if max_tokens is None else max_tokens),
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            top_k=max(0, body.top_k or 0),
            seed=body.seed,
            stop=body.stops,
            logit_bias=body.biases,
            presence_penalty=body.presence_penalty,
            frequency_penalty=body.frequency_penalty,
            ignore_eos=body.ignore_eos,
        )

    def _plain_sampling(self, body: CompletionRequest) -> Sampling:
        told = body.logprobs if body.echo else None
        sampling = self._sampling(body, body.max_tokens)
        return replace(sampling, logprobs=body.logprobs, prompt_logprobs=told)

    def _chat_sampling(self, body: ChatRequest) -> Sampling:
        sampling = self._sampling(body, body.max_completion_tokens or body.max_tokens)
        tokenizer = self.backbone.tokenizer
        ends = () if tokenizer is None else stop_of_turn(tokenizer)
        told = (body.top_logprobs or 0) if body.logprobs else None
        return replace(sampling, logprobs=told, stop=(*sampling.stop, *ends))

    # -- what is answered ------------------------------------------------------------------------

    @contextmanager
    def place(self, asked: Asked) -> Iterator[None]:
        """Count a request's choices as open.

        Raises:
            Failure: There are too many already.
        """
        with self._held(len(asked.requests)):
            yield

    @contextmanager
    def _held(self, count: int) -> Iterator[None]:
        """Count so many choices as open."""
        self._check_room_for(count)
        self.open += count
        try:
            yield
        finally:
            self.open -= count

    async def events(self, asked: Asked) -> AsyncGenerator[tuple[int, Event]]:
        """The events of all choices as they come; leaving early cancels what has not ended."""
        loop = asyncio.get_running_loop()
        places = {request.name: index for index, request in enumerate(asked.requests)}
        unfinished = set(range(len(places)))
        last = [asked.began] * len(asked.requests)
        begun: set[int] = set()
        ended, generated = "cancelled", 0

        def give_up() -> None:
            for index in unfinished:
                self.engine.cancel(asked.requests[index].name)

        # While a client does not read, nothing asks for events, and the time would not be noticed.
        alarm = loop.call_at(asked.until, give_up)
        stream = self.engine.stream(*asked.requests)
        try:
            while unfinished:
                async with asyncio.timeout_at(asked.until):
                    event = await anext(stream)
                index = places[event.request]
                now = loop.time()
                generated += len(event.tokens)
                if event.tokens:
                    first = index not in begun
                    begun.add(index)
                    met = self.metrics
                    (met.first_token if first else met.between_tokens).observe(now - last[index])
                    met.generated_tokens.labels(asked.counted(index)).inc(len(event.tokens))
                    last[index] = now
                if event.finish == "cancelled" and loop.time() >= asked.until:
                    raise TimeoutError
                if event.finish is not None:
                    unfinished.discard(index)
                    self.metrics.requests.labels(asked.counted(index), event.finish).inc()
                if event.finish == "error":
                    ended = "error"
                    raise Failure(500, event.error)
                yield index, event
            ended = "complete"
        except TimeoutError:
            ended = "timeout"
            raise self._late() from None
        except ForewordError:
            ended = "error"
            raise
        finally:
            alarm.cancel()
            await stream.aclose()
            for index in range(0, len(asked.requests), asked.body.n):
                size = len(asked.requests[index].prompt)
                self.metrics.prompt_tokens.labels(asked.counted(index)).inc(size)
            for index in unfinished:
                self.metrics.requests.labels(asked.counted(index), ended).inc()
            asked.line["prompt_tokens"] = asked.prompt_tokens
            asked.line["completion_tokens"] = generated
            asked.line["ended"] = ended

    async def whole(self, asked: Asked) -> list[Completion]:
        """All choices, each put together."""
        events: list[list[Event]] = [[] for _ in asked.requests]
        async for index, event in self.events(asked):
            events[index].append(event)
        return [completion(r, each) for r, each in zip(asked.requests, events, strict=True)]


def _check_that_fields_agree(body: Body) -> None:
    """Refuse fields that are served, but not beside each other."""
    if body.stream_options is not None and not body.stream:
        raise Failure(400, "stream_options: only with stream", "stream_options")
    if isinstance(body, ChatRequest):
        if body.max_tokens is not None and body.max_completion_tokens is not None:
            message = "max_tokens: give it or max_completion_tokens, not both"
            raise Failure(400, message, "max_tokens")
        if body.top_logprobs is not None and not body.logprobs:
            raise Failure(400, "top_logprobs: only with logprobs", "top_logprobs")
    else:
        if not body.prompts:
            raise Failure(400, "prompt: expected at least one; found none", "prompt")
        if body.echo and body.stream:
            raise Failure(400, "echo: not supported with stream", "echo")
