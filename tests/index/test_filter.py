"""What a filter accepts, and how it refuses the rest."""

from __future__ import annotations

import math
from typing import Any

import pytest

from seisbind.index import Filter
from seisbind.model.errors import InvalidQuery


def test_json_becomes_a_filter() -> None:
    parsed = Filter.parse({"family": ["FlatVel-A", "FlatVel-A"], "tag": "field", "mean_velocity": [2000, None]})
    assert parsed == Filter(("FlatVel-A",), ("field",), (("mean_velocity", (2000.0, math.inf)),))
    assert not Filter.parse({})


@pytest.mark.parametrize(
    ("conditions", "reason"),
    [
        ({"colour": ["red"]}, "no key 'colour'; known: family, tag, mean_velocity, std_velocity"),
        ({"family": 3}, "string or a list of strings"),
        ({"family": []}, "string or a list of strings"),
        ({"tag": ["a", None]}, "string or a list of strings"),
        ({"tag": [str(i) for i in range(501)]}, "at most 500"),
        ({"mean_velocity": 2000}, r"takes \[low, high\]"),
        ({"mean_velocity": [1, 2, 3]}, r"takes \[low, high\]"),
        ({"mean_velocity": ["a", 2]}, "two numbers"),
        ({"mean_velocity": [True, 2]}, "two numbers"),
        ({"mean_velocity": [math.nan, 2]}, "two numbers"),
        ({"mean_velocity": [10**400, 2]}, "two numbers"),
        ({"mean_velocity": [3000, 2000]}, "from 3000 to 2000"),
    ],
)
def test_what_it_cannot_read_it_names(conditions: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidQuery, match=reason):
        Filter.parse(conditions)


def test_a_filter_made_by_hand_is_checked_too() -> None:
    with pytest.raises(InvalidQuery, match="No descriptor is called 'row'"):
        Filter(ranges=(("row", (0.0, 1.0)),))
