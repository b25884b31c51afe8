"""Sections: windows joined cell by cell, in true units, the same however the line is moved, scaled or split."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from seisbind.index import Gallery
from seisbind.model.confidence.novelty import measure
from seisbind.model.encoders.embedder import Embedder
from seisbind.model.errors import InvalidConfig, InvalidGather, InvalidSurvey
from seisbind.model.frame import OPENFWI_FRAME, Frame, Survey
from seisbind.model.ground.families import generate
from seisbind.model.scale import UNSCALED, Scale
from seisbind.model.survey.preparation import Prepared
from seisbind.model.survey.windows import WindowGather
from seisbind.model.waves.wavefield import simulate
from seisbind.service.engine.answers import WindowAnswer, WindowRefinement
from seisbind.service.engine.engine import Engine
from seisbind.service.engine.gallery_builder import build_gallery
from seisbind.service.engine.query import Query
from seisbind.service.engine.refine import window_refiner
from seisbind.service.engine.section import (
    Section,
    SectionPlan,
    WindowReading,
    join_section,
    make_section,
    plan_section,
    section_blocks,
)
from seisbind.service.engine.section_file import PartialSection, save_section, section_npz
from seisbind.service.formats.line_file import LineTraces, joined, read_line
from seisbind.service.formats.npy import npz
from seisbind.service.formats.segy import read_segy
from seisbind.service.formats.segy_samples import decode

Float64 = NDArray[np.float64]


def traces_of(source: Float64, receiver: Float64) -> NDArray[np.float32]:
    """``(trace, 250)`` at 4 ms: a direct wave, and a reflection that depends on the midpoint."""
    time_s = np.arange(250) * 0.004
    offset, middle = np.abs(receiver - source), (receiver + source) / 2
    arrivals = 0.1 + offset / 2000, np.hypot(0.3 + 0.08 * np.sin(middle / 250), offset / 2500)
    waves = [np.square(np.pi * 14 * (time_s - arrival[:, None])) for arrival in arrivals]
    return np.asarray(sum((1 - 2 * a2) * np.exp(-a2) for a2 in waves), dtype=np.float32)


def towed(length_m: float = 2500.0) -> tuple[Float64, Float64]:
    source = np.repeat(np.arange(0, length_m, 20.0), 72)
    return source, source - 50 - np.tile(np.arange(72) * 10.0, round(length_m / 20))


def line(source: Float64, receiver: Float64, *, scale: Scale = UNSCALED, by_m: float = 0.0) -> LineTraces:
    """The line at a scale, its traces those of the line itself."""
    return read_line(
        npz(
            {
                "traces": traces_of(source, receiver),
                "source_x_m": source * scale.s + by_m,
                "receiver_x_m": receiver * scale.s + by_m,
                "dt_s": 0.004 * scale.time,
            }
        )
    )


def section_of(engine: Engine, traces: LineTraces, scale: Scale = UNSCALED, step_m: float | None = None) -> Section:
    return make_section(engine, plan_section(traces, frame=engine.frame, scale=scale, step_m=step_m))


@pytest.fixture(scope="module")
def found(engine: Engine) -> Section:
    return section_of(engine, line(*towed()))


def same(one: Section, other: Section, *, factor: float = 1.0) -> None:
    for name in ("velocity", "disagreement"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name) * factor, rtol=1e-3, atol=0.5)
    np.testing.assert_allclose(one.weight, other.weight, atol=1e-5)


def test_a_section_covers_the_line_and_says_what_it_is_made_of(found: Section) -> None:
    assert found.velocity.shape == (70, len(found.x_m)) and found.velocity.dtype == np.float32
    np.testing.assert_allclose(np.diff(found.x_m), 10)
    assert found.depth_m[0] == 0 and found.cell_m == 10
    known = [window for window in found.windows if window.lack is None]
    assert len(known) >= 6 and len(found.windows) > len(known), "none before the first shot"
    for window in known:
        assert window.shots in (2, 3, 4, 5) and 0.25 <= window.live <= 1
        assert window.model_id is not None and window.similarity is not None
        assert window.physics is not None and window.physics["mean_velocity"].unit == "m/s"
    assert np.isfinite(found.velocity[:, found.weight > 0]).all()
    assert np.isnan(found.velocity[:, found.weight == 0]).all()
    overlap = np.isfinite(found.disagreement[0])
    assert overlap.mean() > 0.5 and (found.disagreement[:, overlap] >= 0).all()


def test_a_moved_line_has_the_same_section(engine: Engine, found: Section) -> None:
    moved = section_of(engine, line(*towed(), by_m=54_321.5))
    np.testing.assert_allclose(moved.x_m, found.x_m + 54_321.5, atol=1e-6)
    same(moved, found)
    assert [window.model_id for window in moved.windows] == [window.model_id for window in found.windows]


@pytest.mark.parametrize("scale", [Scale(3.0), Scale(0.1, 0.4), Scale(10.0, 1.2)])
def test_a_scaled_line_has_the_scaled_section(engine: Engine, scale: Scale) -> None:
    """Against the line at its own size, whose wavelet is suited to the weights, too."""
    found = make_section(engine, replace(plan_section(line(*towed()), frame=engine.frame), shape=True))
    scaled = section_of(engine, line(*towed(), scale=scale), scale)
    np.testing.assert_allclose(scaled.x_m, found.x_m * scale.s, atol=1e-6 * scale.s)
    np.testing.assert_allclose(scaled.depth_m, found.depth_m * scale.s)
    same(scaled, found, factor=scale.k)
    for one, other in zip(scaled.windows, found.windows, strict=True):
        assert (one.model_id, one.shots) == (other.model_id, other.shots)
        if one.physics is not None and other.physics is not None:
            for name, unit in (("mean_velocity", "m/s"), ("strongest_contrast_depth", "m"), ("interface_share", "")):
                expected = other.physics[name].value * scale.of(unit)
                assert one.physics[name].value == pytest.approx(expected, rel=2e-3, abs=1e-3)


@pytest.mark.parametrize("mirrored", [True, False])
def test_a_mirrored_line_has_the_mirrored_section(engine: Engine, mirrored: bool) -> None:
    """With a reading that knows no left and right: how strong each receiver's traces are. Weights are not so exact.

    Vacuity: the ground has no symmetry, so that the section of the line that is not mirrored differs.
    """
    nodes, shots = np.arange(0, 1611, 10.0), np.arange(0, 1611, 30.0)
    source, receiver = (part.ravel() for part in np.meshgrid(shots, nodes, indexing="ij"))
    near = np.abs(source - receiver) <= 700
    source, receiver = source[near], receiver[near]
    louder = (0.5 + (source + receiver) / 3200)[:, None]

    def read(source_m: Float64, receiver_m: Float64) -> Section:
        traces = traces_of(source, receiver) * louder
        file = npz({"traces": traces, "source_x_m": source_m, "receiver_x_m": receiver_m, "dt_s": 0.004})
        plan = plan_section(read_line(file), frame=engine.frame, step_m=230)
        readings = []
        for gather, query in plan.read(range(len(plan))):
            assert query is not None and gather.prepared is not None
            strength = np.abs(gather.prepared.traces[0]).mean(axis=(0, 1))
            place = WindowAnswer((gather.start_m, gather.start_m + 690), 5, 1.0)
            readings.append(WindowReading(place, gather.start_m, gather.lit, np.tile(strength, (70, 1))))
        return join_section(engine, plan, readings)

    one, other = read(source, receiver), read(1610 - source, 1610 - receiver)
    turn = slice(None, None, -1 if mirrored else 1)
    off = np.abs(other.velocity[:, turn] / one.velocity - 1)[:, 10:-10].max()
    assert (off < 0.03) == mirrored
    np.testing.assert_allclose(1610 - other.x_m[::-1], one.x_m)
    np.testing.assert_allclose(other.weight[::-1], one.weight, atol=1e-6)


def test_a_line_in_two_files_is_one_section(engine: Engine, found: Section) -> None:
    source, receiver = towed()
    at = 72 * 61  # in the middle of a shot's turn
    parts = [line(source[:at], receiver[:at]), line(source[at:], receiver[at:])]
    for files in (parts, parts[::-1]):
        same(section_of(engine, joined(files)), found)
    other = read_line(npz({"traces": traces_of(*towed(100)), "source_x_m": towed(100)[0],
                           "receiver_x_m": towed(100)[1], "dt_s": 0.002}))  # fmt: skip
    with pytest.raises(InvalidSurvey, match="sampling intervals of 2 to 4 ms"):
        joined([parts[0], other])


def test_where_nothing_was_recorded_there_is_no_number(engine: Engine) -> None:
    source, receiver = (np.concatenate([x, x + 5000]) for x in towed(1400))
    gap = section_of(engine, line(source, receiver))
    unknown = np.isnan(gap.velocity).all(axis=0)
    assert unknown.any() and not unknown.all()
    assert ((gap.x_m[unknown] > 1380) & (gap.x_m[unknown] < 5000)).all()
    np.testing.assert_array_equal(unknown, np.isnan(gap.velocity).any(axis=0))
    np.testing.assert_array_equal(unknown, gap.weight == 0)


def plan_of(readings: list[WindowReading], scale: Scale = UNSCALED) -> SectionPlan:
    plan = plan_section(line(*towed(1400)), frame=OPENFWI_FRAME)
    return replace(plan, scale=scale, starts_m=np.array([each.start_m for each in readings]))


def reading(start_m: float, value: NDArray[np.floating], half: float | None = None, lit: int = 5) -> WindowReading:
    value = np.broadcast_to(np.asarray(value, dtype=np.float32), (70, 70))
    low, high = (None, None) if half is None else (value - half, value + half)
    answer = WindowAnswer((start_m, start_m + 690), 5, 1.0)
    return WindowReading(answer, start_m, np.full(70, lit), value, low, high)


def test_windows_that_agree_are_joined_without_a_seam(engine: Engine) -> None:
    starts = [0.0, 345.0, 693.7, 1030.0]
    ground = [2000 + (start + 10 * np.arange(70)) / 2 for start in starts]
    readings = [reading(start, value, 150.0) for start, value in zip(starts, ground, strict=True)]
    found = join_section(engine, plan_of(readings), readings)
    np.testing.assert_allclose(found.velocity[0], 2000 + found.x_m / 2, atol=0.01)
    assert found.low is not None and found.high is not None
    np.testing.assert_allclose(found.high - found.low, 300, atol=0.1)
    assert np.nanmax(found.disagreement) < 0.01


def test_windows_that_disagree_widen_the_interval(engine: Engine) -> None:
    readings = [reading(0, np.float32(2000), 100.0), reading(345, np.float32(2400), 100.0)]
    found = join_section(engine, plan_of(readings, Scale(2.0, 1.5)), readings)
    middle = found.velocity.shape[1] // 2
    assert found.velocity[0, 0] == pytest.approx(3000) and found.velocity[0, -1] == pytest.approx(3600)
    assert found.velocity[0, middle] == pytest.approx(3300, abs=20)
    assert found.disagreement[0, middle] == pytest.approx(300, abs=5)
    assert np.isnan(found.disagreement[0, 0])
    assert found.low is not None and found.high is not None
    assert found.high[0, middle] - found.low[0, middle] == pytest.approx(2 * np.hypot(150, 1.645 * 300), rel=0.02)
    assert found.high[0, 0] - found.low[0, 0] == pytest.approx(300)
    less = [readings[0], replace(readings[1], lit=np.full(70, 1))]
    assert join_section(engine, plan_of(less), less).velocity[0, middle] < 2100, "a window of one shot weighs less"


def test_intervals_are_given_where_weights_state_them(engine: Engine, found: Section) -> None:
    readings = [reading(0, np.float32(2000)), reading(345, np.float32(2400))]
    assert join_section(engine, plan_of(readings), readings).low is None
    assert (found.low is None) == (found.high is None)


def test_what_cannot_be_a_section_is_refused_with_numbers(engine: Engine) -> None:
    source, receiver = towed(1400)
    for step in (10.0, 700.0, float("nan")):
        with pytest.raises(InvalidSurvey, match=r"a step lies between 34\.5 m and 690 m"):
            plan_section(line(source, receiver), frame=engine.frame, step_m=step)
    with pytest.raises(InvalidGather, match=r"The record ends 1\.000 s after the shot; at least 1\.2 s .* s = 2"):
        plan_section(line(source, receiver), frame=engine.frame, scale=Scale(2.0))
    sparse = line(source[::9], receiver[::9])
    with pytest.raises(InvalidGather, match=r"None of .* windows of 690 m has enough traces"):
        section_of(engine, sparse)


def unpacked(file: bytes) -> dict[str, NDArray[np.generic]]:
    with np.load(io.BytesIO(file), allow_pickle=False) as arrays:
        return dict(arrays)


def test_a_section_is_saved_as_npz_segy_and_png(found: Section, tmp_path: Path) -> None:
    save_section(found, tmp_path / "line.npz")
    arrays = unpacked((tmp_path / "line.npz").read_bytes())
    np.testing.assert_array_equal(arrays["velocity"], found.velocity)
    np.testing.assert_array_equal(arrays["x_m"], found.x_m)
    about = json.loads(arrays["about"].tobytes())
    assert len(about["windows"]) == len(found.windows) and about["scale"] == {"s": 1.0, "k": 1.0}
    save_section(found, tmp_path / "line.sgy")
    file = read_segy((tmp_path / "line.sgy").read_bytes())
    np.testing.assert_array_equal(decode(file.words, file.coding).T, np.nan_to_num(found.velocity))
    np.testing.assert_allclose(file.headers["source_x"] / 100, found.x_m, atol=0.006)
    save_section(found, tmp_path / "line.png")
    assert (tmp_path / "line.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InvalidConfig, match=r"ends with '\.txt'"):
        save_section(found, tmp_path / "line.txt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["line.npz", "line.png", "line.sgy"]


def counted(plan: SectionPlan, read: list[int]) -> SectionPlan:
    def counting(numbers: NDArray[np.intp], samples: int) -> NDArray[np.float32]:
        read.append(len(numbers))
        return plan.line.read(numbers, samples)

    return replace(plan, line=replace(plan.line, read=counting))


@pytest.mark.parametrize("cut", [0, 1, 5000])
def test_an_interrupted_section_goes_on_and_is_the_same(engine: Engine, tmp_path: Path, cut: int) -> None:
    plan = plan_section(line(*towed()), frame=engine.frame, step_m=60)
    assert len(plan.blocks()) >= 3
    whole = unpacked(section_npz(make_section(engine, plan)))
    out = tmp_path / "line.npz"
    with PartialSection(out, engine, plan) as partial:
        for number, readings in section_blocks(engine, plan):
            partial.add(number, readings)
            if number == 1:
                break
    if cut:  # as by a kill within a write
        text = partial.path.read_bytes()
        partial.path.write_bytes(text[:-cut])
    read: list[int] = []
    again = counted(plan, read)
    with PartialSection(out, engine, again) as partial:
        assert sorted(partial.done) == ([0] if cut else [0, 1])
        every = []
        for number, readings in section_blocks(engine, again, done=partial.done):
            if number not in partial.done:
                partial.add(number, readings)
            every += readings
        for name, array in unpacked(section_npz(join_section(engine, again, every))).items():
            np.testing.assert_array_equal(array, whole[name], err_msg=name)
        assert len(read) == len(plan.blocks()) - len(partial.done)
        partial.remove()
    assert not partial.path.exists()


@pytest.mark.long
def test_windows_are_refined_nearer_to_the_ground_and_say_so(tmp_path: Path) -> None:
    """Windows over drawn ground by the shipped weights: in processes of their own, where there is data."""
    pytest.importorskip("deepwave")
    shipped, frame = Embedder.load(device="cpu"), OPENFWI_FRAME
    ground = np.concatenate([generate("FlatFault-A", 1, np.random.default_rng(4))[0]] * 2, axis=1)[:, 20:125]
    receiver = np.arange(105) * 10.0
    shot = np.arange(0, 1041, 130.0)
    survey = Survey(tuple(shot), tuple(receiver), frame.record_dt_s, frame.peak_hz, 10.0, 10.0)
    records = simulate(ground, survey=survey)[0]  # (shot, time, receiver)
    arrays = {
        "traces": records.transpose(0, 2, 1).reshape(-1, records.shape[1]),
        "source_x_m": np.repeat(shot, len(receiver)),
        "receiver_x_m": np.tile(receiver, len(shot)),
        "dt_s": frame.record_dt_s,
    }
    build_gallery(tmp_path / "gallery", shipped, [(ground[None, :, :70], ["FlatFault-A"])], source="test")
    with Gallery.open(tmp_path / "gallery", fingerprint=shipped.fingerprint) as gallery:
        engine = Engine(shipped, gallery)
        plan = plan_section(read_line(npz(arrays)), frame=frame)
        read = make_section(engine, plan)
        with window_refiner(6, "cpu") as refiner:
            refined = make_section(engine, plan, refine=refiner)
    at = np.rint(read.x_m / read.cell_m).astype(int)
    truth = ground[:, at]

    def off(found: Section) -> float:
        return float(np.nanmean(np.abs(found.velocity - truth)))

    assert off(refined) < 0.7 * off(read)
    assert len(refined.windows) == 3 and all(window.refined is None for window in read.windows)
    for window in refined.windows:
        did = window.refined
        assert did is not None and did.iterations <= 6 and did.residual_after < 0.7 * did.residual_before
    assert refined.low is not None and refined.high is not None
    assert ((refined.low <= truth) & (truth <= refined.high)).mean() > 0.8


def test_what_has_no_data_is_not_refined_and_a_refinement_has_iterations(engine: Engine) -> None:
    pytest.importorskip("deepwave")
    with pytest.raises(InvalidConfig, match="1 to 10000 iterations; got 0"), window_refiner(0, "cpu"):
        pass
    lacking = WindowReading(WindowAnswer((0, 690), 0, 0.0, lack="no traces"), 0.0, np.zeros(70, dtype=np.int64))
    gather = WindowGather(0.0, None, "no traces", np.zeros(70, dtype=np.int64))
    with window_refiner(1, "cpu") as refiner:
        (same,) = refiner([(gather, None)], [lacking])
    assert same.answer == lacking.answer and same.value is None


def noise_window(frame: Frame) -> tuple[list[tuple[WindowGather, Query | None]], list[WindowReading]]:
    """A block of one window, of noise, and what is read from it."""
    shape = len(frame.shot_x_m), frame.samples, frame.receivers
    traces = np.random.default_rng(0).standard_normal((1, *shape)).astype(np.float32)
    shot_x_m = np.asarray(frame.shot_x_m, np.float32)[None]
    prepared = Prepared(traces, np.ones((1, shape[0], shape[2]), bool), shot_x_m, ((),), frame)
    lit = np.full(frame.receivers, shape[0])
    reading = WindowReading(WindowAnswer((0, 235), 3, 1.0), 0.0, lit, np.full(frame.velocity_shape, 2000, np.float32))
    return [(WindowGather(0.0, prepared, None, lit), Query(prepared, measure(prepared), 1))], [reading]


def test_a_refined_window_is_kept_with_what_was_done(engine: Engine, tmp_path: Path) -> None:
    plan, (_, (read,)) = plan_section(line(*towed(1400)), frame=engine.frame), noise_window(engine.frame)
    low, high = np.full_like(read.value, 1900), np.full_like(read.value, 2300)
    refined = replace(
        read, answer=replace(read.answer, refined=WindowRefinement(3, True, 0.5, 0.25)), low=low, high=high
    )
    with PartialSection(tmp_path / "line.npz", engine, plan, refine=3) as partial:
        partial.add(0, [refined])
    with PartialSection(tmp_path / "line.npz", engine, plan, refine=3) as partial:
        (again,) = partial.done[0]
    assert again.answer == refined.answer and again.start_m == refined.start_m
    for name in ("lit", "value", "low", "high"):
        np.testing.assert_array_equal(getattr(again, name), getattr(refined, name), err_msg=name)
    with pytest.raises(InvalidConfig, match="begun with another line, scale, step, refinement"):
        PartialSection(tmp_path / "line.npz", engine, plan)


def process_begun(before: set[int | None], coming: Future[list[WindowReading]]) -> int:
    """The process that refines, once there is one."""
    while not coming.done():
        if begun := {process.pid for process in active_children()} - before:
            return begun.pop() or 0
        wait([coming], timeout=0.01)
    raise AssertionError(f"no process: {coming}")


def test_a_process_that_dies_while_it_refines_is_a_sentence(other_frame: Frame) -> None:
    pytest.importorskip("deepwave")
    before = {process.pid for process in active_children()}
    with ThreadPoolExecutor(1) as caller, window_refiner(9, "cpu", workers=1) as refiner:
        coming = caller.submit(refiner, *noise_window(other_frame))
        os.kill(process_begun(before, coming), signal.SIGKILL)
        with pytest.raises(InvalidConfig, match=r"One of 1 processes that refine windows died.*--workers gives fewer"):
            coming.result()


def test_what_is_no_fault_of_the_processes_is_not_said_to_be() -> None:
    pytest.importorskip("deepwave")
    with pytest.raises(MemoryError, match="of this process"), window_refiner(1, "cpu", workers=1):
        raise MemoryError("of this process")
    with pytest.raises(InvalidConfig, match="one process at least; got 0"), window_refiner(1, "cpu", workers=0):
        pass


@pytest.mark.long
def test_who_leaves_does_not_wait_for_whole_windows(other_frame: Frame) -> None:
    """Of a window that cannot be cancelled any more there is no further iteration."""
    pytest.importorskip("deepwave")
    before = {process.pid for process in active_children()}
    with ThreadPoolExecutor(1) as caller:
        with pytest.raises(KeyboardInterrupt), window_refiner(9, "cpu", workers=1) as refiner:
            coming = caller.submit(refiner, *noise_window(other_frame))
            process_begun(before, coming)
            raise KeyboardInterrupt
        with pytest.raises(CancelledError):
            coming.result()


def test_a_partial_file_of_something_else_is_left_as_it_is(engine: Engine, tmp_path: Path) -> None:
    plan = plan_section(line(*towed(1400)), frame=engine.frame)
    out = tmp_path / "line.npz"
    with PartialSection(out, engine, plan) as partial:
        with pytest.raises(InvalidConfig, match="Another run is writing"):
            PartialSection(out, engine, plan)
        partial.add(0, [])
    kept = partial.path.read_bytes()
    changes: list[Callable[[SectionPlan], SectionPlan]] = [
        lambda plan: replace(plan, scale=Scale(2.0)),
        lambda plan: replace(plan, starts_m=plan.starts_m[:-1]),
        lambda plan: replace(plan, line=replace(plan.line, digest="another")),
    ]
    for change in changes:
        with pytest.raises(InvalidConfig, match="begun with another line, scale, step, refinement, weights or gallery"):
            PartialSection(out, engine, change(plan))
        assert partial.path.read_bytes() == kept
    with pytest.raises(InvalidConfig, match=r'this run has.*"refine": 3'):
        PartialSection(out, engine, plan, refine=3)
    assert partial.path.read_bytes() == kept
    partial.path.write_bytes(b"something\n")
    with pytest.raises(InvalidConfig, match=r"Line 1 of .* is none that seisbind section writes"):
        PartialSection(out, engine, plan)
    assert partial.path.read_bytes() == b"something\n"
