"""Clients of vLLM behind Foreword's server engine, run by the Python of vLLM's own environment.

    PYTHON benchmarks/vllm_clients.py '{"model": MODEL, "dtype": DTYPE, "sequences": 32,
                                        "store": FOLDER}'

Writes a line when the model is loaded. Then each line that it reads is a JSON object: `clients`, how
many ask at the same time, and `asked`, a list of triples: the name of a prefix or null, a prompt's token
ids, and the number of tokens to make. It answers with the times that the clients saw. Of a single
request the time that the server takes to find its prefix is a part.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict

from serving_requests import ask, request_of

from foreword.engine.vllm.launch import Launch
from foreword.serve.remote import RemotePrefixes
from foreword.store import PrefixStore


def main() -> None:
    """Answer until the input ends."""
    given = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    store = PrefixStore(given["store"])
    flags = ("--enforce-eager", f"--max-num-seqs={given['sequences']}")
    _, engine, _ = Launch(given["model"], store, flags, dtype=given["dtype"]).start()
    prefixes = RemotePrefixes(store)
    print(json.dumps("loaded"), file=answers)
    for line in sys.stdin:
        told = json.loads(line)
        began = time.perf_counter() if told["clients"] == 1 == len(told["asked"]) else None
        requests = [
            request_of(ids, new, None if name is None else prefixes.get(name), name or "")
            for name, ids, new in told["asked"]
        ]
        print(json.dumps(asdict(ask(engine, requests, told["clients"], began))), file=answers)
    engine.close()


if __name__ == "__main__":
    main()
