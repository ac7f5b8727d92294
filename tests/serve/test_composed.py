"""A request's model may be an expression of prefixes, and has a strength."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

import foreword
from foreword.description import Piece
from foreword.prefix import Prefix
from foreword.serve import create_app
from foreword.serve.composed import KEPT, Compositions
from foreword.serve.residency import Residency
from foreword.store import PrefixStore
from tests.serve.behind import Behind

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 8}

OURS = pytest.mark.engines(
    "embedded",
    reason="vLLM's attention knows of no strengths, and each of its requests has one prefix; that both "
    "are refused is tested below",
)


@pytest.fixture(scope="module")
def store(behind: Behind) -> PrefixStore:
    backbone = behind.backbone
    for name in ("one", "two", "a-b"):
        behind.store.save(name, backbone.capture(backbone.tokens(f"text of {name}")))
    whole = backbone.capture(backbone.tokens("shared, kind, rude"))
    pieces = (Piece("", 8), Piece("mood=kind", 5), Piece("mood=rude", whole.length - 13))
    behind.store.save("task", whole.with_meta(pieces=pieces, combination="control"))
    behind.store.save("half", behind.store.load("one").strength(0.5))
    one, two = behind.store.load("one"), behind.store.load("two")
    mixed = foreword.concat(one.strength(1.2), two.strength(-0.5), combination="logits")
    behind.store.save("mixed", mixed)
    return behind.store


@pytest.fixture(scope="module")
def client(behind: Behind, store: PrefixStore) -> Iterator[TestClient]:
    with TestClient(create_app(behind.served, behind.engine, behind.registry(store))) as client:
        yield client


def text(client: TestClient, model: str, **more: Any) -> str:
    answer = client.post(
        "/v1/completions", json={"model": model, "prompt": "once", **GREEDY, **more}
    )
    assert answer.status_code == 200, answer.text
    found: str = answer.json()["choices"][0]["text"]
    return found


def refused(client: TestClient, model: str, **more: Any) -> dict[str, Any]:
    answer = client.post(
        "/v1/completions", json={"model": model, "prompt": "once", **GREEDY, **more}
    )
    assert answer.status_code in (400, 404), answer.text
    error: dict[str, Any] = answer.json()["error"]
    return {"status": answer.status_code, **error}


def expected(behind: Behind, under: Prefix | foreword.Mixture | None) -> str:
    options = foreword.GenerateOptions(max_new_tokens=8)
    (found,) = foreword.generate(behind.backbone, ["once"], under, options)
    return found[0]


def stripped(found: str) -> str:
    return found.strip()


@OURS
@pytest.mark.parametrize("strength", [0.0, 0.4, 1.0, 1.5, -0.5])
def test_a_prefix_has_a_strength(
    client: TestClient, behind: Behind, store: PrefixStore, strength: float
) -> None:
    found = text(client, "one", strength=strength)
    assert stripped(found) == expected(behind, store.load("one").strength(strength))
    if strength in (0.0, 1.0):
        assert found == text(client, "one" if strength else "tiny")


@OURS
def test_strengths_multiply(client: TestClient) -> None:
    assert text(client, "half", strength=2.0) == text(client, "one")
    assert text(client, "half") == text(client, "one", strength=0.5)


@OURS
@pytest.mark.parametrize(
    ("model", "parts"),
    [
        ("0.7*one + two", ((0.7, "one"), (1.0, "two"))),
        ("one - 0.5*two", ((1.0, "one"), (-0.5, "two"))),
        ("1.5*one", ((1.5, "one"),)),
        ("one + 0.5*(one - a-b)", ((1.5, "one"), (-0.5, "a-b"))),
        ("2*mixed", ((2.4, "one"), (-1.0, "two"))),
    ],
)
def test_an_expression_is_a_mixture_of_what_its_prefixes_predict(
    client: TestClient, behind: Behind, store: PrefixStore, model: str, parts: Any
) -> None:
    mixture = foreword.Mixture(tuple((weight, store.load(name)) for weight, name in parts))
    found = text(client, model)
    assert stripped(found) == expected(behind, mixture)
    assert text(client, model, strength=0.5) == text(client, f"0.5*({model})")


@OURS
def test_a_saved_mixture_is_served_by_its_name(client: TestClient) -> None:
    assert text(client, "mixed") == text(client, "1.2*one - 0.5*two")


@OURS
def test_prefixes_side_by_side(client: TestClient, behind: Behind, store: PrefixStore) -> None:
    one, two = store.load("one"), store.load("two")
    found = text(client, "0.5*one + two", mode="concat")
    assert stripped(found) == expected(behind, foreword.concat(one.strength(0.5), two))
    assert text(client, "one + 0*two", mode="concat") == text(client, "one")


@OURS
def test_a_part_of_a_prefix(client: TestClient, behind: Behind, store: PrefixStore) -> None:
    assert stripped(text(client, "two[2:6]")) == expected(behind, store.load("two")[2:6])


@OURS
@pytest.mark.parametrize("mode", ["sum", "concat", "cascade", "logits"])
def test_one_prefix_is_the_same_in_every_mode(client: TestClient, mode: str) -> None:
    """As the guide says: there is nothing to put together, and nothing to compute."""
    for model in ("one", "1*one", "two[2:6]", "mixed", "half", "tiny", "task[mood=kind]"):
        assert text(client, model, mode=mode) == text(client, model)


@OURS
def test_values_of_attributes_are_selected(
    client: TestClient, behind: Behind, store: PrefixStore
) -> None:
    task = store.load("task")
    for model, wanted in (
        ("task[mood=kind]", {"mood": "kind"}),
        ("task[mood=rude]", {"mood": "rude"}),
        ("task", {}),
    ):
        assert stripped(text(client, model)) == expected(behind, task.select(wanted))


@OURS
@pytest.mark.parametrize("stream", [False, True])
def test_a_value_that_was_not_trained_leaves_the_shared_part_and_says_so(
    client: TestClient, stream: bool
) -> None:
    asked = {"model": "task[mood=sly\u00e9]", "prompt": "once", **GREEDY, "stream": stream}
    answer = client.post("/v1/completions", json=asked)
    assert answer.status_code == 200
    said = answer.headers["foreword-notice"]
    assert said.startswith("task was trained for mood = 'kind', 'rude', and not for 'sly\\xe9'")
    if not stream:
        assert answer.json()["choices"][0]["text"] == text(client, "task")
    plain = client.post("/v1/completions", json={**asked, "model": "task[mood=kind]"})
    assert "foreword-notice" not in plain.headers


@OURS
@pytest.mark.parametrize(
    ("model", "more", "status", "param", "said"),
    [
        ("one +", {}, 400, "model", "column 6"),
        ("one + three", {}, 404, "model", "'three'"),
        ("0.5*" + "(" * 300 + "one", {}, 400, "model", "column"),
        (" + ".join(["one"] * 70), {}, 200, "", ""),
        (" + ".join(f"one[{i}:{i + 1}]" for i in range(9)), {}, 400, "model", "at most 8 prefixes"),
        ("one[3:99]", {}, 400, "model", "11 virtual tokens"),
        ("task[colour=red]", {}, 400, "model", "no attribute 'colour'"),
        ("one[mood=kind]", {}, 400, "model", "no attributes"),
        (
            "one + two",
            {"mode": "sum"},
            400,
            "model",
            "one: the start of this prefix cannot be recomp",
        ),
        ("one + two", {"mode": "product"}, 400, "mode", ""),
        ("tiny", {"strength": 0.5}, 400, "strength", "the backbone has none"),
        ("one", {"strength": 1e9}, 400, "strength", ""),
        ("one", {"strength": "much"}, 400, "strength", ""),
        ("../one", {}, 404, "model", "no model is called"),
        ("one; import os", {}, 404, "model", "no model is called"),
        ("__import__('os')", {}, 400, "model", "column"),
        ("x" * 513, {}, 400, "model", ""),
    ],
)
def test_a_wrong_expression_is_refused_by_what_is_wrong(
    client: TestClient, model: str, more: dict[str, Any], status: int, param: str | None, said: str
) -> None:
    if status == 200:
        text(client, model)
        return
    error = refused(client, model, **more)
    assert (error["status"], error["param"]) == (status, param)
    assert said in error["message"]


@OURS
def test_expressions_are_one_model_to_metrics(client: TestClient) -> None:
    text(client, "0.25*one + two")
    counted = client.get("/metrics").text
    assert 'model="(composition)"' in counted
    assert "0.25" not in [line.split('"')[1] for line in counted.splitlines() if 'model="' in line]


@OURS
def test_what_was_made_for_requests_is_kept_while_it_is_used(
    behind: Behind, store: PrefixStore
) -> None:
    made = Compositions(Residency(store))

    def prefix(model: str, mode: Any = None) -> object:
        return made.of(model, mode).prefixes[0].prefix

    first = prefix("two[2:6]")
    assert prefix("two[2:6]") is first
    both = prefix("one + two", "concat")
    assert prefix("one + two", "concat") is both
    for _ in range(2):
        for start in range(KEPT):
            prefix(f"two[{start % 4}:{5 + start % 6}]")
            prefix(f"0.{start + 10}*one + two", "concat")
    assert len(made._made) == KEPT
    assert prefix("one + two", "concat") is not both
    store.save("two", store.load("one"), overwrite=True)
    try:
        assert prefix("two[2:6]") is not first
    finally:
        backbone = behind.backbone
        store.save("two", backbone.capture(backbone.tokens("text of two")), overwrite=True)


@OURS
def test_what_cannot_be_computed_is_the_requests_fault(
    client: TestClient, behind: Behind, store: PrefixStore
) -> None:
    one = store.load("one")
    store.save("five", foreword.concat(*[one[:2]] * 5))
    store.save("huge", one.strength(1e307))
    for model, more in (
        ("five", {"strength": 0.5}),
        ("huge", {"strength": 100.0}),
        (" + ".join(f"0.5*one[{i}:{i + 1}]" for i in range(5)), {"mode": "concat"}),
    ):
        error = refused(client, model, **more)
        assert (error["status"], error["param"]) == (400, "model")
    text(client, "five")


@OURS
def test_a_notice_is_short_however_many_values_there_are(
    client: TestClient, behind: Behind, store: PrefixStore
) -> None:
    backbone = behind.backbone
    values = [f"{number:02}" * 60 for number in range(40)]
    whole = backbone.capture([5] * 50)
    pieces = (Piece("", 10), *(Piece(f"a={value}", 1) for value in values))
    store.save("many", whole.with_meta(pieces=pieces, combination="control"))
    asked = {"model": "many[a=zz] - 0.5*many[a=yy]", "prompt": "once", **GREEDY}
    told = client.post("/v1/completions", json=asked).headers["foreword-notice"]
    assert "and 32 more, and not for 'zz'" in told
    assert len(told) < 1024
    assert told.count("not for") == 2


@OURS
def test_what_is_kept_is_bounded_in_bytes(
    store: PrefixStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Compositions(Residency(store))
    both = made.of("one + two", "concat").prefixes[0].prefix
    monkeypatch.setattr("foreword.serve.composed.KEPT_BYTES", 3 * both.nbytes)
    for number in range(10, 20):
        made.of(f"0.{number}*one + two", "concat")
    assert len(made._made) == 3


@OURS
def test_a_backbone_of_any_name_is_counted_by_it(behind: Behind, store: PrefixStore) -> None:
    served, engine = behind.again()
    served.name = "org/tiny"
    with TestClient(create_app(served, engine, behind.registry(store))) as client:
        text(client, "org/tiny")
        counted = client.get("/metrics").text
    assert 'model="org/tiny"' in counted
    assert "(composition)" not in counted


@pytest.mark.engines("vllm", reason="this is what another engine does not do")
@pytest.mark.parametrize(
    ("model", "more", "param", "said"),
    [
        ("one", {"strength": 0.5}, "strength", "strength 0.5 is not served by vLLM"),
        ("one + two", {}, "model", "a mixture of 2 prefixes is not served by vLLM"),
        ("0.5*one", {}, "model", "weight 0.5 is not served by vLLM"),
        ("one + two", {"mode": "concat"}, "model", "foreword compose"),
        ("one + two", {"mode": "sum"}, "mode", "'sum' needs what the backbone computes"),
        ("2*one", {"mode": "cascade"}, "mode", "foreword compose"),
        ("one[:3]", {}, "model", "foreword compose"),
        ("half", {}, None, "piece at strength 0.5"),
        ("mixed", {}, "model", "stands for a mixture"),
        ("task", {}, "model", "foreword compose"),
    ],
)
def test_vllm_refuses_by_name_what_it_cannot_do(
    client: TestClient, model: str, more: dict[str, Any], param: str | None, said: str
) -> None:
    error = refused(client, model, **more)
    assert (error["status"], error["param"]) == (400, param)
    assert said in error["message"]


@pytest.mark.engines("scripted", "vllm", reason="these engines compute nothing beside requests")
@pytest.mark.parametrize("mode", ["sum", "cascade"])
def test_an_engine_that_computes_nothing_beside_requests_makes_no_sums(
    client: TestClient, mode: str
) -> None:
    error = refused(client, "one + two", mode=mode)
    assert (error["status"], error["param"]) == (400, "mode")
    assert f"mode: {mode!r} needs what the backbone computes" in error["message"]
    assert "save the composition with `foreword compose`" in error["message"]
