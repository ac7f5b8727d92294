"""Lines that libraries print while they are imported, and that nobody can act on.

Where torchao is installed, transformers imports it, and it says on standard error which of its GPU
libraries do not fit this machine, before every command and every script. Importing this module imports
neither: it has those lines left out when one of them is imported, whoever does that.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_NOTICES = {"torchao": "Failed to load ", "torch.utils._pytree": "<enum "}
"""By logger, how those lines begin."""

_SPEAKER = "torchao"
"""The package that prints them, or has them printed, while it or a module of it is imported."""


def _is_news(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_NOTICES[record.name])


@contextmanager
def without_notices() -> Iterator[None]:
    """In a block, those lines are left out, and no others. Blocks may lie in one another."""
    loggers = [
        logger for logger in map(logging.getLogger, _NOTICES) if _is_news not in logger.filters
    ]
    for logger in loggers:
        logger.addFilter(_is_news)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(_is_news)


class _Quiet(Loader):
    """Another loader, whose modules run without those lines."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """The other loader's module."""
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module as the other loader does, which is its loader again from then on."""
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        module.__loader__ = self.loader
        with without_notices():
            self.loader.exec_module(module)


class _Listener(MetaPathFinder):
    """Finds nothing but the modules that print such lines."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module as Python finds it, with a loader that is quiet."""
        if name.partition(".")[0] != _SPEAKER:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Quiet(spec.loader)
        return spec


sys.meta_path.insert(0, _Listener())
