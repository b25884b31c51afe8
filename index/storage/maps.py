"""Which models of a gallery have the same velocity map: 16 bytes a model in the memory of a writer."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seisbind.index.storage.database import connect, damaged

READ_AT_ONCE = 10_000  # rows
JOINED = 65_536  # recent additions, before they are sorted in among the others
PREFIX_BYTES = 8  # of a SHA-256: two maps of a billion share them once in forty galleries, and the rest decides


class MapsAhead:
    """The `MapLookup` of a large gallery, read by a thread of its own from when the gallery is opened for writing.

    Nobody else changes the gallery, and the writer waits for it before it adds the first model. What is removed
    meanwhile is a row that is gone, which `MapLookup` allows.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stopping = threading.Event()
        self._found: MapLookup | None = None
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._read, name="maps", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            with closing(connect(self._path, writable=False)[0]) as connection:
                self._found = MapLookup(connection, self._path.parent, self._stopping)
        except Exception as error:  # raised where the table is asked for
            self._error = error

    def lookup(self) -> MapLookup | None:
        """The table once it is read; None where it could not be, for whatever reason the writer will meet itself."""
        self._thread.join()
        return self._found if self._error is None else None

    def close(self) -> None:
        """Stop reading."""
        self._stopping.set()
        self._thread.join()


class MapLookup:
    """Rows by the first bytes of ``velocity_sha256``, sorted; it may name rows that are gone, or of another map.

    A column of SQLite could be indexed instead, but its keys are random: each model added would rewrite a page.
    """

    def __init__(self, connection: sqlite3.Connection, folder: Path, stopping: threading.Event | None = None) -> None:
        found = connection.execute("SELECT row, velocity_sha256 FROM models")
        rows: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
        keys: list[NDArray[np.uint64]] = [np.empty(0, np.uint64)]
        try:
            while (some := found.fetchmany(READ_AT_ONCE)) and not (stopping and stopping.is_set()):
                rows.append(np.fromiter((row for row, _ in some), np.int64, len(some)))
                keys.append(np.frombuffer(b"".join(sha256[:PREFIX_BYTES] for _, sha256 in some), np.uint64))
        except (TypeError, ValueError) as error:
            raise damaged(folder, f"a checksum of a velocity map is none ({error})") from error
        self._rows, self._keys = np.concatenate(rows), np.concatenate(keys)
        if len(self._rows) != len(self._keys):
            raise damaged(folder, "a checksum of a velocity map is too short")
        self._recent: dict[int, list[int]] = {}
        self._sort()

    @property
    def nbytes(self) -> int:
        """Of memory, recent additions apart."""
        return self._rows.nbytes + self._keys.nbytes

    def rows(self, sha256: Sequence[bytes]) -> list[list[int]]:
        """Rows that may have each of the maps, the one added first first."""
        keys = np.frombuffer(b"".join(each[:PREFIX_BYTES] for each in sha256), np.uint64)
        first, last = (np.searchsorted(self._keys, keys, side).tolist() for side in ("left", "right"))
        return [
            [*(sorted(self._rows[i:j].tolist()) if i < j else ()), *self._recent.get(key, ())]
            for key, i, j in zip(keys.tolist(), first, last, strict=True)
        ]

    def add(self, sha256: bytes, row: int) -> None:
        self._recent.setdefault(_key(sha256), []).append(row)
        if len(self._recent) >= JOINED:
            keys = [key for key, rows in self._recent.items() for _ in rows]
            rows = [row for rows in self._recent.values() for row in rows]
            self._keys = np.concatenate([self._keys, np.array(keys, np.uint64)])
            self._rows = np.concatenate([self._rows, np.array(rows, np.int64)])
            self._recent = {}
            self._sort()

    def _sort(self) -> None:
        order = np.argsort(self._keys, kind="stable")
        self._rows, self._keys = self._rows[order], self._keys[order]


def _key(sha256: bytes) -> int:
    return int(np.frombuffer(sha256[:PREFIX_BYTES], np.uint64)[0])
