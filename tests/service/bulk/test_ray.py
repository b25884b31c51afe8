"""``seisbind bulk`` on Ray as people run it: started by the command, and a cluster that is there already."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from parts import here, rows
from seisbind.service.bulk.chunks import plan_chunks
from seisbind.service.bulk.folder import PartsFolder, write_parts
from seisbind.service.bulk.gather_jobs import GatherJob
from seisbind.service.bulk.places import named_inputs
from wire import until

pytest.importorskip("ray.data", reason="Ray is not installed: pip install -e '.[bulk]'")
# A minute each on two free cores, most of it Ray's. The warnings are Ray's own, of what it deprecates in itself.
pytestmark = [pytest.mark.long, pytest.mark.timeout(1200), pytest.mark.filterwarnings("ignore")]
SUPPORT = Path(__file__).parents[1] / "support"
# A cluster listens on all addresses of its machine; whoever has no token is sent away.
ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(SUPPORT),
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "RAY_USAGE_STATS_ENABLED": "0",
}
FATAL = """
import sys
from dying import DyingJob
from seisbind.model.errors import GalleryError
from seisbind.service.bulk.chunks import Chunk
from seisbind.service.bulk.executors import on_ray
try:
    list(on_ray(DyingJob(), [Chunk(0, "a.npy")], 1, sys.argv[1]))
except GalleryError as error:
    print(f"said: {error}")
"""


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "seisbind", "bulk", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, env=ENVIRONMENT, check=False)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def listens(port: int) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Ray head of this machine's loopback, which ends with the process that was started."""
    port, folder = free_port(), tmp_path_factory.mktemp("ray")
    words = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--node-ip-address", "127.0.0.1"]
    words += ["--port", str(port), "--num-cpus", "3", "--object-store-memory", str(100 << 20)]
    words += ["--include-dashboard", "false", "--disable-usage-stats", "--temp-dir", str(folder)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT) as head:
        until(lambda: listens(port) or head.poll() is not None)
        assert head.poll() is None, "Ray's head ended at once."
        yield f"127.0.0.1:{port}"
        head.terminate()


def test_by_the_command_on_this_machine(odd_files: Path, job: GatherJob, tmp_path: Path) -> None:
    done = command(*asked(odd_files, job), "--out", tmp_path / "out", "--engine", "ray", "--workers", 2)
    assert done.returncode == 1, done.stderr
    assert "On Ray: started on this machine." in done.stderr and "6 gathers answered, 3 failed" in done.stderr
    compare(rows(tmp_path / "out"), odd_files, job, tmp_path)


def test_by_the_command_on_a_cluster_that_is_there(
    cluster: str, odd_files: Path, job: GatherJob, tmp_path: Path
) -> None:
    done = command(*asked(odd_files, job), "--out", tmp_path / "out", "--address", cluster)
    assert done.returncode == 1, done.stderr
    assert f"On Ray: {cluster}." in done.stderr and "6 gathers answered, 3 failed" in done.stderr
    compare(rows(tmp_path / "out"), odd_files, job, tmp_path)
    drawn = command("simulate", "--family", "FlatVel-A", "--count", 2, "--per-file", 1, "--solver", "openfwi",
                    "--out", tmp_path / "pairs", "--address", cluster)  # fmt: skip
    assert drawn.returncode == 0 and "2 pairs simulated" in drawn.stderr, drawn.stderr


def asked(inputs: Path, job: GatherJob) -> tuple[object, ...]:
    words = ("retrieve", inputs, "--gallery", job.gallery, "--weights", job.weights, "--device", "cpu")
    return (*words, "--top-k", 2, "--chunk", 2)


def compare(found: list[dict[str, Any]], inputs: Path, job: GatherJob, folder: Path) -> None:
    """With the rows of the same job in this process."""
    worker = replace(job, chunk=2).open()
    with PartsFolder(folder / "own", {}) as own:
        write_parts(own, plan_chunks(named_inputs([str(inputs)]), chunk=2), here(worker))
    worker.close()
    wanted = rows(folder / "own")
    assert len(found) == len(wanted) == 9
    for row, other in zip(found, wanted, strict=True):
        for name, value in other.items():
            if isinstance(value, float) or (name == "similarity" and value is not None):
                assert row[name] == pytest.approx(value, rel=1e-4, abs=1e-4), name
            else:
                assert row[name] == value, name


def test_no_cluster_there_is_one_sentence(odd_files: Path, job: GatherJob, tmp_path: Path) -> None:
    nobody = command(*asked(odd_files, job), "--out", tmp_path / "out", "--address", f"127.0.0.1:{free_port()}")
    assert nobody.returncode == 2, nobody.stderr
    said = nobody.stderr.strip().splitlines()
    assert "No Ray cluster answers at 127.0.0.1" in said[-1] and "Traceback" not in nobody.stderr


def test_what_ray_gives_up_is_one_sentence(cluster: str) -> None:
    words = [sys.executable, "-c", FATAL, cluster]
    done = subprocess.run(words, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr
    said = done.stdout.strip().splitlines()[-1]  # Ray prints there what becomes of its workers
    assert said.startswith("said: Ray ended the run of 1 parts: workers died again and again"), said
    assert said.endswith("the same command continues; Ray's own logs have more.")
