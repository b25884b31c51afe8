"""Files that appear whole or not at all, and locks that end with their process."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

POLL_S = 0.01  # between attempts at a lock


@contextmanager
def replacing(path: Path, *, temporary: Path | None = None) -> Iterator[Path]:
    """A temporary file beside ``path`` to write, which replaces ``path`` when the block ends.

    The content is on the disk before it takes its name, and the name is when this returns. If the block raises,
    ``path`` is what it was.

    Args:
        temporary: its path; by default one that no other process uses. A fixed one is overwritten by the next attempt
            after a kill, where only one process writes at a time.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}") if temporary is None else temporary
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Make the content of a file, or the names in a folder, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def lock(handle: int, *, shared: bool = False, patience_s: float = 0.0) -> None:
    """Take a ``flock`` on an open file or folder; the kernel drops it when the handle is closed or the process ends.

    Raises:
        BlockingIOError: another handle has held it for ``patience_s``.
        OSError: the file system has no locks.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(POLL_S)
