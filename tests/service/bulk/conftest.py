"""Files of gathers of every kind, some of them unusable, and an engine that answers for them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from buckets import empty_bucket
from seisbind.service.bulk.backends import GalleryBackend, RetrieveOptions
from seisbind.service.bulk.gather_jobs import GatherJob, GatherWorker

Float32 = NDArray[np.float32]


@pytest.fixture
def odd_files(tmp_path: Path, gathers: Float32) -> Path:
    """Seven gathers, one of them with a NaN, two files that cannot be read, and one that is not asked about."""
    path = tmp_path / "line"
    path.mkdir()
    stack = np.concatenate([gathers, gathers[:1]])
    stack[1, 0, 0, 0] = np.nan
    np.save(path / "a.npy", stack)
    np.save(path / "b.npy", np.asfortranarray(gathers[:1]))
    np.savez(path / "c.npz", gathers=gathers[1:3, :, ::2], dt_s=0.002)
    (path / "d.npy").write_bytes((path / "a.npy").read_bytes()[:-1])
    (path / "e.sgy").write_text("hello")
    (path / "notes.txt").write_text("not asked about")
    return path


@pytest.fixture(scope="module")
def job(gallery_path: Path, weights: Path) -> GatherJob:
    return GatherJob("retrieve", str(gallery_path), weights, "cpu", options=RetrieveOptions(top_k=2))


@pytest.fixture(scope="module")
def worker(job: GatherJob) -> Iterator[GatherWorker]:
    one = job.open()
    yield one
    one.close()


@pytest.fixture(scope="module")
def backend(job: GatherJob) -> Iterator[GalleryBackend]:
    with GalleryBackend(str(job.gallery), job.weights, "cpu", job.options) as one:
        yield one


@pytest.fixture(scope="session")
def bucket() -> Iterator[str]:
    """URL of an empty bucket."""
    with empty_bucket("lines") as url:
        yield url
