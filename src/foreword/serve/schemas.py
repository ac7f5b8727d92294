"""What requests may hold, OpenAI's fields that are served and no others; and what answers do.

A field that is not here is refused by name. Nothing is accepted and ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError


def _spelled(text: str) -> str:
    """The text, once UTF-8 can spell it: JSON may hold half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PydanticCustomError(
            "half_character", "half of a surrogate pair is no character"
        ) from None
    return text


def _whole(value: Any) -> Any:
    """The number as a whole one, if it is: JSON's 3.0 is as whole as its 3."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Text = Annotated[str, AfterValidator(_spelled)]
Whole = Annotated[int, BeforeValidator(_whole)]
Mark = Annotated[Text, Field(min_length=1, max_length=1024)]
Stop = Annotated[list[Mark], Field(max_length=4)]
Bias = Annotated[float, Field(ge=-100, le=100)]
Biases = Annotated[dict[Annotated[int, Field(strict=False)], Bias], Field(max_length=1024)]


class Strict(BaseModel):
    """A model that refuses fields that it does not know, and values of another type."""

    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(Strict):
    """What a stream tells besides the text."""

    include_usage: bool = False


class Sampled(Strict):
    """What both kinds of completion share."""

    model: Text = Field(min_length=1, max_length=256)
    n: Whole = Field(1, ge=1, le=64)
    stop: Stop | Mark | None = None
    seed: Whole | None = Field(None, ge=-(2**63), lt=2**63)
    temperature: float | None = Field(None, ge=0, le=100, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: Whole | None = Field(None, ge=-1, le=2**31 - 1)
    logit_bias: Biases | None = None
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    ignore_eos: bool = False
    stream: bool = False
    stream_options: StreamOptions | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop texts."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class CompletionRequest(Sampled):
    """Body of POST /v1/completions."""

    prompt: Text | list[int] | list[Text] | list[list[int]]
    max_tokens: Whole | None = Field(16, ge=0, le=2**31 - 1)
    logprobs: Whole | None = Field(None, ge=0, le=20)
    echo: bool = False

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, each a text or token ids."""
        prompt: Any = self.prompt
        is_one = isinstance(prompt, str) or (prompt and isinstance(prompt[0], int))
        return [prompt] if is_one else list(prompt)


class TextPart(Strict):
    """A piece of a message's text."""

    type: Literal["text"]
    text: Text


class Message(Strict):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]

    @property
    def turn(self) -> dict[str, str]:
        """The turn as chat templates take it."""
        text = self.content
        whole = text if isinstance(text, str) else "".join(part.text for part in text)
        return {"role": "system" if self.role == "developer" else self.role, "content": whole}


class ChatRequest(Sampled):
    """Body of POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_tokens: Whole | None = Field(None, ge=1, le=2**31 - 1)
    max_completion_tokens: Whole | None = Field(None, ge=1, le=2**31 - 1)
    logprobs: bool = False
    top_logprobs: Whole | None = Field(None, ge=0, le=20)


class LoadRequest(Strict):
    """Body of POST /v1/load_prefix: a file on the server's disk, under a name."""

    name: Text
    path: Text
    overwrite: bool = False


class NameRequest(Strict):
    """Body of requests about one prefix."""

    name: Text


Ending = Literal["stop", "length"]


class Usage(BaseModel):
    """How many tokens a request took."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Answer(BaseModel):
    """What both kinds of answers share."""

    id: str
    created: int
    model: str
    usage: Usage


class TextLogprobs(BaseModel):
    """Log-probabilities of a text's tokens, in parallel lists."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(BaseModel):
    """One continuation."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Ending


class CompletionAnswer(Answer):
    """Answer of POST /v1/completions."""

    object: Literal["text_completion"]
    choices: list[TextChoice]


class Logprob(BaseModel):
    """One token's log-probability."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(Logprob):
    """That of a chosen token, with the likeliest ones."""

    top_logprobs: list[Logprob]


class ChatLogprobs(BaseModel):
    """Log-probabilities of an answer's tokens."""

    content: list[TokenLogprob]
    refusal: None


class ChatTurn(BaseModel):
    """What the model says."""

    role: Literal["assistant"]
    content: str


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: ChatTurn
    logprobs: ChatLogprobs | None
    finish_reason: Ending


class ChatAnswer(Answer):
    """Answer of POST /v1/chat/completions."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class Problem(BaseModel):
    """What is wrong with a request."""

    message: str
    type: str
    param: str | None
    code: int


class ErrorBody(BaseModel):
    """OpenAI's error object: the body of every answer with a status from 400 on."""

    error: Problem
