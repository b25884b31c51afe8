"""The scales that a record allows, and what limits them."""

from __future__ import annotations

import pytest

from seisbind.model.frame import OPENFWI_FRAME, Frame
from seisbind.model.inspection.scale_range import scale_range

RECORD = {"aperture_m": 2070.0, "length_m": 2070.0, "gap_m": 30.0, "record_s": 3.0, "dt_s": 0.003}


def test_the_frames_own_line_allows_scale_1(other_frame: Frame) -> None:
    for frame in (OPENFWI_FRAME, other_frame):
        found = scale_range(
            frame, aperture_m=frame.line_m, length_m=frame.line_m, gap_m=frame.receiver_spacing_m,
            record_s=frame.duration_s, dt_s=frame.record_dt_s, band_hz=(frame.peak_hz / 5, frame.peak_hz * 2),
        )  # fmt: skip
        assert found.fits and found.lowest.s <= 1 <= found.highest.s
        middle = next(each for each in found.windows if each.s == 1)
        assert (middle.line_m, middle.count, middle.peak_hz) == (frame.line_m, 1, frame.peak_hz)
        assert middle.depth_m == frame.depth_cells * frame.cell_m


@pytest.mark.parametrize(
    ("changes", "highest", "because"),
    [
        ({}, 5.0, "the record lasts 3 s"),
        ({"record_s": 30.0}, 2070 / 340, "span 2070 m, and 340 m x s"),
        ({"band_hz": (5.0, 60.0)}, 3.0, "no signal under 5 Hz"),
        ({"dt_s": 0.0001}, 1.0, "at least 0.1 ms x s"),
    ],
)
def test_what_limits_from_above(changes: dict[str, float], highest: float, because: str) -> None:
    found = scale_range(OPENFWI_FRAME, **({"band_hz": (0.5, 200.0)} | RECORD | changes))  # type: ignore[arg-type]
    assert found.highest.s == pytest.approx(highest) and because in found.highest.because


@pytest.mark.parametrize(
    ("changes", "lowest", "because"),
    [
        ({}, 1.0, "30 m apart"),
        ({"gap_m": 1.0}, 0.375, "at most 8 ms x s"),
        ({"gap_m": 1.0, "band_hz": (0.5, 10.0)}, 1.5, "no signal above 10 Hz"),
        ({"gap_m": 0.0, "dt_s": 1e-6}, 0.075, "no signal above 200 Hz"),
    ],
)
def test_what_limits_from_below(changes: dict[str, float], lowest: float, because: str) -> None:
    found = scale_range(OPENFWI_FRAME, **({"band_hz": (0.5, 200.0)} | RECORD | changes))  # type: ignore[arg-type]
    assert found.lowest.s == pytest.approx(lowest) and because in found.lowest.because


def test_where_none_fits_and_where_k_helps() -> None:
    """The wavelet that the weights know lies over the band at every scale that the record's length allows."""
    found = scale_range(OPENFWI_FRAME, **RECORD, band_hz=(0.5, 2.0))
    assert not found.fits and found.windows == () and found.lowest.s == 7.5
    slower = scale_range(OPENFWI_FRAME, **(RECORD | {"record_s": 6.0}), band_hz=(0.5, 2.0), k=0.6)
    assert slower.fits and slower.lowest.s == pytest.approx(4.5) and slower.highest.s == pytest.approx(6.0)


def test_scaling_a_record_scales_its_range() -> None:
    one = scale_range(OPENFWI_FRAME, **RECORD, band_hz=(4.0, 60.0))
    bigger = {name: 2 * value for name, value in RECORD.items()}
    other = scale_range(OPENFWI_FRAME, **bigger, band_hz=(2.0, 30.0))
    assert other.lowest.s == pytest.approx(2 * one.lowest.s) and other.highest.s == pytest.approx(2 * one.highest.s)


def test_windows_cover_the_line() -> None:
    found = scale_range(OPENFWI_FRAME, **(RECORD | {"length_m": 10_000.0}), band_hz=(4.0, 60.0))
    for each in found.windows:
        reached = each.line_m + (each.count - 1) * each.line_m / 2
        assert reached >= 10_000 - 1e-6 > reached - each.line_m / 2
