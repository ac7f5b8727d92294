"""`foreword serve`."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from foreword.cli.console import note, working
from foreword.cli.engines import EngineName, refuse_embedded, refuse_flags
from foreword.cli.options import BackboneOptions, StoreOptions, folder_of
from foreword.cli.routing import is_stored
from foreword.errors import ForewordError, ServeError, StoreError
from foreword.store import PrefixStore
from foreword.weights import embedded

if TYPE_CHECKING:
    from foreword.backbone.served import Served
    from foreword.engine import EngineClient
    from foreword.router import Router
    from foreword.serve.registry import Registry

STARTUP_FAILURE = 3
"""Exit code of uvicorn where it cannot listen."""

RESIDENT: Mapping[EngineName, int] = {"embedded": 64, "vllm": 256}
"""By engine how many prefixes are in memory at once where nothing else is said."""

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ServeArguments:
    """Where the server listens, and what it allows."""

    engine: EngineName = "embedded"
    """What computes: Foreword's own engine, or vLLM, whose own flags follow after "--"."""

    router: Path | None = None
    """File of a router, made by foreword route. It is a model of its file's name, under which each input
    goes to the prefix that the router chooses for it."""

    host: str = "127.0.0.1"
    """Address to listen on. Any but this machine's own needs an API key."""

    port: int = 8000
    """Port to listen on."""

    api_key: Annotated[str | None, Parameter(env_var="FOREWORD_API_KEY")] = None
    """Key that requests must bring, as OpenAI's clients send it."""

    allow_origin: tuple[str, ...] = ()
    """Page of another host that a browser may call from, such as https://chat.example; repeatable."""

    rows: int = 32
    """Requests that run at once; others wait."""

    queue: int = 256
    """Choices that may be open at once, waiting ones included; more are answered 429."""

    prompt_tokens: int = 512
    """Prompt tokens computed beside each decoding step."""

    cache_tokens: int = 2**17
    """Tokens that there is memory for, of all running requests and the prefixes copied for them."""

    resident: int | None = None
    """Prefixes in memory at once; the others are read when they are asked for. Default: 64, with vLLM
    256 in each of its workers."""

    max_tokens: int | None = None
    """Tokens that one choice may come to; default: what the context leaves."""

    timeout: float = 600.0
    """Seconds that one request may take."""

    keep_alive: int = 75
    """Seconds that a connection without a request stays open. What is in front of the server should
    give connections up earlier, so that none is closed just as a request is sent on it."""

    max_body: int = 4 * 2**20
    """Largest body of a request in bytes."""

    max_upload: int = 2**30
    """Largest prefix file that is uploaded, and all that are under way together, in bytes."""


def serve(
    *flags: str,
    arguments: ServeArguments = ServeArguments(),
    backbone: BackboneOptions = BackboneOptions(),  # noqa: B008
    store: StoreOptions = StoreOptions(),  # noqa: B008
) -> None:
    """Serve every prefix of the store from one backbone, over OpenAI's API.

    The model of a request is the name of a prefix, the backbone's for none, or that of a router, which
    chooses the prefix. SIGTERM or Ctrl-C ends the server after the requests that it has accepted.

    Args:
        flags: With --engine vllm more of vLLM's own flags, after "--", such as -- --max-model-len 4096.
        arguments: Where it listens, and what it allows.
        backbone: Which backbone.
        store: Where prefixes live.
    """
    if arguments.host not in LOOPBACK and not arguments.api_key:
        raise ServeError(
            f"listening on {arguments.host} opens the server to others; give --api-key as well, or "
            "leave --host at 127.0.0.1"
        )
    try:
        import uvicorn

        from foreword.serve import ServeOptions, create_app
    except ImportError as error:
        raise ServeError(
            "serving needs FastAPI, uvicorn and prometheus-client: pip install 'foreword[serve]'"
        ) from error
    registry = _registry(store.open(), arguments)
    router = _router(arguments, registry.store)
    start = _on_vllm if arguments.engine == "vllm" else _embedded
    served, engine, dtype = start(arguments, backbone, registry.store, flags)
    allowed = ServeOptions(
        api_key=arguments.api_key,
        queue=arguments.queue,
        most_tokens=arguments.max_tokens,
        seconds=arguments.timeout,
        body_bytes=arguments.max_body,
        upload_bytes=arguments.max_upload,
        origins=arguments.allow_origin,
        router=router,
    )
    try:
        app = create_app(served, engine, registry, allowed)
    except ForewordError:
        engine.close()
        raise
    count = sum(1 for _ in registry.store)
    note(
        f"{served.name} in {dtype} with {count} prefixes, on "
        f"http://{arguments.host}:{arguments.port}/v1"
    )
    _log()
    config = uvicorn.Config(
        app,
        host=arguments.host,
        port=arguments.port,
        log_config=None,
        access_log=False,
        timeout_keep_alive=arguments.keep_alive,
    )
    _run(uvicorn.Server(config), engine)


Started = tuple["Served", "EngineClient", str]
"""What the server knows of the model, the engine that runs it, and the dtype that it computes in."""


def _registry(store: PrefixStore, arguments: ServeArguments) -> Registry:
    """Who knows the prefixes: vLLM's workers read them themselves."""
    from foreword.serve.remote import RemotePrefixes
    from foreword.serve.residency import Residency

    if arguments.engine == "vllm":
        return RemotePrefixes(store)
    return Residency(store, _resident(arguments))


def _router(arguments: ServeArguments, store: PrefixStore) -> tuple[str, Router] | None:
    """The router that is served, by its name, before anything takes time."""
    if arguments.router is None:
        return None
    if arguments.engine == "vllm":
        refuse_embedded(arguments)
    from foreword.router import Router

    router = Router.load(arguments.router)
    for name in router.names:
        if not is_stored(store, name):
            note(
                f"the router sends inputs to {name!r}, and no prefix is called so in {store.folder}: "
                "such requests are answered 404 until there is one"
            )
    return arguments.router.stem, router


def _resident(arguments: ServeArguments) -> int:
    """Prefixes in memory at once."""
    given = arguments.resident
    return RESIDENT[arguments.engine] if given is None else given


def _embedded(
    arguments: ServeArguments, backbone: BackboneOptions, store: PrefixStore, flags: Sequence[str]
) -> Started:
    """Foreword's own engine, in this process."""
    refuse_flags(flags)
    from foreword.engine import Engine, Limits

    with working("loading the backbone"):
        loaded = backbone.load()
    _check_name(loaded.name, store)
    limits = Limits(arguments.rows, arguments.prompt_tokens, arguments.cache_tokens)
    return loaded, Engine(loaded, limits), str(loaded.dtype).removeprefix("torch.")


def _on_vllm(
    arguments: ServeArguments, backbone: BackboneOptions, store: PrefixStore, flags: Sequence[str]
) -> Started:
    """The engine of vLLM, with Foreword's connector in its processes."""
    refuse_embedded(arguments, backbone)
    from foreword.engine.vllm.launch import Launch

    name = backbone.backbone or embedded.NAME
    _check_name(name, store)
    source = folder_of(name)
    launch = Launch(
        source,
        store,
        flags,
        name=name,
        revision=backbone.revision,
        dtype=backbone.dtype,
        resident=_resident(arguments),
    )
    return launch.start()


def _check_name(backbone: str, store: PrefixStore) -> None:
    """Check that no prefix has the backbone's name."""
    try:
        is_taken = backbone in store
    except StoreError:  # a path, which can be no prefix's name
        return
    if is_taken:
        raise StoreError(
            f"a prefix has the backbone's name {backbone!r}, so requests could not name it; "
            "rename its file"
        )


def _run(server: Any, engine: EngineClient) -> None:
    """Run the server until it is told to end, or its engine is lost.

    Raises:
        ServeError: The engine is lost: whoever watches the process starts it again.
    """
    engine.when_lost(lambda: setattr(server, "should_exit", True))
    with suppress(KeyboardInterrupt):  # uvicorn has ended what was accepted
        server.run()
    if engine.failure:
        raise ServeError(f"{engine.failure}; the server has ended")
    if not server.started:
        sys.exit(STARTUP_FAILURE)


def _log() -> None:
    """Log lines as JSON objects on standard error; they never hold a prompt's text."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    for name in ("foreword.serve", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)


class _Lines(logging.Formatter):
    """One JSON object per line: time, level, message, and what the caller added."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        known = vars(logging.makeLogRecord({}))
        line |= {
            name: value
            for name, value in vars(record).items()
            if name not in known and name not in ("message", "asctime", "color_message")
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)
