"""`foreword serve` as a process: it answers, refuses to be open to all, and drains on SIGTERM."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import uvicorn
from fastapi.testclient import TestClient

import foreword
from foreword.cli.main import main
from foreword.engine.vllm import launch
from foreword.router import Router
from foreword.store import PrefixStore
from tests.serve.scripted import Scripted

WAIT = 60.0


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def serving(
    folder: Path, store: Path, *options: str
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server process; its address, once it is ready."""
    port = free_port()
    command = [sys.executable, "-m", "foreword", "serve", "--backbone", str(folder), "--store"]
    process = subprocess.Popen(
        [*command, str(store), "--port", str(port), *options],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    address = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + WAIT
        while True:
            try:
                if httpx.get(f"{address}/ready").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < until
            time.sleep(0.1)
        yield address, process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def store(tiny_folder: Path, tmp_path: Path) -> Path:
    """A store with one prefix."""
    backbone = foreword.load(str(tiny_folder))
    PrefixStore(tmp_path / "store").save("one", backbone.capture(backbone.tokens("text")))
    return tmp_path / "store"


def test_sigterm_in_the_middle_of_load_loses_no_accepted_request(
    tiny_folder: Path, store: Path
) -> None:
    answers: list[httpx.Response] = []
    body = {"model": "one", "prompt": "once", "max_tokens": 200, "ignore_eos": True}
    with serving(tiny_folder, store, "--rows", "3") as (address, process):

        def ask() -> None:
            answers.append(httpx.post(f"{address}/v1/completions", json=body, timeout=WAIT))

        threads = [threading.Thread(target=ask) for _ in range(9)]
        for thread in threads:
            thread.start()
        until = time.monotonic() + WAIT
        while "foreword_running 3.0" not in httpx.get(f"{address}/metrics").text:
            assert time.monotonic() < until
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(WAIT)
        _, log = process.communicate(timeout=WAIT)
    assert [answer.status_code for answer in answers] == [200] * 9
    assert {answer.json()["usage"]["completion_tokens"] for answer in answers} == {200}
    assert process.returncode in (0, -signal.SIGTERM, 143)
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    told = [line for line in lines if line["message"] == "answered"]
    assert len(told) == 9
    assert {line["model"] for line in told} == {"one"}
    assert "once" not in log


def test_a_client_that_goes_away_frees_its_place(tiny_folder: Path, store: Path) -> None:
    body = {"model": "one", "prompt": "once", "max_tokens": 200, "ignore_eos": True}
    with serving(tiny_folder, store) as (address, _):
        streaming = {**body, "stream": True, "n": 20}
        with httpx.stream("POST", f"{address}/v1/completions", json=streaming) as stream:
            next(stream.iter_lines())
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{address}/v1/completions", json={**body, "n": 20}, timeout=0.2)
        until = time.monotonic() + WAIT
        while True:
            text = httpx.get(f"{address}/metrics").text
            if "foreword_running 0.0" in text and "foreword_waiting 0.0" in text:
                break
            assert time.monotonic() < until
            time.sleep(0.05)
        assert 'foreword_requests_total{finish="cancelled",model="one"}' in text
        assert httpx.post(f"{address}/v1/completions", json=body, timeout=WAIT).status_code == 200


def test_a_server_that_others_can_reach_needs_a_key(
    tiny_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--backbone", str(tiny_folder), "--host", "0.0.0.0"]) == 1
    assert "opens the server to others; give --api-key" in capfd.readouterr().err


@pytest.mark.parametrize(("options", "seconds"), [((), 75), (("--keep-alive", "20"), 20)])
def test_connections_stay_open_for_longer_than_clients_keep_them(
    tiny_folder: Path,
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    seconds: int,
) -> None:
    """At uvicorn's 5 s, 13 of 200 requests from a pool were reset."""
    found: dict[str, object] = {}

    def run(server: uvicorn.Server) -> None:
        found["seconds"], server.started = server.config.timeout_keep_alive, True
        with TestClient(server.config.app):  # which ends the engine
            pass

    monkeypatch.setattr(uvicorn.Server, "run", run)
    command = ["serve", "--backbone", str(tiny_folder), "--store", str(store), *options]
    assert main(command) == 0
    assert found["seconds"] == seconds


def test_a_prefix_with_the_backbones_name_is_refused(
    tiny_folder: Path,
    store: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tiny_folder.parent)
    PrefixStore(store).save(tiny_folder.name, PrefixStore(store).load("one"))
    assert main(["serve", "--backbone", tiny_folder.name, "--store", str(store)]) == 1
    assert f"has the backbone's name '{tiny_folder.name}'" in capfd.readouterr().err


def test_a_router_is_a_model_of_its_files_name(
    tiny_folder: Path,
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Of a prefix that is not there yet the start says so; a name that is taken is refused."""
    backbone = foreword.load(str(tiny_folder))
    router = Router.fit(backbone, {"one": ["a b", "b c"], "later": ["1 2 3", "4 5 6"]})
    for name in ("kinds", "one"):
        router.save(tmp_path / f"{name}.safetensors")
    routed = router.route(backbone, ["a b"])[0].name

    def run(server: uvicorn.Server) -> None:
        server.started = True
        with TestClient(server.config.app) as client:
            body = {"model": "kinds", "prompt": "a b", "max_tokens": 2}
            answer = client.post("/v1/completions", json=body)
            assert answer.headers["foreword-routed"] == routed == "one"

    monkeypatch.setattr(uvicorn.Server, "run", run)
    command = ["serve", "--backbone", str(tiny_folder), "--store", str(store), "--router"]
    assert main([*command, str(tmp_path / "kinds.safetensors")]) == 0
    said = " ".join(capfd.readouterr().err.split())
    assert "the router sends inputs to 'later', and no prefix is called so" in said
    assert main([*command, str(tmp_path / "one.safetensors")]) == 1
    assert "a prefix has the router's name 'one'" in " ".join(capfd.readouterr().err.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--", "--enforce-eager"], "'--enforce-eager' is one of vLLM's flags"),
        (["--engine", "vllm", "--rows", "3"], "--rows is for Foreword's own engine"),
        (["--engine", "vllm", "--router", "none"], "--router is for Foreword's own engine"),
        (["--router", "none"], "cannot read the router none"),
        (["--engine", "vllm", "--quantize", "int8"], "give --quantization after --"),
        (["--engine", "vllm", "--", "--enforce-eager"], "needs vLLM 0.32, which is not installed"),
    ],
)
def test_engines_take_their_own_options_alone(
    tiny_folder: Path,
    store: Path,
    options: list[str],
    message: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["serve", "--backbone", str(tiny_folder), "--store", str(store), *options]) == 1
    assert message in capfd.readouterr().err


def test_vllm_is_started_with_the_flags_that_follow_and_served(
    tiny_folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[launch.Launch] = []

    def start(self: launch.Launch) -> tuple[foreword.Backbone, Scripted, str]:
        started.append(self)
        return foreword.load(str(tiny_folder)), Scripted(), "bfloat16"

    def run(server: uvicorn.Server) -> None:
        server.started = True
        with TestClient(server.config.app) as client:
            body = {"model": "one", "prompt": "once", "max_tokens": 2}
            assert client.post("/v1/completions", json=body).status_code == 200
            assert client.get("/v1/prefixes/one").json()["resident"] is None
            assert client.post("/v1/pin_prefix", json={"name": "one"}).status_code == 400

    def unread(*_: object) -> None:
        raise AssertionError("a whole file was read")

    monkeypatch.setattr(foreword.format, "load", unread)
    monkeypatch.setattr(launch.Launch, "start", start)
    monkeypatch.setattr(uvicorn.Server, "run", run)
    command = ["serve", "--engine", "vllm", "--backbone", str(tiny_folder), "--store", str(store)]
    flags = ["--max-model-len", "128", "--enforce-eager"]
    assert main([*command, "--dtype", "bfloat16", "--resident", "7", "--", *flags]) == 0
    (made,) = started
    assert (made.source, made.name, made.store.folder) == (str(tiny_folder), made.source, store)
    assert (list(made.flags), made.dtype, made.resident) == (flags, "bfloat16", 7)
