"""Checks in a process of their own: the same as here, ended by who wants no more of them, and begun again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from seisbind.model.errors import InvalidConfig, NotReady
from seisbind.model.frame import OPENFWI_FRAME
from seisbind.model.ground.families import mixed
from seisbind.model.inversion.beside import NICENESS, Checker
from seisbind.model.inversion.check import Check, check_models
from seisbind.model.inversion.observed import Observed

pytest.importorskip("deepwave")


@pytest.fixture(scope="module")
def checker() -> Iterator[Checker]:
    one = Checker("cpu")
    yield one
    one.close()


@pytest.fixture(scope="module")
def velocity() -> np.ndarray:
    """``(2, 70, 70)`` m/s."""
    return mixed(2, seed=0)[0]


@pytest.fixture(scope="module")
def observed() -> Observed:
    """Three shots of noise, which no model explains."""
    shape = (3, OPENFWI_FRAME.samples, OPENFWI_FRAME.receivers)
    noise = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return Observed(noise, np.ones((3, OPENFWI_FRAME.receivers), bool), np.array([0, 340, 690], np.float32))


def same(found: list[Check], expected: list[Check]) -> bool:
    return [repr(each.verdict) for each in found] == [repr(each.verdict) for each in expected] and all(
        np.array_equal(a.predicted, b.predicted) for a, b in zip(found, expected, strict=True)
    )


def test_the_same_as_in_this_process_at_a_low_priority(
    checker: Checker, observed: Observed, velocity: np.ndarray
) -> None:
    found = checker.check_models(observed, velocity, stop=lambda: False)
    assert same(found, check_models(observed, velocity))
    assert checker._process is not None and checker._process.pid is not None
    if sys.platform == "linux":
        assert os.getpriority(os.PRIO_PROCESS, checker._process.pid) == min(
            19, os.getpriority(os.PRIO_PROCESS, 0) + NICENESS
        )


def test_who_wants_no_more_of_it_ends_it_and_no_other(
    checker: Checker, observed: Observed, velocity: np.ndarray
) -> None:
    asked: list[int] = []

    def later() -> bool:
        asked.append(1)
        return len(asked) > 1  # not before it is sent, but while it runs

    with pytest.raises(NotReady, match="stopped"):
        checker.check_models(observed, np.repeat(velocity, 100, axis=0), stop=later)
    process = checker._process
    assert len(checker.check_models(observed, velocity[:1], stop=lambda: False)) == 1
    assert checker._process is process
    with pytest.raises(NotReady, match="stopped"):
        checker.check_models(observed, velocity, stop=lambda: True)


@pytest.mark.long
def test_what_goes_wrong_in_it_is_raised_here(checker: Checker, observed: Observed, velocity: np.ndarray) -> None:
    with pytest.raises(RuntimeError, match="Error"):
        checker.check_models(observed, velocity[:, :, 0], stop=lambda: False)
    with pytest.raises(InvalidConfig, match="CUDA"):
        Checker("cuda").check_models(observed, velocity, stop=lambda: False)


@pytest.mark.long
def test_another_process_takes_the_place_of_one_that_was_killed(
    checker: Checker, observed: Observed, velocity: np.ndarray
) -> None:
    checker.check_models(observed, velocity[:1], stop=lambda: False)
    assert checker._process is not None and checker._process.pid is not None
    killed = checker._process.pid

    def kill() -> bool:
        if checker._process is not None and checker._process.pid == killed and checker._process.is_alive():
            os.kill(killed, signal.SIGKILL)
        return False

    with pytest.raises(NotReady, match="Ask again"):
        checker.check_models(observed, np.repeat(velocity, 100, axis=0), stop=kill)
    assert len(checker.check_models(observed, velocity[:1], stop=lambda: False)) == 1


@pytest.mark.long
def test_it_ends_with_the_process_that_began_it() -> None:
    code = """
import os, numpy as np
from seisbind.model.frame import OPENFWI_FRAME as f
from seisbind.model.inversion.beside import Checker
from seisbind.model.inversion.observed import Observed
if __name__ == "__main__":
    checker = Checker("cpu")
    noise = np.random.default_rng(0).standard_normal((1, f.samples, f.receivers)).astype(np.float32)
    observed = Observed(noise, np.ones((1, f.receivers), bool), np.zeros(1, np.float32))
    checker.check_models(observed, np.full((1, 70, 70), 2000, np.float32), stop=lambda: False)
    print(checker._process.pid, flush=True)
    os._exit(1)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert int(process.stdout.readline())
        assert not process.stdout.read()  # which ends when the last process that could write to it has ended
