"""Promise 25 in small: the requests of `benchmarks/endurance.py`, which sends 10,000."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from seisbind.service.runtime.serving import FILE_THREADS

Float32 = NDArray[np.float32]
WARMING, MEASURED = 150, 450  # requests: caches, pools and the allocator have filled after the first part


@pytest.mark.long
def test_nothing_grows(
    spawn: Any, models: tuple[Float32, list[str]], gathers: Float32, script: Callable[[str], ModuleType]
) -> None:
    """Promise 25, on 600 requests of eight kinds."""
    endurance = script("endurance")
    with spawn() as (server, url), httpx.Client(base_url=url, timeout=60) as http:
        endurance.ask(http, gathers, models[0][0], WARMING)
        memory, descriptors, threads = endurance.state(server.pid)
        endurance.ask(http, gathers, models[0][0], MEASURED)
        memory_after, descriptors_after, threads_after = endurance.state(server.pid)
    assert memory_after < 1.05 * memory
    assert descriptors_after <= descriptors + 2  # a connection more or less is being closed
    assert threads_after <= threads + FILE_THREADS  # a pool starts its threads when it first needs them
