"""HTML and SVG put together from elements, in which every text is escaped."""

from __future__ import annotations

import html

from foreword.compare.figures import spelled

_VOID = ("meta", "link")
"""Elements of ours that have no end."""


class Markup(str):
    """A text that is markup: only `element` and `joined` make it, so data never is."""

    __slots__ = ()


def element(name: str, /, *inside: str, **attributes: str | float | None) -> Markup:
    """An element.

    Args:
        name: Its name.
        inside: Texts, which are escaped, and elements.
        attributes: By name; ``text_anchor`` is ``text-anchor`` and ``class_`` is ``class``. One that is
            None is left out.
    """
    given = "".join(
        f' {key.strip("_").replace("_", "-")}="{_value(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Markup(f"<{name}{given}>")
    return Markup(f"<{name}{given}>{joined(*inside)}</{name}>")


def joined(*parts: str) -> Markup:
    """Texts, which are escaped, and elements, one after another."""
    return Markup("".join(part if isinstance(part, Markup) else _escaped(part) for part in parts))


def _escaped(text: str) -> str:
    """A text as it stands in HTML and in XML, which has no control characters."""
    return html.escape(spelled(text, keep="\n\t"))


def _value(value: str | float) -> str:
    """A text escaped, a coordinate to a hundredth."""
    if isinstance(value, str):
        return _escaped(value)
    return f"{value:.2f}".rstrip("0").rstrip(".")
