"""What the guide to serving shows is true: each of its requests is answered, by a real server."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

import foreword
from foreword.backbone.served import Served
from foreword.engine import EngineClient
from foreword.engine.vllm.model import ServedModel
from foreword.expressions import is_expression
from foreword.serve import ServeOptions
from foreword.store import PrefixStore
from foreword.weights import embedded
from tests.serve.behind import Behind
from tests.serve.server import running

GUIDE = (Path(__file__).parents[2] / "docs/how-to/serving.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:8000"
KEY = "secret"
SETTINGS = 'silent\nnoproxy = "*"\nwrite-out = "%{stderr}%{http_code} %{content_type}"\n'
"""Of curl, in its own file, so that the guide's commands stay as they are."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)


def asks_for_several(command: str) -> bool:
    """Whether a command's model is an expression of prefixes."""
    model = re.search(r'"model": "([^"]*)"', command)
    return model is not None and is_expression(model[1])


CURLS = [
    command
    for block in blocks("console")
    for command in re.findall(r"^\$ (curl .*(?:\n(?!\$ ).+)*)", block, re.MULTILINE)
]

NOT_OVER_VLLM = [
    command
    for command in CURLS
    if "/v1/pin_prefix" in command or '"strength"' in command or asks_for_several(command)
]
"""Those that are refused there, as the guide says: its workers read prefixes as they are stored."""


@pytest.fixture
def store(behind: Behind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PrefixStore:
    """The store that the guide assumes; the working directory has the file that is uploaded."""
    backbone, store = behind.backbone, behind.emptied()
    recipe = {"method": "prefix", "prompt": "{mr} ->", "target": " {ref}"}
    restaurants = backbone.capture(backbone.tokens("restaurants")).with_meta(recipe=recipe)
    store.save("restaurants", restaurants)
    hotels = backbone.capture(backbone.tokens("hotels"))
    foreword.format.save(hotels, tmp_path / "hotels.safetensors")
    (tmp_path / ".curlrc").write_text(SETTINGS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CURL_HOME", str(tmp_path))
    monkeypatch.setenv("FOREWORD_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return store


@pytest.fixture
def address(behind: Behind, store: PrefixStore) -> Iterator[str]:
    with running(*guides(behind), behind.registry(store)) as address:
        yield address


def guides(behind: Behind) -> tuple[Served, EngineClient]:
    """Another engine, whose model has the name of the guide's."""
    served, engine = behind.again()
    if isinstance(served, ServedModel):
        return replace(served, name=embedded.NAME), engine
    served.name = embedded.NAME  # type: ignore[misc]
    return served, engine


def check(command: str, expected: str = "2") -> None:
    """Run one of the guide's commands; its answer must be good, in the form that it says it has."""
    done = subprocess.run(command, shell=True, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, command
    status, kind = done.stderr.split(" ", 1)
    assert status.startswith(expected), f"{command}\n{done.stdout}"
    match kind.split(";")[0]:
        case "application/json":
            assert json.loads(done.stdout)
        case "text/event-stream":
            *pieces, end = done.stdout.removesuffix("\n\n").split("\n\n")
            assert end == "data: [DONE]"
            choices = [json.loads(piece.removeprefix("data: "))["choices"] for piece in pieces]
            assert len(choices) > 2
        case _:
            assert "metrics" in command
            assert re.search(r"^foreword_running 0\.0$", done.stdout, re.MULTILINE)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_every_curl_of_the_guide_is_answered(
    address: str, behind: Behind, store: PrefixStore
) -> None:
    keyed = [command for command in CURLS if "$FOREWORD_API_KEY" in command]
    assert keyed
    for command in CURLS:
        if command not in keyed:
            is_refused = behind.name == "vllm" and command in NOT_OVER_VLLM
            check(command.replace(ADDRESS, address), "400" if is_refused else "2")
    with running(*guides(behind), behind.registry(store), ServeOptions(api_key=KEY)) as closed:
        assert httpx.get(f"{closed}/v1/models").status_code == 401
        for command in keyed:
            check(command.replace(ADDRESS, closed))


def test_the_guide_shows_what_another_engine_refuses() -> None:
    said = [re.findall(r"pin_prefix|0\.8|1\.5\*restaurants", one) for one in NOT_OVER_VLLM]
    assert said == [["0.8"], ["1.5*restaurants"], ["pin_prefix"]]


def test_the_guide_shows_a_request_to_every_path(address: str) -> None:
    paths = httpx.get(f"{address}/openapi.json").json()["paths"]
    assert len(paths) > 10
    shown = "\n".join(CURLS)
    assert [path for path in paths if path.split("/{")[0] not in shown] == []


def test_the_python_of_the_guide_runs(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = (block for block in blocks("python") if "openai" in block)
    names: dict[str, object] = {}
    exec(compile(code.replace(ADDRESS, address), "serving.md", "exec"), names)
    assert capsys.readouterr().out.strip()
    client = names["client"]
    client.close()  # type: ignore[attr-defined]
