"""What tests of all packages look at."""

import pytest

from seisbind.model.frame import Frame


@pytest.fixture(scope="session")
def other_frame() -> Frame:
    """No number of it is OpenFWI's: a short, fine line of fewer shots over slower ground, deeper than wide."""
    return Frame(
        depth_cells=60,
        x_cells=48,
        cell_m=5.0,
        velocity_m_s=(1200.0, 3600.0),
        receivers=48,
        receiver_spacing_m=5.0,
        shot_x_m=(0.0, 115.0, 235.0),
        samples=300,
        dt_s=0.002,
        record_samples=1200,
        record_dt_s=0.0005,
        peak_hz=25.0,
        name="Short line",
    )
