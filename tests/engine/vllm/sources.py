"""`Sources`: what vLLM's source text says of its modules and classes; nothing of it is imported.

So versions of vLLM can be looked at that are not installed, or that need a GPU to be imported.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef


def folders() -> list[Path]:
    """The folders that hold a ``vllm`` package: of FOREWORD_VLLM_SOURCES, else where it is installed."""
    given = os.environ.get("FOREWORD_VLLM_SOURCES")
    if given:
        return [Path(one) for one in given.split(os.pathsep)]
    found = importlib.util.find_spec("vllm")
    return [] if found is None or found.origin is None else [Path(found.origin).parents[1]]


class Sources:
    """One version of vLLM.

    Args:
        folder: The folder that holds its package.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._tree = cache(self._parsed)

    @property
    def version(self) -> str:
        """The version that its metadata name."""
        (found,) = [
            match.group(1)
            for path in self.folder.glob("vllm*.dist-info")
            if (match := re.fullmatch(r"vllm(?:_cpu)?-([^-]+)\.dist-info", path.name))
        ]
        return found

    def tree(self, module: str) -> ast.Module:
        """A module, as ``vllm.v1.request``.

        Raises:
            AssertionError: There is none.
        """
        return self._tree(module)

    def _parsed(self, module: str) -> ast.Module:
        stem = self.folder.joinpath(*module.split("."))
        for path in (stem.with_suffix(".py"), stem / "__init__.py"):
            if path.exists():
                return ast.parse(path.read_text(encoding="utf-8"))
        raise AssertionError(f"vLLM {self.version} has no module {module}")

    def names(self, module: str) -> set[str]:
        """All that can be imported from a module."""
        tree = self.tree(module)
        found = set(_bound(tree))
        for one in _bodies(tree):
            if isinstance(one, ast.ImportFrom) and one.level == 1 and one.names[0].name == "*":
                found |= self.names(f"{module}.{one.module}")
        return found | {path.stem for path in self.folder.joinpath(*module.split(".")).glob("*.py")}

    def node(self, module: str, name: str) -> ast.AST:
        """A class, a function, or a method as ``Scheduler.schedule``.

        Raises:
            AssertionError: There is none.
        """
        found: ast.AST = self.tree(module)
        for part in name.split("."):
            inside = [one for one in _bodies(found) if getattr(one, "name", None) == part]
            assert inside, f"vLLM {self.version} has no {name} in {module}"
            found = inside[-1]
        return found

    def parameters(self, module: str, name: str) -> list[str]:
        """The names of a function's parameters, in order."""
        function = self.node(module, name)
        assert isinstance(function, Function), name
        return parameters_of(function)

    def members(self, module: str, name: str) -> set[str]:
        """A class's fields and methods, what its ``__init__`` puts into ``self``, and those of bases.

        Bases that are of other modules are left out.
        """
        one = self.node(module, name)
        assert isinstance(one, ast.ClassDef), name
        found = set(_bound(one))
        for part in one.body:
            if isinstance(part, Function) and part.name == "__init__":
                found |= set(_own(part))
        known = {base.id for base in one.bases if isinstance(base, ast.Name)}
        for base in known & set(_bound(self.tree(module))):
            if any(getattr(other, "name", None) == base for other in self.tree(module).body):
                found |= self.members(module, base)
        return found

    def calls(self, module: str, name: str) -> list[str]:
        """The methods that a function calls, in the order of the text, by their last names."""
        found = [one for one in ast.walk(self.node(module, name)) if isinstance(one, ast.Call)]
        found.sort(key=lambda one: (one.lineno, one.col_offset))
        return [one.func.attr for one in found if isinstance(one.func, ast.Attribute)]

    def assigned(self, module: str, name: str, variable: str) -> set[str]:
        """What a function gives a variable or takes from it, each as Python would write it."""
        found = set()
        for one in ast.walk(self.node(module, name)):
            if isinstance(one, ast.Assign | ast.AugAssign):
                targets = one.targets if isinstance(one, ast.Assign) else [one.target]
                if variable in {name for to in targets for name in _targets(to)}:
                    found.add(ast.unparse(one.value))
        return found


def parameters_of(function: Function) -> list[str]:
    """The names of a function's parameters, in order."""
    given = function.args
    plain = [*given.posonlyargs, *given.args]
    star = [one for one in (given.vararg,) if one is not None]
    return [
        one.arg
        for one in (*plain, *star, *given.kwonlyargs, *([given.kwarg] if given.kwarg else []))
    ]


def imports_of(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """What a module takes from vLLM, anywhere in it: pairs of a module of vLLM's and a name."""
    for one in ast.walk(tree):
        if isinstance(one, ast.ImportFrom) and (one.module or "").split(".")[0] == "vllm":
            yield from ((str(one.module), alias.name) for alias in one.names)


def _bodies(node: ast.AST) -> Iterator[ast.stmt]:
    """The statements of a body, those below ``if`` and ``try`` included."""
    for one in getattr(node, "body", []):
        yield one
        if isinstance(one, ast.If | ast.Try):
            yield from _bodies(one)


def _bound(node: ast.AST) -> Iterator[str]:
    """The names that a body defines, assigns or imports."""
    for one in _bodies(node):
        if isinstance(one, Function | ast.ClassDef):
            yield one.name
        elif isinstance(one, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in one.names)
        elif isinstance(one, ast.Assign):
            yield from (to.id for to in one.targets if isinstance(to, ast.Name))
        elif isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name):
            yield one.target.id


def _targets(node: ast.expr) -> list[str]:
    """The variables that an assignment sets."""
    parts = node.elts if isinstance(node, ast.Tuple) else [node]
    return [one.id for one in parts if isinstance(one, ast.Name)]


def _own(function: Function) -> Iterator[str]:
    """The attributes of ``self`` that a method assigns."""
    for one in ast.walk(function):
        if (
            isinstance(one, ast.Attribute)
            and isinstance(one.ctx, ast.Store)
            and isinstance(one.value, ast.Name)
            and one.value.id == "self"
        ):
            yield one.attr
