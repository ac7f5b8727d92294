"""Expressions of prefixes, such as ``0.7*formal + e2e - toxic``, and the grammar that they follow.

The grammar, with spaces allowed between any two parts::

    sum       = term, {("+" | "-"), term}
    term      = {"-" | number, "*"}, (operand | "(", sum, ")")
    operand   = name, ["[", (span | selection), "]"]
    span      = index | [index], ":", [index]
    selection = attribute, "=", value, {",", attribute, "=", value}

A name is one of the store's, so it may hold dots, digits and minus signs: ``a-b`` is a name, and
``a - b`` a difference. A word is a number only where ``*`` follows: ``0.7*a``. Indices count virtual
tokens from 0, as slices of Python do, without its negative ones. An attribute or a value is any text
that a label may be, without ``[ ] , =`` and spaces at its ends.

Nothing here evaluates text as Python, and every bound below holds before any work is done for it.
"""

from foreword.expressions.expression import (
    MODES,
    Expression,
    Mode,
    Operand,
    Selection,
    Span,
    Term,
    is_expression,
    looked_up,
)
from foreword.expressions.parser import as_expression, parse

__all__ = [
    "MODES",
    "Expression",
    "Mode",
    "Operand",
    "Selection",
    "Span",
    "Term",
    "as_expression",
    "is_expression",
    "looked_up",
    "parse",
]
