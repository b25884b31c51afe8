"""What a worker does with the jobs: it takes one, keeps its iterations, and ends it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from seisbind.model.errors import JobError
from seisbind.service.formats.npy import npz
from seisbind.service.jobs import records
from seisbind.service.jobs.job import Event, Job, JobState, RefineInput
from seisbind.service.jobs.store import UNFINISHED, JobStore, room_of

Arrays = Mapping[str, NDArray[Any]]

KEPT = 2  # checkpoints of a running job: the last, and the one before for when it is damaged


class Workbench(JobStore):
    """The jobs, to the one process that works on them. It holds the lock of `worker.work`."""

    def claim(self, *, max_deaths: int) -> Job | None:
        """The next job to work on, one that was interrupted first; None without one.

        A job is given out ``max_deaths`` times without an iteration in between. Then it has failed: it would kill
        each worker anew.
        """
        while True:
            with self._writing("claim") as connection:
                found = connection.execute(UNFINISHED).fetchone()
                if found is None:
                    return None
                job = records.read_job(connection, "row = ?", found[0])
                if job.deaths >= max_deaths:
                    sentence = (
                        f"The process that worked on it died {job.deaths} times without an iteration in between, so "
                        "it is not tried again. The server's log has more; a smaller record or fewer starts may pass."
                    )
                    records.end(connection, job.row, JobState.FAILED, code=JobError.code, sentence=sentence)
                    continue
                begin = "state = ?, deaths = deaths + 1, started_at = coalesce(started_at, ?)"
                values = (JobState.RUNNING, time.time(), job.row)
                connection.execute(f"UPDATE jobs SET {begin} WHERE row = ?", values)
                again = job.started_at is not None
                records.say(connection, job.row, JobState.RUNNING, detail="It goes on." if again else None)
                return records.read_job(connection, "row = ?", job.row)

    def input(self, job: Job) -> RefineInput:
        """What a job works on.

        Raises:
            JobError: it contradicts its checksum.
        """
        arrays = self.arrays(job, records.INPUT)
        if arrays is None:
            raise JobError(f"The record of the job {job.job_id} is gone from the disk. Submit it again.")
        return RefineInput(**arrays)

    def checkpoint(self, job: Job) -> tuple[dict[str, NDArray[Any]] | None, int]:
        """The newest checkpoint that is as it was written, None for the start; and how many newer ones are not."""
        query = "SELECT sha256, content FROM arrays WHERE row = ? AND name = ? ORDER BY iteration DESC"
        with self._reading() as connection:
            found = connection.execute(query, (job.row, records.STATE)).fetchall()
        damaged = 0
        for sha256, content in found:
            arrays = records.unpack(sha256, content)
            if arrays is not None:
                return arrays, damaged
            damaged += 1
        return None, damaged

    def say(self, job: Job, detail: str) -> None:
        """A line of progress that is no iteration."""
        with self._writing("say") as connection:
            if records.is_running(connection, job.row):
                records.say(connection, job.row, JobState.RUNNING, detail=detail)

    def step(self, job: Job, event: Event, *, state: Arrays, velocity: Arrays) -> bool:
        """Keep an iteration: its line, its checkpoint and its model. False: the job was cancelled meanwhile.

        Args:
            event: of which line, time and state are set here.

        Raises:
            JobError: the checkpoint is larger than a job's may be.
        """
        packed, iteration = npz(state), event.iteration or 0
        with self._writing("step") as connection:
            if not records.is_running(connection, job.row):
                return False
            _check_size(job, packed)
            records.put(connection, job.row, records.STATE, iteration, packed)
            connection.execute(
                "DELETE FROM arrays WHERE row = ? AND name = ? AND iteration NOT IN (?, ?)",
                (job.row, records.STATE, iteration, iteration - 1),
            )
            records.put(connection, job.row, records.VELOCITY, 0, npz(velocity))
            records.say(connection, job.row, JobState.RUNNING, event)
            connection.execute(
                "UPDATE jobs SET deaths = 1, worked_s = worked_s + ? WHERE row = ?", (event.step_s or 0.0, job.row)
            )
            return True

    def release(self, job: Job) -> None:
        """Put a running job back into the queue: its worker ends in order."""
        with self._writing("release") as connection:
            if records.is_running(connection, job.row):
                connection.execute(
                    "UPDATE jobs SET state = ?, deaths = max(0, deaths - 1) WHERE row = ?", (JobState.QUEUED, job.row)
                )
                detail = "The worker was stopped; it goes on from the last iteration."
                records.say(connection, job.row, JobState.QUEUED, detail=detail)

    def done(self, job: Job, result: Arrays, *, sentence: str | None) -> None:
        """Keep a result. Nothing happens if the job was cancelled meanwhile."""
        packed = npz(result)
        _check_size(job, packed)
        with self._writing("done") as connection:
            if records.is_running(connection, job.row):
                records.put(connection, job.row, records.RESULT, 0, packed)
                records.end(connection, job.row, JobState.DONE, sentence=sentence)

    def fail(self, job: Job, *, code: str, sentence: str) -> None:
        """End a job that cannot go on."""
        with self._writing("fail") as connection:
            if records.is_running(connection, job.row):
                records.end(connection, job.row, JobState.FAILED, code=code, sentence=sentence)


def _check_size(job: Job, content: bytes) -> None:
    """What a step and an end add stays within the room that the job was given. Raises JobError."""
    most = room_of(job.request) // (KEPT + 1)
    if len(content) > most:
        raise JobError(f"A checkpoint of the job has {len(content)} bytes; there is room for {most}.")
