"""The queue on the disk: kills, damage, torn logs, limits. What a job computes is a stand-in; the rest is real."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import killed_jobs
import standin
from killed_jobs import WORKER_STEPS, Books, Faults, check
from seisbind.model.errors import InvalidQuery, JobError, JobsFull, JobsWriteFailed, UnknownJob
from seisbind.service.jobs import keeper, worker
from seisbind.service.jobs.database import JOBS, JobDatabase
from seisbind.service.jobs.job import Job, JobState
from seisbind.service.jobs.store import JobLimits, JobStore, Repeat
from standin import StandIn, uninterrupted
from wire import until


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "jobs"


@pytest.fixture
def store(folder: Path) -> Iterator[JobStore]:
    opened = JobStore(folder)
    yield opened
    opened.close()


def work(folder: Path, *, max_deaths: int = 3) -> None:
    """Everything that there is to do, here."""
    worker.work(folder, StandIn, stop=threading.Event(), idle_s=0, max_deaths=max_deaths)


def in_process(folder: Path, **told: str) -> subprocess.CompletedProcess[bytes]:
    """The same in a process, until it has ended or dies."""
    reading, writing = os.pipe()
    try:
        command = [sys.executable, standin.__file__, str(folder)]
        return subprocess.run(command, stdin=reading, env=os.environ | told, check=False)
    finally:
        os.close(reading)
        os.close(writing)


def result(store: JobStore, job: Job) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    arrays = store.arrays(job, "result")
    assert arrays is not None
    return arrays["velocity"]


def found_wrong(folder: Path, job: Job) -> list[str]:
    """What the harness has against a folder in which one job was acknowledged."""
    books, faults = Books(), Faults()
    books.enter(["done", "submit", job.request.warnings[0].removeprefix("number "), job.job_id])
    check(folder, books, faults)
    return faults


def test_servers_and_workers_are_killed_and_nothing_is_lost(folder: Path) -> None:
    """A few of the kills of benchmarks/jobs.py."""
    command = [sys.executable, killed_jobs.__file__, str(folder), "3", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["faults"] == [] and found["acknowledged"]


def test_a_worker_that_dies_at_any_step_loses_nothing(folder: Path, store: JobStore) -> None:
    job = store.submit(*standin.job(1))
    for step in WORKER_STEPS:
        times = 1 if step.startswith(("claim", "done")) else 2
        assert in_process(folder, STANDIN_DIE=f"{step} {times}", STANDIN_DEATHS="99").returncode == -9
        assert found_wrong(folder, job) == []
        (folder / "died").unlink()
    work(folder)
    assert np.array_equal(result(store, job), uninterrupted(1))
    assert found_wrong(folder, job) == []


def test_a_store_without_transactions_fails_that(tmp_path: Path) -> None:
    """Between two statements of an iteration: before its line, after its checkpoint."""
    found = []
    for unsafe in ({}, {"STANDIN_UNSAFE": "1"}):
        folder = tmp_path / f"jobs{len(unsafe)}"
        opened = JobStore(folder)
        job = opened.submit(*standin.job(1))
        assert in_process(folder, STANDIN_DIE="INSERT INTO events 6", **unsafe).returncode == -9
        work(folder)
        found.append(found_wrong(folder, job))
        opened.close()
    assert not found[0] and found[1], found


def test_a_log_that_is_torn_anywhere_has_what_was_acknowledged(folder: Path, store: JobStore, tmp_path: Path) -> None:
    """A power cut: of what follows the last sync any part may be on the disk, or none of it, or something else."""
    first = store.submit(*standin.job(1))
    log = folder / f"{JOBS}-wal"
    synced = log.stat().st_size
    second = store.submit(*standin.job(2))
    written = log.read_bytes()
    assert len(written) > synced > 0
    seen = set()
    for cut in (synced, synced + 100, (synced + len(written)) // 2, len(written) - 1, len(written)):
        for rest in (b"", bytes(len(written) - cut), os.urandom(len(written) - cut)):
            copy = tmp_path / f"{cut}-{rest[:4].hex()}"
            copy.mkdir(exist_ok=True)
            shutil.copy(folder / JOBS, copy)
            (copy / log.name).write_bytes(written[:cut] + rest)
            torn = JobStore(copy)
            there = [job.job_id for job in torn.jobs(limit=9)]
            assert there in ([first.job_id], [second.job_id, first.job_id])
            for job in torn.jobs(limit=9):
                assert [event.line for event in torn.events(job.job_id)[0]] == [0]
                assert torn.arrays(job, "input") is not None
            seen.add(len(there))
            torn.close()
    assert seen == {1, 2}


def test_every_commit_is_synced(folder: Path, store: JobStore) -> None:
    """Which SIGKILL cannot show: the kernel keeps what a killed process wrote."""
    with store._database.reading() as connection:
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.parametrize("damaged", [1, 2])
def test_a_damaged_checkpoint_is_refused_and_the_one_before_or_the_start_is_used(
    damaged: int, folder: Path, store: JobStore
) -> None:
    job = store.submit(*standin.job(3))
    assert in_process(folder, STANDIN_DIE="step:committed 6").returncode == -9
    with sqlite3.connect(folder / JOBS) as connection:
        rows = connection.execute("SELECT rowid, content FROM arrays WHERE name = 'state' ORDER BY iteration DESC")
        found = rows.fetchall()
        assert len(found) == 2
        for number, content in found[:damaged]:
            flipped = bytearray(content)
            flipped[len(flipped) // 2] ^= 1
            connection.execute("UPDATE arrays SET content = ? WHERE rowid = ?", (bytes(flipped), number))
    connection.close()
    work(folder)
    assert np.array_equal(result(store, job), uninterrupted(3))
    lines, state = store.events(job.job_id)
    (said,) = [event.detail for event in lines if event.detail and "damaged" in event.detail]
    assert said == f"Of its checkpoints {damaged} were damaged on the disk; it goes on from " + (
        "the one before." if damaged == 1 else "the beginning."
    )
    assert state is JobState.DONE


def test_a_damaged_record_or_result_is_said(folder: Path, store: JobStore) -> None:
    jobs = [store.submit(*standin.job(number)) for number in (4, 5)]
    with sqlite3.connect(folder / JOBS) as connection:
        connection.execute("UPDATE arrays SET content = zeroblob(99) WHERE row = 1")
    work(folder)
    failed = store.job(jobs[0].job_id)
    assert (failed.state, failed.code) == (JobState.FAILED, "job_error")
    assert store.job(jobs[1].job_id).state is JobState.DONE
    with sqlite3.connect(folder / JOBS) as connection:
        connection.execute("UPDATE arrays SET content = zeroblob(99) WHERE name = 'result'")
    connection.close()
    with pytest.raises(JobError, match="damaged"):
        store.arrays(jobs[1], "result")


def test_a_job_that_kills_its_worker_three_times_has_failed_and_the_next_is_done(folder: Path, store: JobStore) -> None:
    deadly, raising, good = (store.submit(*standin.job(6, start=start)) for start in ("dies", "raises", "read"))
    ends = [in_process(folder).returncode for _ in range(4)]
    assert ends == [-9, -9, -9, 0]
    failed = store.job(deadly.job_id)
    assert failed.state is JobState.FAILED
    assert failed.sentence is not None and "died 3 times" in failed.sentence
    assert (failed.last and failed.last.iteration) == standin.FAULTY - 1
    assert store.job(raising.job_id).code == "internal_error"
    assert np.array_equal(result(store, good), uninterrupted(6))


def test_what_hangs_is_ended_by_the_kernel(folder: Path, store: JobStore) -> None:
    request, arrays = standin.job(7, start="hangs")
    job = store.submit(replace(request, seconds=0.3), arrays)
    assert in_process(folder, STANDIN_GRACE="0.2").returncode == -signal.SIGALRM
    hung = store.job(job.job_id)
    assert (hung.state, hung.last and hung.last.iteration, hung.deaths) == (JobState.RUNNING, standin.FAULTY - 1, 1)


@pytest.mark.parametrize("where", ["in the beginning", "in the end"])
def test_what_hangs_outside_of_its_iterations_is_ended_too(where: str, folder: Path, store: JobStore) -> None:
    request, arrays = standin.job(7, start=f"hangs {where}", iterations=2)
    job = store.submit(replace(request, seconds=0.3), arrays)
    assert in_process(folder, STANDIN_GRACE="0.2").returncode == -signal.SIGALRM
    assert store.job(job.job_id).state is JobState.RUNNING


def test_time_that_is_used_up_ends_a_job_with_what_it_has_reached(folder: Path, store: JobStore) -> None:
    request, arrays = standin.job(8)
    job = store.submit(replace(request, seconds=3.5 * standin.STEP_S), arrays)
    work(folder)
    ended = store.job(job.job_id)
    assert (ended.state, ended.last and ended.last.iteration) == (JobState.DONE, 4)
    assert ended.sentence is not None and "was used up" in ended.sentence
    assert np.array_equal(result(store, job), uninterrupted(8, iterations=4))


def test_a_worker_that_is_stopped_in_order_costs_no_life(folder: Path, store: JobStore) -> None:
    job = store.submit(*standin.job(9))
    stop = threading.Event()
    done: list[str] = []

    def at_step(name: str) -> None:
        done.append(name)
        if done.count("step:committed") == 3:
            stop.set()

    worker.work(folder, StandIn, stop=stop, at_step=at_step)
    released = store.job(job.job_id)
    assert (released.state, released.deaths, released.last and released.last.iteration) == (JobState.QUEUED, 0, 3)
    work(folder)
    assert np.array_equal(result(store, job), uninterrupted(9))


def test_a_server_that_ends_within_an_iteration_costs_no_life(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "WORKER", (sys.executable, standin.__file__))
    monkeypatch.setattr(keeper, "END_S", 0.1)
    jobs = keeper.Jobs(folder, limits=JobLimits())
    job = jobs.store.submit(*standin.job(18, start="hangs"))
    until(lambda: (last := jobs.store.job(job.job_id).last) is not None and last.iteration == standin.FAULTY - 1)
    jobs.close()
    store = JobStore(folder)
    assert (store.job(job.job_id).state, store.job(job.job_id).deaths) == (JobState.RUNNING, 0)
    store.close()


def test_two_workers_are_never_at_work_at_once(folder: Path, store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [store.submit(*standin.job(number, iterations=10)) for number in range(2)]

    def both() -> None:
        threads = [threading.Thread(target=in_process, args=(folder,), kwargs=told) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    told = {"STANDIN_FOLDER": str(folder), "STANDIN_S": "0.01"}
    both()
    assert not (folder / "twice").exists()
    for number, job in enumerate(jobs):
        assert np.array_equal(result(store, job), uninterrupted(number, iterations=10))
    store.submit(*standin.job(10, iterations=15))
    told["STANDIN_UNLOCKED"] = "1"
    both()
    assert (folder / "twice").exists(), "without the lock it would not be seen"


def test_one_that_is_cancelled_ends_where_it_is(folder: Path, store: JobStore) -> None:
    running, waiting = store.submit(*standin.job(11)), store.submit(*standin.job(12))
    assert (store.cancel(waiting.job_id) or waiting).state is JobState.CANCELLED

    def at_step(name: str) -> None:
        job = store.job(running.job_id)
        if name == "step:computed" and job.last and job.last.iteration == 2:
            store.cancel(running.job_id)

    worker.work(folder, StandIn, stop=threading.Event(), at_step=at_step, idle_s=0)
    ended = store.job(running.job_id)
    assert (ended.state, ended.last and ended.last.iteration) == (JobState.CANCELLED, 2)
    velocity = store.arrays(running, "velocity")
    assert velocity is not None and np.array_equal(velocity["velocity"], uninterrupted(11, iterations=2))
    assert store.cancel(running.job_id) is None
    with pytest.raises(UnknownJob):
        store.job(running.job_id)
    assert store.counts()[JobState.CANCELLED] == 1


def test_a_request_that_is_sent_again_makes_no_second_job(folder: Path, store: JobStore) -> None:
    asked = standin.job(13)
    job = store.submit(*asked, repeat=Repeat("a", b"1"))
    assert store.submit(*asked, repeat=Repeat("a", b"1")).job_id == job.job_id
    assert store.find_repeat(Repeat("a", b"1")) == job
    assert store.submit(*asked, repeat=Repeat("b", b"1")).job_id != job.job_id
    with pytest.raises(InvalidQuery, match="Idempotency-Key"):
        store.submit(*standin.job(14), repeat=Repeat("a", b"2"))
    threads, made = [], []
    for _ in range(4):
        threads.append(threading.Thread(target=lambda: made.append(store.submit(*asked, repeat=Repeat("c", b"1")))))
        threads[-1].start()
    for thread in threads:
        thread.join()
    assert len({each.job_id for each in made}) == 1


def test_jobs_are_bounded_in_number_and_disk(tmp_path: Path) -> None:
    few = JobStore(tmp_path / "few", limits=JobLimits(queued=2))
    jobs = [few.submit(*standin.job(number)) for number in range(2)]
    for refuse in (few.check_room, lambda: few.submit(*standin.job(3))):
        with pytest.raises(JobsFull, match="2 jobs wait"):
            refuse()
    few.cancel(jobs[0].job_id)
    few.check_room()
    few.close()
    small = JobStore(tmp_path / "small", limits=JobLimits(bytes=5 << 20))
    with pytest.raises(JobsFull, match="SEISBIND_JOBS_BYTES"):
        for number in range(9):
            small.submit(*standin.job(number))
    assert 2 <= small.counts()[JobState.QUEUED] < 9
    work(tmp_path / "small")
    assert sum(path.stat().st_size for path in (tmp_path / "small").iterdir()) < 5 << 20
    small.submit(*standin.job(9))  # what was done leaves its room but for its result
    small.close()


def test_a_checkpoint_that_outgrows_its_room_ends_the_job(
    folder: Path, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = store.submit(*standin.job(15))
    monkeypatch.setattr(StandIn, "state", lambda self: {"large": np.zeros(1 << 20)})
    work(folder)
    ended = store.job(job.job_id)
    assert ended.state is JobState.FAILED and ended.sentence is not None and "room" in ended.sentence


def test_ended_jobs_go_after_their_time(tmp_path: Path) -> None:
    store = JobStore(tmp_path, limits=JobLimits(keep_s=0.0))
    waiting, ended = store.submit(*standin.job(1)), store.submit(*standin.job(2))
    store.cancel(ended.job_id)
    assert store.remove_old() == 1
    assert [job.job_id for job in store.jobs(limit=9)] == [waiting.job_id]
    store.close()


def test_a_full_disk_takes_no_job_and_loses_none(folder: Path, store: JobStore) -> None:
    job = store.submit(*standin.job(16))
    with store._database.reading() as connection:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
    store._database._connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(JobsWriteFailed, match="Free some space"):
        store.submit(*standin.job(17))
    store._database._connection.execute("PRAGMA max_page_count = 1000000")
    assert [each.job_id for each in store.jobs(limit=9)] == [job.job_id]
    work(folder)
    assert np.array_equal(result(store, job), uninterrupted(16))


def test_what_is_no_folder_of_jobs_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / JOBS) as connection:
        connection.execute("CREATE TABLE other (x)")
    connection.close()
    with pytest.raises(JobError, match="no jobs of format 1"):
        JobStore(tmp_path)
    (tmp_path / JOBS).write_bytes(b"no database" * 1000)
    with pytest.raises(JobError, match="not a database"):
        JobStore(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(JobsWriteFailed):
        JobStore(tmp_path / "file" / "jobs")


def test_several_that_open_a_new_folder_agree(tmp_path: Path) -> None:
    opened: list[JobStore] = []
    threads = [threading.Thread(target=lambda: opened.append(JobStore(tmp_path / "new"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    job = opened[0].submit(*standin.job(1))
    assert [each.job(job.job_id).job_id for each in opened] == [job.job_id] * 4
    assert JobDatabase is not None
    for each in opened:
        each.close()
