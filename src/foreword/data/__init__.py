"""Data: rows from files, templates that name their columns, token ids with labels."""

from typing import TYPE_CHECKING

from foreword.lazy import offer

if TYPE_CHECKING:
    from foreword.data.collate import Collator, left_padded
    from foreword.data.encode import Encoded, Encoder, Report
    from foreword.data.sources import read_rows, rows_of
    from foreword.data.template import Task

__all__ = [
    "Collator",
    "Encoded",
    "Encoder",
    "Report",
    "Task",
    "left_padded",
    "read_rows",
    "rows_of",
]

offer(
    __name__,
    {
        "Collator": "foreword.data.collate",
        "Encoded": "foreword.data.encode",
        "Encoder": "foreword.data.encode",
        "Report": "foreword.data.encode",
        "Task": "foreword.data.template",
        "left_padded": "foreword.data.collate",
        "read_rows": "foreword.data.sources",
        "rows_of": "foreword.data.sources",
    },
)
