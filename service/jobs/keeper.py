"""What a server owns of its jobs: their store, and the worker that it starts, starts again when it dies, and ends."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from seisbind.model.errors import JobError, MissingExtra
from seisbind.service.jobs.job import JobState
from seisbind.service.jobs.store import JobLimits, JobStore

log = logging.getLogger(__name__)

WORKER = (sys.executable, "-m", "seisbind.service.jobs.worker")  # and the folder
POLL_S = 0.5
AGAIN_S, LONGEST_AGAIN_S = 1.0, 60.0  # after a worker that died, before the next; twice as long after each
SWEEP_S = 60.0  # from one look for jobs that ended too long ago to the next
END_S = 5.0  # for a worker to end its iteration in; what it loses otherwise is that iteration


class Jobs:
    """The jobs in a folder, and the process that works on them while there is something to do.

    A thread of its own looks after that process; ``store`` may be used from any.

    Raises:
        JobError: the folder cannot be used.
        MissingExtra: what a refinement simulates with is not installed.
    """

    def __init__(self, folder: Path, *, limits: JobLimits) -> None:
        if find_spec("deepwave") is None:
            raise MissingExtra("SEISBIND_JOBS is set and deepwave is not installed: pip install 'seisbind[inversion]'.")
        self.store = JobStore(folder, limits=limits)
        self.followers = 0  # answers of lines that are being sent; the event loop's
        self._counts: dict[JobState, int] = self.store.counts()
        self._folder = folder
        self._changed, self._closing = threading.Event(), False
        self._worker: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._keep, name="jobs", daemon=True)
        self._thread.start()

    def count(self, state: JobState) -> int:
        """Jobs of a state, as they were a moment ago."""
        return self._counts[state]

    def wake(self) -> None:
        """Look now whether there is something to do."""
        self._changed.set()

    def close(self) -> None:
        """End the worker after its iteration, or, where that takes long, in it; then let go of the store."""
        self._closing = True
        self._changed.set()
        self._thread.join()
        self.store.close()

    def _keep(self) -> None:
        not_before, sweep_at, again_s = 0.0, 0.0, AGAIN_S
        while not self._closing:
            try:
                if self._worker is not None and self._worker.poll() is not None:
                    if self._worker.returncode:
                        log.warning("The worker of jobs died with %d; another one goes on.", self._worker.returncode)
                        not_before, again_s = time.monotonic() + again_s, min(2 * again_s, LONGEST_AGAIN_S)
                    else:
                        again_s = AGAIN_S
                    self._let_go()
                if self._worker is None and time.monotonic() >= not_before and self.store.unfinished():
                    self._worker = self._start()
                if time.monotonic() >= sweep_at:
                    self.store.remove_old()
                    sweep_at = time.monotonic() + SWEEP_S
                self._counts = self.store.counts()
            except (JobError, OSError) as error:  # a full disk, no more processes: it may pass
                log.error("The jobs are not worked on now: %s", error)
                not_before = time.monotonic() + AGAIN_S
            self._changed.wait(POLL_S)
            self._changed.clear()
        if self._worker is not None:
            self._worker.terminate()
            try:
                self._worker.wait(END_S)
                self._let_go()
            except subprocess.TimeoutExpired:
                self._worker.kill()
                self._let_go()
                with suppress(JobError):
                    self.store.forgive()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*WORKER, str(self._folder)],
            stdin=subprocess.PIPE,  # which closes with this process, however it ends
            stdout=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C is for the server, which then ends it
        )

    def _let_go(self) -> None:
        if self._worker is not None:
            if self._worker.stdin is not None:
                self._worker.stdin.close()
            self._worker.wait()
            self._worker = None
