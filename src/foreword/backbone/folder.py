"""A model's folder, looked at before transformers reads it: its files are whole, and are themselves.

transformers passes over some damaged files in silence, and of others says what its parser met.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import safetensors
from tokenizers import Tokenizer

from foreword.errors import BackboneError, first_line
from foreword.files import NOT_FETCHED, POINTER, is_pointer, reason

TOKENIZER = "tokenizer.json"
OBJECTS = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "model.safetensors.index.json",
)
"""Small files that hold one JSON object each, where they are there at all."""

WEIGHTS = "*.safetensors"
_LARGE = (WEIGHTS, "*.bin", "*.model", TOKENIZER)
"""Files that Git LFS keeps apart."""


def check_folder(folder: Path) -> None:
    """Check that the files of a model's folder can be read.

    Raises:
        BackboneError: One is a pointer, is cut off, or is no JSON object; the message names it.
    """
    try:
        for path in _present(folder, *_LARGE, *OBJECTS):
            with path.open("rb") as file:
                if is_pointer(file.read(len(POINTER))):
                    raise BackboneError(f"{path}: {NOT_FETCHED}")
        for path in _present(folder, *OBJECTS):
            _check_object(path)
        for path in _present(folder, WEIGHTS):
            _check_whole(path)
    except OSError as error:
        raise BackboneError(f"cannot read the folder {folder}: {reason(error)}") from error


def fault_of_tokenizer(folder: Path) -> str | None:
    """What is wrong with a folder's tokenizer.json, or None if nothing is or there is none."""
    path = folder / TOKENIZER
    if not path.is_file():
        return None
    try:
        Tokenizer.from_file(str(path))
    except Exception as error:  # all that the library raises is a bare Exception
        return f"{path} is not a tokenizer of the tokenizers library: {first_line(error)}"
    return None


def _present(folder: Path, *patterns: str) -> Iterator[Path]:
    for pattern in patterns:
        yield from (path for path in sorted(folder.glob(pattern)) if path.is_file())


def _check_object(path: Path) -> None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BackboneError(f"{path} is not JSON: {first_line(error)}") from error
    if not isinstance(found, dict):
        kind = type(found).__name__
        raise BackboneError(f"{path} holds a JSON {kind}; expected an object")


def _check_whole(path: Path) -> None:
    """Check that a file of weights is as long as its header says."""
    try:
        with safetensors.safe_open(path, framework="pt"):
            pass
    except safetensors.SafetensorError as error:
        raise BackboneError(
            f"{path} is damaged or cut off ({first_line(error)}); get it again from where it came"
        ) from error
