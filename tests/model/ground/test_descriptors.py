import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seisbind.model.errors import InvalidVelocityModel
from seisbind.model.ground.descriptors import DESCRIPTORS, NAMES, check_velocity, describe


def two_layers(top: float, bottom: float, at: int) -> np.ndarray:
    v = np.full((70, 70), top, dtype=np.float32)
    v[at:] = bottom
    return v


def by_name(v: np.ndarray) -> dict[str, float]:
    return dict(zip(NAMES, describe(v)[0].tolist(), strict=True))


def test_two_layers_by_hand() -> None:
    d = by_name(two_layers(2000, 3000, 35))
    assert d["mean_velocity"] == 2500 and d["std_velocity"] == 500
    assert (d["min_velocity"], d["max_velocity"]) == (2000, 3000)
    assert d["mean_vertical_gradient"] == pytest.approx(1000 / 690)
    assert d["mean_abs_vertical_gradient"] == pytest.approx(1000 / 690)
    assert d["mean_abs_lateral_gradient"] == 0
    assert (d["shallow_velocity"], d["deep_velocity"]) == (2000, 3000)
    assert d["strongest_contrast"] == 1000 and d["strongest_contrast_depth"] == 350
    assert d["interface_share"] == pytest.approx(1 / 70)


def test_a_velocity_inversion_has_a_negative_gradient() -> None:
    d = by_name(two_layers(3000, 2000, 20))
    assert d["mean_vertical_gradient"] == pytest.approx(-1000 / 690)
    assert d["mean_abs_vertical_gradient"] == pytest.approx(1000 / 690)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.5, 1.5))
def test_laws(seed: int, factor: float) -> None:
    v = np.random.default_rng(seed).uniform(1500, 4500, (1, 30, 40)).astype(np.float32)
    d = describe(v)[0]
    mirrored = describe(v[:, :, ::-1])[0]
    np.testing.assert_allclose(mirrored, d, rtol=1e-4)
    scaled = describe(v * np.float32(factor))[0]
    for i, descriptor in enumerate(DESCRIPTORS):
        if descriptor.unit in ("m/s", "1/s"):
            assert scaled[i] == pytest.approx(factor * d[i], rel=1e-3)
    assert d[NAMES.index("min_velocity")] <= d[NAMES.index("mean_velocity")] <= d[NAMES.index("max_velocity")]
    assert 0 <= d[NAMES.index("interface_share")] <= 1


def test_a_stack_is_described_map_by_map(velocity: np.ndarray) -> None:
    np.testing.assert_array_equal(describe(velocity)[7], describe(velocity[7])[0])


def test_every_descriptor_formats_itself() -> None:
    texts = [d.format(1.23456) for d in DESCRIPTORS]
    assert texts[0] == "1 m/s" and texts[4] == "1.23 1/s" and texts[-1] == "1.235"
    assert all(d.definition and not d.definition.endswith(".") for d in DESCRIPTORS)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (np.full((70, 70), 2.5), "km/s"),
        (np.full((70, 70), np.inf), "infinite"),
        (np.full((70,), 2000.0), "shape"),
        (np.full((2, 2), 2000.0), "at least 4"),
        (np.full((70, 70), "2000"), "dtype"),
    ],
)
def test_unusable_models_are_refused_with_numbers(bad: np.ndarray, words: str) -> None:
    with pytest.raises(InvalidVelocityModel, match=words):
        check_velocity(bad)
