"""A file is replaced whole or not at all, and a lock excludes."""

from __future__ import annotations

from pathlib import Path

import pytest

from seisbind.model.files import lock, replacing


def test_a_file_is_replaced_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with replacing(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


def test_a_block_that_raises_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), replacing(path, temporary=tmp_path / "a.partial") as temporary:
        temporary.write_bytes(b"ne")
        raise ZeroDivisionError
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_an_exclusive_lock_waits_for_shared_ones_and_gives_up(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with path.open("w") as first, path.open() as second:
        lock(first.fileno(), shared=True)
        lock(second.fileno(), shared=True)
        with path.open() as third, pytest.raises(BlockingIOError):
            lock(third.fileno(), patience_s=0.03)
