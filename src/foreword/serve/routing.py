"""`Routing`: a router served as a model: the prefix of each input is chosen by the input itself."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from foreword.data.each import of_each
from foreword.engine.checks import check_known
from foreword.engine.protocol import TextFeatures
from foreword.errors import DataError, ServeError, StoreError
from foreword.router import Router, as_routed
from foreword.serve.crews import Crews
from foreword.serve.failures import Failure
from foreword.serve.registry import Registry
from foreword.serve.schemas import ChatRequest, CompletionRequest
from foreword.tasks import reader_for


class Routing:
    """Routes the inputs of requests.

    Args:
        name: What requests call it.
        router: The router.
        features: What computes inputs' features; None where the engine computes none.
        crews: Who does what would hold up the event loop.

    Raises:
        MismatchError: The router was fitted on another backbone.
        ServeError: The engine computes no features, the backbone has the router's name, or it has no
            tokenizer.
        DataError: The tokenizer cannot say where its tokens stand.
    """

    def __init__(
        self, name: str, router: Router, features: TextFeatures | None, crews: Crews
    ) -> None:
        if features is None:
            raise ServeError(
                "this engine computes no features of texts, by which a router chooses; use Foreword's "
                "own engine (--engine embedded), or name each request's prefix"
            )
        backbone = features.backbone
        router.check(backbone)
        if name == backbone.name:
            raise ServeError(f"the router has the backbone's name {name!r}; rename its file")
        if backbone.tokenizer is None:
            raise ServeError("this backbone has no tokenizer, so texts cannot be routed")
        self.name = name
        self.router = router
        self.features = features
        # Without a limit: to cut is a state of the tokenizer, which the threads of the crew share.
        self.reader = reader_for(backbone, backbone.bos, sys.maxsize)
        self.crews = crews

    def check_name(self, registry: Registry) -> None:
        """Check that no prefix has the router's name.

        Raises:
            StoreError: One has.
        """
        if self.name in registry:
            raise StoreError(
                f"a prefix has the router's name {self.name!r}, so requests could not name it; rename "
                "the router's file"
            )

    async def names(self, body: CompletionRequest | ChatRequest) -> list[str]:
        """The prefix of each of a request's prompts, in order.

        Raises:
            Failure: A chat has no message of the user, or a text has no tokens.
            DataError: A token is not in the vocabulary.
            EngineClosed: The engine takes no more requests.
            ForewordError: The features could not be computed.
        """
        every = await self.crews.text.do(lambda: self._read(body))
        futures: list[asyncio.Future[Tensor]] = []
        try:
            futures.extend(asyncio.wrap_future(self.features.of(ids)) for ids in every)
            found = await asyncio.gather(*futures)
        finally:  # nobody waits for the others once one has failed
            for future in futures:
                future.cancel()
        return [one.name for one in self.router.scored(torch.stack(found))]

    def texts(self, body: CompletionRequest | ChatRequest) -> list[str]:
        """What is routed: a completion's prompts, or the last message of a chat's user.

        Raises:
            Failure: There is no such message.
            DataError: A token is not in the vocabulary.
        """
        if isinstance(body, CompletionRequest):
            return [one if isinstance(one, str) else self._decoded(one) for one in body.prompts]
        turns = [message.turn for message in body.messages]
        said = [turn["content"] for turn in turns if turn["role"] == "user"]
        if not said:
            raise Failure(
                400,
                f"messages: {self.name!r} routes a chat by the last message of the user; found none",
                "messages",
            )
        return said[-1:]

    def _read(self, body: CompletionRequest | ChatRequest) -> list[list[int]]:
        """The tokens of what is routed, as `Router.route` has them, but no more than a step takes."""
        field = "prompt" if isinstance(body, CompletionRequest) else "messages"
        texts = self.texts(body)
        try:
            readings = of_each(texts, lambda text: self.reader.read(as_routed(text)))
        except DataError as error:
            raise Failure(400, f"{field}: {error}", field) from error
        return [one.ids[: self.features.most] for one in readings]

    def _decoded(self, ids: Sequence[int]) -> str:
        backbone = self.features.backbone
        check_known(ids, backbone.vocabulary)
        assert backbone.tokenizer is not None
        text: str = backbone.tokenizer.decode(ids, skip_special_tokens=True)
        return text
