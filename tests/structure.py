"""The pages that show the code's structure, made from the code: `make pages` writes them.

The tree in docs/architecture.md and the folders in the README are the first lines of docstrings; the
order of imports in CONTRIBUTING.md is `LAYERS`, which tests/test_package.py holds the imports to.
"""

from __future__ import annotations

import ast
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src/foreword"
LAYERS = (
    "errors version lazy notices interrupt progress arguments options fallbacks files reach",
    "description described header versions outline branches",
    "head arithmetic",
    "prefix mixture similarity",
    "describe",
    "format",
    "store expressions outlines",
    "weights",
    "attention",
    "backbone",
    "peft data",
    "tasks",
    "objectives methods train prompts mixing generate predict engine compose router",
    "evaluate compare",
    "card",
    "hub",
    "serve",
    "cli",
    "__main__",
)
"""Modules and packages of the root, a layer a line. Each imports from layers above it and from itself;
of one line, those on the right may import those on the left."""

BESIDE = {
    "tests/": "mirrors the package; oracle/, kinds/, ways/, attacks/ and golden/ beside it",
    "docs/": "tutorial, how-to guides, reference, file format, families, decisions",
    "benchmarks/": "what was measured, results/, and LOG.md",
}
"""The README's folders that are no part of the package."""


def order() -> tuple[str, ...]:
    """Every module and package of the root, lowest first."""
    return tuple(name for layer in LAYERS for name in layer.split())


def summary(path: Path) -> str:
    """First line of a module's docstring, without its full stop."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert text, f"{path} has no docstring"
    return text.splitlines()[0].rstrip(".")


def tree(folder: Path = SOURCE, depth: int = 1) -> list[str]:
    """A line for each module and package, packages after modules."""
    lines = []
    entries = [p for p in folder.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()]
    for path in sorted(entries, key=lambda p: (p.is_dir(), p.name)):
        if path.name == "__init__.py":
            continue
        name = path.name + "/" if path.is_dir() else path.name
        line = summary(path / "__init__.py" if path.is_dir() else path)
        lines.append(f"{'  ' * depth + name:<26} {line}")
        if path.is_dir():
            lines += tree(path, depth + 1)
    return lines


def folders() -> list[str]:
    """A line for each package of the root, in the order of imports, and for what lies beside them."""
    names = [name for name in order() if (SOURCE / name).is_dir()]
    rows = {f"  {name}/": summary(SOURCE / name / "__init__.py") for name in names}
    return [f"{name:<14} {line}" for name, line in {**rows, **BESIDE}.items()]


def layers() -> str:
    """`LAYERS` as CONTRIBUTING.md prints it."""
    return textwrap.fill("  <-  ".join(LAYERS), 100, break_on_hyphens=False)


def blocks() -> dict[Path, str]:
    """By page what stands between its two marks."""
    return {
        ROOT / "docs/architecture.md": "\n".join(["src/foreword/", *tree()]),
        ROOT / "README.md": "\n".join(["src/foreword/", *folders()]),
        ROOT / "CONTRIBUTING.md": layers(),
    }


BEGIN, END = "<!-- made by `make pages` -->\n```text\n", "\n```\n<!-- end -->"


def renewed(page: str, block: str) -> str:
    """The page with the block between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, mark, after = rest.partition(END)
    assert mark, "the page has no marks"
    return before + BEGIN + block + END + after


def main() -> None:
    """Write every page."""
    for path, block in blocks().items():
        path.write_text(renewed(path.read_text(encoding="utf-8"), block), encoding="utf-8")


if __name__ == "__main__":
    main()
