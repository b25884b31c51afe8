"""What a filter accepts, and how it refuses the rest."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seisbind.index import Filter
from seisbind.index.search.columns import Columns
from seisbind.index.search.filter import ALWAYS
from seisbind.index.storage.record import CHECKSUM, Record, RecordColumns, milliseconds, objects
from seisbind.model.errors import InvalidQuery
from seisbind.model.ground.descriptors import NAMES
from seisbind.model.scale import UNSCALED, Scale


def test_json_becomes_a_filter() -> None:
    parsed = Filter.parse({"family": ["FlatVel-A", "FlatVel-A"], "tag": "field", "mean_velocity": [2000, None]})
    assert parsed == Filter(("FlatVel-A",), ("field",), (("mean_velocity", (2000.0, math.inf)),))
    assert not Filter.parse({})


@pytest.mark.parametrize(
    ("conditions", "reason"),
    [
        ({"colour": ["red"]}, "no key 'colour'; known: family, tag, tag_any, tag_prefix, source"),
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
        (
            {"any": [{"family": "a"}, {"not": {"mean_velocity": 3}}]},
            r"'any\[1\].not.mean_velocity' takes \[low, high\]",
        ),
        ({"not": {"colour": 1}}, "no key 'not.colour'"),
        ({"not": {}}, "'not' has no condition"),
        ({"not": [{"family": "a"}]}, "'not' takes an object"),
        ({"any": []}, "'any' takes a list of filters"),
        ({"any": {"family": "a"}}, "'any' takes a list of filters"),
        ({"all": ["a"]}, r"'all\[0\]' takes an object"),
        ({"any": [{"family": "a"}] * 64}, "at most 64 filters"),
        ({"added": "2026-01-01"}, r"takes \[from, to\]"),
        ({"added": ["2026-13-01", None]}, "takes dates or times"),
        ({"added": ["٢٠٢٦-01-01", None]}, "takes dates or times"),
        ({"added": [20260101, None]}, "takes dates or times"),
        ({"added": [None, "9999-12-31T23:59:59-05:00"]}, "takes dates or times"),
        ({"added": ["0001-01-01T00:00:00+05:00", None]}, "takes dates or times"),
        ({"any": [{"not": {"mean_velocity": [3, 2]}}]}, r"The range of any\[0\].not.mean_velocity runs from 3 to 2"),
        ({"not": {"tag_any": ["a"] * 501}}, "501 values for 'not.tag_any'"),
        ({"added": ["2026-02-01", "2026-01-01"]}, "ends before it begins"),
        ({"model_id": {"a": 1}}, "string or a list of strings"),
    ],
)
def test_what_it_cannot_read_it_names(conditions: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidQuery, match=reason):
        Filter.parse(conditions)


def test_a_filter_made_by_hand_is_checked_too() -> None:
    with pytest.raises(InvalidQuery, match="No descriptor is called 'row'"):
        Filter(ranges=(("row", (0.0, 1.0)),))


def nested(depth: int) -> dict[str, Any]:
    inner: dict[str, Any] = {"family": "a"}
    for _ in range(depth):
        inner = {"not": inner}
    return inner


def test_filters_within_filters_are_few() -> None:
    assert Filter.parse(nested(8))
    for depth in (9, 5_000):
        with pytest.raises(InvalidQuery, match="8 within each other"):
            Filter.parse(nested(depth))


def test_days_are_whole_and_times_are_utc() -> None:
    day = Filter.parse({"added": ["2026-01-31", "2026-01-31"]}).added
    assert day is not None and day[1] - day[0] == 86_400_000 - 1
    assert Filter.parse({"added": ["2026-01-31T00:00:00", None]}).added == (day[0], ALWAYS[1])
    assert Filter.parse({"added": ["2026-01-31T02:00:00+02:00", None]}).added == (day[0], ALWAYS[1])


FAMILIES, TAGS, SOURCES = ("a", "b", None), ("x", "xy", "z"), ("line 1", "line 2", "elsewhere", None)
START = datetime(2026, 1, 1, tzinfo=UTC)
names = st.lists(st.sampled_from(["a", "b", "x", "xy", "z", "line 1", "elsewhere", "none"]), min_size=1, max_size=2)
moments = st.one_of(st.none(), st.integers(0, 40).map(lambda hours: (START + timedelta(hours=hours)).isoformat()))
ends = st.one_of(st.none(), st.floats(1500, 4500, width=32))


def ordered(pair: tuple[Any, Any]) -> list[Any]:
    known = sorted(each for each in pair if each is not None)
    return known if len(known) == 2 else list(pair)


simple = st.fixed_dictionaries(
    {},
    optional={
        "family": names,
        "tag": names,
        "tag_any": names,
        "tag_prefix": names,
        "source": names,
        "source_prefix": st.sampled_from(["line", "else", "q"]),
        "added": st.tuples(moments, moments).map(ordered),
        "model_id": st.lists(st.sampled_from(["m0", "m7", "m11", "nobody"]), min_size=1, max_size=3),
        NAMES[0]: st.tuples(ends, ends).map(ordered),
        NAMES[4]: st.tuples(ends, ends).map(ordered),
    },
).filter(bool)
filters = st.recursive(
    simple,
    lambda inner: st.one_of(
        st.fixed_dictionaries({"not": inner}),
        st.fixed_dictionaries({"any": st.lists(inner, min_size=1, max_size=3)}),
        st.fixed_dictionaries({"all": st.lists(inner, min_size=1, max_size=2)}),
    ),
    max_leaves=5,
)


def recorded(number: int, rng: np.random.Generator) -> Record:
    tags = tuple(tag for tag in TAGS if rng.random() < 0.4)
    descriptors = rng.uniform(1500, 4500, len(NAMES)).astype(np.float32)
    added_at = (START + timedelta(hours=number)).isoformat(timespec="milliseconds")
    family, source = FAMILIES[number % 3], SOURCES[number % 4]
    return Record(f"m{number}", family, tags, source, added_at, descriptors, (70, 70), f"{number:064x}")


RECORDS = [recorded(number, np.random.default_rng(number)) for number in range(40)]


def held() -> Columns:
    checksums = np.frombuffer(b"".join(bytes.fromhex(each.checksum) for each in RECORDS), CHECKSUM)
    more = RecordColumns(
        np.arange(1, 41),
        objects([each.model_id for each in RECORDS]),
        checksums,
        [each.family for each in RECORDS],
        [each.tags for each in RECORDS],
        np.stack([each.descriptors for each in RECORDS]),
        [each.source for each in RECORDS],
        np.array([milliseconds(each.added_at) for each in RECORDS]),
    )
    return Columns.empty().extended(more)


COLUMNS = held()


@settings(max_examples=300, deadline=None)
@given(filters)
def test_columns_and_records_agree_on_every_filter(conditions: dict[str, Any]) -> None:
    condition = Filter.parse(conditions)
    expected = [condition.matches(record) for record in RECORDS]
    assert COLUMNS.matching(condition).tolist() == expected
    assert Filter.parse(condition.conditions()) == condition
    kept = COLUMNS.select(np.arange(0, 40, 3))  # with labels of its own
    assert kept.matching(condition).tolist() == expected[::3]


def test_scaled_filters_scale_within() -> None:
    condition = Filter.parse({"any": [{NAMES[0]: [2000, None]}], "not": {NAMES[0]: [4000, None]}})
    scaled = condition.in_frame(Scale(2.0, 0.5))
    assert scaled.any_of[0].ranges == ((NAMES[0], (4000.0, math.inf)),)
    assert scaled.excluded is not None and scaled.excluded.ranges == ((NAMES[0], (8000.0, math.inf)),)
    assert scaled != condition and condition.in_frame(UNSCALED) is condition
