"""What the engine is compared with besides `generate` and PEFT: servers that batch continuously.

Both take requests without prefixes, run at most so many at once, let the next one in as one ends, and
make as many tokens for each as it asks for, whatever these are.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation import ContinuousBatchingConfig

from foreword.backbone import Backbone
from foreword.engine import Request

Answers = list[list[int]]
"""New tokens of each request."""

BLOCKS = 2
"""Blocks of 256 tokens per request at once in the cache of transformers: twice what E2E's rows take."""
STEP = 128
"""Most tokens in one pass of transformers, whose mask has a row for each; 512 and 2,048 were slower."""


class SideFailed(Exception):
    """A side that does not run here, and why."""


def copy_of(backbone: Backbone, **options: Any) -> Any:
    """The backbone's model, read once more, which nothing is attached to."""
    name = backbone.model.config.name_or_path
    model = AutoModelForCausalLM.from_pretrained(name, dtype=backbone.dtype, **options)
    return model.to(backbone.device).eval()


class ContinuousBatching:
    """transformers' own: what `generate_batch` runs, asked through its manager.

    `generate_batch` itself has one `max_new_tokens` for all requests, and builds its cache at each call.
    On a CPU it takes `sdpa` or `paged|eager`, which cost the same on one thread: either multiplies every
    query with the keys of all requests, under a mask.
    """

    def __init__(self, backbone: Backbone, rows: int) -> None:
        self.model = copy_of(backbone, attn_implementation="paged|eager")
        self.rows = rows

    def __enter__(self) -> ContinuousBatching:
        """Start its thread, for one turn: an idle one's pool would slow the other sides down."""
        self.manager = self.model.init_continuous_batching(
            GenerationConfig(do_sample=False, eos_token_id=-1),  # -1: no token ends a request
            ContinuousBatchingConfig(
                max_requests_per_batch=self.rows,
                num_blocks=BLOCKS * self.rows,  # else 60% of the machine's memory
                max_batch_tokens=STEP,
                allow_block_sharing=False,
            ),
        )
        self.manager.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.manager.stop(hard_stop=True)
        self.manager.destroy()

    def run(self, requests: Sequence[Request]) -> Answers:
        """Tokens of requests that come at once.

        Raises:
            SideFailed: The manager's thread has died, or a request failed.
        """
        names = [
            self.manager.add_request(
                list(request.prompt), max_new_tokens=request.sampling.max_tokens
            )
            for request in requests
        ]
        found: dict[str, list[int]] = {}
        while len(found) < len(names):
            result = self.manager.get_result(timeout=1)
            if result is not None and result.error is None:
                found[result.request_id] = result.generated_tokens
            elif result is not None or not self.manager.is_running():
                raise SideFailed(str(result.error if result else "its thread has ended"))
        return [found[name] for name in names]


class Child:
    """A program in vLLM's environment that answers a line of JSON with a line of JSON.

    Args:
        python: The Python of that environment.
        program: The program, beside this one.
        given: Its one argument.
        environ: Its settings; what this process's environment sets goes before them.

    Raises:
        SystemExit: There is no such Python.
    """

    def __init__(self, python: Path, program: str, given: dict[str, Any], **environ: str) -> None:
        settings = {
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
            **environ,
        }
        try:
            self.process = subprocess.Popen(
                [python, Path(__file__).with_name(program), json.dumps(given)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**settings, **os.environ},
                text=True,
            )
        except OSError as error:
            raise SystemExit(f"--vllm {python}: {error.strerror}; expected a Python") from error

    def __enter__(self) -> Self:
        try:
            self._read()  # that the model is loaded
        except SideFailed as error:
            raise SystemExit(
                f"--vllm: {error}; expected the Python of vLLM's environment"
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        self.process.__exit__(None, None, None)  # ends its input, and waits

    def answer(self, asked: Any) -> Any:
        """What it answers.

        Raises:
            SideFailed: The process has ended.
        """
        assert self.process.stdin is not None
        print(json.dumps(asked), file=self.process.stdin, flush=True)
        return self._read()

    def _read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SideFailed(f"vLLM's process ended with code {self.process.wait()}")
        return json.loads(line)


class VLLM(Child):
    """vLLM on the CPU, under the Python of its own environment.

    All in one process: otherwise it has three, one of which spins beside the threads that compute, and
    for a second more, into the next side's turn.

    Args:
        python: The Python of that environment.
        backbone: The model that it runs.
        rows: Requests that run at once.
        store: Where its prefixes are; None: vLLM as it is, without the connector.
        resident: Prefixes that its worker keeps in memory.
        caching: Whether it caches prompts.
    """

    def __init__(
        self,
        python: Path,
        backbone: Backbone,
        rows: int,
        store: Path | None = None,
        resident: int = 256,
        *,
        caching: bool = False,
    ) -> None:
        given = {
            **model_of(backbone),
            "sequences": rows,
            "store": None if store is None else str(store),
            "resident": resident,
            "caching": caching,
        }
        super().__init__(python, "vllm_side.py", given, VLLM_ENABLE_V1_MULTIPROCESSING="0")

    def run(self, requests: Sequence[Request]) -> Answers:
        """Tokens of requests that come at once.

        Raises:
            SideFailed: The process has ended, or a request failed.
        """
        answers: Answers = self.answer(
            [
                (
                    one.prefixes[0].name if one.prefixes else None,
                    one.prompt,
                    one.sampling.max_tokens,
                )
                for one in requests
            ]
        )
        if None in answers:
            raise SideFailed("vLLM failed a request")
        return answers


def model_of(backbone: Backbone) -> dict[str, str]:
    """A backbone as programs in vLLM's environment are told of it."""
    name = backbone.model.config.name_or_path
    return {"model": name, "dtype": str(backbone.dtype).removeprefix("torch.")}
