"""A uvicorn server on a socket that is bound before anything else: a taken port is one sentence, and exit code 1."""

from __future__ import annotations

import errno
import gc
import logging
import os
import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn

from seisbind.model.errors import PortTaken, SeisBindError, ServiceError
from seisbind.service.runtime import logs
from seisbind.service.settings import Settings
from seisbind.service.workers.board import Board
from seisbind.service.workers.supervisor import Started, supervise

BACKLOG = 512  # connections that wait while the loop is busy
MOST_TURNS = 16  # of a worker's event loop before it takes a connection: see `SharedListener`


class SharedListener(socket.socket):
    """The listening socket as one of several workers has it: who has fewer connections takes the next one.

    All their event loops wake for a connection. One with ``n`` open passes over it for ``n`` turns, `MOST_TURNS` at
    most, in which another may take it. It takes one in a turn: asyncio would take as many as the backlog that it asks
    for, and a burst of connections that stay open would be one worker's.

    Attributes:
        open: how many connections are open.
    """

    def __init__(self, fileno: int) -> None:
        super().__init__(fileno=fileno)
        self.open: Callable[[], int] = lambda: 0
        self._passed = 0

    def listen(self, backlog: int = BACKLOG) -> None:
        """Let `BACKLOG` connections wait, whatever the loop asks for: that is how many it would take in a turn."""
        super().listen(BACKLOG)

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection.

        Raises:
            BlockingIOError: there is none, or it is left to another worker for now.
        """
        if self._passed < min(self.open(), MOST_TURNS):
            self._passed += 1
            raise BlockingIOError
        self._passed = 0
        return super().accept()


def listen(host: str, port: int) -> socket.socket:
    """A TCP socket that listens on ``host`` and ``port`` (0: a free one).

    Raises:
        PortTaken: another program listens there.
        ServiceError: an address that this machine does not have, or a port that needs other rights.
    """
    try:
        found = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE
        )
        family, kind, protocol, _, address = found[0]
        # asyncio sets TCP_NODELAY only where the protocol is named; else a body waits 40 ms for the receipt of its head
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ServiceError(f"Cannot listen on {host!r}: {error.strerror or error}. Check --host.") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise PortTaken(
                f"Port {port} on {host} is taken by another program. Choose one with --port; 0 takes a free one."
            ) from error
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise ServiceError(f"Cannot listen on {host} port {port}: {reason}. Check --host and --port.") from error
    return listener


def url_of(listener: socket.socket) -> str:
    """The address that a browser on this machine can open."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """Says that it is shutting down when it begins to; ASGI's own event comes after the last request has ended."""

    def __init__(self, config: uvicorn.Config, *, stopping: Callable[[], None]) -> None:
        super().__init__(config)
        self._stopping = stopping

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End running streams where they are, finish everything else that was admitted."""
        self._stopping()
        await super().shutdown(sockets)


def serve(settings: Settings, *, announce: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish what was admitted and return (or exit with code 0).

    Args:
        announce: called with the address once weights and gallery are open, by all workers.

    Raises:
        SeisBindError: the port is taken, or weights or gallery cannot be opened.
    """
    logs.configure(settings.log_format)
    with listen(settings.host, settings.port) as listener:
        if settings.workers == 1:
            _run(settings, None, listener, lambda server: announce(url_of(listener)))
            return
        supervise(run_worker, settings, listener, announce=lambda: announce(url_of(listener)))


def run_worker(settings: Settings, board: Board, listener: socket.socket, started: Started) -> None:
    """Serve as one of several processes (`supervisor.Run`); an error is said as the command says it."""
    logs.configure(settings.log_format)
    try:
        with SharedListener(fileno=listener.detach()) as shared:
            _run(settings, board, shared, started)
    except SeisBindError as error:
        logging.getLogger(__name__).error("Worker %d cannot serve: %s [%s]", board.index, error, error.code)
        raise SystemExit(1) from error


def _run(settings: Settings, board: Board | None, listener: socket.socket, started: Started) -> None:
    from seisbind.service.http.app import create_app  # torch takes seconds; a taken port is said at once
    from seisbind.service.transport.protocol import Protocol

    for ending in (signal.SIGTERM, signal.SIGINT):  # while opening; uvicorn raises them again when it has finished
        signal.signal(ending, _end)
    app = create_app(settings, board=board)
    config = uvicorn.Config(
        app,
        http=Protocol.of(settings),
        access_log=False,  # `RequestLog` writes its own lines
        log_config=None,  # nor handlers of its own
        log_level="warning",
        server_header=False,
        backlog=BACKLOG if board is None else 1,
        timeout_graceful_shutdown=round(settings.shutdown_s),
    )
    gc.collect()
    gc.freeze()  # a million objects that live as long as the server are not looked through again while it answers
    server = Server(config, stopping=app.state.serving.stopping.set)
    if isinstance(listener, SharedListener):
        listener.open = lambda: len(server.server_state.connections)
    started(server)
    server.run(sockets=[listener])


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)
