"""A server in a process of its own, over a gallery of made-up ground, for the scripts here that ask one."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from seisbind.model.geology import mixed
from seisbind.model.inference import Embedder
from seisbind.service.building import build_gallery


@contextmanager
def served(models: int, **settings: object) -> Iterator[tuple[httpx.URL, int]]:
    """`serving` over a gallery of so many ``models``, with the weights that are shipped."""
    with tempfile.TemporaryDirectory() as folder:
        gallery = Path(folder) / "gallery"
        velocity, family = mixed(models, seed=0)
        build_gallery(gallery, Embedder.load(device="cpu"), [(velocity, family.tolist())], source="benchmark")
        with serving(gallery, **settings) as found:
            yield found


@contextmanager
def serving(gallery: Path, **settings: object) -> Iterator[tuple[httpx.URL, int]]:
    """``seisbind serve`` over ``gallery``; its address and its process.

    Args:
        settings: of the server, named as in `Settings`.
    """
    given = {"gallery": gallery, "port": 0} | settings
    with (
        tempfile.NamedTemporaryFile() as log,
        subprocess.Popen(
            [sys.executable, "-c", "from seisbind.service.cli import main; main()", "serve"],
            stdout=subprocess.PIPE,
            stderr=log,  # an access line a request, which nobody reads
            text=True,
            env=os.environ | {f"SEISBIND_{key.upper()}": str(value) for key, value in given.items()},
        ) as process,
    ):
        try:
            url = ""
            while not url and process.stdout is not None and (line := process.stdout.readline()):
                url = next((word.strip(".,") for word in line.split() if word.startswith("http://")), "")
            if not url:
                sys.exit(f"The server did not start: {Path(log.name).read_text(errors='replace')}")
            yield httpx.URL(url), process.pid
        finally:
            process.terminate()


def memory_bytes(pid: int, name: str = "VmRSS") -> int:
    """Memory of a process as Linux counts it: ``VmRSS`` now, ``VmHWM`` at most since `forget_peak`."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def forget_peak(pid: int) -> None:
    """Let ``VmHWM`` begin again at what is held now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
