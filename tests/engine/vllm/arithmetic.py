"""The tables of docs/vllm-arithmetic.md: `make pages` puts them there, a test holds them there.

Sizes follow from the shapes of keys and values. How often a prefix is in memory follows from how often
it is asked for: by Zipf's law, that of rank r in proportion to r**-s.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

PAGE = Path(__file__).parents[3] / "docs/vllm-arithmetic.md"
TABLE = re.compile(r"(<!-- table (\w+), made by `make pages` -->\n).*?(<!-- end -->)", re.DOTALL)

PREFIXES = 100_000
"""Prefixes that there are."""

RATE = 1_000
"""Requests per second."""

LENGTHS = (16, 128)
"""Prefix lengths."""

EXPONENTS = (1.0, 1.1, 1.2)
"""Of Zipf's law."""

RESIDENT = (64, 256, 1_000, 4_000, 16_000)
"""Prefixes in memory."""

RUNNING = (64, 256, 1_024)
"""Requests that run at once."""

BLOCK = 16
"""Tokens of one of vLLM's blocks on a GPU."""

POOL = 40 * 2**30
"""Bytes that vLLM has for keys and values, over all workers."""

HALF, FULL = 2, 4
"""Bytes of a number in bfloat16, which models compute in, and in float32, which prefixes train in."""


@dataclass(frozen=True)
class Model:
    """A public model's attention layers, as its config has them.

    Attributes:
        name: Its name on the Hub, without its owner.
        layers: Attention layers.
        kv_heads: Key/value heads of each.
        head_dim: Dimension of a key, and of a value.
    """

    name: str
    layers: int
    kv_heads: int
    head_dim: int

    def size(self, length: int, number: int = HALF) -> int:
        """Bytes of keys and values of so many tokens; a virtual token has what a token has."""
        return 2 * self.layers * self.kv_heads * self.head_dim * length * number


MODELS = (
    Model("SmolLM2-135M-Instruct", 30, 3, 64),
    Model("Qwen3-0.6B", 28, 8, 128),
    Model("Llama-3.1-8B-Instruct", 32, 8, 128),
    Model("Qwen3-32B", 64, 8, 128),
    Model("Llama-3.3-70B-Instruct", 80, 8, 128),
)


# -- who is asked for ----------------------------------------------------------------------------


@cache
def popularity(exponent: float, prefixes: int = PREFIXES) -> np.ndarray:
    """Probability of each prefix, the most popular one first, (prefixes,)."""
    weight_N = np.arange(1, prefixes + 1, dtype=np.float64) ** -exponent
    return weight_N / weight_N.sum()


def hit_rate(resident: int, exponent: float, prefixes: int = PREFIXES) -> float:
    """Share of requests whose prefix is among the `resident` that were used last.

    Che's approximation: a prefix is in memory if it was asked for among the last t requests, where t is
    such that `resident` prefixes are expected among them.
    """
    if resident >= prefixes:
        return 1.0
    share_N = popularity(exponent, prefixes)
    low, high = 0.0, 1.0
    while present(share_N, high).sum() < resident:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        if present(share_N, middle).sum() < resident:
            low = middle
        else:
            high = middle
    return float((share_N * present(share_N, high)).sum())


def present(share_N: np.ndarray, requests: float) -> np.ndarray:
    """Probability of each prefix to be among so many requests, (prefixes,)."""
    return -np.expm1(-share_N * requests)


def distinct(requests: int, exponent: float) -> float:
    """Expected number of different prefixes among so many requests."""
    return float((1 - (1 - popularity(exponent)) ** requests).sum())


# -- tables --------------------------------------------------------------------------------------


def sizes() -> list[list[str]]:
    """One prefix of each model."""
    columns = [f"{n} virtual tokens" for n in LENGTHS]
    head = ["model", "layers", "key/value heads", "dimension", "one virtual token", *columns]
    rows = [
        [
            *(model.name, str(model.layers), str(model.kv_heads), str(model.head_dim)),
            *(amount(model.size(length)) for length in (1, *LENGTHS)),
        ]
        for model in MODELS
    ]
    return [head, *rows]


def disk() -> list[list[str]]:
    """All prefixes, as files."""
    kinds = [(length, number) for length in LENGTHS for number in (HALF, FULL)]
    names = {HALF: "bfloat16", FULL: "float32"}
    head = ["model", *(f"{length} tokens, {names[number]}" for length, number in kinds)]
    rows = [
        [model.name, *(amount(PREFIXES * model.size(*kind)) for kind in kinds)] for model in MODELS
    ]
    return [head, *rows]


def hits() -> list[list[str]]:
    """How often a prefix is in memory."""
    head = ["prefixes in memory", *(f"s = {exponent:g}" for exponent in EXPONENTS)]
    rows = [
        [f"{resident:,}", *(f"{hit_rate(resident, exponent):.0%}" for exponent in EXPONENTS)]
        for resident in RESIDENT
    ]
    return [head, *rows]


def memory() -> list[list[str]]:
    """The machine's memory for prefixes that are kept."""
    head = ["model, 128 virtual tokens", *(f"{resident:,}" for resident in RESIDENT)]
    rows = [[m.name, *(amount(r * m.size(LENGTHS[-1])) for r in RESIDENT)] for m in MODELS]
    return [head, *rows]


def bandwidth() -> list[list[str]]:
    """What is read from the store each second, in bfloat16 files, at s = 1."""
    kinds = [(length, resident) for length in LENGTHS for resident in RESIDENT[1:4]]
    head = ["model", *(f"{length} tokens, {resident:,} kept" for length, resident in kinds)]
    rows = [
        [model.name, *(f"{amount(missed(kept) * model.size(length))}/s" for length, kept in kinds)]
        for model in MODELS
    ]
    return [head, *rows]


def missed(resident: int, exponent: float = 1.0) -> float:
    """Prefixes that are read each second."""
    return RATE * (1 - hit_rate(resident, exponent))


def copies() -> list[list[str]]:
    """What is copied to the GPU each second, if no block is there already, and if all are."""
    head = ["model", "128 tokens, none there", "128 tokens, there", "100 tokens, there"]
    rows = [
        [
            model.name,
            *(f"{amount(RATE * model.size(n))}/s" for n in (128, 128 % BLOCK, 100 % BLOCK)),
        ]
        for model in MODELS
    ]
    return [head, *rows]


def blocks() -> list[list[str]]:
    """What running requests hold of the key-value cache, with prefixes of 128 virtual tokens."""
    length = LENGTHS[-1]
    different = [round(distinct(n, 1.0)) for n in RUNNING]
    columns = [f"{n:,} run, {d:,} prefixes" for n, d in zip(RUNNING, different, strict=True)]
    head = ["model", "tokens in 40 GiB", *columns]
    rows = []
    for model in MODELS:
        tokens = POOL // model.size(1)
        left = [(tokens - d * length) // n for n, d in zip(RUNNING, different, strict=True)]
        rows.append([model.name, f"{tokens:,}", *(f"{max(0, one):,}" for one in left)])
    return [head, *rows]


TABLES = {made.__name__: made for made in (sizes, disk, hits, memory, bandwidth, copies, blocks)}


def amount(size: float) -> str:
    """A number of bytes in decimal units, three digits."""
    for unit in ("B", "KB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1_000
    return f"{size:.3g} TB"


def table(rows: list[list[str]]) -> str:
    """Rows in Markdown, the first one as their head."""
    head, *body = (f"| {' | '.join(row)} |\n" for row in rows)
    return head + "|---" + "|---:" * (len(rows[0]) - 1) + "|\n" + "".join(body)


def renewed(page: str) -> str:
    """The page with each table as it is made now."""
    return TABLE.sub(lambda found: found[1] + table(TABLES[found[2]]()) + found[3], page)


def main() -> None:
    """Write the tables."""
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
