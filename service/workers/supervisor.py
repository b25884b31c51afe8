"""The process that starts workers on one listening socket, starts again what dies, and ends them.

It is uvicorn's supervisor: a worker that dies, or does not answer its pings because its interpreter hangs, is replaced;
SIGHUP replaces all of them in turn, each once its successor serves; SIGTERM and Ctrl-C let them finish what they have
admitted. Added here: what each worker is given, a pause before a worker that cannot start is tried again, and one
sentence where none could be started in the first place. Kernel and workers share nothing but the socket: whichever
worker's loop is free takes a connection.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from socket import socket

import uvicorn
from uvicorn.supervisors import Multiprocess
from uvicorn.supervisors.multiprocess import Process

from seisbind.model.errors import InvalidConfig, ServiceError
from seisbind.model.processes import inherited, usable_cores
from seisbind.service.settings import Settings
from seisbind.service.workers.board import Board

log = logging.getLogger(__name__)

HEALTHCHECK_S = 30  # a worker whose interpreter answers no ping for so long is ended by SIGKILL
START_S = 600.0  # for a worker to open weights and gallery
AGAIN_S, LONGEST_AGAIN_S = 1.0, 60.0  # before a worker that ended is started again; twice as long each time in a row
READY_S = 0.1  # from one look whether a worker serves to the next
ORPHAN_S = 1.0  # from one look whether the supervisor is there to the next
CORES = 2  # of a worker on CPUs, where as many are started as pay: one encodes, the other reads and answers
CLOSE_S = 5.0  # for a worker to close what it has, after its requests' time to finish
WELL_S = 60.0  # a worker that ran for so long had started well

Started = Callable[[uvicorn.Server], None]
Run = Callable[[Settings, Board, socket, Started], None]


@dataclass(frozen=True, slots=True)
class Share:
    """A worker's part of the machine: its settings, with its GPU and threads, and the environment that holds libraries
    to the same."""

    settings: Settings
    environment: dict[str, str]


@dataclass(frozen=True, slots=True)
class Place:
    """What worker ``index`` is given, and where all of them meet."""

    run: Run
    share: Share
    folder: Path
    index: int
    count: int


class Worker(Process):
    """A process that serves; sent to its child by spawning, so it holds nothing but what it is given."""

    def __init__(self, config: uvicorn.Config, sockets: list[socket], place: Place) -> None:
        self.place = place
        self.begun = time.monotonic()
        super().__init__(config, sockets)

    def target(self, sockets: list[socket] | None = None) -> None:
        """In the child. Ends with code 1 after an error that was said, 0 after all that was admitted is answered."""
        threading.Thread(target=self.always_pong, daemon=True).start()
        place = self.place
        board = Board(place.folder, place.index, place.count)
        board.begin()
        threading.Thread(target=_end_with, args=(os.getppid(), place.folder), daemon=True).start()
        for listener in sockets or ():  # there is one
            place.run(place.share.settings, board, listener, self._started)

    def ping(self, timeout: float = 5) -> bool:
        self._forget()
        return super().ping(timeout)

    def is_ready(self, timeout: float = 5) -> bool:
        self._forget()
        return super().is_ready(timeout)

    def _forget(self) -> None:
        """Answers to earlier pings, which it gave late, while it was starting: they would pass for those of a worker
        that hangs by now."""
        with suppress(OSError, EOFError):
            while self.parent_conn.poll():
                self.parent_conn.recv()

    def _started(self, server: uvicorn.Server) -> None:
        self._server = server

    def pong(self) -> None:
        self.child_conn.recv()
        self.child_conn.send(self._server is not None and self._server.started)


def _end_with(parent: int, folder: Path) -> None:
    """End this process, as by SIGTERM, once its supervisor is gone: nobody would start or end it any more, nor remove
    the folder where the workers met."""
    while os.getppid() == parent:
        time.sleep(ORPHAN_S)
    shutil.rmtree(folder, ignore_errors=True)
    os.kill(os.getpid(), signal.SIGTERM)


class Supervisor(Multiprocess):
    """The workers of one server.

    Args:
        places: one for each.
        announce: called once all of them serve.
    """

    def __init__(self, listener: socket, places: list[Place], announce: Callable[[], None]) -> None:
        config = uvicorn.Config("", workers=len(places), log_config=None, timeout_worker_healthcheck=HEALTHCHECK_S)
        super().__init__(config, [listener])
        self._places = places
        self._announce = announce
        self._again_s = [AGAIN_S] * len(places)
        self._due: dict[int, float] = {}  # when a worker that ended is started again

    def init_processes(self) -> None:
        """Start all, and wait until they serve.

        Raises:
            ServiceError: one ended; it has said why.
        """
        for place in self._places:
            self.processes.append(self._start(place))
        for process in self.processes:
            if not self._serves(process):
                if self._ending():
                    return
                self.terminate_all()
                self.join_all()
                raise ServiceError("A worker could not be started; its error is above.")
        self._announce()

    def _start(self, place: Place) -> Worker:
        worker = Worker(self.config, self.sockets, place)
        with inherited(**place.share.environment):
            worker.start()
        return worker

    def _serves(self, process: Process) -> bool:
        """Wait until a worker serves; False once it has ended, or all are to end."""
        end = time.monotonic() + START_S
        while time.monotonic() < end and process.process.is_alive() and not self._ending():
            if process.is_ready(timeout=1):
                return True
            time.sleep(READY_S)
        return False

    def _ending(self) -> bool:
        """Whether SIGTERM or Ctrl-C has come, also while another signal is being followed."""
        if {signal.SIGTERM, signal.SIGINT} & set(self.signal_queue):
            self.should_exit.set()
        return self.should_exit.is_set()

    def keep_subprocess_alive(self) -> None:
        for index, process in enumerate(self.processes):
            if self.should_exit.is_set():
                return
            if index in self._due:
                if time.monotonic() >= self._due[index]:
                    del self._due[index]
                    self.processes[index] = self._start(self._places[index])
            elif not process.is_alive(timeout=HEALTHCHECK_S):
                process.kill()
                process.join()
                self._after(index, process)

    def _after(self, index: int, process: Process) -> None:
        if isinstance(process, Worker) and time.monotonic() - process.begun > WELL_S:
            self._again_s[index] = AGAIN_S
        wait_s = self._again_s[index]
        self._again_s[index] = min(2 * wait_s, LONGEST_AGAIN_S)
        log.error("Worker %d ended (code %s); another takes its place in %g s.", index, process.exitcode, wait_s)
        Board.has_ended(self._places[index].folder, index)
        self._due[index] = time.monotonic() + wait_s

    def restart_all(self) -> None:
        """Replace the workers in turn, each once its successor serves; one that cannot serve ends that."""
        for index, before in enumerate(self.processes):
            if self._ending():
                return
            worker = self._start(self._places[index])
            if not self._serves(worker):
                worker.kill()
                worker.join()
                Board.has_ended(self._places[index].folder, index)  # the one before speaks again
                if self._ending():
                    return
                log.error("A new worker %d could not serve; the one before goes on, and so do those after it.", index)
                return
            self._due.pop(index, None)  # else one more would be started for the worker that had ended before
            self.processes[index] = worker
            before.terminate()
            self._join(before, time.monotonic() + self._places[index].share.settings.shutdown_s + CLOSE_S)

    def join_all(self) -> None:
        """Wait for all that were told to end; one that hangs is killed."""
        end = time.monotonic() + max(place.share.settings.shutdown_s for place in self._places) + CLOSE_S
        for process in self.processes:
            self._join(process, end)

    def _join(self, process: Process, end: float) -> None:
        process.process.join(max(0.0, end - time.monotonic()))
        if process.process.is_alive():
            log.error("Worker process %s has not ended after SIGTERM; it is killed.", process.pid)
            process.kill()
            process.join()

    def handle_ttin(self) -> None:
        """The number of workers is the setting's."""

    def handle_ttou(self) -> None:
        """As `handle_ttin`."""


def supervise(run: Run, settings: Settings, listener: socket, *, announce: Callable[[], None]) -> None:
    """Serve by `Settings.workers` processes until SIGTERM or Ctrl-C.

    Args:
        run: serves on the socket until SIGTERM; a function of a module, for a worker imports it.

    Raises:
        ServiceError: a worker could not be started.
        InvalidConfig: they cannot all have what the settings ask for.
    """
    with tempfile.TemporaryDirectory(prefix="seisbind-workers-") as folder:
        count = len(shares := shares_of(settings))
        places = [Place(run, each, Path(folder), index, count) for index, each in enumerate(shares)]
        supervisor = Supervisor(listener, places, announce)
        supervisor.run()


def shares_of(settings: Settings) -> list[Share]:
    """The share of each worker: one GPU, the only one that it sees, and of the cores as many as the others, of which
    one reads requests and the rest encode and search.

    Raises:
        InvalidConfig: all of them are to search on one GPU, which is not their own.
    """
    gpus, cores = _gpus(settings.device), usable_cores()
    count = settings.workers or len(gpus) or max(1, cores // CORES)
    threads = settings.threads or max(1, cores // count - 1)
    if gpus and settings.search_device.startswith("cuda:"):
        raise InvalidConfig(
            "Each of several workers searches on its own GPU or on the CPU; search_device is "
            f"{settings.search_device!r:.40}. Set it to auto, cuda or cpu."
        )
    shares = []
    for index in range(count):
        own: dict[str, object] = {"threads": threads}
        environment = {"OMP_NUM_THREADS": str(threads)}  # numpy, FAISS and torch, in whichever thread they are called
        if gpus:
            own["device"] = "cuda"  # the only one
            environment["CUDA_VISIBLE_DEVICES"] = gpus[index % len(gpus)]
        shares.append(Share(settings.model_copy(update=own), environment))
    return shares


def _gpus(device: str) -> list[str]:
    """The GPUs to share out, each as ``CUDA_VISIBLE_DEVICES`` names it. Without importing torch into the supervisor
    where there is none."""
    if device not in ("auto", "cuda") and not device.startswith("cuda:"):
        return []
    if sys.platform == "linux" and not Path("/dev/nvidiactl").exists():
        return []
    import torch

    found = [str(index) for index in range(torch.cuda.device_count())]
    if seen := os.environ.get("CUDA_VISIBLE_DEVICES"):  # the numbers of this process are places in that list
        found = [name.strip() for name in seen.split(",")][: len(found)]
    if device.startswith("cuda:"):
        at = device.removeprefix("cuda:")
        found = found[int(at) :][:1] if at.isdecimal() else []  # none: the worker says what is wrong with the device
    return found
