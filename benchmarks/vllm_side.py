"""vLLM as a side of the serving benchmarks, run by the Python of vLLM's own environment.

    PYTHON benchmarks/vllm_side.py '{"model": MODEL, "dtype": DTYPE, "sequences": 32,
                                     "store": FOLDER or null, "resident": 256, "caching": true}'

With a store the connector is there; without one it is vLLM as it is. `caching` is whether it caches
prompts. Writes a line when the model is loaded. Then each line that it reads is a round, a
JSON list of triples: the name of a prefix or null, a prompt's token ids, and the number of tokens to
make; the line that it answers lists each one's new tokens, or null for one that failed.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

from vllm import LLM, SamplingParams

from foreword.engine.vllm import OfflinePrefixes, PrefixedPrompt, prefixed

Asks = list[tuple[str | None, list[int], int]]


def main() -> None:
    """Answer rounds until the input ends."""
    given = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what vLLM's processes print must not come between the answers
    prompt, arguments = _prompts(given)
    llm = LLM(
        given["model"],
        dtype=given["dtype"],
        max_num_seqs=given["sequences"],
        enforce_eager=True,  # the compiled start takes minutes, and is no faster afterwards
        disable_log_stats=True,
        enable_prefix_caching=given["caching"],
        **arguments,
    )
    print(json.dumps("loaded"), file=answers)
    for line in sys.stdin:
        asked: Asks = json.loads(line)
        prompts = [prompt(name, ids) for name, ids, _ in asked]
        outputs = llm.generate(
            [one.prompt for one in prompts],
            [
                SamplingParams(
                    temperature=0, max_tokens=most, ignore_eos=True, extra_args=one.extra_args
                )
                for one, (_, _, most) in zip(prompts, asked, strict=True)
            ],
            use_tqdm=False,
        )
        ends = [output.outputs[0] for output in outputs]
        made = [None if end.finish_reason == "error" else list(end.token_ids) for end in ends]
        print(json.dumps(made), file=answers)


def _prompts(
    given: dict[str, Any],
) -> tuple[Callable[[str | None, list[int]], PrefixedPrompt], dict[str, Any]]:
    """What makes a prompt of a name and token ids, and the arguments of ``vllm.LLM`` that go with it."""
    if given["store"] is None:
        return lambda name, ids: prefixed(ids, 0), {}
    prefixes = OfflinePrefixes(given["store"], given["model"], resident=given["resident"])
    outline = cache(prefixes.store.outline)

    def prompt(name: str | None, ids: list[int]) -> PrefixedPrompt:
        found = None if name is None else outline(name)
        return prefixed(ids, prefixes.placeholder, name or "", found)

    return prompt, prefixes.engine_arguments()


if __name__ == "__main__":
    main()
