"""What requests may hold, and what answers do.

OpenAI's fields are served, or change nothing here as they are (`Unused`), or are refused by name: the
table in docs/how-to/serving.md has them all. A field that is null is one that is not there.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError

from foreword.expressions import Mode
from foreword.expressions.expression import MAX_CHARACTERS


def _spelled(text: str) -> str:
    """The text, once UTF-8 can spell it: JSON may hold half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PydanticCustomError(
            "half_character", "half of a surrogate pair is no character"
        ) from None
    return text


def _checked(value: Any) -> Any:
    """The same of what is not known to be a text yet."""
    return _spelled(value) if isinstance(value, str) else value


def _whole(value: Any) -> Any:
    """The number as a whole one, if it is: JSON's 3.0 is as whole as its 3."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _truth(value: Any) -> Any:
    """The value, if it is true or false: to Python 0 is false."""
    if not isinstance(value, bool):
        raise PydanticCustomError("bool_type", "Input should be a valid boolean")
    return value


Text = Annotated[str, AfterValidator(_spelled)]
Whole = Annotated[int, BeforeValidator(_whole)]
Mark = Annotated[str, Field(min_length=1, max_length=1024), BeforeValidator(_checked)]
Stop = Annotated[list[Mark], Field(max_length=4)]
No = Annotated[Literal[False], BeforeValidator(_truth)]
Nothing = Annotated[list[Any], Field(max_length=0)]
Bias = Annotated[float, Field(ge=-100, le=100)]
Biases = Annotated[dict[Annotated[int, Field(strict=False)], Bias | None], Field(max_length=1024)]


def _without_nulls(value: Any) -> Any:
    """The fields of an object that say something."""
    if not isinstance(value, dict):
        return value
    return {name: one for name, one in value.items() if one is not None}


class Strict(BaseModel):
    """A model that refuses fields that it does not know, and values of another type."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        return _without_nulls(value)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """The description, in which any field that may be absent may be null."""
        described = handler.resolve_ref_schema(handler(schema))
        for name, field in described.get("properties", {}).items():
            if name not in described.get("required", ()) and {"type": "null"} not in field.get(
                "anyOf", ()
            ):
                about = {key: field.pop(key) for key in ("title", "default") if key in field}
                described["properties"][name] = {"anyOf": [field, {"type": "null"}], **about}
        described["additionalProperties"] = {"type": "null"}
        return described


class StreamOptions(Strict):
    """What a stream tells besides the text."""

    include_usage: bool = False
    include_obfuscation: No | None = None


class Unused(Strict):
    """OpenAI's fields of both kinds of completion that change nothing here, with what they may hold."""

    user: Text | None = None
    safety_identifier: Text | None = None
    metadata: dict[Text, Any] | None = None
    store: No | None = None
    service_tier: Literal["auto", "default"] | None = None
    prompt_cache_key: Text | None = None
    prompt_cache_retention: Text | None = None
    prompt_cache_options: dict[Text, Any] | None = None
    cache_control: dict[Text, Any] | None = None


class Sampled(Unused):
    """What both kinds of completion share."""

    model: Text = Field(min_length=1, max_length=MAX_CHARACTERS)
    strength: float = Field(1.0, ge=-100, le=100, allow_inf_nan=False)
    mode: Mode | None = None
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
    def biases(self) -> dict[int, float]:
        """What is added to the logits of tokens."""
        given = self.logit_bias or {}
        return {token: bias for token, bias in given.items() if bias is not None}

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
    best_of: Whole | None = Field(None, ge=1, le=1)
    suffix: Literal[""] | None = None

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
    cache_control: dict[Text, Any] | None = None


class Message(Strict):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]
    name: Text | None = None
    cache_control: dict[Text, Any] | None = None
    tool_calls: Nothing | None = None
    annotations: Nothing | None = None

    @property
    def turn(self) -> dict[str, str]:
        """The turn as chat templates take it."""
        text = self.content
        whole = text if isinstance(text, str) else "".join(part.text for part in text)
        return {"role": "system" if self.role == "developer" else self.role, "content": whole}


class TextFormat(Strict):
    """The format that every answer has."""

    type: Literal["text"]


class ChatRequest(Sampled):
    """Body of POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_tokens: Whole | None = Field(None, ge=1, le=2**31 - 1)
    max_completion_tokens: Whole | None = Field(None, ge=1, le=2**31 - 1)
    logprobs: bool = False
    top_logprobs: Whole | None = Field(None, ge=0, le=20)
    tools: Nothing | None = None
    tool_choice: Literal["none"] | None = None
    parallel_tool_calls: bool | None = None
    functions: Nothing | None = None
    function_call: Literal["none"] | None = None
    response_format: TextFormat | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None

    @property
    def lone(self) -> str | None:
        """The text of the one message, if that is all, and the user's; else None."""
        first, *others = (message.turn for message in self.messages)
        return first["content"] if first["role"] == "user" and not others else None


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
    code: str | None


class ErrorBody(BaseModel):
    """OpenAI's error object: the body of every answer with a status from 400 on."""

    error: Problem
