"""The locks of a gallery: one writer at a time, and no opening while the records are being replaced."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from seisbind.model.errors import GalleryLocked, GalleryWriteFailed
from seisbind.model.files import lock

PATIENCE_S = 30.0  # opening and replacing take milliseconds: longer, and a process was stopped in the middle


@contextmanager
def folder_lock(folder: Path, *, exclusive: bool) -> Iterator[None]:
    """A ``flock`` on the folder of a gallery: shared while its records are opened, exclusive while they are replaced.

    It needs no file and no permission to write. Where a file system cannot lock a folder, the block runs without.

    Raises:
        GalleryLocked: another process has held it the other way for `PATIENCE_S`.
    """
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:  # may be entered and not listed
        yield
        return
    try:
        try:
            lock(handle, shared=not exclusive, patience_s=PATIENCE_S)
        except BlockingIOError as error:
            doing = "opening the gallery there" if exclusive else "putting a new gallery there"
            raise GalleryLocked(
                f"{folder}: another process has been {doing} for {PATIENCE_S:g} s. See whether it was stopped, and "
                "try again."
            ) from error
        except OSError:
            pass
        yield
    finally:
        os.close(handle)


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
            lock(self._handle)
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
