"""What tests of the service send, wait for and measure. pytest finds it through ``pythonpath`` in pyproject.toml."""

from __future__ import annotations

import io
import socket
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress

import httpx
import numpy as np
from numpy.typing import ArrayLike

from seisbind.model.errors import SeisBindError

PATIENCE_S = 120.0  # far beyond what anything here takes on a busy machine
RAW = {"Content-Type": "application/octet-stream"}


def npy(array: ArrayLike) -> bytes:
    """``array`` as an npy file, written by numpy: the service's own writer is one of the things tested."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def npz(**arrays: ArrayLike) -> bytes:
    """``arrays`` as a compressed npz file, written by numpy."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread or process does.

    Raises:
        TimeoutError: it was not done within `PATIENCE_S`.
    """
    end = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"What the test waits for did not happen within {PATIENCE_S:g} s.")
        time.sleep(0.005)


def peak_bytes(work: Callable[[], object]) -> int:
    """The most memory that ``work`` held at once beyond what was there; a refusal that it raises is swallowed."""
    tracemalloc.start()
    try:
        with suppress(SeisBindError):
            work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def connect(url: str | httpx.URL, *, timeout: float | None = None, receive_bytes: int = 0) -> socket.socket:
    """A connection to a server; with ``receive_bytes``, one that takes little without being read."""
    address, client = httpx.URL(url), socket.socket()
    if receive_bytes:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    client.settimeout(timeout)
    client.connect((address.host, address.port or 80))
    return client


def rest_of(client: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    answer = b""
    while received := client.recv(65_536):
        answer += received
    return answer
