"""Pictures that are kept: so many, and no more bytes than so many."""

from __future__ import annotations

from seisbind.service.runtime.images import CACHED, CACHED_BYTES, PictureCache


def key(number: int) -> tuple[str, str]:
    return str(number), "title"


def test_the_last_pictures_are_kept() -> None:
    cache = PictureCache(max_pictures=3)
    for number in range(4):
        cache.put(key(number), b"x")
        cache.get(key(1))  # wanted again and again
    assert [cache.get(key(number)) for number in range(4)] == [None, b"x", b"x", b"x"]


def test_pictures_have_no_more_bytes_than_allowed() -> None:
    cache = PictureCache(max_bytes=100)
    for number in range(5):
        cache.put(key(number), bytes(30))
    cache.put(key(4), bytes(40))  # in place of itself
    assert [cache.get(key(number)) is not None for number in range(5)] == [False, False, True, True, True]
    cache.put(key(9), bytes(101))  # alone too large: none is kept
    assert all(cache.get(key(number)) is None for number in (*range(5), 9))
    cache.put(key(0), bytes(100))
    assert cache.get(key(0)) is not None


def test_the_server_keeps_no_more_than_a_body_may_have() -> None:
    assert CACHED * 60_000 <= CACHED_BYTES
