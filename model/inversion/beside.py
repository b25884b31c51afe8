"""Checks in a process of their own, beside the threads of a server, which notice them as little as the cores allow.

A thread would share the interpreter's lock. At a low priority it waits for a core with the lock in its hands, and all
others wait with it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import numpy as np
import torch
from numpy.typing import NDArray

from seisbind.model.errors import NotReady, SeisBindError
from seisbind.model.inversion.check import Check, check_models
from seisbind.model.inversion.forward import require_deepwave
from seisbind.model.inversion.observed import Observed
from seisbind.model.processes import end_with_parent, inherited

Float32 = NDArray[np.float32]
Models = Callable[[Observed, Float32], list[Check]]  # `check_models` of a record and ``(model, depth, x)``, wherever

STOPPED = "The check was stopped: its client left, or the server is shutting down."
LOOK_S = 0.05  # from one look whether the result is still wanted to the next
NICENESS = 10  # of the process: on a busy core a tenth is left for it
END_S = 5.0  # for the process to end by itself


def unless_stopped(stop: Callable[[], bool]) -> Callable[[], None]:
    """What a check does before waves are modelled: raises NotReady once ``stop`` says that nobody wants its result."""

    def between() -> None:
        if stop():
            raise NotReady(STOPPED)

    return between


class Checker:
    """`check_models` on a CPU, in a process that begins with the first check and ends with this one's; on a GPU, which
    needs little of a core, in the calling thread.

    One thread at a time may use it.

    Args:
        device: of torch.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self.apart = torch.device(device).type == "cpu"
        self._process: BaseProcess | None = None
        self._pipe: Connection
        self._number = 0  # of the check

    def check_models(self, observed: Observed, velocity: Float32, *, stop: Callable[[], bool]) -> list[Check]:
        """See `check.check_models`.

        Raises:
            MissingExtra: deepwave is not installed.
            NotReady: ``stop`` said so before waves were modelled, or the process was ended by somebody.
        """
        require_deepwave()
        between = unless_stopped(stop)
        if not self.apart:
            return check_models(observed, velocity, device=self._device, between=between)
        between()
        if self._process is None or not self._process.is_alive():
            self.close()
            self._begin()
        self._number += 1
        told = False
        try:
            self._pipe.send((self._number, observed, velocity))
            while not self._pipe.poll(LOOK_S):
                if not told and stop():
                    told = True
                    self._pipe.send(self._number)
            found: list[Check] | Exception = self._pipe.recv()
        except (EOFError, OSError) as error:
            self.close()
            raise NotReady("The process that checks models was ended; another one begins. Ask again.") from error
        if isinstance(found, Exception):
            raise found
        return found

    def _begin(self) -> None:
        spawn = get_context("spawn")  # torch's threads do not survive a fork
        self._pipe, other = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(other,), name="check", daemon=True)
        with inherited(OMP_NUM_THREADS="1"):
            self._process.start()
        other.close()

    def close(self) -> None:
        """End the process."""
        if self._process is None:
            return
        self._pipe.close()
        self._process.join(END_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process = None


def _serve(pipe: Connection) -> None:
    """In the process: check after check, until the other end of the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the server ends this one
    end_with_parent()
    os.nice(NICENESS)
    torch.set_num_threads(1)
    with suppress(EOFError, OSError):
        while True:
            asked = pipe.recv()
            if isinstance(asked, tuple):  # else it is the end of a check that had ended
                pipe.send(_checked(pipe, *asked))


def _checked(pipe: Connection, number: int, observed: Observed, velocity: Float32) -> list[Check] | Exception:
    def stop() -> bool:
        while pipe.poll():
            if pipe.recv() == number:
                return True
        return False

    try:
        return check_models(observed, velocity, between=unless_stopped(stop))
    except SeisBindError as error:
        return error
    except Exception as error:  # whatever it is, it is said where it was asked for, if it can be sent
        return RuntimeError(f"{type(error).__name__}: {error}")
