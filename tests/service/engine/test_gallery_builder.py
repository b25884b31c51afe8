"""A gallery that is built over another one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from seisbind.index import Gallery
from seisbind.model.encoders.embedder import Embedder
from seisbind.model.errors import DatasetError
from seisbind.service.engine.gallery_builder import Batch, build_gallery


def models(count: int, first: int) -> Batch:
    depth: NDArray[np.float32] = np.linspace(1500, 4000, 70, dtype=np.float32)[:, None].repeat(70, 1)
    return np.stack([depth + number for number in range(first, first + count)]), [None] * count


def test_a_build_that_fails_leaves_the_old_gallery(embedder: Embedder, tmp_path: Path) -> None:
    path = tmp_path / "g"

    def broken() -> Iterator[Batch]:
        yield models(2, 100)
        raise DatasetError("the third file is cut short")

    assert build_gallery(path, embedder, [models(3, 0)]) == 3
    with pytest.raises(DatasetError):
        build_gallery(path, embedder, broken(), overwrite=True)
    with Gallery.open(path, fingerprint=embedder.fingerprint) as opened:
        assert len(opened) == 3 and opened.verify().ok
    assert build_gallery(path, embedder, [models(2, 100)], overwrite=True) == 2
    with Gallery.open(path, fingerprint=embedder.fingerprint) as opened:
        assert len(opened) == 2 and opened.info().notes == ()
