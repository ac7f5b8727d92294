"""What vLLM runs in each of its processes: it makes the connector known by its name."""

from __future__ import annotations

from foreword.engine.vllm.requests import CONNECTOR, MODULE


def register() -> None:
    """Let ``--kv-transfer-config`` name the connector without its module; twice does no harm."""
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    if CONNECTOR not in KVConnectorFactory._registry:
        KVConnectorFactory.register_connector(CONNECTOR, MODULE, CONNECTOR)
