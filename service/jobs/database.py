"""The SQLite file of the jobs in a folder: its tables, its transactions, and the errors of its failures."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from seisbind.model.errors import JobError, JobsWriteFailed
from seisbind.model.files import lock, sync

AtStep = Callable[[str], None]

JOBS = "jobs.sqlite"
APPLICATION_ID = 0x53424A42  # "SBJB"
FORMAT_VERSION = 1
BUSY_TIMEOUT_S = 30.0
WAL_LIMIT_BYTES = 64 << 20  # what a checkpoint leaves of the write-ahead log

SCHEMA = """
CREATE TABLE jobs (
    row INTEGER PRIMARY KEY AUTOINCREMENT,
    job_id TEXT NOT NULL UNIQUE,
    request TEXT NOT NULL,
    state TEXT NOT NULL,
    created_at REAL NOT NULL,
    started_at REAL,
    ended_at REAL,
    deaths INTEGER NOT NULL DEFAULT 0,
    worked_s REAL NOT NULL DEFAULT 0,
    code TEXT,
    sentence TEXT,
    room INTEGER NOT NULL,
    repeat_key TEXT UNIQUE,
    repeat_sha256 BLOB
) STRICT;
CREATE INDEX jobs_of_state ON jobs(state, row);
CREATE TABLE events (
    row INTEGER NOT NULL REFERENCES jobs(row) ON DELETE CASCADE,
    line INTEGER NOT NULL,
    iteration INTEGER,
    event TEXT NOT NULL,
    PRIMARY KEY (row, line)
) STRICT, WITHOUT ROWID;
CREATE TABLE arrays (
    row INTEGER NOT NULL REFERENCES jobs(row) ON DELETE CASCADE,
    name TEXT NOT NULL,
    iteration INTEGER NOT NULL,
    sha256 BLOB NOT NULL,
    content BLOB NOT NULL,
    PRIMARY KEY (row, name, iteration)
) STRICT;
"""


class JobDatabase:
    """A connection, of which one thread at a time has a transaction.

    Args:
        folder: made where it is not there.
        at_step: called with the name of each step; tests die there.

    Raises:
        JobError: what is there are no jobs of this format.
        JobsWriteFailed: the folder or its file cannot be made.
    """

    def __init__(self, folder: Path, *, at_step: AtStep = lambda name: None) -> None:
        self._path, self._at_step = folder / JOBS, at_step
        self._lock = threading.Lock()
        with self._translated():
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                lock(handle, patience_s=BUSY_TIMEOUT_S)  # of several that open a new file, one makes its tables
                self._connection = sqlite3.connect(
                    self._path, isolation_level=None, check_same_thread=False, timeout=BUSY_TIMEOUT_S
                )
                try:
                    self._prepare(self._connection)
                except BaseException:
                    self._connection.close()
                    raise
                sync(folder)
            finally:
                os.close(handle)

    def _prepare(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # of a new file
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT_BYTES}")
        connection.execute("BEGIN IMMEDIATE")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if not version and not connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
            for statement in SCHEMA.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
        elif connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID or version != FORMAT_VERSION:
            raise JobError(
                f"{self._path} has no jobs of format {FORMAT_VERSION}, which this SeisBind reads. Set "
                "SEISBIND_JOBS to another folder, or use the version that made this one."
            )
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode = WAL")

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """The errors of SQLite and the operating system as those of jobs."""
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN):
                raise JobsWriteFailed(
                    f"{self._path} cannot be written: {error}. Free some space or make it writable; nothing "
                    "was changed."
                ) from error
            raise JobError(f"{self._path} cannot be used: {error}. Set SEISBIND_JOBS to another folder.") from error
        except OSError as error:
            raise JobsWriteFailed(f"{error.filename or self._path} cannot be made: {error.strerror}.") from error

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """All reads within see the same moment."""
        with self._lock, self._translated():
            self._connection.execute("BEGIN")
            try:
                yield self._connection
            finally:
                self._connection.execute("COMMIT")

    @contextmanager
    def writing(self, name: str) -> Iterator[sqlite3.Connection]:
        """A transaction that is on the disk when the block has ended, and never was if it raises."""
        with self._lock, self._translated():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._at_step(f"{name}:before-commit")
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
        self._at_step(f"{name}:committed")
