"""`LoadStats`: what a worker did with prefixes, on its way to vLLM's front."""

from __future__ import annotations

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorStats

from foreword.engine.protocol import Loads


class LoadStats(KVConnectorStats):  # type: ignore[misc]
    """Figures of `Loads` by name, of one step. All of them add up, over workers and over steps.

    With tensor parallelism each worker counts what it does itself, so that two of them that read one
    prefix have read twice, each its own heads.
    """

    def reset(self) -> None:
        """Begin anew."""
        self.data = dict(vars(Loads()))

    def aggregate(self, other: LoadStats) -> LoadStats:
        """Those of two workers, or of two steps."""
        return LoadStats(dict(vars(Loads(**self.data) + Loads(**other.data))))

    def reduce(self) -> dict[str, int | float]:
        """As vLLM logs them."""
        return {name: round(value, 3) for name, value in self.data.items()}

    def is_empty(self) -> bool:
        """Whether nothing was done."""
        return not any(self.data.values())
