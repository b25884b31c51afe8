"""The SQLite file of a gallery: its schema, creating and opening it, and the gallery errors of its failures."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from seisbind.index.storage.lock import folder_lock
from seisbind.model.errors import (
    GalleryDamaged,
    GalleryError,
    GalleryLocked,
    GalleryNotFound,
    GalleryWriteFailed,
)
from seisbind.model.fingerprint import Fingerprint
from seisbind.model.frame import Frame
from seisbind.model.ground.descriptors import NAMES

APPLICATION_ID = 0x53424E44  # "SBND"
FORMAT_VERSION = 2  # of galleries that are made; 1 has maps and embeddings as plain float32, in pages of 8 KiB
READABLE = (1, FORMAT_VERSION)  # opened, searched and written as what they are
PAGE_BYTES = 32_768  # eighteen pairs of coded 256-d embeddings, or ten maps of 3 KB; four times smaller waste a fifth
RECORDS = "records.sqlite"
PRECISION, EXACT = "precision_m_s", "exact"  # a fact of a gallery, and what it says where maps are not rounded
BUSY_TIMEOUT_S = 30.0
OPENINGS = 5  # attempts where another gallery takes the place of the one that is being opened
MAX_VALUE_BYTES = 1 << 29  # of a row: a map of a thousand times as many cells as OpenFWI's is 20 MB
WAL_LIMIT_BYTES = 64 << 20  # what a checkpoint leaves of the write-ahead log

COLUMNS = (
    "row, model_id, family, "
    + ", ".join(NAMES)
    + ", source, added_at, depth, x, velocity_sha256, embeddings_sha256, checksum"
)

# Small columns, blobs and embeddings live apart: listing and filtering never page through maps, and replaying the
# embeddings does not either. AUTOINCREMENT: no row number is used twice, so a row is added and removed, never changed.
SCHEMA = f"""
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE models (
    row INTEGER PRIMARY KEY AUTOINCREMENT,
    model_id TEXT NOT NULL UNIQUE,
    family TEXT,
    {", ".join(f"{name} REAL NOT NULL" for name in NAMES)},
    source TEXT,
    added_at TEXT NOT NULL,
    depth INTEGER NOT NULL,
    x INTEGER NOT NULL,
    velocity_sha256 BLOB NOT NULL,
    embeddings_sha256 BLOB NOT NULL,
    checksum BLOB NOT NULL
) STRICT;
CREATE TABLE tags (
    tag TEXT NOT NULL,
    row INTEGER NOT NULL REFERENCES models(row) ON DELETE CASCADE,
    PRIMARY KEY (tag, row)
) STRICT, WITHOUT ROWID;
CREATE INDEX tags_of_row ON tags(row);
CREATE TABLE velocities (
    row INTEGER PRIMARY KEY REFERENCES models(row) ON DELETE CASCADE,
    velocity BLOB NOT NULL
) STRICT;
CREATE TABLE embeddings (
    row INTEGER PRIMARY KEY REFERENCES models(row) ON DELETE CASCADE,
    velocity BLOB NOT NULL,
    physics BLOB NOT NULL
) STRICT;
"""


def create_database(
    path: Path, *, fingerprint: str, dimension: int, created_at: str, frame: Frame, precision_m_s: float = 0.0
) -> None:
    """Write an empty, complete database at ``path`` (nothing may be there), in write-ahead mode and synced."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("BEGIN")
        for statement in SCHEMA.split(";"):
            connection.execute(statement)
        facts = {
            "fingerprint": str(fingerprint),
            "dimension": str(dimension),
            "created_at": created_at,
            "descriptors": " ".join(NAMES),
            "frame": json.dumps(frame.to_dict()),
            PRECISION: EXACT if precision_m_s == 0 else repr(float(precision_m_s)),
            "generation": "0",
            "count": "0",
            "digest": "0" * 64,
        }
        if isinstance(fingerprint, Fingerprint) and fingerprint.embeddings:
            facts["embeddings"] = fingerprint.embeddings
        facts["check"] = facts_check(facts)
        connection.executemany("INSERT INTO meta VALUES (?, ?)", facts.items())
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode = WAL")


def stored_precision(facts: Mapping[str, str]) -> float:
    """The precision of the maps in m/s out of the ``meta`` table; 0: exact, as those of format 1, which lack it."""
    said = facts.get(PRECISION, EXACT)
    return 0.0 if said == EXACT else float(said)


def format_version(connection: sqlite3.Connection) -> int:
    """Of an open gallery, one of `READABLE`."""
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return version


def checkpoint_wal(path: Path) -> None:
    """Write a database's write-ahead log into its file and sync it, so that the file alone is complete.

    Raises:
        GalleryLocked, GalleryWriteFailed, GalleryDamaged: a reader keeps it open; the disk refused; not a database.
    """
    with (
        translate_errors(path.parent, "settle"),
        closing(
            sqlite3.connect(
                f"{path.resolve().as_uri()}?mode=rw", uri=True, isolation_level=None, timeout=BUSY_TIMEOUT_S
            )
        ) as connection,
    ):
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()  # opens the log, which the next needs
        if connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
            raise GalleryLocked(f"Another program kept {path} locked for {BUSY_TIMEOUT_S:g} s. Nothing was changed.")


def read_facts(connection: sqlite3.Connection, folder: Path) -> dict[str, str]:
    """The ``meta`` table: facts on the whole gallery. Raises GalleryDamaged."""
    facts = dict(connection.execute("SELECT name, value FROM meta").fetchall())
    if facts.get("check") != facts_check(facts):
        raise damaged(folder, "the facts about the whole gallery do not match their checksum")
    return facts


def check_id(folder: Path, found: object, model_id: str) -> None:
    """Raises GalleryDamaged where another model than ``model_id`` was found in its row."""
    if found != model_id:
        raise damaged(folder, f"where {model_id!r} should be there is {found!r:.150}")


def damaged(folder: Path, what: str) -> GalleryDamaged:
    """The error for stored data that contradict their checksums."""
    return GalleryDamaged(
        f"The gallery at {folder} is damaged: {what}. Restore it from a copy, or build it again; "
        "'seisbind gallery verify' lists what is wrong."
    )


def facts_check(facts: Mapping[str, str]) -> str:
    """The checksum of the ``meta`` table without itself."""
    rest = sorted((name, value) for name, value in facts.items() if name != "check")
    return hashlib.sha256(json.dumps(rest).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """The file and folder that a path leads to: a gallery that replaces another has a different one."""

    folder: tuple[int, int]
    file: tuple[int, int]


def identity(path: Path) -> FileIdentity:
    """Raises FileNotFoundError: there is no such file."""
    folder, file = path.parent.stat(), path.stat()
    return FileIdentity((folder.st_dev, folder.st_ino), (file.st_dev, file.st_ino))


class GalleryReplaced(GalleryError):
    """Another gallery has taken the place of the one that was opened. ``code`` is that of GalleryError."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"The gallery at {folder} was replaced by another one; open it again.")


def connect(path: Path, *, writable: bool) -> tuple[sqlite3.Connection, FileIdentity]:
    """A connection to an existing database of this format, and which file that is.

    SQLite opens the log by its name when it first reads, so the file must be the same then as before: `install` waits
    while a gallery is being opened, and a folder that was exchanged meanwhile is opened again. The connection may be
    passed between threads; its owner lets one use it at a time.

    Raises:
        GalleryNotFound, GalleryDamaged, GalleryError: nothing there; not a gallery; a format of another version, or
            another gallery in its place at each of `OPENINGS` attempts.
    """
    for _ in range(OPENINGS):
        try:
            before = identity(path)
            with folder_lock(path.parent, exclusive=False):
                connection = _connect(path, writable=writable)
        except FileNotFoundError as error:
            raise GalleryNotFound(
                f"There is no gallery at {path.parent}. 'seisbind gallery build' makes one."
            ) from error
        except GalleryDamaged:
            if is_still(path, before):
                raise
            continue
        if is_still(path, before):
            return connection, before
        connection.close()
    raise always_replaced(path.parent)


def always_replaced(folder: Path) -> GalleryError:
    """The error for a gallery that was replaced at each of `OPENINGS` attempts."""
    return GalleryError(f"Another gallery took the place of {folder} each time that it was opened. Try again.")


def is_still(path: Path, before: FileIdentity) -> bool:
    """Whether the file and the folder at ``path`` are those that were there before."""
    with suppress(FileNotFoundError):
        return identity(path) == before
    return False


def _connect(path: Path, *, writable: bool) -> sqlite3.Connection:
    mode = "rw" if writable else "ro"
    wal = path.with_name(path.name + "-wal")
    read_only = bool(os.statvfs(path.parent).f_flag & os.ST_RDONLY)
    if not writable and read_only and not (wal.exists() and wal.stat().st_size):
        mode = "ro&immutable=1"  # no process can write, and SQLite cannot make its -shm file; for no other reason
    with translate_errors(path.parent, "open"):
        connection = sqlite3.connect(
            f"{path.resolve().as_uri()}?mode={mode}",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            timeout=BUSY_TIMEOUT_S,
        )
        try:
            _distrust(connection)
            _check_format(connection, path)
            connection.execute("PRAGMA foreign_keys = ON")
            if writable:
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT_BYTES}")
        except BaseException:
            connection.close()
            raise
    return connection


def _distrust(connection: sqlite3.Connection) -> None:
    """Take the file for what anybody may have made: its schema calls nothing that has effects, pages are looked at
    before they are used, and no value is longer than a gallery's can be."""
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE_BYTES)


def _check_format(connection: sqlite3.Connection, path: Path) -> None:
    if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise GalleryDamaged(f"{path} is a SQLite file, but not a SeisBind gallery. Check the path.")
    version = format_version(connection)
    if version not in READABLE:
        raise GalleryError(
            f"{path.parent} has gallery format {version}; this SeisBind reads formats "
            f"{' and '.join(map(str, READABLE))}. "
            "Open it with the version that made it, or build it again."
        )
    more = connection.execute(
        "SELECT type, name FROM sqlite_schema WHERE type NOT IN ('table', 'index') OR sql LIKE 'CREATE VIRTUAL%'"
    ).fetchone()
    if more is not None:
        raise GalleryDamaged(
            f"{path.parent} has a {more[0]} {more[1]!r:.100}, which no gallery has, and which would run as part of "
            "what is asked of it. Do not use it, or restore it from a copy."
        )
    found = connection.execute("SELECT value FROM meta WHERE name = 'descriptors'").fetchone()
    if found is None or str(found[0]).split() != list(NAMES):
        raise GalleryDamaged(
            f"{path.parent} holds the descriptors {found and found[0]!r}; expected {' '.join(NAMES)!r}."
        )


@contextmanager
def translate_errors(folder: Path, doing: str) -> Iterator[None]:
    """Raise the errors of SQLite and the operating system inside as the gallery errors that they mean.

    ``doing`` is the verb of the sentence: "open", "add", "remove", "read", "snapshot", "settle".
    """
    try:
        yield
    except sqlite3.Error as error:
        raise _translated(error, folder, doing) from error
    except UnicodeDecodeError as error:  # a damaged name, on its way into an error of SQLite
        raise GalleryDamaged(
            f"Could not {doing} {folder}: {error}. Restore it from a copy, or build it again."
        ) from error
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        hint = " Free some space." if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else ""
        raise GalleryWriteFailed(f"Could not {doing} in {folder}: {reason}.{hint} Nothing was changed.") from error


def _translated(error: sqlite3.Error, folder: Path, doing: str) -> GalleryError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if isinstance(error, sqlite3.ProgrammingError):
        return GalleryError(f"Could not {doing}: the gallery at {folder} has been closed ({error}).")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return GalleryLocked(f"Could not {doing}: another program kept {folder} locked for {BUSY_TIMEOUT_S:g} s.")
    refused = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)
    if code in refused and doing not in ("open", "read"):
        return GalleryWriteFailed(
            f"Could not {doing} in {folder}: {error}. Free some space or make it writable. Nothing was changed."
        )
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
        return GalleryError(
            f"Could not {doing} {folder}: {error}. Check its owner and permissions: reading too needs to write in the "
            f"folder ({RECORDS}-shm, which tells readers of a writer), unless its file system is read-only and "
            f"{RECORDS}-wal is empty or gone."
        )
    if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL):
        return GalleryError(
            f"Could not {doing} {folder}: {error}. Check the disk. It may be full: reading needs 32 KiB too."
        )
    return GalleryDamaged(f"Could not {doing} {folder}: {error}. Restore it from a copy, or build it again.")
