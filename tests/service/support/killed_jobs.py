"""Kill servers and workers of jobs again and again, and look after each death.

    python killed_jobs.py FOLDER KILLS SEED [--unsafe]

A server here is a process with the real keeper, store and worker; only what a job does is a stand-in. It submits, sends
again, cancels and removes jobs, reports each of these before it starts ("try") and after it was acknowledged ("done"),
and what progress it saw. Server or worker die of SIGKILL at a named step, at any statement of SQL, or at a random
moment. Then everything acknowledged has to be there, what was under way wholly or not at all, lines of progress without
a gap or a repetition, no two workers at once; in the end every job is done with the model of an uninterrupted run.

Prints a line a death; the last line is JSON. With ``--unsafe`` each statement is a transaction: this has to fail.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

import standin
from seisbind.model.errors import SeisBindError
from seisbind.service.jobs import keeper
from seisbind.service.jobs.job import Job, JobState
from seisbind.service.jobs.store import JobLimits, JobStore, Repeat

HERE = Path(__file__)
SERVER_STEPS = [f"{what}:{step}" for what in ("submit", "cancel") for step in ("before-commit", "committed")]
WORKER_STEPS = [
    "step:computed",
    *(f"{what}:{step}" for what in ("claim", "step", "done") for step in ("before-commit", "committed")),
]
ROUND_S = 8.0  # after which a death that did not come is brought about
WAITING = 3  # jobs that the server lets wait
ITERATIONS = 12


def serve(folder: Path, seed: int, again: list[str]) -> None:
    """The body of a server. ``again``: keys whose requests had no answer."""
    at_step = standin.arm(folder, "SERVER_DIE")
    dice = random.Random(seed)
    keeper.WORKER = (sys.executable, str(HERE.with_name("standin.py")))
    keeper.POLL_S = keeper.AGAIN_S = 0.05
    keeper.JobStore = lambda folder, limits: JobStore(folder, limits=limits, at_step=at_step)  # type: ignore
    jobs = keeper.Jobs(folder, limits=JobLimits())

    def report(*words: object) -> None:
        os.write(1, (json.dumps(words) + "\n").encode())

    def submit(key: str) -> None:
        number = int(key)
        report("try", "submit", key)
        job = jobs.store.submit(*standin.job(number, iterations=ITERATIONS), repeat=Repeat(key, bytes(32)))
        report("done", "submit", key, job.job_id)
        jobs.wake()

    for key in again:
        submit(key)
    used: list[str] = []
    while True:
        counts = jobs.store.counts()
        chance = dice.random()
        if chance < 0.5 and counts[JobState.QUEUED] < WAITING:
            used.append(str(dice.randrange(1 << 40)))
            submit(used[-1])
        elif chance < 0.55 and used:
            submit(dice.choice(used))
        elif chance < 0.554 and (known := jobs.store.jobs(limit=20)):
            job = dice.choice(known)
            report("try", "cancel", job.job_id)
            left = jobs.store.cancel(job.job_id)
            report("done", "cancel", job.job_id, left is not None)
        else:
            for job in jobs.store.jobs(limit=4):
                lines, _ = jobs.store.events(job.job_id)
                report("saw", job.job_id, lines[-1].line, lines[-1].iteration)
        time.sleep(0.01)


class Faults(list[str]):
    """What was found broken."""


class Books:
    """What was acknowledged."""

    def __init__(self) -> None:
        self.ids: dict[str, str] = {}  # key → job
        self.open: list[str] = []  # keys without an answer
        self.saw: dict[str, int] = {}  # job → line
        self.removing: set[str] = set()  # jobs that were cancelled or removed, or may have been
        self.removed: set[str] = set()
        self.compared: set[str] = set()  # jobs whose result was that of an uninterrupted run
        self.went_on: dict[str, int] = {}  # job → times that a worker took it up again

    def enter(self, words: list[Any]) -> None:
        match words:
            case ["try", "submit", key]:
                self.open.append(key)
            case ["done", "submit", key, job_id]:
                self.open = [each for each in self.open if each != key]
                if self.ids.setdefault(key, job_id) != job_id and self.ids[key] not in self.removing:
                    raise SystemExit(f"the same request made {self.ids[key]} and {job_id}")
                self.ids[key] = job_id
            case ["try", "cancel", job_id]:
                self.removing.add(job_id)
            case ["done", "cancel", job_id, False]:
                self.removed.add(job_id)
            case ["saw", job_id, line, _]:
                self.saw[job_id] = max(line, self.saw.get(job_id, -1))


def check(folder: Path, books: Books, faults: Faults) -> None:
    """Compare what is there with what was acknowledged."""
    store = JobStore(folder)
    try:
        there = {job.job_id: job for job in store.jobs(limit=100_000)}
        numbers = Counter(job.request.warnings for job in there.values())
        faults += [f"{numbers[number]} jobs of the same request" for number in numbers if numbers[number] > 1]
        for key, job_id in books.ids.items():
            if job_id in books.removed:
                if job_id in there:
                    faults.append(f"{job_id} was removed and is there")
            elif job_id not in there and job_id not in books.removing:
                faults.append(f"{job_id} was acknowledged and is gone")
            elif job_id in there and there[job_id].request.warnings != (f"number {key}",):
                faults.append(f"{job_id} has become another one")
        for job in there.values():
            _check_job(store, job, books, faults)
    except SeisBindError as error:
        faults.append(str(error))
    finally:
        store.close()
    if (folder / "twice").exists():
        faults.append("two workers were at work at once")
        (folder / "twice").unlink()


def _check_job(store: JobStore, job: Job, books: Books, faults: Faults) -> None:
    lines, state = store.events(job.job_id)
    if [each.line for each in lines] != list(range(len(lines))):
        faults.append(f"{job.job_id}: lines {[each.line for each in lines]}")
    if len(lines) <= books.saw.get(job.job_id, -1):
        faults.append(f"{job.job_id}: line {books.saw[job.job_id]} was seen, and is gone")
    done = [each.iteration for each in lines if each.iteration is not None]
    if done != list(range(1, len(done) + 1)):
        faults.append(f"{job.job_id}: iterations {done}")
    if not lines or lines[-1].state is not state:
        faults.append(f"{job.job_id} is {state}, and its last line says {lines[-1].state if lines else 'nothing'}")
    books.went_on[job.job_id] = sum(each.detail == "It goes on." for each in lines)
    if state is JobState.FAILED:
        faults.append(f"{job.job_id} failed: {job.sentence}")
    if state is JobState.DONE:
        number = int(job.request.warnings[0].split()[1])
        result = store.arrays(job, "result")
        wanted = standin.uninterrupted(number, iterations=ITERATIONS)
        if result is None or not np.array_equal(result["velocity"], wanted):
            faults.append(f"{job.job_id}: another result than that of an uninterrupted run")
        books.compared.add(job.job_id)


def round_of(folder: Path, seed: int, books: Books, unsafe: bool) -> str:
    """Start a server, and let it or its worker die; what died."""
    dice = random.Random(seed)
    who, how = dice.choice(("server", "worker")), dice.choice(("step", "statement", "moment"))
    step = dice.choice(SERVER_STEPS if who == "server" else WORKER_STEPS)
    told = {"step": f"{step} {dice.randint(1, 4)}", "statement": f"statement {dice.randint(1, 150)}"}.get(how, "")
    (folder / "died").unlink(missing_ok=True)
    environment = os.environ | {
        "STANDIN_FOLDER": str(folder), "STANDIN_DEATHS": "1000", "OMP_NUM_THREADS": "1",
        "SERVER_DIE" if who == "server" else "STANDIN_DIE": told,
    }  # fmt: skip
    if unsafe:
        environment["STANDIN_UNSAFE"] = "1"
    command = [sys.executable, str(HERE), str(folder), "serve", str(seed), *books.open]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as server:
        reading = threading.Thread(target=_read, args=(server, books))
        reading.start()
        begun = time.monotonic()
        wait_s = ROUND_S if told else dice.uniform(0.5, 2.0)
        while server.poll() is None and not (folder / "died").exists() and time.monotonic() < begun + wait_s:
            time.sleep(0.01)
        died = server.poll() is not None or (folder / "died").exists()
        if not died and who == "worker":
            _kill_worker(folder)
        if who == "worker" and dice.random() < 0.7:
            time.sleep(dice.uniform(0.2, 0.8))  # another worker goes on under the same server
        server.kill()
        reading.join()
        code = server.wait()
    if code != -signal.SIGKILL:
        raise SystemExit(f"the server ended by itself with {code}")
    return f"{who} at {told or 'a random moment'}" + ("" if died or not told else " (did not come; at a random moment)")


def _read(server: subprocess.Popen[bytes], books: Books) -> None:
    if server.stdout is not None:
        for line in server.stdout:
            books.enter(json.loads(line))


def _kill_worker(folder: Path) -> None:
    with suppress(OSError, ValueError):  # none has begun, or it has ended
        os.kill(int((folder / "worker.pid").read_text()), signal.SIGKILL)


def finish(folder: Path) -> None:
    """Let one worker do what is left."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("STANDIN_")}
    environment |= {"STANDIN_FOLDER": str(folder), "STANDIN_DEATHS": "1000"}
    with subprocess.Popen(
        [sys.executable, str(HERE.with_name("standin.py")), str(folder)], stdin=subprocess.PIPE, env=environment
    ) as worker:
        worker.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="made anew")
    parser.add_argument("kills", type=int)
    parser.add_argument("seed", type=int)
    parser.add_argument("--unsafe", action="store_true", help="with a store that must fail")
    given = parser.parse_args()
    folder, books, faults, deaths = given.folder, Books(), Faults(), Counter[str]()
    folder.mkdir()
    for number in range(given.kills):
        died = round_of(folder, given.seed + number, books, given.unsafe)
        before = len(faults)
        check(folder, books, faults)
        deaths[died.split()[0]] += 1
        print(f"{number + 1} {died}: {'; '.join(faults[before:]) or 'all there'}", flush=True)
        if faults and given.unsafe:
            break
    if not faults:
        finish(folder)
        check(folder, books, faults)
        store = JobStore(folder)
        states = store.counts()
        store.close()
        if states[JobState.QUEUED] + states[JobState.RUNNING]:
            faults.append("not all of them came to an end")
    found = {"deaths": deaths, "acknowledged": len(books.ids), "taken_up_again": sum(books.went_on.values())}
    print(json.dumps(found | {"results_compared": len(books.compared), "faults": faults}))


if __name__ == "__main__":
    if sys.argv[2:3] == ["serve"]:
        serve(Path(sys.argv[1]), int(sys.argv[3]), sys.argv[4:])
    else:
        main()
