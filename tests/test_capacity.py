"""benchmarks/simulated_server.py against what queueing theory says, and benchmarks/capacity.py against itself."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from seisbind.service.settings import Settings

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def server() -> ModuleType:
    pytest.importorskip("simpy", reason="simpy (extra simpy) is not here: the simulation of capacity.md is not checked")
    return load("simulated_server")


def costs(server: ModuleType, *, fixed: float, each: float) -> object:
    """A model thread and nothing else."""
    nothing = {1: [0.0]}
    return server.Costs(read=nothing, delay=nothing, ratio={1: [1.0]}, fixed=fixed, each=each)


@pytest.mark.long
def test_one_at_a_time_is_the_queue_of_the_text_books(server: ModuleType) -> None:
    """Poisson arrivals, one server of constant time (M/D/1): the mean wait is rho s / 2 (1 - rho)."""
    service_s, rho = 0.01, 0.7
    settings = Settings(max_batch=1, max_concurrency=10_000)
    times = server.arrivals(rho / service_s, 300.0)
    import simpy

    env = simpy.Environment()
    one = server.Simulated(env, costs(server, fixed=0.0, each=service_s), settings, 1, 0)

    def source() -> server.Event:
        for due in times:
            yield env.timeout(due - env.now)
            env.process(one.request())

    env.process(source())
    env.run()
    assert len(one.spent) == len(times) and one.refused == 0
    wait = float(np.mean(one.spent)) - service_s
    assert wait == pytest.approx(rho * service_s / (2 * (1 - rho)), rel=0.1)


def test_beyond_its_capacity_it_answers_its_capacity_and_refuses_the_rest(server: ModuleType) -> None:
    settings = Settings(max_batch=8, max_concurrency=16)
    found = server.simulate(costs(server, fixed=0.02, each=0.01), settings, 1, server.arrivals(200.0, 20.0), 0)
    assert found.rate == pytest.approx(8 / (0.02 + 8 * 0.01), rel=0.03)  # full batches
    assert found.refused == pytest.approx(1 - found.rate / 200, abs=0.02)
    assert found.p99 <= 1e3 * 2 * (0.02 + 8 * 0.01) + 1  # of 16 places eight are in a batch, eight wait for the next


def test_one_that_is_alone_never_waits(server: ModuleType) -> None:
    settings = Settings(max_batch=64, max_wait_ms=50.0)
    found = server.simulate(costs(server, fixed=0.001, each=0.002), settings, 1, [0.0, 1.0, 2.0], 0)
    assert (found.p50, found.p99) == pytest.approx((3.0, 3.0))


def test_a_closed_loop_keeps_to_littles_law(server: ModuleType) -> None:
    """Eight clients that think for .1 s, and batches of eight that take .09 s: 8 / (.1 + .09) a second."""
    settings, made = Settings(max_concurrency=8, max_wait_ms=5), costs(server, fixed=0.01, each=0.01)
    assert server.simulate_closed(made, settings, 1, 8) == pytest.approx(8 / 0.09, rel=0.02)
    assert server.simulate_closed(made, settings, 1, 8, 0.1) == pytest.approx(8 / 0.19, rel=0.05)


def test_the_arithmetic_prints_what_its_page_says(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every line of figures in docs/capacity.md's blocks is one that the command prints, without arguments."""
    capacity = load("capacity")
    monkeypatch.setattr(sys, "argv", ["capacity.py"])
    capacity.main()
    printed = {line.strip() for line in capsys.readouterr().out.splitlines()}
    page = (BENCHMARKS.parent / "docs/capacity.md").read_text(encoding="utf-8")
    blocks = [block for block in page.split("```")[1::2] if block.startswith("text\n")]
    lines = [line.strip() for block in blocks for line in block.splitlines()[1:] if line.strip()]
    assert len(lines) > 20
    assert [line for line in lines if line not in printed] == []
