"""Features from the engine's thread: those of `foreword.features`, beside requests that run."""

from __future__ import annotations

import io
import logging
import threading
import weakref
from concurrent.futures import CancelledError

import pytest
import torch

import foreword
from foreword.engine import Engine, EngineClosed, Event, Limits, Request, Sampling, Weighted
from foreword.errors import DataError, ForewordError, TooLong, UnsupportedModel
from foreword.predict import prefix_reader
from foreword.prefix import Prefix
from tests.conftest import byte_tokenizer, tiny_model
from tests.engine.lone import alone

TEXTS = ["x", "a few words", "a longer text " * 9, "WHAT NOW?"]
SMALL = Limits(rows=5, prompt_tokens=16, copied=10)
WIDE = Limits(rows=5, prompt_tokens=1000, copied=10)


@pytest.fixture(scope="module")
def backbone() -> foreword.Backbone:
    return foreword.Backbone(tiny_model(), byte_tokenizer(), name="tiny")


@pytest.fixture(scope="module")
def prefix(backbone: foreword.Backbone) -> Prefix:
    return backbone.capture(backbone.tokens("a text in front"))


def decoding(prefix: Prefix | None, size: int = 40) -> Request:
    under = () if prefix is None else (Weighted(prefix),)
    return Request((3, 4, 5), Sampling(max_tokens=size, temperature=0.0, ignore_eos=True), under)


def ids_of(backbone: foreword.Backbone) -> list[list[int]]:
    reader = prefix_reader(backbone, None)
    return [reader.read(text).ids for text in TEXTS]


def test_features_are_those_of_the_backbone(backbone: foreword.Backbone, prefix: Prefix) -> None:
    """Also while requests decode under a prefix, which the features must not see."""
    wanted = foreword.features(backbone, TEXTS, pooling="mean")
    ids = ids_of(backbone)
    ended: list[Event] = []
    done = threading.Event()

    def sink(event: Event) -> None:
        ended.append(event)
        if event.finish is not None:
            done.set()

    with Engine(backbone, WIDE) as engine:
        idle = [engine.features.of(one).result(60) for one in ids]
        engine.submit(decoding(prefix), sink)
        beside = [engine.features.of(one) for one in ids]
        assert done.wait(60)
        found = [one.result(60) for one in beside]
        assert engine.features.backbone is backbone
    for each in (idle, found):
        assert torch.allclose(torch.stack(each), wanted, atol=1e-5)
        assert each[0].dtype == torch.float32
    tokens = tuple(token for event in ended for token in event.tokens)
    assert alone(backbone, decoding(prefix), tokens) <= 1e-4


def test_in_bfloat16_they_are_near() -> None:
    """Where the processor has products of bfloat16, the engine's weights are packed."""
    half = foreword.Backbone(tiny_model().to(torch.bfloat16), byte_tokenizer(), name="tiny")
    wanted = foreword.features(half, TEXTS, pooling="mean")
    ids = ids_of(half)
    with Engine(half, WIDE) as engine:
        found = torch.stack([engine.features.of(one).result(60) for one in ids])
    assert torch.allclose(found, wanted, rtol=0.02, atol=0.02 * float(wanted.abs().max()))


def test_one_text_is_computed_between_two_steps(backbone: foreword.Backbone) -> None:
    """So those that decode go on while many texts wait."""
    order: list[str] = []
    done = threading.Event()

    def sink(event: Event) -> None:
        order.append("token")
        if event.finish is not None:
            done.set()

    request = decoding(None, 30)
    with Engine(backbone, WIDE) as engine:
        held = threading.Event()
        engine._inbox.put(lambda: held.wait(60) and None)  # until all have come
        engine.submit(request, sink)
        for one in [engine.features.of([7] * 50) for _ in range(20)]:
            one.add_done_callback(lambda _: order.append("text"))
        held.set()
        assert done.wait(60)
    assert "".join(kind[1] for kind in order[:20]) == "eo" * 10


def test_what_cannot_be_computed_is_refused(backbone: foreword.Backbone) -> None:
    with Engine(backbone, WIDE) as engine:
        for ids, refusal, message in (
            ([], DataError, "has no tokens"),
            ([3] * (backbone.context + 1), TooLong, f"context is {backbone.context}, and a step"),
            ([3, 999], DataError, "token 999 is not in the vocabulary of 258"),
            ([-1], DataError, "token -1 is not in the vocabulary of 258"),
        ):
            with pytest.raises(refusal, match=message):
                engine.features.of(ids)
        assert engine.features.of([3] * backbone.context).result(60).shape == (backbone.width,)
    with pytest.raises(EngineClosed, match="takes no more"):
        engine.features.of([3])


def test_a_text_takes_no_more_than_a_chunk_of_a_prompt(backbone: foreword.Backbone) -> None:
    """One pass over a whole context held everybody up, and took memory that no limit told."""
    with Engine(backbone, SMALL) as engine:
        assert engine.features.most == 16
        assert engine.features.of([3] * 16).result(60).shape == (backbone.width,)
        with pytest.raises(TooLong, match="has 17 tokens; .* a step takes 16 tokens of prompts"):
            engine.features.of([3] * 17)


def test_no_other_thread_runs_the_model_to_learn_its_width() -> None:
    backbone = foreword.Backbone(tiny_model(), byte_tokenizer(), name="tiny")
    passes: list[str] = []
    with Engine(backbone, SMALL):
        backbone.model.base_model.register_forward_pre_hook(lambda *_: passes.append("a pass"))
        assert backbone.width == backbone.model.config.hidden_size
    assert passes == []


def test_a_failure_is_told_and_the_engine_goes_on(
    backbone: foreword.Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the pass had made is not kept by the error that tells of it; the log tells where it was."""
    made: list[weakref.ref[torch.Tensor]] = []

    def failing(_: object) -> torch.Tensor:
        activations = torch.ones(3)
        made.append(weakref.ref(activations))
        raise RuntimeError("out of memory\nand more")

    said, log = io.StringIO(), logging.getLogger("foreword.engine")
    handler = logging.StreamHandler(said)
    monkeypatch.setattr(log, "propagate", False)  # pytest keeps what is logged, tracebacks too
    monkeypatch.setattr(log, "handlers", [handler])
    with Engine(backbone, SMALL) as engine:
        with monkeypatch.context() as patch:
            patch.setattr(engine.features, "_computed", failing)
            error = engine.features.of([3, 4]).exception(60)
        assert isinstance(error, ForewordError)
        assert str(error) == "the text's features could not be computed: out of memory"
        assert [one() for one in made] == [None]
        assert "in failing" in said.getvalue()
        assert engine.features.of([3, 4]).result(60).shape == (backbone.width,)
        assert engine.generate([decoding(None, 3)])[0].finish == "length"


def test_those_who_wait_are_told_when_the_engine_ends(
    backbone: foreword.Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closed it computes what it accepted, or, without draining, gives it up; lost it gives it up."""

    def waiting(engine: Engine, count: int = 3) -> list:
        held = threading.Event()
        engine._inbox.put(lambda: held.wait(60) and None)
        found = [engine.features.of([3, 4]) for _ in range(count)]
        found[1].cancel()
        threading.Timer(0.2, held.set).start()
        return found

    for ending in ("drained", "aborted", "lost"):
        engine = Engine(backbone, SMALL)
        if ending == "lost":
            monkeypatch.setattr(threading, "excepthook", lambda _: None)
            monkeypatch.setattr(engine.scheduler, "chunks", lambda: 1 / 0)
        found = waiting(engine)
        engine.close(drain=ending != "aborted")
        with pytest.raises(CancelledError):
            found[1].result(60)
        if ending == "drained":
            assert torch.equal(found[0].result(60), found[2].result(60))
        if ending == "aborted":
            with pytest.raises(EngineClosed, match="takes no more requests"):
                found[2].result(60)
        if ending == "lost":  # after the first step's
            assert found[0].result(60).shape == (backbone.width,)
            with pytest.raises(EngineClosed, match="the engine stopped: division by zero"):
                found[2].result(60)


def test_other_work_is_done_by_the_engines_thread_between_steps(
    backbone: foreword.Backbone, prefix: Prefix
) -> None:
    """What it makes are ordinary tensors, and an error of ours comes as it is."""
    ids = backbone.tokens("a text in front")

    def refusing() -> None:
        raise UnsupportedModel("no such thing") from RuntimeError("beneath")

    with Engine(backbone, SMALL) as engine:
        features = engine.features
        assert features.made(lambda: threading.current_thread().name, "a name").result(60) == (
            "foreword-engine"
        )
        made = features.made(lambda: backbone.capture(ids), "a prefix").result(60)
        assert not any(tensor.is_inference() or tensor.requires_grad for tensor in made.keys)
        assert made.digest == prefix.digest
        error = features.made(refusing, "nothing").exception(60)
        assert isinstance(error, UnsupportedModel)
        assert (str(error), error.__traceback__, error.__cause__) == ("no such thing", None, None)
        failed = features.made(lambda: 1 / 0, "a quotient").exception(60)
        assert type(failed) is ForewordError
        assert str(failed) == "a quotient could not be computed: division by zero"
        assert engine.generate([decoding(None, 3)])[0].finish == "length"
    with pytest.raises(EngineClosed, match="takes no more"):
        engine.features.made(lambda: None, "nothing")
