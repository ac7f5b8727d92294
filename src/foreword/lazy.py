"""Packages whose names are imported when they are first asked for (PEP 562)."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any


class LazyPackage(ModuleType):
    """A package that offers names of modules which it has not imported yet.

    A module that has the name of one of them, as `foreword.train` has, never hides it: the package's
    attribute is what is offered, and ``import foreword.train`` still finds the module.

    Attributes:
        __homes__: By name the module that holds it, and what it is called there.
    """

    __homes__: Mapping[str, tuple[str, str]]

    def __getattr__(self, name: str) -> Any:
        """What is offered under a name, imported now and kept."""
        homes: Mapping[str, tuple[str, str]] = self.__dict__.get("__homes__", {})
        if name not in homes:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        home, own = homes[name]
        found = getattr(import_module(home), own)
        self.__dict__[name] = found
        return found

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute, unless Python gives a module that was imported a name that is offered."""
        if isinstance(value, ModuleType) and name in self.__homes__:
            return
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        """Everything that is there or offered."""
        return sorted({*self.__dict__, *self.__homes__})


def offer(package: str, homes: Mapping[str, str]) -> None:
    """Make a package offer names of its modules.

    Args:
        package: The package's ``__name__``, while it is imported.
        homes: By name the module that holds it, or ``module:name`` where it has another name there.
    """
    module = sys.modules[package]
    split = {name: home.partition(":")[::2] for name, home in homes.items()}
    module.__dict__["__homes__"] = {
        name: (home, own or name) for name, (home, own) in split.items()
    }
    module.__class__ = LazyPackage
