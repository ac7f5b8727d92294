"""Tasks whose input is a text or a pair of texts, which one vector stands for."""

from __future__ import annotations

from foreword.data.template import Task, as_row, columns, fill
from foreword.errors import DataError
from foreword.tasks.base import Labelling, Row
from foreword.tasks.reading import Reader, Reading

PAIR = "{text_pair}"
"""Where the second text of a pair is by default."""


def read(reader: Reader, templates: Task, row: Row) -> Reading:
    """A row's text, or its two texts together.

    Raises:
        DataError: It lacks a column, or has no tokens.
    """
    assert templates.prompt is not None
    first = fill(templates.prompt, row)
    if templates.second is None:
        return reader.read(first)
    return reader.pair(first, fill(templates.second, row))


def target_column(templates: Task, needs: str) -> str:
    """The one column that the target template names, with nothing beside it.

    Raises:
        DataError: It names more, or writes something beside it; `needs` says what is expected.
    """
    names = columns(templates.target or "")
    if [f"{{{name}}}" for name in names] != [templates.target]:
        raise DataError(f"{needs}; found {templates.target!r}")
    return names[0]


class OfTexts(Labelling):
    """A task of that kind: what its input is."""

    templates = Task("{text}", "{label}")

    def given(self, templates: Task, text: str) -> Row:
        """The one column that the templates name, or a JSON object with several."""
        row = as_row(text, templates)
        return {} if isinstance(row, str) else row

    def read(self, reader: Reader, templates: Task, row: Row) -> list[Reading]:
        """The filled prompt, or the pair of it and its second text."""
        return [read(reader, templates, row)]
