"""What the pages' Python names is there: modules that are imported, and names of `foreword`."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = re.compile(r"^( *)```python\n(.*?)^ *```", re.DOTALL | re.MULTILINE)


def blocks() -> Iterator[tuple[str, str]]:
    """Each block of Python and where it stands."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for found in BLOCKS.finditer(text):
            line = text.count("\n", 0, found.start()) + 1
            yield f"{page.relative_to(ROOT)}:{line}", textwrap.dedent(found[2])


@pytest.mark.parametrize(("place", "code"), [*blocks()])
def test_what_python_names_is_there(place: str, code: str) -> None:
    for node in ast.walk(ast.parse(code)):
        match node:
            case ast.ImportFrom(module=str(module), names=names) if is_ours(module):
                for one in names:
                    assert reached(module, one.name), f"{place}: {module} has no {one.name}"
            case ast.Import(names=names):
                for one in names:
                    assert not is_ours(one.name) or import_module(one.name)
            case ast.Attribute(value=ast.Name(id="foreword"), attr=name):
                assert reached("foreword", name), f"{place}: foreword has no {name}"


def is_ours(module: str) -> bool:
    return module.split(".")[0] == "foreword"


def reached(module: str, name: str) -> bool:
    if hasattr(import_module(module), name):
        return True
    try:
        import_module(f"{module}.{name}")
    except ModuleNotFoundError:
        return False
    return True


def test_the_pages_have_python() -> None:
    assert len(list(blocks())) > 20
