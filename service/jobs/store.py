"""Jobs on the disk: one SQLite file is the truth, arrays included.

What is acknowledged is in a transaction that was synced. An iteration's checkpoint, its model and its line of progress
are one transaction, so that a process which ends between any two instructions leaves all of them or none. Arrays carry
a checksum of their own: a damaged one is refused, and costs an iteration or a job, not the others.

Libraries for queues on SQLite were looked at and not taken: huey takes a task out of the queue before it runs, so that
a worker's death loses it, and persist-queue knows no progress, checkpoints, cancelling or limits; both pickle. Those
that do more (rq, dramatiq, procrastinate) need a broker or a database server.
"""

from __future__ import annotations

import secrets
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from seisbind.model.errors import InvalidQuery, JobError, JobsFull
from seisbind.service.formats.npy import npz
from seisbind.service.jobs import records
from seisbind.service.jobs.database import AtStep, JobDatabase
from seisbind.service.jobs.job import Event, Job, JobState, RefineInput, RefineRequest

INPUT, VELOCITY, RESULT = records.INPUT, records.VELOCITY, records.RESULT
# models per start that a job's checkpoints and result may have the size of; a checkpoint has some 5
MODELS_OF_ROOM = 100
SMALLEST_ROOM = 1 << 20
UNFINISHED = "SELECT row FROM jobs WHERE state IN ('running', 'queued') ORDER BY state = 'running' DESC, row LIMIT 1"


@dataclass(frozen=True, slots=True)
class JobLimits:
    """``queued``: jobs that wait; ``bytes``: of all arrays together; ``keep_s``: seconds that an ended job stays."""

    queued: int = 16
    bytes: int = 1 << 30
    keep_s: float = 7 * 86400.0


@dataclass(frozen=True, slots=True)
class Repeat:
    """What makes a request that is sent again the same one: a key of its client's, and the hash of its content."""

    key: str
    sha256: bytes


class JobStore:
    """The jobs in a folder. Any number of processes may have one open; its methods may be called from any thread.

    Args:
        at_step: called with the name of each step; tests die there.

    Raises:
        JobError, JobsWriteFailed: see `JobDatabase`.
    """

    def __init__(self, folder: Path, *, limits: JobLimits | None = None, at_step: AtStep = lambda name: None) -> None:
        self._limits, self._at_step = limits or JobLimits(), at_step
        self._database = JobDatabase(folder, at_step=at_step)
        self._reading, self._writing = self._database.reading, self._database.writing

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()

    # what clients ask

    def check_room(self) -> None:
        """Raises JobsFull: one more job would not be taken now."""
        with self._reading() as connection:
            self._check_room(connection, 0)

    def _check_room(self, connection: sqlite3.Connection, size: int) -> None:
        (queued,) = connection.execute("SELECT count(*) FROM jobs WHERE state = 'queued'").fetchone()
        if queued >= self._limits.queued:
            raise JobsFull(
                f"{queued} jobs wait already, as many as may (SEISBIND_MAX_JOBS). Try again when some of them are done."
            )
        (kept,) = connection.execute("SELECT coalesce(sum(room), 0) FROM jobs").fetchone()
        if kept + size > self._limits.bytes:
            raise JobsFull(
                f"The jobs that are kept take {kept} bytes, and this one {size}; the limit is {self._limits.bytes} "
                "(SEISBIND_JOBS_BYTES). Remove some that have ended: DELETE /v1/jobs/{job_id}."
            )

    def find_repeat(self, repeat: Repeat | None) -> Job | None:
        """The job that the same request made before.

        Raises:
            InvalidQuery: another request had the same key.
        """
        if repeat is None:
            return None
        with self._reading() as connection:
            return self._find_repeat(connection, repeat)

    def _find_repeat(self, connection: sqlite3.Connection, repeat: Repeat) -> Job | None:
        query = "SELECT row, repeat_sha256 FROM jobs WHERE repeat_key = ?"
        found = connection.execute(query, (repeat.key,)).fetchone()
        if found is None:
            return None
        if found[1] != repeat.sha256:
            raise InvalidQuery(
                "Another request had this Idempotency-Key, with another file or other fields. Take a new key for each "
                "request, and the same again only to repeat it."
            )
        return records.read_job(connection, "row = ?", found[0])

    def submit(self, request: RefineRequest, arrays: RefineInput, *, repeat: Repeat | None = None) -> Job:
        """A new job, or the one that the same request made before.

        Raises:
            JobsFull, JobsWriteFailed: there is no room for it; it was not taken.
            InvalidQuery: another request had the same key; or there would be no room if it were the only one.
        """
        held = {name: getattr(arrays, name) for name in RefineInput.__slots__}
        content = npz({name: array for name, array in held.items() if array is not None})
        room = len(content) + room_of(request)
        if room > self._limits.bytes:
            raise InvalidQuery(
                f"This job alone may take {room} bytes on the disk; all jobs together may take {self._limits.bytes} "
                "(SEISBIND_JOBS_BYTES). Start it from fewer models, or let the server have more."
            )
        self._at_step("submit:begun")
        with self._writing("submit") as connection:
            if repeat is not None and (before := self._find_repeat(connection, repeat)) is not None:
                return before
            self._check_room(connection, room)
            columns = "job_id, request, state, created_at, room, repeat_key, repeat_sha256"
            values = (secrets.token_hex(16), request.to_json(), JobState.QUEUED, time.time(), room)
            key = (None, None) if repeat is None else (repeat.key, repeat.sha256)
            inserted = connection.execute(f"INSERT INTO jobs ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)", values + key)
            row = int(inserted.lastrowid or 0)
            records.put(connection, row, records.INPUT, 0, content)
            records.say(connection, row, JobState.QUEUED)
            return records.read_job(connection, "row = ?", row)

    def job(self, job_id: str) -> Job:
        """Raises UnknownJob."""
        with self._reading() as connection:
            return records.read_job(connection, "job_id = ?", job_id)

    def jobs(self, *, limit: int) -> list[Job]:
        """The newest jobs, newest first."""
        with self._reading() as connection:
            rows = connection.execute("SELECT row FROM jobs ORDER BY row DESC LIMIT ?", (limit,)).fetchall()
            return [records.read_job(connection, "row = ?", row) for (row,) in rows]

    def counts(self) -> dict[JobState, int]:
        """How many jobs there are of each state."""
        with self._reading() as connection:
            found = dict(connection.execute("SELECT state, count(*) FROM jobs GROUP BY state").fetchall())
        return {state: found.get(state, 0) for state in JobState}

    def events(self, job_id: str, *, after: int = -1) -> tuple[list[Event], JobState]:
        """The lines after ``after``, of a job that has ended its last at least; and its state. Raises UnknownJob."""
        query = "SELECT event FROM events WHERE row = ? AND line > ? ORDER BY line"
        with self._reading() as connection:
            job = records.read_job(connection, "job_id = ?", job_id)
            found = connection.execute(query, (job.row, after)).fetchall()
            if not found and job.state.ended:
                last = "SELECT event FROM events WHERE row = ? ORDER BY line DESC LIMIT 1"
                found = connection.execute(last, (job.row,)).fetchall()
            return [records.read_event(text) for (text,) in found], job.state

    def arrays(self, job: Job, name: str) -> dict[str, NDArray[Any]] | None:
        """The `INPUT`, the last `VELOCITY` or the `RESULT` of a job; None where there is none yet, or none any more.

        Raises:
            JobError: what is stored contradicts its checksum.
        """
        query = "SELECT sha256, content FROM arrays WHERE row = ? AND name = ? ORDER BY iteration DESC LIMIT 1"
        with self._reading() as connection:
            found = connection.execute(query, (job.row, name)).fetchone()
        if found is None:
            return None
        unpacked = records.unpack(*found)
        if unpacked is None:
            raise JobError(f"The {name} of the job {job.job_id} was damaged on the disk. Submit it again.")
        return unpacked

    def cancel(self, job_id: str) -> Job | None:
        """End a job where it is, or remove one that has ended (None). Raises UnknownJob."""
        with self._writing("cancel") as connection:
            job = records.read_job(connection, "job_id = ?", job_id)
            if job.state.ended:
                connection.execute("DELETE FROM jobs WHERE row = ?", (job.row,))
                connection.execute("PRAGMA incremental_vacuum").fetchall()
                return None
            records.end(connection, job.row, JobState.CANCELLED, sentence="It was cancelled.")
            return records.read_job(connection, "row = ?", job.row)

    def remove_old(self) -> int:
        """Remove jobs that ended too long ago; how many."""
        with self._writing("remove") as connection:
            gone = connection.execute("DELETE FROM jobs WHERE ended_at < ?", (time.time() - self._limits.keep_s,))
            connection.execute("PRAGMA incremental_vacuum").fetchall()
            return gone.rowcount

    def forgive(self) -> None:
        """Do not hold against a job that its worker was killed because its server ended."""
        with self._writing("forgive") as connection:
            connection.execute("UPDATE jobs SET deaths = max(0, deaths - 1) WHERE state = 'running'")

    def unfinished(self) -> bool:
        """Whether there is something to work on."""
        with self._reading() as connection:
            return connection.execute(UNFINISHED).fetchone() is not None


def room_of(request: RefineRequest) -> int:
    """Bytes of a job beside its record."""
    return max(SMALLEST_ROOM, MODELS_OF_ROOM * request.starts * 4 * request.frame.depth_cells * request.frame.x_cells)
