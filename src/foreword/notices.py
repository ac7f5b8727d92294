"""Lines that libraries print while they are imported, and that nobody can act on.

Where torchao is installed, transformers imports it, and it says on standard error which of its GPU
libraries do not fit this machine, before every command and every script.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

_NOTICES = {"torchao": "Failed to load ", "torch.utils._pytree": "<enum "}
"""By logger, how those lines begin."""


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_NOTICES[record.name])


@contextmanager
def without_notices() -> Iterator[None]:
    """In a block, those lines are left out, and no others."""
    loggers = [logging.getLogger(name) for name in _NOTICES]
    for logger in loggers:
        logger.addFilter(_is_news)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(_is_news)


with without_notices():
    import transformers.quantizers  # noqa: F401  (it imports torchao)
