"""mufin-serve: settings from environment and flags, the server around the app, signals to a clean end.

Knows no requests. uvicorn alone would close its listener on SIGTERM; in Kubernetes requests go on arriving for
some seconds then, so this server goes on accepting while it drains (docs/operations.md, The end).
"""

from __future__ import annotations

import gc
import resource
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import FrameType

import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError

from service.app import create_app, entrance, lifecycle_of
from service.bundles import OpenModel, open_from_disk
from service.connections import ConnectionWatch
from service.errors import SettingsError
from service.http_protocol import StrictHttpProtocol
from service.lifecycle import Phase
from service.settings import Settings, traces_wanted
from service.telemetry import configure_logging, get_logger
from service.tracing import start_tracing, stop_tracing

_COLLECT_AFTER = (10_000, 10, 10)
# A look at all connections every so many ticks of a tenth of a second.
_WATCH_TICKS = 5
# What a client may take to read an answer that is there, beyond the longest deadline.
_READING_SECONDS = 30.0


class DrainingServer(uvicorn.Server):
    """Goes on accepting for a while after SIGTERM; a second signal, or SIGINT, ends that while."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, drain_seconds: float, watch: ConnectionWatch) -> None:
        super().__init__(config)
        self._lifecycle = lifecycle_of(app)
        self._drain_seconds = drain_seconds
        self._watch = watch
        self._drained_at: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First SIGTERM: readiness false at once, the listener stays. Anything else: finish and go."""
        first = self._drained_at is None
        self._lifecycle.drain()
        if sig == signal.SIGTERM and first:
            self._drained_at = time.monotonic() + self._drain_seconds
            return
        self._drained_at = time.monotonic()
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Asked ten times a second whether to end."""
        if self._lifecycle.phase is Phase.FAILED:
            self.should_exit = True
        if counter % _WATCH_TICKS == 0:
            self._watch.look(self.server_state.connections)
        if self._drained_at is not None and time.monotonic() >= self._drained_at:
            self.should_exit = True
        return await super().on_tick(counter)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are handled and not raised again: a drained process has ended well."""
        with super().capture_signals():
            try:
                yield
            finally:
                self._captured_signals.clear()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the listener, let what is under way finish."""
        self._lifecycle.drain()
        await super().shutdown(sockets)


def _freeze() -> None:
    """What the start leaves in memory stays there: full collections, which stop all requests, need not look at it.

    A bundle that is replaced later goes by its reference counts, which freezing does not touch.
    """
    gc.collect()
    gc.freeze()
    # A request leaves hardly a cycle behind, but makes many objects: looking after every 700 of them finds nothing.
    gc.set_threshold(*_COLLECT_AFTER)


def serve(settings: Settings, open_model: OpenModel | None = None) -> int:
    """Serve until a signal; returns the exit code: 0 after a clean end, 1 when the start failed."""
    configure_logging(settings.log_level)
    try:
        tracing = traces_wanted()
        app = create_app(settings, open_model or partial(open_from_disk, device=settings.device), _freeze)
        sockets = [_listen(settings.host, port) for port in (settings.port, settings.admin_port) if port is not None]
    except SettingsError as error:
        return _refuse(str(error))
    except OSError as error:
        return _refuse(f"cannot listen on {settings.host}: {error.strerror}; choose another host, port or admin_port")
    _raise_handle_limit()
    config = uvicorn.Config(
        entrance(app),
        http=StrictHttpProtocol,
        loop="uvloop",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="on",
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=settings.finish_seconds,
    )
    answer_seconds = settings.max_deadline_milliseconds / 1000 + _READING_SECONDS
    watch = ConnectionWatch(settings.head_seconds, answer_seconds)
    server = DrainingServer(config, app, settings.drain_seconds, watch)
    address = sockets[0].getsockname()
    get_logger().info("listening", host=address[0], port=address[1], admin_port=settings.admin_port)
    if tracing:
        start_tracing()
    server.run(sockets=sockets)
    stop_tracing()
    lifecycle = lifecycle_of(app)
    return _refuse(lifecycle.failure) if lifecycle.failure else 0


def _raise_handle_limit() -> None:
    """As many file handles as the system allows: the soft limit is often 1,024, and every connection takes one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        get_logger().warning(
            "handle_limit", remedy="raise the limit of open files (ulimit -n) where the service starts"
        )


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except OSError:
        listener.close()
        raise
    return listener


def _refuse(reason: str) -> int:
    print(f"mufin-serve: {reason}", file=sys.stderr)
    return 1


def main(arguments: Sequence[str] | None = None) -> int:
    """The console script: every setting from the environment or as a flag."""
    try:
        settings = Settings(_cli_parse_args=list(sys.argv[1:] if arguments is None else arguments))
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, fault['loc'])) or 'settings'}: {fault['msg']}" for fault in error.errors())
        return _refuse("; ".join(faults))
    return serve(settings)


if __name__ == "__main__":
    sys.exit(main())
