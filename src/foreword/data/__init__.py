"""Data: rows from files, templates that name their columns, token ids with labels."""

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
