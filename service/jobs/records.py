"""The rows of jobs, their lines of progress and their arrays, within a transaction of `database.JobDatabase`."""

from __future__ import annotations

import hashlib
import io
import json
import sqlite3
import time
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seisbind.model.errors import UnknownJob
from seisbind.service.jobs.job import Event, Job, JobState, RefineRequest

INPUT, STATE, VELOCITY, RESULT = "input", "state", "velocity", "result"  # names of arrays
COLUMNS = "row, job_id, request, state, created_at, started_at, ended_at, deaths, worked_s, code, sentence"


def read_job(connection: sqlite3.Connection, where: str, value: object) -> Job:
    """The job of a condition on its row. Raises UnknownJob."""
    found = connection.execute(f"SELECT {COLUMNS} FROM jobs WHERE {where}", (value,)).fetchone()
    if found is None:
        raise UnknownJob(f"There is no job {str(value)[:60]!r}; it may have been removed. GET /v1/jobs lists them.")
    row, state = found[0], JobState(found[3])
    last = connection.execute(
        "SELECT event FROM events WHERE row = ? AND iteration IS NOT NULL ORDER BY line DESC LIMIT 1", (row,)
    ).fetchone()
    ahead = 0
    if state is JobState.QUEUED:
        query = "SELECT count(*) FROM jobs WHERE state = 'running' OR (state = 'queued' AND row < ?)"
        (ahead,) = connection.execute(query, (row,)).fetchone()
    event = None if last is None else read_event(last[0])
    created_at, started_at, ended_at, deaths, worked_s, code, sentence = found[4:]
    return Job(
        row=row, job_id=found[1], request=RefineRequest.from_json(found[2]), state=state, created_at=created_at,
        started_at=started_at, ended_at=ended_at, deaths=deaths, worked_s=worked_s, code=code, sentence=sentence,
        ahead=ahead, last=event,
    )  # fmt: skip


def is_running(connection: sqlite3.Connection, row: int) -> bool:
    """Whether a worker may still change it: it was not cancelled."""
    query = "SELECT 1 FROM jobs WHERE row = ? AND state = 'running'"
    return connection.execute(query, (row,)).fetchone() is not None


def say(
    connection: sqlite3.Connection, row: int, state: JobState, event: Event | None = None, *, detail: str | None = None
) -> None:
    """Add a line of progress, numbered and timed here."""
    (line,) = connection.execute("SELECT coalesce(max(line), -1) + 1 FROM events WHERE row = ?", (row,)).fetchone()
    now = time.time()
    said = Event(line, now, state, detail=detail) if event is None else replace(event, line=line, at=now, state=state)
    connection.execute("INSERT INTO events VALUES (?, ?, ?, ?)", (row, line, said.iteration, json.dumps(asdict(said))))


def end(
    connection: sqlite3.Connection,
    row: int,
    state: JobState,
    *,
    code: str | None = None,
    sentence: str | None = None,
) -> None:
    """Bring a job to an end: its model stays, and of one that is done its result and the record to check it with."""
    unneeded = (STATE, STATE if state is JobState.DONE else INPUT)
    connection.execute("DELETE FROM arrays WHERE row = ? AND name IN (?, ?)", (row, *unneeded))
    kept = "SELECT coalesce(sum(length(content)), 0) FROM arrays WHERE row = ?"
    connection.execute(
        f"UPDATE jobs SET state = ?, ended_at = ?, code = ?, sentence = ?, room = ({kept}) WHERE row = ?",
        (state, time.time(), code, sentence, row, row),
    )
    say(connection, row, state, detail=sentence)
    connection.execute("PRAGMA incremental_vacuum").fetchall()


def put(connection: sqlite3.Connection, row: int, name: str, iteration: int, content: bytes) -> None:
    """Store arrays with their checksum."""
    values = (row, name, iteration, hashlib.sha256(content).digest(), content)
    connection.execute("INSERT OR REPLACE INTO arrays VALUES (?, ?, ?, ?, ?)", values)


def read_event(text: str) -> Event:
    """A line of progress as `say` stored it."""
    stored: dict[str, Any] = json.loads(text)
    return Event(**stored | {"state": JobState(stored["state"])})


def unpack(sha256: bytes, content: bytes) -> dict[str, NDArray[Any]] | None:
    """The arrays of an npz; None if it is not what was written."""
    if hashlib.sha256(content).digest() != sha256:
        return None
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}
