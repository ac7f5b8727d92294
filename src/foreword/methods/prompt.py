"""Prompt tuning (Lester et al. 2021, arXiv 2104.08691) and P-tuning (Liu et al. 2021, arXiv 2103.10385).

Embeddings are learned in front of the input, by the modules of the peft library. In a decoder they see
nothing of what follows them, so that they are the prefix of the keys and values that the frozen model
makes of them: whatever writes, scores or serves under a prefix does so under them. In models whose other
layers are recurrent a prefix leaves these out, and so does the prompt here.

Shapes: P virtual tokens, D hidden size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, get_args

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from foreword.attention.attachment import Attachment
from foreword.attention.bound import bind
from foreword.backbone import Backbone
from foreword.data import Encoded
from foreword.errors import StoreError, TrainingError, first_line
from foreword.files import write_whole
from foreword.head import Head
from foreword.methods.added import peft_library
from foreword.methods.base import Applied, Learner, Method, Rows, Start
from foreword.methods.heads import TrainedHead, new_head, numbers_of, trained_head
from foreword.methods.prefix.learner import detached
from foreword.methods.prefix.settings import LENGTH, NEUTRAL_TEXT
from foreword.methods.prefix.start import text_tokens
from foreword.objectives.base import Batch, Objective
from foreword.objectives.encode import InFront, room
from foreword.objectives.settings import DataSettings, check_counts, check_words
from foreword.prefix import Prefix, canonical_json

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


@dataclass(frozen=True)
class Prompt:
    """Learned embeddings.

    Attributes:
        embeddings_PD: Float32 on the CPU.
        prefix: The keys and values that the backbone makes of them, with the head if there is one.
    """

    embeddings_PD: Tensor
    prefix: Prefix

    @property
    def numbers(self) -> int:
        """How many numbers it has, head included."""
        return self.embeddings_PD.numel() + numbers_of(self.prefix.head)


class PromptLearner(Learner[Prompt]):
    """The module that makes embeddings, and a head.

    Args:
        backbone: The backbone.
        objective: What the loss is.
        attachment: Where passes of the backbone find their prefix.
        encoder: Gives embeddings (1, P, D) of indices (1, P).
        length: P.
        head: The head, in training.
    """

    def __init__(
        self,
        backbone: Backbone,
        objective: Objective,
        attachment: Attachment,
        encoder: nn.Module,
        length: int,
        head: TrainedHead | None,
    ) -> None:
        super().__init__(backbone, objective)
        self.encoder = encoder
        self.length = length
        self.trained_head = head
        self._attachment = (attachment,)

    def embeddings(self) -> Tensor:
        """The embeddings as they are now, (P, D) with gradients."""
        indices = torch.arange(self.length, device=self.backbone.device)[None]
        made: Tensor = self.encoder(indices)[0]
        return made

    def _prefix(self, embeddings_PD: Tensor) -> Prefix:
        head = None if self.trained_head is None else self.trained_head.head
        return prefix_of(self.backbone, self._attachment[0], embeddings_PD).with_head(head)

    @contextmanager
    def applied(self, batch: Batch) -> Iterator[Head | None]:
        """The backbone under the keys and values of the embeddings, which have their graph."""
        prefix = self._prefix(self.embeddings())
        with self._attachment[0].using(bind(prefix, self.backbone.sites, live=True)):
            yield prefix.head

    def value(self) -> Prompt:
        """The embeddings as they are now, without the module that made them."""
        with torch.no_grad():
            embeddings_PD = self.embeddings()
            prefix = detached(self._prefix(embeddings_PD))
        return Prompt(embeddings_PD.detach().float().cpu().clone(), prefix)

    def save(self, value: Prompt, path: Path) -> None:
        """Write embeddings and head as safetensors."""
        head = () if value.prefix.head is None else value.prefix.head.tensors
        named = zip(("embeddings", "weight", "bias"), (value.embeddings_PD, *head), strict=False)
        write_whole(path, save({name: tensor.contiguous() for name, tensor in named}))

    def load(self, path: Path) -> Prompt:
        """Read them, and make the keys and values anew."""
        try:
            found = load(path.read_bytes())
            embeddings_PD = found["embeddings"]
            weights = () if self.trained_head is None else (found["weight"], found["bias"])
        except Exception as error:  # safetensors has an exception of its own
            raise StoreError(f"cannot read {path}: {first_line(error)}") from error
        with torch.no_grad():
            moved = embeddings_PD.to(self.backbone.device)
            prefix = detached(prefix_of(self.backbone, self._attachment[0], moved))
        if self.trained_head is not None:
            head = self.trained_head.head.made_of(*weights)
            prefix = prefix.with_head(head)
        return Prompt(embeddings_PD, prefix)


def prefix_of(backbone: Backbone, attachment: Attachment, embeddings_PD: Tensor) -> Prefix:
    """The keys and values that a decoder makes of embeddings in front of a text, with their graph."""
    length = len(embeddings_PD)
    first = -length if backbone.positions == "free" else 0
    calls: list[Any] = []
    with attachment.using(None), attachment.observing(calls.append):
        backbone.model(
            inputs_embeds=embeddings_PD[None].to(backbone.dtype),
            attention_mask=torch.ones(1, length, dtype=torch.long, device=backbone.device),
            position_ids=torch.arange(first, first + length, device=backbone.device)[None],
            use_cache=False,
        )
    by_name = {call.name: call for call in reversed(calls)}
    keys = tuple(by_name[site.name].key_BHKD[0] for site in backbone.sites)
    values = tuple(by_name[site.name].value_BHKE[0] for site in backbone.sites)
    return Prefix(backbone.sites, keys, values, backbone.meta())


class PromptStart(Start[S, Prompt]):
    """Embeddings to start from.

    Args:
        backbone: The backbone, a decoder.
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
        return int(self.backbone.model.get_input_embeddings().weight.shape[1])

    @contextmanager
    def learning(
        self, objective: Objective, rows: Sequence[Encoded], rate: float
    ) -> Iterator[PromptLearner]:
        """The module that makes embeddings, as the seed makes it."""
        trained = trained_head(self.backbone, self.in_front.head, rows, rate)
        torch.manual_seed(self.settings.seed)
        encoder = self._encoder()
        with self.backbone.attached(None) as attachment:
            made = (self.backbone, objective, attachment, encoder, self.settings.length, trained)
            yield PromptLearner(*made).to(self.backbone.device)

    @contextmanager
    def applied(self, value: Prompt) -> Iterator[Applied]:
        """The backbone as it is, and the prefix that the embeddings are."""
        yield Applied(self.backbone, value.prefix, InFront.of(value.prefix))

    def _encoder(self) -> nn.Module:
        sizes: dict[str, Any] = {
            "num_virtual_tokens": self.settings.length,
            "token_dim": self._width,
            "num_transformer_submodules": 1,
        }
        peft, words = peft_library(), self.backbone.model.get_input_embeddings()
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
            size = int(self.backbone.model.get_input_embeddings().weight.shape[0])
            drawn: list[int] = torch.randint(size, (length,), generator=generator).tolist()
            return drawn
        return text_tokens(self.backbone, self.settings.init_text or NEUTRAL_TEXT, length)


class _InFrontOfInput(Method[S, Prompt]):
    def start(self, backbone: Backbone, settings: S, rows: Rows) -> PromptStart[S]:
        """The embeddings that training starts from, and a head of zeros if the task needs one.

        Raises:
            BackboneError: The backbone is no decoder.
            DataError: The prompt leaves no room for text.
        """
        backbone.needs("decoder", what=f"the method {self.name}")
        room(backbone, settings, settings.length)
        return PromptStart(backbone, settings, new_head(backbone, settings, rows))


class PromptMethod(_InFrontOfInput[PromptSettings]):
    """Learned embeddings in front of the input."""

    name: ClassVar[str] = "prompt-tuning"


class PTuningMethod(_InFrontOfInput[PTuningSettings]):
    """Embeddings in front of the input, made by an MLP."""

    name: ClassVar[str] = "p-tuning"
