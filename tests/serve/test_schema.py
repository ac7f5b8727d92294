"""Cases that schemathesis makes from the application's own description, run in this process.

Those at the edges of what is described, and by default 200 at random: as many as the environment
variable FOREWORD_SCHEMA_CASES says. They are the same in every run.
"""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

pytest.importorskip("schemathesis", reason="needs schemathesis")

import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from foreword.serve import ServeOptions, create_app, failures
from foreword.store import PrefixStore
from tests.attacks import make
from tests.serve.behind import Behind, smaller_backbone

CASES = int(os.environ.get("FOREWORD_SCHEMA_CASES", "200"))
SECONDS = 20.0
"""Most that one case may take; a request that the server ends at this time is a failure as well."""

CODES = [None, *failures.CODES.values(), *failures.MISFITS.values()]
CODES += ["invalid_type", "invalid_value", "model_not_found", "context_length_exceeded"]
"""OpenAI's words that the server has."""

SHARES = {
    "POST /v1/completions": 0.40,
    "POST /v1/chat/completions": 0.30,
    "GET /v1/models": 0,
    "GET /v1/models/{name}": 0.03,
    "GET /v1/prefixes": 0,
    "GET /v1/prefixes/{name}": 0.03,
    "PUT /v1/prefixes/{name}": 0.10,
    "DELETE /v1/prefixes/{name}": 0.02,
    "POST /v1/load_prefix": 0.06,
    "POST /v1/pin_prefix": 0.03,
    "POST /v1/unpin_prefix": 0.03,
    "GET /health": 0,
    "GET /ready": 0,
    "GET /metrics": 0,
}
"""Part of the cases that each route gets; those without a parameter have no cases but one."""

LEAST = {"PUT /v1/prefixes/{name}": 60}
"""Fewest cases of a route, by default 4. Few of the files are whole, and which cases are made depends on
the modules that are imported: hypothesis draws from their constants."""

NAMES = {
    "get": ["one", "other", "none", "../one"],
    "put": ["one", "loose", "../one"],
    "delete": ["loose", "none", "../one"],
}
"""Names of prefixes; the files that other cases need stay what they are."""


@pytest.fixture(scope="module")
def folder(behind: Behind) -> Path:
    backbone, store = behind.backbone, behind.store
    smaller = smaller_backbone()
    store.save("one", backbone.capture(backbone.tokens("text of one")))
    store.save("other", smaller.capture(smaller.tokens("text of other")))
    return store.folder


@pytest.fixture(scope="module")
def app(behind: Behind, folder: Path) -> FastAPI:
    options = ServeOptions(queue=40, most_tokens=6, seconds=SECONDS)
    return create_app(behind.served, behind.engine, behind.registry(PrefixStore(folder)), options)


@pytest.fixture(scope="module")
def door(app: FastAPI) -> Callable[..., Any]:
    """The application without a lifespan: schemathesis would end it, and the engine, with each test."""

    async def through(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await app(scope, receive, send)

    return through


@pytest.fixture(scope="module")
def described(door: Callable[..., Any]) -> schemathesis.BaseSchema:
    """The description as it is."""
    return schemathesis.openapi.from_asgi("/openapi.json", door)


@pytest.fixture(scope="module")
def named(app: FastAPI, door: Callable[..., Any]) -> schemathesis.BaseSchema:
    """The description, with models that exist and without fields that need or exclude others."""
    description = copy.deepcopy(app.openapi())
    for kind in ("CompletionRequest", "ChatRequest"):
        fields = _fields(description, kind)
        fields["model"] = {"enum": ["one", "tiny"]}
        for name in ("stream_options", "max_completion_tokens", "top_logprobs"):
            fields.pop(name, None)
    return _loaded(description, door)


@pytest.fixture(scope="module")
def narrowed(app: FastAPI, door: Callable[..., Any], folder: Path) -> schemathesis.BaseSchema:
    """The description, so that most cases are answered: names, files and tokens that exist."""
    good, cut = folder / "one.safetensors", folder.parent / "cut.safetensors"
    cut.write_bytes(good.read_bytes()[:-3])
    hostile = st.sampled_from(list(make.attacks().values()))
    whole = st.just(good.read_bytes())
    schemathesis.openapi.format("prefix-file", st.one_of(whole, whole.map(bytes), hostile))
    description = copy.deepcopy(app.openapi())
    for path in description["paths"].values():
        for method, route in path.items():
            for parameter in route.get("parameters", ()):
                values = {"name": NAMES[method], "overwrite": [True]}
                parameter["schema"] = {"enum": values[parameter["name"]]}
    for kind in ("CompletionRequest", "ChatRequest"):
        _fields(description, kind)["model"] = {"enum": ["tiny", "one", "other"]}
        _fields(description, kind)["n"] = {"type": "integer", "minimum": 1, "maximum": 3}
    text, tokens = {"type": "string", "maxLength": 60}, _list({"enum": list(range(258))})
    fields = _fields(description, "CompletionRequest")
    fields["prompt"] = {"anyOf": [text, tokens, _list(text), _list(tokens)]}
    fields["logit_bias"]["anyOf"][0]["propertyNames"] = {"enum": ["7", "99"]}
    _fields(description, "Message")["content"] = text
    _fields(description, "NameRequest")["name"] = {"enum": NAMES["get"]}
    _fields(description, "LoadRequest")["name"] = {"enum": NAMES["put"]}
    _fields(description, "LoadRequest")["path"] = {"enum": [str(good), str(cut), str(folder)]}
    _fields(description, "LoadRequest")["overwrite"] = {"enum": [True]}
    upload = next(name for name in description["components"]["schemas"] if name.startswith("Body"))
    _fields(description, upload)["file"]["format"] = "prefix-file"
    return _loaded(description, door)


def _fields(description: dict[str, Any], kind: str) -> dict[str, Any]:
    fields: dict[str, Any] = description["components"]["schemas"][kind]["properties"]
    return fields


def _list(of: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": of, "minItems": 1, "maxItems": 4}


def _loaded(description: dict[str, Any], door: Callable[..., Any]) -> schemathesis.BaseSchema:
    schema = schemathesis.openapi.from_dict(description)
    schema.app = door
    return schema


def answered(case: Case) -> int:
    """Run a case and check its answer; its status."""
    response = case.call(timeout=SECONDS)
    # A description cannot say which names and tokens there are, or which fields go together.
    case.validate_response(response, excluded_checks=[positive_data_acceptance])
    if response.status_code >= 400:
        assert set(response.json()) == {"error"}
        error = response.json()["error"]
        assert sorted(error) == ["code", "message", "param", "type"]
        assert error["code"] in CODES
        assert error["message"]
    return response.status_code


def test_every_route_has_a_share(described: schemathesis.BaseSchema) -> None:
    assert [route.ok().label for route in described.get_all_operations()] == list(SHARES)
    assert sum(SHARES.values()) == pytest.approx(1)


@pytest.mark.parametrize("route", SHARES)
def test_values_at_the_edges(
    route: str,
    described: schemathesis.BaseSchema,
    named: schemathesis.BaseSchema,
    record_testsuite_property: Callable[..., None],
) -> None:
    """Each field missing, at its limits and beyond them, of other types; methods that are not there."""
    schema = named if "completions" in route else described
    cases = schema.iter_coverage_cases(
        schema.find_operation_by_label(route),
        generation_modes=list(GenerationMode),
        generation_config=schema.config.generation,
    )
    statuses = Counter(answered(case) for case in cases)
    assert statuses
    record_testsuite_property(f"{route}, edges", dict(statuses))


@pytest.mark.parametrize("route", [route for route, share in SHARES.items() if share])
def test_values_at_random(
    route: str,
    described: schemathesis.BaseSchema,
    named: schemathesis.BaseSchema,
    narrowed: schemathesis.BaseSchema,
    record_testsuite_property: Callable[..., None],
) -> None:
    plain, some, narrow = (
        schema.find_operation_by_label(route) for schema in (described, named, narrowed)
    )
    kinds = [one.as_strategy() for one in (narrow, narrow, some, plain)]
    if plain.body:  # there is nothing that a path cannot hold
        kinds.append(some.as_strategy(GenerationMode.NEGATIVE))
    statuses: Counter[int] = Counter()

    @settings(
        max_examples=max(LEAST.get(route, 4), round(CASES * SHARES[route])),
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=st.one_of(kinds))
    def run(case: Case) -> None:
        statuses[answered(case)] += 1

    run()
    record_testsuite_property(f"{route}, random", dict(statuses))
    assert statuses[200] or SHARES[route] < 0.1, "none got beyond the first check"
