"""Prompt tuning (Lester et al. 2021, arXiv 2104.08691) and P-tuning (Liu et al. 2021, arXiv 2103.10385).

Embeddings are learned in front of the input, by the modules of the peft library: in front of what a
decoder reads, what an encoder with a head reads, or what the encoder of an encoder-decoder reads. Of the
last the peft library has as many embeddings again, of which its own models read none.

Shapes: P virtual tokens, D size of an embedding, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, TypeVar, get_args

import torch
from torch import nn

from foreword.backbone import Backbone
from foreword.data import Encoded
from foreword.errors import TrainingError
from foreword.head import Head
from foreword.methods.added import peft_library
from foreword.methods.base import Applied, Method, Rows, Start
from foreword.methods.embeddings import DecoderLearner, EncoderLearner, Prompt, PromptLearner
from foreword.methods.heads import new_head, numbers_of, trained_head
from foreword.methods.in_front import in_front, prove, table_of
from foreword.methods.prefix.settings import LENGTH, NEUTRAL_TEXT
from foreword.methods.prefix.start import text_tokens
from foreword.objectives.base import Objective
from foreword.objectives.encode import InFront, room
from foreword.objectives.settings import DataSettings, check_counts, check_words
from foreword.prefix import canonical_json

Init = Literal["text", "vocab"]

_CHOICES = {"init": get_args(Init)}


@dataclass(frozen=True, kw_only=True)
class PromptSettings(DataSettings):
    """Learned embeddings, on the rows that the data settings read.

    Raises:
        TrainingError: A number is out of range, or a word is none of its choices.
        DataError: A template is ill-formed.
    """

    length: int = LENGTH
    """Virtual tokens P."""

    init: Init = "text"
    """Where the embeddings start: those of a text, or of random vocabulary tokens."""

    init_text: str | None = None
    """The text to start from, repeated until it fills the prompt; default: a neutral sentence."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_words(self, _CHOICES)
        check_counts(self, "length")
        if self.init_text is not None and self.init != "text":
            raise TrainingError(
                f"init_text is only used with init='text'; found init={self.init!r}. Drop one of both"
            )


@dataclass(frozen=True, kw_only=True)
class PTuningSettings(DataSettings):
    """Embeddings that a small MLP makes of embeddings of its own.

    Raises:
        TrainingError: A number is out of range.
        DataError: A template is ill-formed.
    """

    length: int = LENGTH
    """Virtual tokens P."""

    width: int = 128
    """Width of the MLP."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "length", "width")


S = TypeVar("S", PromptSettings, PTuningSettings)


class PromptStart(Start[S, Prompt]):
    """Embeddings to start from.

    Args:
        backbone: The backbone.
        settings: The settings.
        head: Where the head starts, if there is one.
    """

    def __init__(self, backbone: Backbone, settings: S, head: Head | None) -> None:
        self.backbone = backbone
        self.settings = settings
        self.in_front = InFront(backbone.bos, settings.length, head)
        told = {"backbone": backbone.fingerprint, "settings": settings.as_json()}
        self.digest = hashlib.sha256(canonical_json(told)).hexdigest()
        self.numbers = settings.length * self._width + numbers_of(head)

    @property
    def trained(self) -> int:
        """The numbers of the value, and of the MLP that makes it."""
        if not isinstance(self.settings, PTuningSettings):
            return self.numbers
        outer, inner = self._width, self.settings.width
        return self.numbers + 2 * outer * inner + inner**2 + 2 * inner + outer

    @property
    def _width(self) -> int:
        return int(table_of(self.backbone).weight.shape[1])

    @contextmanager
    def learning(
        self, objective: Objective, rows: Sequence[Encoded], rate: float
    ) -> Iterator[PromptLearner]:
        """The module that makes embeddings, as the seed makes it."""
        trained = trained_head(self.backbone, self.in_front.head, rows, rate)
        torch.manual_seed(self.settings.seed)
        encoder = self._encoder()
        with self.backbone.attached(None) as attachment:
            given = (self.backbone, objective, encoder, self.settings.length, trained)
            learner: PromptLearner = (
                DecoderLearner(attachment, *given)
                if self.backbone.kind == "decoder"
                else EncoderLearner(*given)
            )
            yield learner.to(self.backbone.device)

    @contextmanager
    def applied(self, value: Prompt) -> Iterator[Applied]:
        """The backbone and the prefix that the embeddings are, or the backbone behind them."""
        if value.prefix is not None:
            yield Applied(self.backbone, value.prefix, InFront.of(value.prefix))
            return
        embeddings_PD = value.embeddings_PD.to(self.backbone.device)
        with in_front(self.backbone, embeddings_PD):
            yield Applied(self.backbone, None, replace(self.in_front, head=value.head))

    def _encoder(self) -> nn.Module:
        sizes: dict[str, Any] = {
            "num_virtual_tokens": self.settings.length,
            "token_dim": self._width,
            "num_transformer_submodules": 1,
        }
        peft, words = peft_library(), table_of(self.backbone)
        if isinstance(self.settings, PTuningSettings):
            config = peft.PromptEncoderConfig(**sizes, encoder_hidden_size=self.settings.width)
            encoder: nn.Module = peft.PromptEncoder(config)
            return encoder.float()
        made: Any = peft.PromptEmbedding(peft.PromptTuningConfig(**sizes), words)
        with torch.no_grad():
            ids = torch.tensor(self._tokens(), device=words.weight.device)
            made.embedding.weight = nn.Parameter(words(ids).detach().float().cpu())
        embedding: nn.Module = made
        return embedding

    def _tokens(self) -> list[int]:
        assert isinstance(self.settings, PromptSettings)
        length = self.settings.length
        if self.settings.init == "vocab":
            generator = torch.Generator().manual_seed(self.settings.seed)
            size = int(table_of(self.backbone).weight.shape[0])
            drawn: list[int] = torch.randint(size, (length,), generator=generator).tolist()
            return drawn
        return text_tokens(self.backbone, self.settings.init_text or NEUTRAL_TEXT, length)


class _InFrontOfInput(Method[S, Prompt]):
    def start(self, backbone: Backbone, settings: S, rows: Rows) -> PromptStart[S]:
        """The embeddings that training starts from, and a head of zeros if the task needs one.

        Raises:
            UnsupportedModel: Embeddings in front of what an encoder reads are no text to it.
            DataError: The prompt leaves no room for text.
        """
        room(backbone, settings, settings.length)
        if backbone.kind != "decoder":
            prove(backbone)
        return PromptStart(backbone, settings, new_head(backbone, settings, rows))


class PromptMethod(_InFrontOfInput[PromptSettings]):
    """Learned embeddings in front of the input."""

    name: ClassVar[str] = "prompt-tuning"
    settings = PromptSettings


class PTuningMethod(_InFrontOfInput[PTuningSettings]):
    """Embeddings in front of the input, made by an MLP."""

    name: ClassVar[str] = "p-tuning"
    settings = PTuningSettings
