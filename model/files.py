"""Files that appear whole or not at all or line by line, and locks that end with their process."""

from __future__ import annotations

import fcntl
import os
import re
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


class AppendedLines:
    """A file of lines that one process at a time appends to; a line that a kill cut off is dropped. Close it.

    Raises:
        BlockingIOError: another process appends to it.
        OSError: it cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("a+b")
        self._whole = 0
        try:
            lock(self._file.fileno())
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """What was appended is on the disk when this returns."""
        with self._file:
            self._file.flush()
            os.fsync(self._file.fileno())

    def whole(self) -> Iterator[bytes]:
        """The lines that are there, with their ends. Nothing is changed."""
        self._file.seek(0)
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            self._whole += len(line)
            yield line

    def begin(self) -> bool:
        """Drop what follows the lines that were read, and go on from there. Whether there were any."""
        self._file.truncate(self._whole)
        self._file.seek(0, os.SEEK_END)
        return self._whole > 0

    def append(self, line: bytes) -> None:
        """Add a line, which has its end; it is in the hands of the operating system on return."""
        self._file.write(line)
        self._file.flush()


def is_milvus(location: object) -> bool:
    """Whether ``location`` is that of a gallery in Milvus, and not a folder."""
    return isinstance(location, str) and re.match(r"milvus[a-z+]*://", location) is not None


def place_of(location: str | Path) -> str | Path:
    """``location`` as it is where it is a URL, and else as a path."""
    return location if is_milvus(location) else Path(location)
