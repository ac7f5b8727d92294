"""Arguments of public functions: of the type that they should have, or refused by name."""

from __future__ import annotations

import dataclasses
import numbers
import os
import reprlib
import types
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from foreword.errors import ForewordError

MOST = 2**31 - 1
"""Largest count, length or dimension."""

Refusal = type[ForewordError]


def shown(value: object) -> str:
    """A value in a few words with its type, whatever it is."""
    try:
        words = reprlib.repr(value)
    except Exception:  # a foreign object's own repr may fail
        words = "one"
    return f"{words.encode(errors='backslashreplace').decode()} ({type(value).__name__})"


def expect(what: str, value: object, kind: Any, expected: str, refusal: Refusal) -> None:
    """Check that an argument is of a type.

    Args:
        what: The argument's name.
        value: What was given.
        kind: A type, or several.
        expected: The same in words.
        refusal: The error to raise.
    """
    if not isinstance(value, kind):
        raise refusal(f"{what} must be {expected}; found {shown(value)}")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A question after the words that are known and like one that is not, to end an error with."""
    by_lower = {each.lower(): each for each in known}
    near = [by_lower[each] for each in get_close_matches(word.lower(), by_lower, n=2)]
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def check_text(what: str, value: object, refusal: Refusal) -> None:
    """Check that an argument is text, every character of it whole.

    A lone surrogate is half of a character: no file and no tokenizer takes it.
    """
    expect(what, value, str, "text", refusal)
    assert isinstance(value, str)
    if not _is_text(value):
        place = next(i for i, c in enumerate(value) if "\ud800" <= c <= "\udfff")
        raise refusal(
            f"{what} has a lone surrogate, {value[place]!a} at character {place}, which is half of "
            "a character; read the text as UTF-8, or replace it"
        )


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_count(
    what: str, value: object, refusal: Refusal, least: int = 1, most: int = MOST
) -> None:
    """Check that an argument is a whole number from `least` to `most`."""
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_whole:
        raise refusal(f"{what} must be a whole number; found {shown(value)}")
    if value < least:  # type: ignore[operator]
        raise refusal(f"{what} must be at least {least}; found {value}")
    if value > most:  # type: ignore[operator]
        raise refusal(f"{what} must be at most {most}; found {value}")


def path_of(what: str, value: object, refusal: Refusal) -> Path:
    """A path that was given as text or as a path."""
    expect(what, value, str | os.PathLike, "a path", refusal)
    path = os.fspath(value)  # type: ignore[call-overload]
    expect(what, path, str, "a path of text", refusal)
    return Path(path)


def check_fields(given: Any, refusal: Refusal) -> None:
    """Check that every field of a frozen dataclass has the type that it is annotated with.

    Whole numbers and fractions of other libraries become Python's own, and lists tuples, so that they
    can be written as JSON. What the words among the fields may be is the class's own affair.
    """
    cls: Any = type(given)
    if cls not in _HINTS:
        _HINTS[cls] = _hints(cls)
    for name, (kind, words, optional) in _HINTS[cls].items():
        value = getattr(given, name)
        if optional and value is None:
            continue
        plain = _plain(name, value, kind, words, refusal)
        if plain is not value:
            object.__setattr__(given, name, plain)


_Hint = tuple[Any, tuple[Any, ...], bool]
"""A field's type without its arguments and None, those arguments, and whether it may be None."""

_HINTS: dict[type, dict[str, _Hint]] = {}
"""By dataclass, those of its fields. A plain dict: torch.compile looks through functools.cache."""


def _hints(cls: Any) -> dict[str, _Hint]:
    hints = get_type_hints(cls)
    found = {}
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
        own = [part for part in parts if part is not type(None)]
        kind = own[0] if len(own) == 1 else object
        found[field.name] = (get_origin(kind) or kind, get_args(kind), len(own) < len(parts))
    return found


def _plain(name: str, value: Any, kind: Any, words: tuple[Any, ...], refusal: Refusal) -> Any:
    """A field's value in Python's own type."""
    if kind in (int, float):
        return _number(name, value, kind, refusal)
    if kind is bool:
        if type(value).__name__ == "bool_":  # NumPy's
            return bool(value)
        expect(name, value, bool, "True or False", refusal)
    elif kind is str:
        check_text(name, value, refusal)
    elif kind is Literal:
        expect(name, value, str, f"one of {', '.join(map(str, words))}", refusal)
    elif kind is Mapping:
        expect(name, value, Mapping, "a mapping", refusal)
    elif kind is tuple:
        expect(name, value, tuple | list, "a tuple", refusal)
        return value if isinstance(value, tuple) else tuple(value)
    else:
        expect(name, value, kind, f"a {kind.__name__}", refusal)
    return value


def _number(name: str, value: Any, kind: type[int] | type[float], refusal: Refusal) -> Any:
    """A number as Python's own `int` or `float`; a whole number will do for a fraction."""
    is_whole = isinstance(value, numbers.Integral)
    if isinstance(value, bool) or not (is_whole or (kind is float and _is_real(value))):
        expected = "a whole number" if kind is int else "a number"
        raise refusal(f"{name} must be {expected}; found {shown(value)}")
    try:
        plain: int | float = int(value) if is_whole else float(value)
        _ = float(plain)
    except OverflowError as error:
        raise refusal(f"{name} is too large a number: {shown(value)}") from error
    return plain


def _is_real(value: object) -> bool:
    return isinstance(value, numbers.Real)
