"""The application behind uvicorn on a loopback port, for clients that are programs of their own."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from foreword.backbone.served import Served
from foreword.engine import EngineClient
from foreword.serve import ServeOptions, create_app
from foreword.serve.registry import Registry

WAIT = 60.0


@contextmanager
def running(
    served: Served, engine: EngineClient, registry: Registry, options: ServeOptions | None = None
) -> Iterator[str]:
    """A server of this process; its address, once it takes requests."""
    app = create_app(served, engine, registry, options)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until = time.monotonic() + WAIT
        while not server.started:
            assert thread.is_alive()
            assert time.monotonic() < until
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(WAIT)
