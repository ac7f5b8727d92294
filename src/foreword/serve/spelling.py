"""`Spelling`: the bytes of a text that each token stands for, also where a character spans several."""

from __future__ import annotations

import codecs
import json
import re
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
"""How vocabularies with a byte fallback name a byte."""

_BYTES: dict[str, bytes] = {
    character: bytes([byte]) for byte, character in bytes_to_unicode().items()
}
"""What byte-level vocabularies write for each byte (GPT-2)."""


class Spelling:
    """Tells what tokens are in a text, as bytes: joined, those of a text's tokens are the text.

    Args:
        tokenizer: The backbone's tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        self._special: dict[int, str] = {
            **dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)),
            **{token: one.content for token, one in added.items() if one.special},
        }
        self._ways = _ways(tokenizer)
        self._known: dict[int, bytes] = {}

    def bytes_of(self, token: int, *, is_first: bool = False) -> bytes | None:
        """The bytes of a token; None for a special token, which is left out of texts.

        Args:
            token: The token's id.
            is_first: Whether it begins a text, where some tokenizers leave a space out.
        """
        if token in self._special:
            return None
        if is_first and "ByteLevel" not in self._ways:
            known = self._piece(token)
            return self._decoded(token).encode() if known is None else known
        if token not in self._known:
            self._known[token] = self._found(token)
        return self._known[token]

    def name(self, token: int) -> str:
        """What a special token is called."""
        return self._special[token]

    def _found(self, token: int) -> bytes:
        known = self._piece(token)
        if known is not None:
            return known
        once, twice = self._decoded(token), self._decoded(token, token)
        return (twice[len(once) :] if twice.startswith(once) else once).encode()

    def _piece(self, token: int) -> bytes | None:
        """The bytes that the vocabulary's own word for the token says, if it says any."""
        piece: str | None = self.tokenizer.convert_ids_to_tokens(token)
        if piece is None:  # beyond the vocabulary
            return b""
        if "ByteLevel" in self._ways and all(character in _BYTES for character in piece):
            return b"".join(_BYTES[character] for character in piece)
        byte = _BYTE.fullmatch(piece) if "ByteFallback" in self._ways else None
        return None if byte is None else bytes([int(byte[1], 16)])

    def _decoded(self, *tokens: int) -> str:
        text: str = self.tokenizer.decode(tokens)
        return text


def _ways(tokenizer: Any) -> set[str]:
    """Names of the steps in which a tokenizer decodes."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.decoder is None:
        return set()
    described = json.loads(backend.decoder.__getstate__())  # what is pickled of it is its JSON
    return {step["type"] for step in described.get("decoders", [described])}


def _lossy() -> codecs.IncrementalDecoder:
    """Makes text of bytes that come in parts, as tokenizers do."""
    return codecs.getincrementaldecoder("utf-8")("replace")


class Offsets:
    """Where in a text its tokens stand, told one after another.

    Args:
        spelling: What the tokens are.
    """

    def __init__(self, spelling: Spelling) -> None:
        self.spelling = spelling
        self.characters = 0
        self._decoder = _lossy()
        self._is_first = True

    def begin(self) -> None:
        """Go on with a text of its own, which the last one's end is no part of."""
        self.characters += len(self._decoder.decode(b"", final=True))
        self._decoder = _lossy()
        self._is_first = True

    def next(self, token: int) -> tuple[bytes | None, int]:
        """A token's bytes, and the place of the first character that it is a part of."""
        found = self.spelling.bytes_of(token, is_first=self._is_first)
        place = self.characters
        if found is not None:
            self._is_first = False
            self.characters += len(self._decoder.decode(found))
        return found, place
