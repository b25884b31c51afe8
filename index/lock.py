"""The one-writer rule of a gallery, kept by the operating system."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

from seisbind.model.errors import GalleryLocked, GalleryWriteFailed


class WriterLock:
    """An exclusive ``flock`` on a file that names its holder.

    The kernel drops the lock with its process, however that ends, so a dead holder never has to be cleaned up after.
    The file stays: unlinking it would let two writers lock two different files of the same name.

    Raises:
        GalleryLocked: another gallery object, here or in another process, holds it. The sentence names the holder.
        GalleryWriteFailed: the file cannot be made, or its file system cannot lock it.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise GalleryWriteFailed(f"The lock {path} cannot be opened for writing: {error.strerror}.") from error
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(self._handle, 500, 0).decode(errors="replace").strip() or "another process"
            os.close(self._handle)
            raise GalleryLocked(
                f"{path.parent} is being written by {holder}. Wait for it, or open the gallery for reading."
            ) from error
        except OSError as error:
            os.close(self._handle)
            raise GalleryWriteFailed(
                f"The lock {path} cannot be taken: {error.strerror}. Put the gallery on a file system with locks."
            ) from error
        try:
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        except OSError:
            pass  # a full disk: the lock holds all the same, it only cannot say who has it

    def release(self) -> None:
        """Let the next writer in. May be called twice."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
