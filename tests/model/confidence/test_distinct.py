"""Matches of different ground: any two differ, the first stays, and no more models are read than it takes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from seisbind.model.confidence.distinct import difference_m_s, distinct

Float32 = NDArray[np.float32]


def test_any_two_differ_and_all_that_were_left_out_are_like_a_better_one() -> None:
    generator = np.random.default_rng(0)
    ground = generator.uniform(1500, 4500, (5, 8, 8)).astype(np.float32)
    models = ground[generator.integers(5, size=40)] + generator.uniform(-20, 20, (40, 8, 8)).astype(np.float32)
    chosen = distinct(range(40), 50.0, 40, lambda part: models[list(part)])
    assert chosen[0] == 0 and chosen == sorted(chosen) and len(chosen) == 5
    assert all(difference_m_s(models[a], models[b]) > 50 for a, b in combinations(chosen, 2))
    for at in set(range(40)) - set(chosen):
        assert any(difference_m_s(models[at], models[better]) <= 50 for better in chosen if better < at)


def test_no_more_is_read_than_it_takes_and_the_limit_counts_as_the_same() -> None:
    models = np.array([0, 10, 20, 30, 40, 50, 60], np.float32)[:, None, None] * np.ones((1, 2, 2), np.float32)
    read: list[int] = []

    def maps(part: Sequence[int]) -> Float32:
        read.extend(part)
        return models[list(part)]

    assert distinct(range(7), 10.0, 2, maps) == [0, 2] and read == [0, 1, 2, 3]
    assert distinct(range(7), 0.0, 3, maps) == [0, 1, 2]
    assert distinct([0, 0, 0], 0.0, 3, maps) == [0]
    assert distinct([], 5.0, 3, maps) == []
