"""The interval of a refined model follows what is left of the record."""

from __future__ import annotations

import numpy as np

from seisbind.model.inversion.interval import GROUPS, WIDENED, Remaining, group, half_width_m_s


def test_what_explains_less_of_a_record_has_wider_intervals() -> None:
    deviation = np.linspace(5.0, 80.0, 12).reshape(3, 4)
    misfits = [0.9 * GROUPS[0], *(1.1 * end for end in GROUPS)]
    widths = [half_width_m_s(Remaining(deviation, misfit, np.ones((3, 4)))) for misfit in misfits]
    assert [group(misfit) for misfit in misfits] == list(range(len(GROUPS) + 1))
    assert sorted(WIDENED) == list(WIDENED) and len(WIDENED) == len(GROUPS) + 1
    for factor, width in zip(WIDENED, widths, strict=True):
        np.testing.assert_allclose(width, factor * deviation)
