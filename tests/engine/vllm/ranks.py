"""`Ranks`: what tests have vLLM's workers do (its ``worker_extension_cls``)."""

from __future__ import annotations

from foreword.store import PrefixStore


class Ranks:
    """Methods of each worker, called by ``LLM.collective_rpc``.

    Attributes:
        rank: The worker's.
    """

    rank: int

    def look_into(self, rank: int, folder: str) -> None:
        """Have the worker of one rank see another folder as the store, and forget what it has read."""
        from vllm.distributed.kv_transfer import get_kv_transfer_group

        loaded = get_kv_transfer_group()._loaded
        loaded._kept.clear()
        if self.rank == rank:
            loaded.store = PrefixStore(folder)
