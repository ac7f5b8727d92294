"""`foreword predict`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from foreword.branches import check_finite
from foreword.cli.console import note, say, working
from foreword.cli.inputs import InputOptions
from foreword.cli.options import BackboneOptions, StoreOptions
from foreword.errors import LABELS_NONE, DataError
from foreword.files import write_whole
from foreword.options import BATCH

if TYPE_CHECKING:
    from foreword.tasks import Prediction


NO_LABEL = "-"
"""What is printed of an input of whose labels none holds."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class PredictArguments:
    """What is made of the inputs, and how it is shown."""

    as_json: Annotated[bool, Parameter(name="--json")] = False
    """Print one JSON object per input: labels with their probabilities, words with their tags,
    answers with their place and score, or numbers."""

    features: Path | None = None
    """Write the feature vectors of texts, or of pairs of texts, to this .safetensors file instead, as
    the tensor features of shape (texts, hidden size). Any prefix will do for that."""

    batch_size: int = BATCH
    """Inputs in one batch."""

    strength: Annotated[float, Parameter(allow_leading_hyphen=True)] = 1.0
    """How far the prefix moves every attention output: 0 is the frozen model, 1 the prefix; its head
    stays as it is."""

    strict: bool = False
    """Refuse a backbone with other weights than the prefix was made on, instead of warning."""

    def __post_init__(self) -> None:
        check_finite("--strength", self.strength)


def predict(
    name: str,
    text: str | None = None,
    /,
    *,
    inputs: InputOptions = InputOptions(),  # noqa: B008
    arguments: PredictArguments = PredictArguments(),
    backbone: BackboneOptions = BackboneOptions(),  # noqa: B008
    store: StoreOptions = StoreOptions(),  # noqa: B008
) -> None:
    """Label inputs with the head of a prefix: one line of output per input.

    Parameters
    ----------
    name
        Name of the prefix in the store.
    text
        The input: a text; of a head that tags, words with spaces between; of one that answers, a JSON
        object with question and context; of one for pairs, a JSON object with text and text_pair, or
        the columns that it was trained on.
    """
    place = store.open()
    if place.outline(name).head is None and arguments.features is None:
        raise DataError(LABELS_NONE)
    given = inputs.read(text)
    from safetensors.torch import save as tensors_as_bytes

    from foreword.predict import features
    from foreword.predict import predict as run_prediction

    prefix = place.load(name).strength(arguments.strength)
    with working("loading the backbone"):
        loaded = backbone.load(prefix)
    size, strict = arguments.batch_size, arguments.strict
    if arguments.features is not None:
        try:
            vectors = features(loaded, given, prefix, batch_size=size, strict=strict)
        except DataError as error:
            raise DataError(f"features are those of texts or pairs of them: {error}") from error
        write_whole(arguments.features, tensors_as_bytes({"features": vectors.contiguous()}))
        note(f"{len(given)} vectors of {vectors.shape[1]} in {arguments.features}")
        return
    for prediction in run_prediction(loaded, given, prefix, batch_size=size, strict=strict):
        shown = json.dumps(asdict(prediction), ensure_ascii=False)
        say(shown if arguments.as_json else line(prediction))


def line(prediction: Prediction) -> str:
    """A prediction for people."""
    from foreword.tasks import Answered, Classified, Measured, Multilabelled

    if isinstance(prediction, Classified):
        return f"{prediction.label}  {prediction.probabilities[prediction.label]:.3f}"
    if isinstance(prediction, Multilabelled):
        held = (f"{label}  {prediction.probabilities[label]:.3f}" for label in prediction.labels)
        return ", ".join(held) or NO_LABEL
    if isinstance(prediction, Measured):
        return f"{prediction.value:.6g}"
    if isinstance(prediction, Answered):
        return prediction.text
    return " ".join(_tagged(prediction.tokens, prediction.tags))


def _tagged(tokens: list[str], tags: list[str]) -> Iterator[str]:
    for token, tag in zip(tokens, tags, strict=True):
        yield token if tag == "O" else f"{token}[{tag}]"
