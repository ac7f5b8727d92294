"""vLLM as a side of the serving benchmark, run by the Python of vLLM's own environment.

    PYTHON benchmarks/vllm_side.py MODEL DTYPE SEQUENCES

Writes a line when the model is loaded. Then each line that it reads is a round, a JSON list of pairs of
a prompt's token ids and the number of tokens to make; the line it answers lists each pair's new tokens.
"""

from __future__ import annotations

import json
import os
import sys

from vllm import LLM, SamplingParams


def main() -> None:
    """Answer rounds until the input ends."""
    model, dtype, sequences = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what vLLM's processes print must not come between the answers
    llm = LLM(
        model,
        dtype=dtype,
        max_num_seqs=int(sequences),
        enforce_eager=True,  # the compiled start takes minutes, and is no faster afterwards
        enable_prefix_caching=False,
        disable_log_stats=True,
    )
    print(json.dumps("loaded"), file=answers)
    for line in sys.stdin:
        asked = json.loads(line)
        outputs = llm.generate(
            [{"prompt_token_ids": prompt} for prompt, _ in asked],
            [SamplingParams(temperature=0, max_tokens=most, ignore_eos=True) for _, most in asked],
            use_tqdm=False,
        )
        print(json.dumps([list(each.outputs[0].token_ids) for each in outputs]), file=answers)


if __name__ == "__main__":
    main()
