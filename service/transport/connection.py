"""A client's connection: answers arrive before it is closed, and a client that takes none of them is disconnected."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)

LINGER_S = 2.0  # long enough for a client to read why it was refused, short enough to be of no use to it
PROGRESS_BYTES = 32_768  # of what waits to be sent, each deadline: a client that takes less holds a place for nothing
SHUTDOWN_DEADLINE_S = 2.0  # without a byte taken, once the server is shutting down
CHECKS = 10  # for progress, each deadline
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: what the kernel has not sent is thrown away


class Connection(asyncio.Transport):
    """The transport that uvicorn is given. On the event loop.

    Closing lingers where the client is still sending: a socket that is closed on bytes that nobody read resets the
    connection, and takes back the answer. So the sending side is closed after the answer, and what still comes is
    thrown away, for `LINGER_S` or ``max_unread_bytes``.

    A client that does not take what waits for it within ``deadline_s`` (`PROGRESS_BYTES` of it, or all) is
    disconnected, whether an answer is under way or the connection is being closed.

    Args:
        receiving: whether the client has more to send, or sent more than was read.
    """

    def __init__(
        self, transport: asyncio.Transport, *, deadline_s: float, max_unread_bytes: int, receiving: Callable[[], bool]
    ) -> None:
        super().__init__()
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._receiving = receiving
        self._closing = False
        self._body_full = False
        self._holding = False
        self._ended = False
        self._unread_bytes_left = max_unread_bytes
        self._deadline_s = deadline_s
        self._progress_bytes = PROGRESS_BYTES
        self._written_bytes = 0
        self._mark = 0.0, 0  # when enough was last taken, and how many bytes had been by then
        self._progress_check: asyncio.TimerHandle | None = None
        self._linger: asyncio.TimerHandle | None = None

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    # Reading

    def pause_reading(self) -> None:
        """Until `resume_reading`: the application does not take the body as fast as it comes."""
        self._body_full = True
        self._read_or_pause()

    def resume_reading(self) -> None:
        self._body_full = False
        self._read_or_pause()

    def hold(self, holding: bool) -> None:
        """Whether enough waits for its turn: nothing more is read meanwhile, whatever the application asks for."""
        self._holding = holding
        self._read_or_pause()

    def end_reading(self) -> None:
        """The client has closed its sending side."""
        self._ended = True

    def throw_away(self, count: int) -> None:
        """``count`` bytes came while closing."""
        self._unread_bytes_left -= count
        if self._unread_bytes_left < 0:
            self._transport.close()

    def _read_or_pause(self) -> None:
        if self._ended or self._transport.is_closing():
            return
        if self._closing or not (self._body_full or self._holding):
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    # Writing

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send ``data``; nothing once it is closing."""
        if self._closing:
            return
        self._transport.write(data)
        self._written_bytes += len(data)
        if self._progress_check is None and self._transport.get_write_buffer_size():
            self._expect_progress()

    def hurry(self) -> None:
        """The server is shutting down: what is taken is still sent, a client that takes nothing is not waited for."""
        if self._deadline_s > SHUTDOWN_DEADLINE_S:
            self._deadline_s = SHUTDOWN_DEADLINE_S
        self._progress_bytes = 1
        if self._progress_check is not None:
            self._progress_check.cancel()
            self._expect_progress()

    def _expect_progress(self) -> None:
        self._mark = self._loop.time(), self._taken_bytes()
        self._progress_check = self._loop.call_later(self._deadline_s / CHECKS, self._check_progress)

    def _taken_bytes(self) -> int:
        return self._written_bytes - self._transport.get_write_buffer_size()

    def _check_progress(self) -> None:
        self._progress_check = None
        if not self._transport.get_write_buffer_size():
            return
        since, taken_bytes = self._mark
        if self._taken_bytes() >= taken_bytes + self._progress_bytes:
            self._expect_progress()
        elif self._loop.time() < since + self._deadline_s:
            self._progress_check = self._loop.call_later(self._deadline_s / CHECKS, self._check_progress)
        else:
            log.warning("A client took nothing of its answer for %g s and was disconnected.", self._deadline_s)
            self.abort()

    # Ending

    def is_closing(self) -> bool:
        return self._closing or self._transport.is_closing()

    def close(self) -> None:
        """Close once everything is sent and, within limits, once the client has stopped sending."""
        if self.is_closing():
            return
        self._closing = True
        if self._ended or not self._receiving():
            self._transport.close()
            return
        self._linger = self._loop.call_later(LINGER_S, self._transport.close)
        self._read_or_pause()
        try:
            if self._transport.can_write_eof():
                self._transport.write_eof()
        except OSError:  # the client closed before, and answered what was sent last with a reset
            self._transport.close()

    def abort(self) -> None:
        """Close now; what is not sent is lost, here and in the kernel."""
        self._closing = True
        self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self._transport.abort()

    def has_failed(self) -> bool:
        """Whether the client's side answered what was sent last with a reset."""
        return bool(self._transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

    def lost(self) -> None:
        """It is closed: nothing is waited for any more."""
        self._closing = True
        for timer in (self._progress_check, self._linger):
            if timer is not None:
                timer.cancel()
