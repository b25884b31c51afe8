"""Broad ground: what each kind is made of, at any width and resolution."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from seisbind.model.errors import InvalidConfig
from seisbind.model.frame import OPENFWI_FRAME
from seisbind.model.ground import geology, history
from seisbind.model.ground.families import BROAD_FAMILIES, draw_wide, generate
from seisbind.model.ground.geology import MAKERS, WATER_M_S, draw_section
from seisbind.model.ground.history import ABOVE, BELOW, STEP, Points, Strata
from seisbind.model.ground.layers import GRID


@pytest.mark.parametrize("kind", MAKERS)
def test_sections_are_velocities_that_the_generator_decides(kind: str) -> None:
    sections = [draw_section(np.random.default_rng(seed), kind, 150) for seed in (1, 1, 2)]
    assert all(s.shape == (70, 150) and np.isfinite(s).all() for s in sections)
    assert all(s.min() >= 1500 and s.max() <= 4500 for s in sections)
    assert (sections[0] == sections[1]).all() and not (sections[0] == sections[2]).all()


@pytest.mark.parametrize("kind", MAKERS)
def test_the_kinds_are_broad(kind: str) -> None:
    """Neither one mean velocity nor one look: means spread, and ground changes along depth and along x."""
    sections = np.stack([draw_section(np.random.default_rng(seed), kind, 70) for seed in range(40)])
    means = sections.mean(axis=(1, 2))
    assert means.std() > 200 and np.ptp(means) > 1000
    assert (sections.std(axis=1).mean(axis=1) > 30).mean() > 0.9
    assert (sections.std(axis=2).mean(axis=1) > 5).mean() > 0.5


def test_a_sea_where_it_is_asked_for() -> None:
    for seed in range(20):
        section = draw_section(np.random.default_rng(seed), "Strata", 90, water=(0.1, 0.3))
        depth = (section == WATER_M_S).argmin(axis=0)  # of the first cell that is no water
        assert depth.min() >= 6 and depth.max() < 32


def test_salt_is_fast_and_may_hang_over_sediments() -> None:
    hanging = 0
    for seed in range(60):
        section = draw_section(np.random.default_rng(seed), "Diapir", 100)
        salt = section > 4150
        if salt.any():
            below = np.array([column[column.argmax() :].all() for column in salt.T if column.any()])
            hanging += not below.all()
    assert hanging > 20


def test_a_fault_moves_one_side_and_a_thrust_brings_deep_rock_up() -> None:
    rng = np.random.default_rng(3)
    z, x = np.meshgrid(np.arange(70.0), np.arange(200.0), indexing="ij")
    moved = history.faults(rng, Points(z, x), 1, 8.0)
    assert len(np.unique(np.round(moved.z - z, 6))) == 2 and (moved.x == x).all()
    thrust = history.thrusts(rng, Points(z, x), 1, 14.0)
    assert (thrust.z >= z).all() and (thrust.z > z + 2).any() and (thrust.x != x).any()


def test_strata_are_hundreds_and_as_thick_as_drawn() -> None:
    thin = history.draw_strata(np.random.default_rng(5), thinnest=0.7)
    counts = [int((np.diff(history.draw_strata(np.random.default_rng(s)).departure) != 0).sum()) for s in range(40)]
    assert max(counts) > 200 and min(counts) < 40
    assert thin.velocity(np.array([10.0]), np.array([10.0])).shape == (1,)


def test_thick_layers_are_few_and_beds_repeat_a_few_rocks() -> None:
    for seed in range(20):
        thick = geology._thick_layers(np.random.default_rng(seed)).departure
        assert (np.diff(thick) != 0).sum() >= 2 and len(thick) == round((ABOVE + BELOW) / STEP)
        at = np.flatnonzero(np.diff(thick)) * STEP
        assert np.diff(at).mean() > GRID / 12 / 2  # twelve layers in the depth of a frame at most
    pillow, lift = geology._pillow(np.random.default_rng(1), Points(*np.mgrid[:70.0, :90.0]))
    assert (np.diff(pillow.astype(int), axis=0) >= 0).all() and pillow.any() and (lift >= 0).all()
    rng = np.random.default_rng(2)
    beds = geology._beds(rng, Points(*np.mgrid[:280, :20] / 4.0))
    jumps = np.abs(np.diff(beds[:, 0]))
    assert (jumps > 100).sum() > 5  # sharp between one rock and another

    drawn: list[Strata] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(geology, "lay", lambda rng, points, strata, warp: drawn.append(strata))
        for seed in range(20):
            geology._beds(np.random.default_rng(seed), Points(*np.mgrid[:70.0, :20.0]))
    for strata in drawn:
        beds = strata.departure[np.r_[True, np.diff(strata.departure) != 0]]
        gaps = np.diff(np.sort(beds))
        assert len(beds) > 20 and (gaps > 100).sum() <= 3  # four heaps at most, about each rock


def test_other_frames_are_filled_at_their_own_cells() -> None:
    wide = replace(OPENFWI_FRAME, depth_cells=24, x_cells=48, velocity_m_s=(500.0, 1500.0))
    for name in BROAD_FAMILIES:
        models = generate(name, 3, np.random.default_rng(0), frame=wide)
        assert models.shape == (3, 24, 48) and models.dtype == np.float32
        assert models.min() >= 500 and models.max() <= 1500
    beside = draw_wide("Thrust", 2, np.random.default_rng(0), beside=6, frame=wide)
    assert beside.shape == (2, 24, 60)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="No kind of ground 'Granite'; the kinds are Strata, Thrust"):
        draw_section(np.random.default_rng(0), "Granite", 70)
