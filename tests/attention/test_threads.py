"""Threads and tasks on one model: each under its own prefix, or all under one, and no mixtures.

Two threads with a prefix each once gave the other's prefix, or a mixture, in a third of their passes,
without an error: what a pass was bound to was the model's, not the pass's.
"""

from __future__ import annotations

import asyncio
import copy
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

import foreword
from foreword.attention import attachment, running
from foreword.attention.attachment import attachment_of
from foreword.attention.bound import bind
from foreword.backbone.probe import evaluating
from foreword.errors import BusyError, BypassError
from foreword.objectives.supervised import score
from foreword.prefix import Prefix
from tests.conftest import byte_tokenizer, tiny_model
from tests.oracle import checks
from tests.oracle.checks import checkpoint_activations
from tests.oracle.families import BY_NAME

ROUNDS = 15
IDS = torch.arange(3, 15)[None]


@pytest.fixture(autouse=True)
def eager_switches() -> Iterator[None]:
    """Threads take turns often, so that what can mix does."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def backbone() -> foreword.Backbone:
    return foreword.Backbone(tiny_model())


@pytest.fixture
def prefixes(backbone: foreword.Backbone) -> list[Prefix]:
    return [backbone.capture(list(range(20 + n, 26 + 2 * n))) for n in range(3)]


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS, use_cache=False).logits
    return found


def together(works: Sequence[Callable[[], Any]]) -> list[Any]:
    """Each in a thread of its own, begun at the same moment."""
    gate = threading.Barrier(len(works))

    def begun(work: Callable[[], Any]) -> Any:
        gate.wait()
        return work()

    with ThreadPoolExecutor(len(works)) as pool:
        return [future.result() for future in [pool.submit(begun, work) for work in works]]


def alone(backbone: foreword.Backbone, prefix: Prefix | None) -> Tensor:
    with backbone.attached(prefix):
        return logits(backbone.model)


def repeated(backbone: foreword.Backbone, prefix: Prefix | None) -> Callable[[], list[Tensor]]:
    """Passes under a prefix, in a block anew for each."""
    return lambda: [alone(backbone, prefix) for _ in range(ROUNDS)]


def test_each_thread_runs_under_its_own_prefix(
    backbone: foreword.Backbone, prefixes: list[Prefix]
) -> None:
    every = [*prefixes, None]
    expected = [alone(backbone, prefix) for prefix in every]
    found = together([repeated(backbone, prefix) for prefix in every])
    for ours, theirs in zip(found, expected, strict=True):
        assert all(torch.equal(one, theirs) for one in ours)
    assert attachment_of(backbone.model) is None
    assert torch.equal(logits(backbone.model), expected[-1])


def test_threads_share_an_attached_prefix(
    backbone: foreword.Backbone, prefixes: list[Prefix]
) -> None:
    """Half of these passes once raised that a site was missed."""
    model = foreword.attach(backbone.model, prefixes[0])
    expected = logits(model)
    found = together([lambda: [logits(model) for _ in range(ROUNDS)]] * 4)
    assert all(torch.equal(one, expected) for ours in found for one in ours)
    foreword.detach(model)


def test_a_block_binds_its_own_thread_alone(
    backbone: foreword.Backbone, prefixes: list[Prefix]
) -> None:
    model = foreword.attach(backbone.model, prefixes[0])
    expected = [logits(model), alone(backbone, prefixes[1])]
    found = together(
        [lambda: [logits(model) for _ in range(ROUNDS)], repeated(backbone, prefixes[1])]
    )
    for ours, theirs in zip(found, expected, strict=True):
        assert all(torch.equal(one, theirs) for one in ours)


def test_generation_in_threads(tiny: foreword.Backbone) -> None:
    prefixes = [tiny.capture(list(range(5 + n, 12 + 2 * n))) for n in range(3)]
    options = foreword.GenerateOptions(max_new_tokens=8, batch_size=2)
    rows = ["name[A]", "b", "some more"]

    def work(prefix: Prefix) -> Callable[[], list[list[list[str]]]]:
        return lambda: [foreword.generate(tiny, rows, prefix, options) for _ in range(5)]

    expected = [foreword.generate(tiny, rows, prefix, options) for prefix in prefixes]
    assert len({str(texts) for texts in expected}) > 1
    found = together([work(prefix) for prefix in prefixes])
    assert found == [[texts] * 5 for texts in expected]


def test_sampling_in_threads_follows_each_seed(tiny: foreword.Backbone) -> None:
    """Torch's generator is one for all threads: draws of one once moved those of the others."""
    every = [
        foreword.GenerateOptions(max_new_tokens=6, do_sample=True, seed=seed) for seed in range(3)
    ]

    def work(options: foreword.GenerateOptions) -> Callable[[], list[list[list[str]]]]:
        return lambda: [foreword.generate(tiny, ["a", "b"], options=options) for _ in range(4)]

    expected = [foreword.generate(tiny, ["a", "b"], options=options) for options in every]
    assert len({str(texts) for texts in expected}) == 3
    found = together([work(options) for options in every])
    assert found == [[texts] * 4 for texts in expected]


def test_a_text_is_written_under_the_prefix_that_it_began_with(
    backbone: foreword.Backbone, prefixes: list[Prefix]
) -> None:
    """Another prefix is attached for all threads while a text without a cache is being written."""
    model = backbone.model
    options: dict[str, Any] = {"max_new_tokens": 12, "use_cache": False, "do_sample": False}
    foreword.attach(model, prefixes[0])
    expected = model.generate(IDS, **options)
    begun, swapped = threading.Event(), threading.Event()

    def wait(_: Tensor, scores: Tensor) -> Tensor:
        begun.set()
        assert swapped.wait(60)
        return scores

    def swap() -> None:
        assert begun.wait(60)
        foreword.attach(model, prefixes[1])
        swapped.set()

    found, _ = together([lambda: model.generate(IDS, logits_processor=[wait], **options), swap])
    assert torch.equal(found, expected)
    assert not torch.equal(model.generate(IDS, **options), expected)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_gradients_in_threads(checkpointed: bool) -> None:
    model = tiny_model()
    if checkpointed:
        checkpoint_activations(model, enable=True)
        model.train()
    backbone = foreword.Backbone(model)
    starts = [backbone.capture(list(range(20 + n, 25 + n))) for n in range(2)]

    def gradient(start: Prefix) -> list[Tensor]:
        keys = tuple(key.clone().requires_grad_() for key in start.keys)
        live = Prefix(start.sites, keys, start.values, start.meta)
        with backbone.attached(None) as attachment:
            with attachment.using(bind(live, backbone.sites, live=True)):
                loss = model(input_ids=IDS, use_cache=False).logits.logsumexp(-1).sum()
            return list(torch.autograd.grad(loss, keys))

    expected = [gradient(start) for start in starts]
    found = together([lambda s=start: [gradient(s) for _ in range(10)] for start in starts])
    for ours, theirs in zip(found, expected, strict=True):
        for one in ours:
            torch.testing.assert_close(one, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["gpt_neo", "gptj", "bloom", "mpt"])
def test_modules_that_attend_by_themselves_take_turns(name: str) -> None:
    """gpt_neo and gptj are changed for the time of a call; threads wait for each other there."""
    case = checks.case(BY_NAME[name])
    backbone = case.backbone
    prefixes = [case.prefix(), backbone.capture([7, 8, 9], backbone.positions)]

    def captured() -> list[Tensor]:
        return [key for _ in range(5) for key in backbone.capture([5, 6, 7, 8]).keys]

    expected = [alone(backbone, prefix) for prefix in prefixes]
    keys = captured()
    *found, others = together([*(repeated(backbone, prefix) for prefix in prefixes), captured])
    for ours, theirs in zip(found, expected, strict=True):
        assert all(torch.equal(one, theirs) for one in ours)
    assert all(torch.equal(one, key) for one, key in zip(others, keys, strict=True))


def test_what_is_attached_while_another_thread_detaches_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Modules were told that they are in no attached model after another thread had attached anew."""
    backbone = foreword.Backbone(tiny_model(), byte_tokenizer())
    first, prefix = backbone.capture([5, 6, 7]), backbone.capture([7, 8, 9])
    expected = alone(backbone, prefix)
    forget, attached, cleared = attachment.set_place, threading.Event(), threading.Event()
    threads: list[threading.Thread] = []
    found: list[Tensor] = []

    def run() -> None:
        with backbone.attached(prefix):
            attached.set()
            cleared.wait(20)
            found.append(logits(backbone.model))

    def forgetting(module: torch.nn.Module, place: attachment.Place | None) -> None:
        if place is None and not threads:
            threads.append(threading.Thread(target=run))
            threads[0].start()
            attached.wait(0.5)  # it is attached anew now, or waits for this removal
        forget(module, place)

    monkeypatch.setattr(attachment, "set_place", forgetting)
    alone(backbone, first)
    cleared.set()
    threads[0].join(20)
    assert torch.equal(found[0], expected)


def test_a_model_may_be_collected_while_its_thread_lists_all_threads() -> None:
    """The finaliser asked for the lock that its own thread held, and a test run stood still."""

    def collected() -> None:
        with running._listing:
            running._forget(-1)

    thread = threading.Thread(target=collected, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()


def test_logits_at_targets_are_each_threads_own(
    backbone: foreword.Backbone, prefixes: list[Prefix]
) -> None:
    """The hook that narrows the output layer once saw other threads' calls of the same shape."""
    mask = torch.ones_like(IDS)
    labels = [torch.full_like(IDS, -100) for _ in range(2)]
    labels[0][:, 4:] = IDS[:, 4:]
    labels[1][:, 8:] = IDS[:, 8:]
    batches = [{"input_ids": IDS, "attention_mask": mask, "labels": one} for one in labels]

    def scored(which: int) -> list[Tensor]:
        with backbone.attached(prefixes[which]), torch.no_grad():
            return [score(backbone.model, batches[which]).nll_N for _ in range(ROUNDS)]

    expected = [scored(which)[0] for which in range(2)]
    found = together([lambda w=which: scored(w) for which in range(2)])
    for ours, theirs in zip(found, expected, strict=True):
        assert all(torch.equal(one, theirs) for one in ours)


def test_tasks_of_an_event_loop_have_blocks_of_their_own(
    backbone: foreword.Backbone, prefixes: list[Prefix]
) -> None:
    expected = [alone(backbone, prefix) for prefix in prefixes]

    async def work(prefix: Prefix) -> list[Tensor]:
        found = []
        with backbone.attached(prefix):
            for _ in range(5):
                await asyncio.sleep(0)
                found.append(logits(backbone.model))
                found.append(await asyncio.to_thread(logits, backbone.model))
        return found

    async def every() -> list[list[Tensor]]:
        return await asyncio.gather(*(work(prefix) for prefix in prefixes))

    for ours, theirs in zip(asyncio.run(every()), expected, strict=True):
        assert all(torch.equal(one, theirs) for one in ours)
    assert attachment_of(backbone.model) is None


def test_a_thread_without_a_block_is_refused_while_others_have_one(
    backbone: foreword.Backbone, prefixes: list[Prefix]
) -> None:
    """Such as one that a streamer starts within the block: whose prefix it wants nobody knows."""
    plain = logits(backbone.model)
    with backbone.attached(prefixes[0]):
        with pytest.raises(BusyError, match="Give each thread a block of its own"):
            together([lambda: logits(backbone.model)])
        (found,) = together([lambda: alone(backbone, None)])
        assert torch.equal(found, plain)
    assert torch.equal(together([lambda: logits(backbone.model)])[0], plain)


def test_detaching_while_others_run_is_refused(
    backbone: foreword.Backbone, prefixes: list[Prefix]
) -> None:
    model = foreword.attach(backbone.model, prefixes[0])
    expected = logits(model)
    inside, done = threading.Event(), threading.Event()

    def hold(*_: object) -> None:
        inside.set()
        assert done.wait(60)

    handle = model.lm_head.register_forward_pre_hook(hold)
    with ThreadPoolExecutor(1) as pool:
        passing = pool.submit(logits, model)
        assert inside.wait(60)
        handle.remove()
        with pytest.raises(BusyError, match="Wait for its end"):
            foreword.detach(model)
        done.set()
        assert torch.equal(passing.result(), expected)
    foreword.detach(model)
    with backbone.attached(prefixes[0]):
        foreword.attach(model, prefixes[1])
        with pytest.raises(BusyError, match="block"):
            foreword.detach(model)
    assert torch.equal(logits(model), alone(backbone, prefixes[1]))
    foreword.detach(model)


def test_attaching_in_the_middle_of_a_plain_pass_is_no_mixture(
    backbone: foreword.Backbone, prefixes: list[Prefix]
) -> None:
    model = backbone.model
    inside, done = threading.Event(), threading.Event()

    def hold(*_: object) -> None:
        inside.set()
        assert done.wait(60)

    handle = model.model.layers[1].register_forward_pre_hook(hold)
    with ThreadPoolExecutor(1) as pool:
        passing = pool.submit(logits, model)
        assert inside.wait(60)
        handle.remove()
        foreword.attach(model, prefixes[0])
        done.set()
        with pytest.raises(BypassError, match="attach before threads run it"):
            passing.result()
    foreword.detach(model)


def test_the_hooks_stay_until_the_last_pass_of_a_thread_has_ended(
    backbone: foreword.Backbone, prefixes: list[Prefix]
) -> None:
    """A plain pass that began while a block was open ends as it began."""
    model = backbone.model
    plain = logits(model)
    inside, done = threading.Event(), threading.Event()

    def hold(*_: object) -> None:
        inside.set()
        assert done.wait(60)

    with ThreadPoolExecutor(1) as pool:
        with backbone.attached(None):
            handle = model.lm_head.register_forward_pre_hook(hold)

            def work() -> Tensor:
                with backbone.attached(prefixes[0]):
                    return logits(model)

            passing = pool.submit(work)
            assert inside.wait(60)
            handle.remove()
        assert attachment_of(model) is not None
        done.set()
        found = passing.result()
    assert attachment_of(model) is None
    assert torch.equal(found, alone(backbone, prefixes[0]))
    assert torch.equal(logits(model), plain)


def test_a_model_copied_in_a_block_keeps_the_prefix(
    backbone: foreword.Backbone, prefixes: list[Prefix]
) -> None:
    with backbone.attached(prefixes[0]):
        expected = logits(backbone.model)
        copied = copy.deepcopy(backbone.model)
    assert torch.equal(logits(copied), expected)
    foreword.detach(copied)
    assert torch.equal(logits(copied), logits(backbone.model))


def test_measuring_in_threads() -> None:
    model = tiny_model()
    found = together([lambda: foreword.Backbone(model).sites] * 4)
    assert all(sites == found[0] for sites in found)
    assert attachment_of(model) is None


def test_modes_of_blocks_that_overlap() -> None:
    """The block that ended first once put a model into training mode under the other."""
    model = tiny_model()
    model.train()
    first, second = evaluating(model), evaluating(model)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not model.training
    second.__exit__(None, None, None)
    assert all(module.training for module in model.modules())
