"""The package as a whole: its layers, its public map, and the wheel that users install."""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import foreword
from tests import structure

foreword_data = import_module("foreword.data")
foreword_train = import_module("foreword.train")

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src/foreword"
LAYERS = structure.order()
"""Each may import those before it, and within itself."""
MODULES = sorted(SOURCE.rglob("*.py"))


def layer(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path) -> list[str]:
    """Names of the modules that a file imports from the package, anywhere in it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "foreword":
                found += [f"foreword.{alias.name}" for alias in node.names]
            else:
                found += [_module(node.module or "", alias.name) for alias in node.names]
    return [name for name in found if name.split(".")[0] == "foreword"]


def _module(package: str, name: str) -> str:
    """`from package import name` may name a module or something in the package."""
    inner = ROOT / "src" / Path(*package.split(".")) / f"{name}.py"
    return f"{package}.{name}" if inner.is_file() else package


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_one_way_and_never_to_the_root(path: Path) -> None:
    if path == SOURCE / "__init__.py":
        return
    own = LAYERS.index(layer(path))
    for name in imports(path):
        parts = name.split(".")
        assert len(parts) > 1, f"{path.name} imports the package root"
        assert parts[1] in LAYERS, f"{path.name} imports {name} from the root"
        assert LAYERS.index(parts[1]) <= own, f"{path.name} imports upwards: {name}"


def test_every_module_has_a_layer() -> None:
    assert {layer(path) for path in MODULES} - {"__init__"} == set(LAYERS)


@pytest.mark.parametrize("page", structure.blocks(), ids=lambda path: path.name)
def test_pages_show_the_structure_as_it_is(page: Path) -> None:
    """`make pages` writes them."""
    text = page.read_text(encoding="utf-8")
    assert structure.renewed(text, structure.blocks()[page]) == text


def test_modules_import_each_other_without_cycles() -> None:
    graph = {}
    for path in MODULES:
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        name = ".".join(parts).removesuffix(".__init__")
        graph[name] = set(imports(path)) - {name}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail, name))
        if name in graph and name not in done:
            for other in sorted(graph[name]):
                visit(other, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def offered(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """What a lazy package imports for checkers alone, and what it offers: by name where it is."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    seen: dict[str, str] = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for alias in node.names:
            other = f":{alias.name}" if alias.asname else ""
            seen[alias.asname or alias.name] = f"{node.module}{other}"
    calls = [
        n.value for n in tree.body if isinstance(n, ast.Expr) and isinstance(n.value, ast.Call)
    ]
    (given,) = [call.args[1] for call in calls if ast.unparse(call.func) == "offer"]
    return seen, ast.literal_eval(given)


@pytest.mark.parametrize("package", [foreword, foreword_data, foreword_train])
def test_a_lazy_package_offers_what_checkers_see(package: ModuleType) -> None:
    seen, homes = offered(Path(package.__file__ or ""))
    assert homes == seen
    assert set(package.__all__) - {"__version__"} == set(homes)
    assert set(package.__all__) <= set(dir(package))
    for name, home in homes.items():
        module, _, own = home.partition(":")
        assert getattr(package, name) is getattr(import_module(module), own or name)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = package.nothing


def test_the_public_map_is_sorted_and_true() -> None:
    assert list(foreword.__all__) == sorted(foreword.__all__)
    tree = ast.parse((SOURCE / "__init__.py").read_text())
    assert not [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert all(getattr(foreword, name).__doc__ for name in foreword.__all__ if name[0] != "_")
    given: dict[str, object] = {}
    exec("from foreword import *", given)
    assert set(foreword.__all__) <= set(given)


@pytest.mark.parametrize("name", ["train", "generate", "predict", "evaluate", "compose"])
def test_a_module_never_hides_what_has_its_name(name: str) -> None:
    """`foreword.train` is a function, whatever was imported first, and a package to import from."""
    code = (
        f"import foreword.{name}, foreword, types; from foreword import {name} as own; "
        f"assert isinstance(own, types.FunctionType), own; assert foreword.{name} is own; "
        f"from foreword.{name} import {name} as again; assert again is own"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_file_is_too_long() -> None:
    long = {p.name: len(p.read_text().splitlines()) for p in MODULES}
    assert {name: lines for name, lines in long.items() if lines > 500} == {}


def test_the_wheel_installs_and_works_alone(tmp_path: Path) -> None:
    """Built and unpacked elsewhere, it has its data, its entry point, and trains nothing away."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("foreword-*.whl")
    assert wheel.name == f"foreword-{foreword.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "installed")
    for path in MODULES:
        assert str(path.relative_to(SOURCE.parent)) in names
    for data in ("e2e/train.jsonl", "e2e/LICENSE.md", "neutral/text.jsonl", "neutral/LICENSE.md"):
        assert f"foreword/data/{data}" in names
    assert "foreword/backbone/verified.json" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    entry = next(name for name in names if name.endswith("entry_points.txt"))
    assert "foreword = foreword.cli.main:run" in (tmp_path / "installed" / entry).read_text()
    code = (
        "import foreword, sys; from foreword.cli.main import main; "
        "assert foreword.__file__.startswith(sys.argv[1]), foreword.__file__; "
        "assert len(foreword.read_rows('foreword/e2e:train')) == 483; "
        "sys.exit(main(['--version']))"
    )
    place = str(tmp_path / "installed")
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {place!r}); " + code, place],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PATH": "", "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert foreword.__version__ in done.stdout
