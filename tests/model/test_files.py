"""A file is replaced whole or not at all, and a lock excludes."""

from __future__ import annotations

from pathlib import Path

import pytest

from seisbind.model.files import AppendedLines, lock, replacing


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


def test_appended_lines_go_on_after_the_last_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"one\ntwo\nthr")
    lines = AppendedLines(path)
    with pytest.raises(BlockingIOError):
        AppendedLines(path)
    assert list(lines.whole()) == [b"one\n", b"two\n"] and path.read_bytes().endswith(b"thr")
    assert lines.begin()
    lines.append(b"three\n")
    lines.close()
    assert path.read_bytes() == b"one\ntwo\nthree\n"
    again = AppendedLines(path)
    next(again.whole())  # what was not read is not known to be sound
    assert again.begin() and path.read_bytes() == b"one\n"
    again.close()
    new = AppendedLines(tmp_path / "new")
    assert not new.begin()
    new.close()
