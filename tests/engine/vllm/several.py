"""An engine in a process of its own: `python -m tests.engine.vllm.several`.

Reads one JSON object: `model`, `store`, `engine` (arguments of vllm.LLM), `asked` (pairs of a prefix's
name, or null, and token ids), `new` (tokens to write), and perhaps `ray` (arguments of ray.init) and
`elsewhere` (the folder of the store that the worker of rank 1 sees).

Prints one: `tokens`, or the finish reason ``error``; `executor`, the class that runs the workers; and
`preempted`, how often a request lost its blocks. The last two are null where the scheduler is in another
process. With `elsewhere` there is `after` too: the same again, once all workers see one folder.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def main() -> None:
    given = json.loads(sys.stdin.read())
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM's processes print must not come between
    if "ray" in given:
        import ray

        ray.init(**given["ray"])
    from vllm import LLM, SamplingParams

    from foreword.engine.vllm import Named, OfflinePrefixes, PrefixedPrompt, prefixed

    prefixes = OfflinePrefixes(given["store"], given["model"])
    llm = LLM(
        given["model"],
        enforce_eager=True,
        disable_log_stats=True,
        **{"dtype": "float32", **prefixes.engine_arguments(), **given["engine"]},
    )
    preempted = _counted(llm)
    asked = []
    for name, ids in given["asked"]:
        if name in (None, *prefixes.store):
            outline = name and prefixes.store.outline(name)
            asked.append(prefixed(ids, prefixes.placeholder, name or "", outline))
        else:  # as one that came from elsewhere
            asked.append(PrefixedPrompt(tuple(ids), Named(name, "0" * 64)))
    sampling = [
        SamplingParams(
            temperature=0, max_tokens=given["new"], ignore_eos=True, extra_args=one.extra_args
        )
        for one in asked
    ]

    def written() -> list[Any]:
        outputs = llm.generate([one.prompt for one in asked], sampling, use_tqdm=False)
        firsts = [output.outputs[0] for output in outputs]
        return ["error" if o.finish_reason == "error" else list(o.token_ids) for o in firsts]

    if "elsewhere" in given:
        llm.collective_rpc("look_into", args=(1, given["elsewhere"]))
    found: dict[str, Any] = {"tokens": written()}
    if "elsewhere" in given:
        llm.collective_rpc("look_into", args=(1, given["store"]))
        found["after"] = written()
    core = _core(llm)
    found["executor"] = core and type(core.model_executor).__name__
    print(json.dumps({**found, "preempted": preempted and preempted[0]}), file=answers)
    answers.close()
    if "ray" in given:
        core.shutdown()
        ray.shutdown()


def _core(llm: Any) -> Any:
    """What is beside the scheduler, where that is in this process; else None."""
    return getattr(llm.llm_engine.engine_core, "engine_core", None)


def _counted(llm: Any) -> list[int] | None:
    """A counter of preemptions, where the scheduler is in this process."""
    core = _core(llm)
    if core is None:
        return None
    count, scheduler = [0], core.scheduler
    preempt = scheduler._preempt_request

    def counted(*args: Any, **kwargs: Any) -> Any:
        count[0] += 1
        return preempt(*args, **kwargs)

    scheduler._preempt_request = counted
    return count


if __name__ == "__main__":
    main()
