"""Fixtures: an application over each engine.

A test that asks for any of them runs once over each of `ENGINES`. One that is not for all of them has
the marker ``engines``, which names those that it is for and says why, and is skipped over the others.
vLLM is left out where it is not installed. With ``--engine vllm`` only what is for vLLM is run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import foreword
from foreword.backbone.served import Served
from foreword.engine import EngineClient
from foreword.store import PrefixStore
from tests.serve import behind as engines
from tests.serve.behind import HAS_VLLM, Behind, Vllm
from tests.serve.scripted import Scripted

ENGINES = ("embedded", "vllm")
HERE = Path(__file__).parent


def _named(node: pytest.Item | pytest.Function) -> Sequence[str]:
    """The engines that a test is for."""
    marker = node.get_closest_marker("engines")
    return ENGINES if marker is None else marker.args


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test over each engine."""
    if "behind" in metafunc.fixturenames:
        names = dict.fromkeys((*ENGINES, *_named(metafunc.definition)))
        over = [name for name in names if HAS_VLLM or name != "vllm"]
        metafunc.parametrize("behind", over, indirect=True, scope="module")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test over an engine that it is not for."""
    name = _engine_of(item)
    if name is not None and name not in _named(item):
        marker = item.get_closest_marker("engines")
        assert marker is not None
        pytest.skip(f"not over {name}: {marker.kwargs['reason']}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With ``--engine`` leave out what runs over other engines, or over none."""
    name = config.getoption("--engine")
    if name is None:
        return
    out = [one for one in items if HERE in one.path.parents and _engine_of(one) != name]
    config.hook.pytest_deselected(items=out)
    items[:] = [one for one in items if one not in out]


def _engine_of(item: pytest.Item) -> str | None:
    call = getattr(item, "callspec", None)
    return None if call is None else call.params.get("behind")


@pytest.fixture(scope="session")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vllm]:
    """One vLLM for all tests of this process: it takes ten seconds to start."""
    started = Vllm.start(tmp_path_factory.mktemp("vllm"))
    yield started
    started.engine.close()


@pytest.fixture(scope="module")
def behind(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Behind]:
    """What stands behind the application."""
    backbone = engines.tiny_backbone()
    if request.param == "vllm":
        shared: Vllm = request.getfixturevalue("vllm")
        store, again = engines.emptied(shared.store), shared.lent
    else:
        store = PrefixStore(tmp_path_factory.mktemp("stores") / "store")
        store.folder.mkdir()
        again = engines.embedded
    served, engine = (backbone, Scripted()) if request.param == "scripted" else again()
    yield Behind(request.param, backbone, served, engine, store, again)
    engine.close()


@pytest.fixture(scope="module")
def backbone(behind: Behind) -> foreword.Backbone:
    """The model in transformers, which no engine runs."""
    return behind.backbone


@pytest.fixture(scope="module")
def served(behind: Behind) -> Served:
    """What the server knows of the model."""
    return behind.served


@pytest.fixture(scope="module")
def engine(behind: Behind) -> EngineClient:
    """The engine."""
    return behind.engine
