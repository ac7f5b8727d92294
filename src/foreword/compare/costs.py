"""What a method costs: latency beside the frozen model, memory in training, room for many tasks."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch

from foreword.backbone import Backbone
from foreword.compare.result import Latency
from foreword.methods.base import Applied

ROWS = (1, 32)
"""Rows of a batch that latency is measured with."""

PROMPT = 32
"""Tokens of each prompt."""

ROUNDS, LEAST = 5, 2
"""Times that each side is measured, in turns; the median counts. Fewer where a round takes long."""

ENOUGH = 15.0
"""Seconds after which no more rounds are begun."""

STEPS = 4
"""Decoding steps that are timed together."""

TASKS = 100
"""Tasks whose memory is counted."""

EVERY = 0.01
"""Seconds between two looks at the memory of the process."""

Entered = Callable[[], AbstractContextManager[Applied]]
"""Puts what a method left on the backbone for a block."""


def latency(frozen: Applied, entered: Entered, rows: Sequence[int] = ROWS) -> Latency:
    """Median times under a method over those of the frozen model, each round one after the other.

    Args:
        frozen: The frozen backbone.
        entered: The method's.
        rows: Rows of a batch.
    """
    prefill, decode = {}, {}
    for count in rows:
        times: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
        _timed(frozen, count)  # which warms up
        began = time.perf_counter()
        for turn in range(ROUNDS):
            if turn >= LEAST and time.perf_counter() - began > ENOUGH:
                break
            times[False].append(_timed(frozen, count))
            with entered() as applied:
                times[True].append(_timed(applied, count))
        medians = {
            side: [statistics.median(column) for column in zip(*found, strict=True)]
            for side, found in times.items()
        }
        prefill[count] = medians[True][0] / medians[False][0]
        decode[count] = medians[True][1] / medians[False][1]
    return Latency(prefill, decode)


@torch.no_grad()
def _timed(applied: Applied, rows: int) -> tuple[float, float]:
    """Seconds of a pass over prompts, and of a decoding step; an encoder has its pass for both."""
    backbone = applied.backbone
    model: Any = backbone.model
    generator = torch.Generator().manual_seed(0)
    length = min(PROMPT, backbone.context // 2)
    ids = torch.randint(backbone.vocabulary, (rows, length), generator=generator)
    ids = ids.to(backbone.device)
    with backbone.inferring(applied.prefix):
        if backbone.kind == "encoder":
            seconds = _clock(backbone, lambda: model(input_ids=ids))
            return seconds, seconds
        if backbone.kind == "encoder-decoder":
            return _timed_seq2seq(backbone, ids)
        held: list[Any] = []
        prefill = _clock(backbone, lambda: held.append(model(input_ids=ids, use_cache=True)))
        cache = held[0].past_key_values

        def steps() -> None:
            for _ in range(STEPS):
                model(input_ids=ids[:, :1], past_key_values=cache, use_cache=True)

        return prefill, _clock(backbone, steps) / STEPS


def _timed_seq2seq(backbone: Backbone, ids: torch.Tensor) -> tuple[float, float]:
    """As `_timed`: the encoder's pass with the decoder's first token, and the decoder's next ones."""
    model: Any = backbone.model
    first = ids[:, :1]
    held: list[Any] = []
    prefill = _clock(
        backbone,
        lambda: held.append(model(input_ids=ids, decoder_input_ids=first, use_cache=True)),
    )
    seen, cache = (held[0].encoder_last_hidden_state,), held[0].past_key_values

    def steps() -> None:
        for _ in range(STEPS):
            model(
                encoder_outputs=seen,
                decoder_input_ids=first,
                past_key_values=cache,
                use_cache=True,
            )

    return prefill, _clock(backbone, steps) / STEPS


def _clock(backbone: Backbone, work: Callable[[], Any]) -> float:
    """Seconds that work takes, the device's queue included."""
    _wait(backbone)
    began = time.perf_counter()
    work()
    _wait(backbone)
    return time.perf_counter() - began


def _wait(backbone: Backbone) -> None:
    if backbone.device.type == "cuda":
        torch.cuda.synchronize(backbone.device)


class Peak:
    """The most memory during a block above that at its beginning, in bytes; None where nobody says."""

    bytes: int | None = None


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Watch memory during a block: a GPU's as torch counts it, else the process's resident memory."""
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated(device) - before
        return
    _give_back()
    first = resident()
    if first is None:
        yield peak
        return
    most, done = [first], threading.Event()

    def look() -> None:
        while not done.wait(EVERY):
            most[0] = max(most[0], resident() or 0)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()
        peak.bytes = max(most[0], resident() or 0) - first


def _give_back() -> None:
    """Return to the system what was freed, which would hide what is taken anew; only glibc can."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def resident() -> int | None:
    """Bytes of this process that are in memory; None where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def memory(backbone: Backbone, numbers: int | None) -> int:
    """Bytes of a backbone and of what many tasks have on it, in its dtype.

    Args:
        backbone: The backbone.
        numbers: Of one task; None: a whole model of its own.
    """
    weights = backbone.weight_bytes
    return (
        TASKS * weights if numbers is None else weights + TASKS * numbers * backbone.dtype.itemsize
    )


def machine(backbone: Backbone) -> str:
    """What figures are measured on."""
    if backbone.device.type == "cuda":
        return torch.cuda.get_device_name(backbone.device)
    cores, threads = os.cpu_count(), torch.get_num_threads()
    return f"{processor()}, {cores} cores, {threads} thread{'s' * (threads > 1)}"


def processor() -> str:
    """The processor by name, and which of its vector instructions matter: those of bfloat16, if any."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    said = {key.strip(): value.strip() for key, _, value in (one.partition(":") for one in lines)}
    name = said.get("model name") or platform.processor() or platform.machine()
    able = torch.backends.cpu.get_cpu_capability()
    if "avx512_bf16" in said.get("flags", "").split():
        able = "AVX512-BF16"
    return f"{name} ({able})"
