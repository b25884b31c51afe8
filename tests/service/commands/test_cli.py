"""The console script as people run it: its output, its exit code, and as a process of its own where that matters."""

from __future__ import annotations

import asyncio
import contextlib
import http.server
import io
import json
import os
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from command import seisbind
from seisbind.index import Gallery
from seisbind.model.datasets.openfwi import write_pairs
from seisbind.model.encoders.embedder import Embedder
from seisbind.model.errors import GalleryDamaged, GalleryError
from seisbind.model.ground.families import mixed
from seisbind.service.bulk.backends import GalleryBackend, RetrieveOptions
from seisbind.service.commands.demo import prepare_gallery

Float32 = NDArray[np.float32]
SCRIPT = Path(sys.executable).with_name("seisbind")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def alone(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """As `seisbind`, in a process of its own."""
    command = [str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False, **options)


def one_line(done: subprocess.CompletedProcess[str], code: str) -> None:
    """Exit code 1, and one sentence with its code on standard error."""
    assert done.returncode == 1, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("seisbind: ")
    assert lines[0].endswith(f"[{code}]")


def test_help_lists_the_commands_without_importing_torch() -> None:
    done = alone("--help")
    assert done.returncode == 0
    for command in ("demo", "simulate", "train", "evaluate", "gallery", "serve", "inspect", "retrieve", "key"):
        assert command in done.stdout
    heavy = "{'torch', 'faiss', 'fastapi', 'numpy'}"
    probe = f"import seisbind.service.commands.main, sys; print(sorted({heavy} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert loaded.stdout == "[]\n"


def test_a_gallery_from_the_command_line(tmp_path: Path, weights: Path) -> None:
    path, with_weights = tmp_path / "gallery", ("--weights", weights)
    built = seisbind("gallery", "build", path, "--count", 20, "--seed", 5, "--family", "FlatVel-A", *with_weights)
    assert built.returncode == 0, built.stderr
    assert "20 velocity models" in built.stdout
    one_line(seisbind("gallery", "build", path, "--count", 20, *with_weights), "gallery_error")

    own = np.linspace(1500, 4000, 2 * 70 * 70, dtype=np.float32).reshape(2, 70, 70)
    np.save(tmp_path / "own.npy", own)
    write_pairs(tmp_path / "fwi", "CurveVel-B", number=1, velocity=own[:, None] + 1, gathers=np.ones((2, 5, 1000, 70)))
    both = ("--data", tmp_path / "own.npy", "--data", tmp_path / "fwi")
    added = seisbind("gallery", "add", path, *both, "--tag", "own", *with_weights)
    assert "4 velocity models added, 24 in all" in added.stdout, added.stderr

    info = json.loads(seisbind("gallery", "info", path, "--json").stdout)
    assert (info["count"], info["families"]) == (24, {"CurveVel-B": 2, "FlatVel-A": 20})
    said = seisbind("gallery", "info", path).stdout
    assert "deep velocity" in said and "velocities rounded by at most 0.5 m/s" in said
    assert info["precision_m_s"] == 0.5 and info["bytes_per_model"] == info["bytes"] / 24
    optimized = seisbind("gallery", "optimize", path)
    assert "24 velocity models, format 2" in optimized.stdout, optimized.stderr
    verified = seisbind("gallery", "verify", path)
    assert (verified.returncode, "all is well" in verified.stdout) == (0, True)

    one_line(seisbind("gallery", "remove", path, "v-none"), "unknown_model")
    one_line(seisbind("gallery", "info", tmp_path / "none"), "gallery_not_found")
    one_line(seisbind("gallery", "build", tmp_path / "new", *with_weights), "invalid_config")
    one_line(
        seisbind("gallery", "build", tmp_path / "new", "--count", 2, "--precision", "fine", *with_weights),
        "invalid_config",
    )


def test_a_damaged_gallery_is_told(make_gallery: Callable[[], Path]) -> None:
    path = make_gallery()
    snapshot = path / "velocity.faiss"
    content = bytearray(snapshot.read_bytes())
    content[-1] ^= 1
    snapshot.write_bytes(content)
    done = seisbind("gallery", "verify", path, "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["problems"]


def test_a_full_disk_while_building(tmp_path: Path, weights: Path) -> None:
    """Files may grow to 300 kB: one sentence, and what is there is a gallery or nothing."""
    np.save(tmp_path / "maps.npy", np.random.default_rng(0).uniform(1500, 4500, (100, 70, 70)).astype(np.float32))

    def small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    arguments = ("gallery", "build", tmp_path / "gallery", "--data", tmp_path / "maps.npy", "--weights", weights)
    done = alone(*arguments, preexec_fn=small_files)
    assert done.returncode == 1
    assert "[gallery_write_failed]" in done.stderr.strip().splitlines()[-1], done.stderr
    assert "Traceback" not in done.stderr
    info = seisbind("gallery", "info", tmp_path / "gallery", "--json")
    assert info.returncode == 1 or json.loads(info.stdout)["count"] == 0
    assert seisbind(*arguments, "--overwrite").returncode == 0  # with room, the same command works


def test_a_full_disk_while_adding(make_gallery: Callable[[], Path], weights: Path) -> None:
    """Files may grow to 1.8 MB, which is enough for the first 256 models: what was added is said, and how to go on."""
    path = make_gallery()
    arguments = ("gallery", "add", path, "--count", 600, "--family", "FlatVel-A", "--weights", weights)
    limit = 1_800_000

    def small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = alone(*arguments, preexec_fn=small_files)
    assert done.returncode == 1
    said = done.stderr.strip().splitlines()[-1]
    assert said.endswith("[gallery_write_failed]"), done.stderr
    held = json.loads(seisbind("gallery", "info", path, "--json").stdout)["count"]
    assert held in (316, 572)
    assert (
        f" {held - 60} velocity models were added before that and stay, {held} in all; the same command goes on" in said
    )
    assert "Nothing was changed" not in said and "Traceback" not in done.stderr
    again = seisbind(*arguments)  # with room
    assert f"{660 - held} velocity models added, 660 in all" in again.stdout, again.stderr


def test_a_fault_after_models_were_added_says_how_many(
    make_gallery: Callable[[], Path], weights: Path, tmp_path: Path
) -> None:
    path = make_gallery()
    np.save(tmp_path / "good.npy", np.linspace(1500, 4000, 3 * 4900, dtype=np.float32).reshape(3, 70, 70))
    np.save(tmp_path / "km.npy", np.full((2, 70, 70), 2.5, np.float32))
    data = ("--data", tmp_path / "good.npy", "--data", tmp_path / "km.npy")
    done = seisbind("gallery", "add", path, *data, "--weights", weights)
    assert "km/s. 3 velocity models were added before that and stay, 63 in all" in done.stderr
    assert done.stderr.strip().endswith("[invalid_velocity_model]")
    nothing = seisbind("gallery", "add", path, "--data", tmp_path / "km.npy", "--weights", weights)
    assert "were added" not in nothing.stderr


def test_velocities_that_the_weights_do_not_know_are_said(
    make_gallery: Callable[[], Path], weights: Path, tmp_path: Path
) -> None:
    path = make_gallery()
    np.save(tmp_path / "fast.npy", np.linspace(1500, 6000, 2 * 4900, dtype=np.float32).reshape(2, 70, 70))
    np.save(tmp_path / "own.npy", np.linspace(1500, 4500, 4900, dtype=np.float32).reshape(70, 70))
    done = seisbind("gallery", "add", path, "--data", tmp_path / "fast.npy", "--weights", weights)
    assert done.returncode == 0 and "2 velocity models added" in done.stdout
    assert "note: Velocity models that leave 1500 to 4500 m/s" in done.stderr
    assert ": 1, with 3750" in done.stderr and "to 6000 m/s" in done.stderr
    quiet = seisbind("gallery", "add", path, "--data", tmp_path / "own.npy", "--weights", weights)
    assert quiet.returncode == 0 and "note" not in quiet.stderr
    built = seisbind("gallery", "build", tmp_path / "g", "--data", tmp_path / "fast.npy", "--weights", weights)
    assert built.returncode == 0 and "note: Velocity models that leave" in built.stderr


def test_gallery_list(gallery_path: Path) -> None:
    """A table for people, a JSON object a line for pipes; by family and tag, and only so many."""
    table = seisbind("gallery", "list", gallery_path).stdout.splitlines()
    assert table[0].split() == ["model", "family", "mean", "velocity", "added", "at", "tags"] and len(table) == 61
    with Gallery.open(gallery_path, fingerprint=None) as gallery:
        ids, families = gallery.model_ids(), gallery.families()
        record = gallery.record(ids[1])
    assert [line.split()[0] for line in table[1:]] == ids
    assert table[2].split()[1:4] == [record.family, f"{record.descriptors[0]:.0f}", "m/s"]
    lines = seisbind("gallery", "list", gallery_path, "--json", "--limit", 2).stdout.splitlines()
    assert record.source
    expected = {"family": record.family, "tags": [], "mean_velocity": float(record.descriptors[0])}
    expected |= {"source": record.source}
    assert json.loads(lines[1]) == {"model_id": ids[1], "added_at": record.added_at} | expected
    one = seisbind("gallery", "list", gallery_path, "--family", "FlatVel-A", "--family", "Style-B", "--json").stdout
    assert len(one.splitlines()) == families["FlatVel-A"] + families["Style-B"]
    for as_json in ((), ("--json",)):
        none = seisbind("gallery", "list", gallery_path, "--family", "Nope", *as_json)
        assert (none.returncode, none.stdout) == (0, "")
        assert none.stderr == f"{gallery_path}: no velocity model that passes\n"
    one_line(seisbind("gallery", "list", gallery_path / "none"), "gallery_not_found")


@pytest.mark.parametrize("options", [(), ("--json", "--limit", 2)], ids=["all", "two"])
def test_gallery_list_of_a_damaged_gallery(gallery_path: Path, tmp_path: Path, options: tuple[Any, ...]) -> None:
    """Models that are gone from the file are missed at the end, although each record that is there is right."""
    path = tmp_path / "damaged"
    shutil.copytree(gallery_path, path)
    with contextlib.closing(sqlite3.connect(path / "records.sqlite")) as connection:
        connection.execute("DELETE FROM models WHERE row BETWEEN 5 AND 14")
        connection.commit()
    listed = seisbind("gallery", "list", path, *options)
    assert listed.returncode == 1 and len(listed.stdout.splitlines()) == (2 if options else 51)
    assert listed.stderr.count("\n") == 1 and "damaged" in listed.stderr and "[gallery_damaged]" in listed.stderr


def test_version() -> None:
    done = alone("--version")
    assert (done.returncode, done.stdout) == (0, f"seisbind {version('seisbind')}\n")


def test_top_k_says_whose_bound_it_is(served: Any, gallery_path: Path, weights: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "gather.npy", np.random.default_rng(0).standard_normal((5, 1000, 70)).astype(np.float32))
    asked = ("retrieve", tmp_path / "gather.npy")
    by_server = seisbind(*asked, "--url", served.url, "--top-k", 71)
    one_line(by_server, "invalid_query")
    assert "this server gives at most 70 matches (SEISBIND_MAX_TOP_K" in by_server.stderr
    by_gallery = seisbind(*asked, "--gallery", gallery_path, "--weights", weights, "--top-k", 1001)
    one_line(by_gallery, "invalid_query")
    assert "from 1 to 1000, the most that a gallery gives" in by_gallery.stderr
    said = " ".join(seisbind("retrieve", "--help").stdout.replace("│", " ").split())
    assert "1000 at most" in said and "SEISBIND_MAX_TOP_K" in said


@pytest.fixture
def listening() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield taken.getsockname()[1]


def test_serve_refuses_in_one_line(
    gallery_path: Path, weights: Path, other_weights: Path, tmp_path: Path, listening: int
) -> None:
    serve = ("serve", "--gallery", gallery_path, "--device", "cpu")
    one_line(alone(*serve, "--weights", weights, "--port", listening), "port_taken")
    one_line(alone(*serve, "--weights", other_weights, "--port", 0), "weights_mismatch")
    one_line(alone(*serve, "--weights", tmp_path / "none", "--port", 0), "weights_error")
    one_line(alone("serve", "--gallery", tmp_path, "--weights", weights, "--port", 0), "gallery_not_found")
    one_line(seisbind(*serve, "--weights", weights, "--port", 70_000), "invalid_config")
    one_line(seisbind(*serve, "--weights", weights, "--host", "256.1.1.1", "--port", 0), "service_error")


@contextlib.contextmanager
def process(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``seisbind serve`` and the address that it says."""
    command = [str(SCRIPT), "serve", "--port", "0", "--device", "cpu", *map(str, arguments)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    try:
        assert server.stdout is not None
        said = server.stdout.readline()
        assert " at http://127.0.0.1:" in said, server.communicate()
        yield server, said.split()[-1]
    finally:
        if server.poll() is None:
            server.kill()
        server.communicate()


def test_sigterm_under_load(gallery_path: Path, weights: Path, gathers: Float32) -> None:
    """Promise 24: what was admitted finishes whole, and the exit code is 0."""
    buffer = io.BytesIO()
    np.save(buffer, np.repeat(gathers, 4, axis=0))
    body = buffer.getvalue()

    async def load(url: str, stop: Callable[[], None]) -> list[httpx.Response | BaseException]:
        async with httpx.AsyncClient(base_url=url, timeout=60) as http:
            assert (await http.get("/readyz")).status_code == 200
            raw = {"Content-Type": "application/octet-stream"}
            calls = [asyncio.create_task(http.post("/v1/retrieve", content=body, headers=raw)) for _ in range(6)]
            await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            stop()
            return await asyncio.gather(*calls, return_exceptions=True)

    with process("--gallery", gallery_path, "--weights", weights) as (server, url):
        found = asyncio.run(load(url, server.terminate))
        _, stderr = server.communicate(timeout=30)
        assert server.returncode == 0, stderr
        assert "Traceback" not in stderr
    whole = [one for one in found if isinstance(one, httpx.Response)]
    assert len(whole) >= 5, found
    assert all(one.status_code == 200 and len(one.json()["results"]) == 12 for one in whole)


def test_interrupt_ends_quietly(gallery_path: Path, weights: Path) -> None:
    with process("--gallery", gallery_path, "--weights", weights) as (server, url):
        assert httpx.get(f"{url}/readyz", timeout=30).status_code == 200
        server.send_signal(signal.SIGINT)
        _, stderr = server.communicate(timeout=30)
    assert server.returncode == 0
    usual = ("seisbind.access", "embedded by", "is searched on")
    assert all(any(words in line for words in usual) for line in stderr.splitlines()), stderr


def test_retrieve_with_and_without_a_server(
    served: Any, gallery_path: Path, weights: Path, gathers: Float32, tmp_path: Path
) -> None:
    np.save(tmp_path / "gathers.npy", gathers[:2])
    np.savez(tmp_path / "one.npz", gathers=gathers[2])
    files = (tmp_path / "gathers.npy", tmp_path / "one.npz")
    remote = seisbind("retrieve", *files, "--url", served.url, "--top-k", 2, "--json")
    assert remote.returncode == 0, remote.stderr
    answers = json.loads(remote.stdout)
    with GalleryBackend(gallery_path, weights, "cpu", RetrieveOptions(top_k=2)) as here:
        for path in files:
            assert answers[str(path)]["results"] == here.file(path.read_bytes()).model_dump()["results"]
    table = seisbind("retrieve", files[1], "--gallery", gallery_path, "--weights", weights)
    assert table.returncode == 0, table.stderr
    assert "mean velocity" in table.stdout
    assert "similarity" in table.stdout


def test_retrieve_refuses_in_one_line(served: Any, tmp_path: Path, gathers: Float32) -> None:
    np.save(tmp_path / "gather.npy", gathers[0])
    (tmp_path / "text.npy").write_text("hello")
    one_line(seisbind("retrieve", tmp_path / "gather.npy"), "invalid_config")
    one_line(seisbind("retrieve", tmp_path / "none.npy", "--url", served.url), "dataset_error")
    one_line(seisbind("retrieve", tmp_path / "text.npy", "--url", served.url), "unsupported_format")
    one_line(seisbind("retrieve", tmp_path / "gather.npy", "--url", "http://127.0.0.1:9"), "server_unreachable")
    one_line(seisbind("retrieve", tmp_path / "gather.npy", "--url", "nonsense"), "server_unreachable")


def test_a_foreign_server_is_told(tmp_path: Path, gathers: Float32) -> None:
    """Something else answers there, with JSON of its own."""

    class Foreign(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"hello": "world"}')

        def log_message(self, *arguments: object) -> None:
            pass

    np.save(tmp_path / "gather.npy", gathers[0])
    with http.server.HTTPServer(("127.0.0.1", 0), Foreign) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}"
            one_line(seisbind("retrieve", tmp_path / "gather.npy", "--url", url), "service_error")
        finally:
            server.shutdown()
            thread.join()


def test_simulate_writes_pairs(tmp_path: Path) -> None:
    done = seisbind("simulate", tmp_path / "pairs", "--count", 1, "--family", "FlatVel-A", "--processes", 1)
    assert done.returncode == 0, done.stderr
    assert "1 pairs in 1 files" in done.stdout
    one_line(seisbind("simulate", tmp_path / "pairs", "--count", 1, "--family", "Volcano"), "invalid_config")


@pytest.mark.long
def test_demo_in_a_pipe(tmp_path: Path) -> None:
    began = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = alone("demo", "--count", 200, "--out", tmp_path / "out", "--port", port)
    assert done.returncode == 0, done.stderr
    assert f"Port {port} is taken" in done.stdout
    assert "True model at rank 1 for 4 of the 4 gathers" in done.stdout, done.stdout
    assert (tmp_path / "out" / "retrieval.png").stat().st_size > 50_000
    again = alone("demo", "--count", 200, "--out", tmp_path / "out", "--port", 0)
    assert "holds them already" in again.stdout, f"{again.stderr} after {time.monotonic() - began:.0f} s"


@pytest.mark.long
def test_demo_with_weights_of_any_kind(tmp_path: Path, weights: Path) -> None:
    """The whole path; untrained weights find nothing, and the demo says so."""
    done = alone("demo", "--count", 20, "--out", tmp_path / "out", "--port", 0, "--weights", weights)
    assert done.returncode == 0, done.stderr
    assert "of the 4 gathers whose model is in the gallery" in done.stdout
    assert (tmp_path / "out" / "retrieval.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "out" / "gathers").glob("*.json"))) == 6
    assert Embedder.load(weights).fingerprint in done.stdout


def test_demo_leaves_the_galleries_of_others_alone(gallery_path: Path, embedder: Embedder, tmp_path: Path) -> None:
    path = tmp_path / "gallery"
    shutil.copytree(gallery_path, path)
    velocity, family = mixed(20, 1)
    with pytest.raises(GalleryError, match=r"comes from 'tests'.*--out"):
        prepare_gallery(path, embedder, velocity, family, 1)
    with Gallery.open(path, fingerprint=embedder.fingerprint) as gallery:
        assert len(gallery) == 60

    prepare_gallery(tmp_path / "own", embedder, velocity, family, 1)
    velocity, family = mixed(30, 2)
    prepare_gallery(tmp_path / "own", embedder, velocity, family, 2)  # its own is replaced
    with Gallery.open(tmp_path / "own", fingerprint=embedder.fingerprint) as gallery:
        assert len(gallery) == 30

    (path / "records.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(GalleryDamaged):
        prepare_gallery(path, embedder, velocity, family, 2)
    assert (path / "records.sqlite").read_bytes().startswith(b"no database")


@contextlib.contextmanager
def staying(out: Path, weights: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """``seisbind demo --stay`` once it stays, and the process id of its server."""
    command = [str(SCRIPT), "demo", "--count", "20", "--port", "0", "--stay", "--out", str(out)]
    command += ["--weights", str(weights)]
    demo = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    try:
        assert demo.stdout is not None
        for line in demo.stdout:
            if "goes on at" in line:
                break
        children = Path(f"/proc/{demo.pid}/task/{demo.pid}/children").read_text().split()
        assert len(children) == 1, demo.communicate()
        yield demo, int(children[0])
    finally:
        if demo.poll() is None:
            demo.kill()
        demo.communicate()


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="asks Linux for the demo's server")
@pytest.mark.parametrize("whom", ["demo", "server"])
def test_demo_and_its_server_end_together(tmp_path: Path, weights: Path, whom: str) -> None:
    with staying(tmp_path / "out", weights) as (demo, server):
        os.kill(demo.pid if whom == "demo" else server, signal.SIGTERM)
        _, stderr = demo.communicate(timeout=40)
    assert not Path(f"/proc/{server}").exists()
    if whom == "demo":
        assert demo.returncode == 128 + signal.SIGTERM
        assert "Traceback" not in stderr
    else:
        assert demo.returncode == 1
        assert "The server ended with code" in stderr
