"""The HTTP door as a part of the serving process: a thread with an event loop and a listening socket of its own."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import threading
from collections.abc import Sequence

from plaudit.addresses import address, bare_host
from plaudit.errors import Misconfigured
from plaudit.telemetry import get_logger

_START_SECONDS = 30.0

log = get_logger("plaudit.http")


class _Lines(logging.Handler):
    """The HTTP library's own warnings and errors as lines of the service's log, of exceptions the type alone."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            error = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else ""
            log.warning("http library", what=record.getMessage().strip(), error=error)


class Door:
    """Takes HTTP on `host`:`port` and passes it on to the gRPC service at `target`."""

    def __init__(
        self,
        host: str,
        port: int,
        target: str,
        domains: Sequence[str],
        *,
        max_bytes: int,
        deadline_seconds: float,
        encryption: ssl.SSLContext | None = None,
    ) -> None:
        try:
            import uvicorn

            from plaudit.serving.http.app import Routes
        except ModuleNotFoundError as error:
            raise Misconfigured(
                f"the HTTP door needs {error.name}: pip install 'plaudit[service]', or set serve.http_port = -1",
                setting="serve.http_port",
            ) from error
        self._routes = Routes(target, domains, max_bytes=max_bytes, deadline_seconds=deadline_seconds)
        self._socket = _listening(host, port)
        self.port: int = self._socket.getsockname()[1]
        # The service has its own logs, and an access log would hold what callers put into paths.
        config = uvicorn.Config(
            self._routes.app(),
            log_config=None,
            access_log=False,
            lifespan="off",
            ssl_context_factory=None if encryption is None else lambda *_: encryption,
        )
        logger = logging.getLogger("uvicorn.error")
        logger.handlers, logger.propagate = [_Lines()], False
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name="plaudit-http", daemon=True)

    def start(self) -> None:
        """Begins to take requests."""
        self._thread.start()

    def stop(self, grace: float) -> None:
        """Takes no new request; those under way have `grace` seconds."""
        self._server.config.timeout_graceful_shutdown = max(1, round(grace))
        self._server.should_exit = True
        if self._thread.ident is not None:
            self._thread.join(grace + _START_SECONDS)
        self._socket.close()

    def _run(self) -> None:
        async def serve() -> None:
            try:
                await self._server.serve(sockets=[self._socket])
            finally:
                await self._routes.close()

        asyncio.run(serve())


def _listening(host: str, port: int) -> socket.socket:
    bare = bare_host(host)
    family = socket.AF_INET6 if ":" in bare else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((bare, port))
        listening.listen(1024)
    except OSError as error:
        listening.close()
        raise Misconfigured(
            f"cannot listen on {address(host, port)} for HTTP: {error.strerror}; end the program that has the port, or "
            "choose another serve.http_port or serve.host",
            setting="serve.http_port",
        ) from error
    return listening
