"""The guide to vLLM, run as it stands: its Python, its servers and what they are asked, on a CPU.

A tiny model lies where the guide's is looked for, so that names stay; only what a CPU needs is added.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

if importlib.util.find_spec("vllm") is None:
    pytest.skip("needs vLLM: make test-vllm", allow_module_level=True)

import foreword
from foreword.engine.vllm import Named, OfflinePrefixes, PrefixedPrompt
from foreword.engine.vllm.runtime import read_flags
from foreword.store import PrefixStore
from tests.engine.vllm import guide, tiny

ADDRESS = "http://127.0.0.1:8000"
ROW = "name[Zizzi], food[Thai]"
CAPITAL = "The capital of France is"
WAIT = 300.0
ON_A_CPU = ["--max-model-len=256", *(flag for flag in tiny.FLAGS if "max-model-len" not in flag)]
ARGUMENTS = 'dtype="float32", enforce_eager=True, max_model_len=256, block_size=32, '
"""The same for `vllm.LLM`."""


@pytest.fixture(scope="module")
def backbone() -> foreword.Backbone:
    return tiny.backbone()


@pytest.fixture(scope="module")
def place(backbone, tmp_path_factory) -> Path:
    """A working directory as the guide's reader has it: a model, and the folder `prefixes`."""
    folder = tmp_path_factory.mktemp("guide")
    (folder / guide.MODEL).mkdir(parents=True)
    tiny.saved(backbone, folder / guide.MODEL)
    recipe = {"method": "prefix", "prompt": "{mr} ->", "target": " {ref}"}
    restaurants = tiny.prefix(backbone, 37, 0).with_meta(recipe=recipe)
    PrefixStore(folder / "prefixes").save("restaurants", restaurants)
    (folder / ".curlrc").write_text('silent\nnoproxy = "*"\nfail-with-body\n')
    return folder


@pytest.fixture(scope="module")
def expected(backbone, place):
    """What transformers writes: under the prefix or, of another text, without one."""
    prefix = PrefixStore(place / "prefixes").load("restaurants")

    def written(new: int, text: str = ROW, *, bare: bool = False) -> str:
        options = foreword.GenerateOptions(max_new_tokens=new)
        return foreword.generate(backbone, text, None if bare else prefix, options)[0][0]

    assert written(40) != written(40, f"{ROW} ->", bare=True)
    return written


def environment(place: Path) -> dict[str, str]:
    return os.environ | {
        "PYTHONPATH": f"{guide.ROOT / 'src'}:{guide.ROOT}",
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "NO_PROXY": "127.0.0.1",
        "CURL_HOME": str(place),
    }


def block(naming: str) -> str:
    (found,) = [one for one in guide.blocks(guide.ONE, "python") if naming in one]
    return found


def run(place: Path, code: str) -> str:
    """What a script prints to its standard output's end, in a process of its own."""
    (place / "script.py").write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "script.py"],
        cwd=place,
        env=environment(place) | {"VLLM_LOGGING_LEVEL": "ERROR"},
        capture_output=True,
        text=True,
        timeout=WAIT,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return done.stdout


@contextmanager
def serving(place: Path, command: list[str], port: int, path: str) -> Iterator[str]:
    """A server, once a path of its is there; its address."""
    with (place / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=place, env=environment(place), stdout=log, stderr=log
        )
    address = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + WAIT
        while not answers(address + path):
            assert process.poll() is None, (place / "log").read_text()[-6000:]
            assert time.monotonic() < until
            time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


def answers(address: str) -> bool:
    try:
        return httpx.get(address).status_code == 200
    except httpx.TransportError:
        return False


def whole(text: str) -> str:
    """A text up to its last whole character: vLLM leaves out bytes at the end that are none."""
    return text.strip().rstrip("\ufffd")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def asked(place: Path, command: str, address: str) -> dict:
    """The answer to one of the guide's curls."""
    done = subprocess.run(
        command.replace(ADDRESS, address),
        shell=True,
        cwd=place,
        env=environment(place),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("words", guide.served(), ids=" ".join)
def test_vllm_takes_the_flags_that_servers_are_given(place, words: list[str]) -> None:
    flags = words[words.index("--") + 1 :] if "--" in words else []
    found = vars(read_flags(flags, {"model": str(place / guide.MODEL)}))
    given = " ".join(flags).replace("=", " ").split()
    for name, value in zip(given[::2], given[1::2], strict=True):
        assert str(found[name.removeprefix("--").replace("-", "_")]) == value


def test_the_ten_lines_write_what_transformers_writes(place, expected) -> None:
    code = block("prefixes.generate(llm")
    on_a_cpu = code.replace("LLM(model, ", f"LLM(model, {ARGUMENTS}")
    assert on_a_cpu != code
    on_a_cpu = on_a_cpu.replace(
        "print(output.outputs[0].text)", "print(f'{output.outputs[0].text!r}')"
    )
    told = [line for line in run(place, on_a_cpu).splitlines() if line[:1] in ("'", '"')]
    found = [whole(ast.literal_eval(line)) for line in told]
    assert found == [whole(expected(60)), whole(expected(60, CAPITAL, bare=True))]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_server_answers_as_the_guide_asks(place, expected) -> None:
    port = free_port()
    command, *_ = (
        one for one in guide.commands(guide.ONE, "foreword") if guide.words(one)[1] == "serve"
    )
    own, _, flags = command.partition(" -- ")
    assert flags == "--max-model-len 4096"
    words = [*guide.words(own)[1:], "--dtype=float32", f"--port={port}", "--", *ON_A_CPU]
    command = [sys.executable, "-W", "ignore", "-m", "foreword", *words]
    with serving(place, command, port, "/ready") as address:
        models, under, bare = (
            asked(place, one, address) for one in guide.commands(guide.ONE, "curl")
        )
        chat = run(place, block("client.chat.completions").replace(ADDRESS, address))
    assert {one["id"] for one in models["data"]} == {guide.MODEL, "restaurants"}
    assert under["choices"][0]["text"].strip() == expected(40)
    assert bare["choices"][0]["text"].strip() == expected(5, CAPITAL, bare=True)
    assert chat.strip() == expected(40)


def completed(address: str, prompt: PrefixedPrompt) -> httpx.Response:
    """What vLLM's own server answers to a body as the guide describes it."""
    body = {"model": guide.MODEL, "prompt": prompt.token_ids, "max_tokens": 40, "temperature": 0}
    url = f"{address}/v1/completions"
    return httpx.post(url, json={**body, **(prompt.extra_args or {})}, timeout=WAIT)


def test_vllms_own_server_answers_as_the_guide_asks(place, expected) -> None:
    """Its module in the place of its command, which a distribution for CPUs does not have."""
    prefixes = OfflinePrefixes(place / "prefixes", str(place / guide.MODEL))
    (command,) = guide.commands(guide.ONE, "vllm")
    told = json.loads(run(place, block("print(json.dumps(prefixes.engine_arguments()")))
    shown = re.sub(r'"placeholder": \d+', f'"placeholder": {prefixes.placeholder}', command)
    shown = shown.replace("/srv/prefixes", str(place / "prefixes"))
    shown = shown.replace("--max-model-len 4096", "")
    verb, model, *flags = guide.words(shown)[1:]
    assert (verb, model) == ("serve", guide.MODEL)
    del told["kv_connector_extra_config"]["tokenizer"]
    assert json.loads(flags[flags.index("--kv-transfer-config") + 1]) == told
    port = free_port()
    module = [sys.executable, "-W", "ignore", "-m", "vllm.entrypoints.openai.api_server"]
    flags += [*ON_A_CPU, "--dtype=float32", f"--port={port}"]
    with serving(place, [*module, f"--model={model}", *flags], port, "/health") as address:
        code = block("extra_body=asked.extra_args").replace(ADDRESS, address)
        under = run(place, code)
        bare = run(place, code.replace('prompt("restaurants", ', "prompt(None, "))
        right = prefixes.prompt("restaurants", ROW)
        wrong = replace(right, prefix=Named("restaurants", "0" * 64))
        nameless = replace(right, prefix=None)  # placeholders alone are no prefix, and no text
        refused, unnamed, answered = (completed(address, one) for one in (wrong, nameless, right))
    assert whole(under) == whole(expected(40))
    assert whole(bare) == whole(expected(40, bare=True))
    assert (refused.status_code, unnamed.status_code) == (500, 500)
    assert whole(answered.json()["choices"][0]["text"]) == whole(under)
    assert answered.json()["usage"]["prompt_tokens"] == len(right.token_ids)
