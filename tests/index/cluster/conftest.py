"""Places for galleries: a folder, a file of milvus-lite, the real Milvus, an object store."""

from __future__ import annotations

import importlib.util
import itertools
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from buckets import empty_bucket
from seisbind.index import Gallery, Store, open_store
from seisbind.model.frame import OPENFWI_FRAME

START_S = 120  # until the server answers, on a busy machine
FINGERPRINT = "weights-1"
NUMBERS = itertools.count(1)
ELSEWHERE = ("milvus-lite", "milvus-lite, maps in S3", "milvus")


@dataclass(frozen=True)
class Kind:
    """One kind of place, in which galleries are made and opened again."""

    name: str
    base: str
    query: str = ""

    def place(self) -> str | Path:
        """Where there is no gallery yet."""
        name = f"gallery_{next(NUMBERS)}"
        return Path(self.base) / name if self.name == "folder" else f"{self.base}/{name}{self.query}"

    def create(self, place: str | Path, *, dimension: int = 16) -> Store:
        if isinstance(place, Path):
            return Gallery.create(place, fingerprint=FINGERPRINT, dimension=dimension)
        from seisbind.index.milvus_store import MilvusStore

        return MilvusStore.create(place, fingerprint=FINGERPRINT, dimension=dimension)

    def open(self, place: str | Path, *, writable: bool = False, fingerprint: str | None = FINGERPRINT) -> Store:
        return open_store(place, fingerprint=fingerprint, frame=OPENFWI_FRAME, writable=writable)


@pytest.fixture(scope="session")
def milvus_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of the real server, started once; the tests that need it are skipped where it cannot be."""
    if importlib.util.find_spec("milvus") is None:
        pytest.skip("the Milvus server is not installed: pip install 'seisbind[milvus-server]'")
    command = [sys.executable, str(Path(__file__).with_name("milvus_server.py"))]
    folder = tmp_path_factory.mktemp("milvus")
    with subprocess.Popen(
        [*command, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        said: queue.Queue[str] = queue.Queue()
        assert server.stdout is not None and server.stdin is not None and server.stderr is not None
        threading.Thread(target=lambda out=server.stdout: said.put(out.readline()), daemon=True).start()
        try:
            line = said.get(timeout=START_S)
        except queue.Empty:
            line = ""
        if not line.startswith("port "):
            server.kill()
            pytest.skip(
                f"Milvus does not start here: {(server.stderr.read().strip().splitlines() or ['no reason'])[-1]}"
            )
        yield f"milvus://127.0.0.1:{line.split()[1]}"
        server.stdin.close()  # which ends it
        try:
            server.wait(timeout=20)
        except subprocess.TimeoutExpired:
            server.kill()


@pytest.fixture(scope="session")
def bucket() -> Iterator[str]:
    """URL of an empty bucket."""
    with empty_bucket("maps") as url:
        yield url


@pytest.fixture(scope="session")
def lite_base(tmp_path_factory: pytest.TempPathFactory) -> str:
    pytest.importorskip("pymilvus", reason="pymilvus is not installed")
    pytest.importorskip("milvus_lite", reason="milvus-lite is not installed")
    return f"milvus+lite://{tmp_path_factory.mktemp('lite')}/store.db"


@pytest.fixture(
    scope="session",
    params=["folder", *(pytest.param(each, marks=pytest.mark.long) for each in ELSEWHERE)],
)
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kind:
    name: str = request.param
    if name == "folder":
        return Kind(name, str(tmp_path_factory.mktemp("folder")))
    if name == "milvus":
        return Kind(name, request.getfixturevalue("milvus_url"))
    query = f"?maps={request.getfixturevalue('bucket')}/prefix" if "S3" in name else ""
    return Kind(name, request.getfixturevalue("lite_base"), query)
