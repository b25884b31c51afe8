"""The choice of a scale: the band of a record, what each condition allows and refuses; and the shaping of bands."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from seisbind.model.errors import InvalidGather, InvalidSurvey
from seisbind.model.frame import OPENFWI_FRAME
from seisbind.model.ground.families import mixed
from seisbind.model.scale import AutoScale, Scale
from seisbind.model.survey.preparation import OPENFWI, prepare
from seisbind.model.survey.scaling import choose_scale, scale_for
from seisbind.model.survey.shaping import CENTROID, align_wavelet, shape_band
from seisbind.model.survey.spectrum import Band, measure_band
from seisbind.model.waves.wavefield import simulate
from seisbind.model.waves.wavelet import band_wavelet, ricker

Float32 = NDArray[np.float32]
LAND: dict[str, float] = {"aperture_m": 2000.0, "record_s": 4.0, "spacing_m": 20.0, "dt_s": 0.002}


def traces(peak_hz: float, dt_s: float = 0.002, *, count: int = 48, seconds: float = 4.0, noise: float = 0) -> Float32:
    """Reflections at random times."""
    rng = np.random.default_rng(0)
    spikes = rng.standard_normal((count, round(seconds / dt_s))) * (rng.uniform(size=(count, 1)) + 0.5)
    wavelet = ricker(peak_hz, dt_s)
    made = np.stack([np.convolve(row, wavelet, "same") for row in spikes])
    return (made + noise * made.std() * rng.standard_normal(made.shape)).astype(np.float32)


def gather(peak_hz: float, survey: Any = OPENFWI, samples: int = 1000) -> Float32:
    """``(1, shot, time, receiver)``: a direct wave and reflections."""
    t = np.arange(samples) * survey.dt_s
    offset = np.abs(np.subtract.outer(np.asarray(survey.shot_x_m), np.asarray(survey.receiver_x_m)))
    found = np.zeros((len(survey.shot_x_m), samples, len(survey.receiver_x_m)))
    reach = np.ptp(np.asarray(survey.receiver_x_m))
    for depth, size in ((0.0, 1.0), (0.3, 0.3), (0.6, -0.3)):
        arrival = 1.1 / peak_hz + np.hypot(offset, 2 * depth * reach) / 2000
        a2 = np.square(np.pi * peak_hz * (t[:, None] - arrival[:, None, :]))
        found += size * (1 - 2 * a2) * np.exp(-a2)
    return found[None].astype(np.float32)


def test_the_band_of_a_record() -> None:
    band = measure_band(traces(20.0), 0.002)
    assert 16 < band.peak_hz < 24 and band.low_hz < 6 and 40 < band.high_hz < 70
    assert band.has(20) and not band.has(100) and band.at(20) > -2 > -25 > band.at(60) and band.at(1e4) == -np.inf
    noisy = measure_band(traces(20.0, noise=0.5), 0.002)
    assert band.low_hz < noisy.low_hz < 12 and noisy.high_hz < band.high_hz
    assert noisy.centroid_hz == pytest.approx(band.centroid_hz, rel=0.06)


def test_the_band_does_not_depend_on_amplitudes_dead_traces_or_size() -> None:
    record = traces(20.0)
    band = measure_band(record, 0.002)
    loud = record * np.geomspace(1e-12, 1e12, len(record))[:, None]
    dead = np.concatenate([loud, np.zeros_like(loud), np.full_like(loud, 3.0)])
    assert measure_band(dead, 0.002).low_hz == pytest.approx(band.low_hz)
    slower = measure_band(record, 0.02)
    np.testing.assert_allclose(slower.frequency_hz * 10, band.frequency_hz)
    assert slower.peak_hz * 10 == pytest.approx(band.peak_hz)


def test_noise_before_the_first_arrivals_is_no_signal() -> None:
    """Swell of 4 Hz, stronger than the record, is heard in the quiet time, too."""
    record, t = traces(20.0), np.arange(2000) * 0.002
    record[:, :500] = 0
    swell = 3 * record.std() * np.sin(2 * np.pi * 4 * t + np.arange(len(record))[:, None])
    heard = measure_band(record + swell, 0.002)
    known = measure_band(record + swell, 0.002, quiet_s=np.full(len(record), 1.0))
    assert heard.has(4) and not known.has(4) and known.has(20)


def test_a_low_cut_record_has_no_signal_below_its_cut() -> None:
    """Strongest at 20 to 40 Hz, 22 dB weaker at 6.5 and 52 dB weaker at 4: the frame's 7.5 Hz at s = 2 is in its band,
    3.75 Hz at s = 4 is not."""
    f = np.fft.rfftfreq(3000, 0.002)
    level = np.interp(f, (0, 3, 4, 6.5, 20, 40, 90, 250), (-90, -60, -52, -22, 0, 0, -40, -80))
    phase = np.random.default_rng(3).uniform(0, 2 * np.pi, (60, len(f)))
    band = measure_band(np.fft.irfft(10 ** (level / 20) * np.exp(1j * phase), axis=1), 0.002)
    assert band.clear and 18 < band.peak_hz < 45 and band.has(7.5) and not band.has(3.75)
    line = {"aperture_m": 3000.0, "record_s": 6.0, "spacing_m": 12.5, "dt_s": 0.002, "band": band}
    chosen = choose_scale(**line)
    assert chosen.decided_by == "band" and 1.6 < chosen.scale.s < 2.6
    with pytest.raises(InvalidSurvey, match=r"target_depth asks for s of 4\.0.* or more, band for"):
        choose_scale(**line, target_depth_m=2810.0)


def test_noise_has_no_band() -> None:
    noise = np.random.default_rng(1).standard_normal((50, 1000))
    band = measure_band(noise, 0.002)
    assert not band.clear
    with pytest.raises(InvalidSurvey, match="Nowhere is the record 6 dB above its noise"):
        choose_scale(**LAND, band=band)


@pytest.mark.parametrize(("array", "words"), [(np.zeros((3, 100)), "No trace"), (np.ones((3, 8)), "16 samples")])
def test_what_has_no_band_is_refused(array: NDArray[Any], words: str) -> None:
    with pytest.raises(InvalidGather, match=words):
        measure_band(array, 0.002)


def flat(low: float, high: float) -> Band:
    """A band of signal between two frequencies."""
    f = np.geomspace(0.1, 500, 100)
    power = np.where((f >= low) & (f <= high), 0.0, -60.0)
    return Band(f, power, np.full(100, -60.0), (low * high) ** 0.5, low, high, (low + high) / 2, (high - low) / 4)


@pytest.mark.parametrize(
    ("asked", "s", "decided"),
    [
        ({}, 2.8, "aperture"),  # 2000 / 690 = 2.89, to two digits down
        ({"record_s": 2.0}, 2.0, "record"),
        ({"band": flat(6, 80)}, 1.8, "band"),  # .75 x 15 / 6 = 1.875
        ({"target_depth_m": 1000.0}, 1.5, "target_depth"),  # 1000 / 700 = 1.43, up
        ({"target_depth_m": 3000.0}, 4.3, "target_depth"),  # beyond the whole line, within half of it
        ({"target_depth_m": 10.0}, 0.67, "spacing"),  # 20 m are interpolated from s = .67 on
        ({"k": 0.4, "record_s": 4.0}, 1.6, "record"),
        ({"record_s": 0.45}, 0.67, "spacing"),  # .45 wanted, .75 allowed
    ],
)
def test_what_decides(asked: dict[str, Any], s: float, decided: str) -> None:
    chosen = choose_scale(**LAND | asked)
    assert chosen.scale.s == pytest.approx(s, rel=0.01) and chosen.scale.k == asked.get("k", 1.0)
    assert (chosen.auto, chosen.decided_by) == (True, decided)
    for limit in chosen.limits:
        assert limit.low <= chosen.scale.s * 1.001 and chosen.scale.s <= limit.high * 1.001, limit
    (note,) = chosen.notes(OPENFWI_FRAME)
    assert note.code == "scale_chosen" and f"Decided by {decided}" in note.sentence and "2000 m" in note.sentence


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"target_depth_m": 9000.0}, r"target_depth asks for s of 12\.9 or more, aperture for 5\.88 or less.*9000 m"),
        ({"band": flat(60, 200)}, r"spacing asks for s of 0\.667 or more, band for 0\.25 or less.*60 to 200 Hz"),
        ({"aperture_m": 0.0}, "aperture for 0 or less"),
        ({"record_s": 0.1}, r"record for 0\.167 or less"),
        ({"dt_s": 0.1}, r"sampling asks for s of 12\.5 or more"),
    ],
)
def test_where_no_scale_fits_each_condition_says_its_range(asked: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidSurvey, match=f"No scale fits: .*{words}") as error:
        choose_scale(**LAND | asked)
    assert "Give a scale as a number" in error.value.sentence


@pytest.mark.parametrize("scale", [Scale(0.1), Scale(1), Scale(3), Scale(10, 1.2), Scale(3, 0.4)], ids=str)
def test_a_record_of_the_frames_own_kind_is_recognised_at_any_size(scale: Scale) -> None:
    true = scale.frame(OPENFWI_FRAME).survey
    chosen = scale_for(gather(true.peak_hz or 0, true), true, AutoScale(scale.k))
    assert chosen.scale.s == pytest.approx(scale.s)


def test_the_choice_scales_with_the_line() -> None:
    record, survey = gather(15.0), replace(OPENFWI, receiver_x_m=OPENFWI.receiver_x_m)
    own = scale_for(record, survey, AutoScale(target_depth_m=560.0))
    true = Scale(3).frame(OPENFWI_FRAME).survey
    assert scale_for(record, true, AutoScale(target_depth_m=1680.0)).scale.s == pytest.approx(3 * own.scale.s)


def test_gathers_that_do_not_fit_their_survey_are_refused() -> None:
    with pytest.raises(InvalidGather, match="5 shots and 70 receivers"):
        scale_for(np.zeros((4, 100, 70)), OPENFWI, AutoScale())
    with pytest.raises(InvalidGather, match="No trace is live"):
        scale_for(np.zeros((5, 100, 70)), OPENFWI, AutoScale())


def test_a_band_of_training_stays_to_the_bit() -> None:
    for peak in (8.0, 15.0, 20.0):
        record = recorded(peak)
        np.testing.assert_array_equal(prepare(record, OPENFWI, shape=True).traces, prepare(record, OPENFWI).traces)


def test_a_band_beyond_training_is_shaped() -> None:
    """30 Hz at s = 2, where the frame's peak is at 7.5 Hz: what comes is like a record of 7.5 Hz, phases included."""
    scale = Scale(2)
    survey = scale.frame(OPENFWI_FRAME).survey
    record, wanted = gather(30.0, survey), gather(7.5, survey)
    plain = prepare(record, survey, scale=scale)
    shaped = prepare(record, survey, scale=scale, shape=True)
    (note,) = [note for note in shaped.notes[0] if note.code == "band_shaped"]
    assert "towards a peak at 7.5 Hz" in note.sentence and "wavelets of 4 to 14 Hz" in note.sentence

    def band(prepared: Any) -> Band:
        return measure_band(prepared.traces[0].transpose(0, 2, 1).reshape(-1, 250), 0.004)

    assert 8 < band(shaped).centroid_hz / CENTROID < 28 < band(plain).centroid_hz / CENTROID
    # the lobe of the direct wave lies where it lay: the phase is as it was
    alone, _ = shape_band(plain.traces[0], plain.live[0], scale.frame(OPENFWI_FRAME))
    lag = np.abs(alone[2].argmax(axis=0) - plain.traces[0, 2].argmax(axis=0))
    assert np.median(lag) <= 1
    assert band(prepare(wanted, survey, scale=scale)).centroid_hz == pytest.approx(band(shaped).centroid_hz, rel=0.35)


def test_a_clock_that_starts_at_the_shot_is_set_to_the_wavelets() -> None:
    """The direct wave 60 ms early: moved back, and said; as early as training had it, or without one: left."""
    record = prepare(recorded(15.0))
    late = 10  # samples of 4 ms
    early = np.pad(record.traces[0][:, late:], ((0, 0), (0, late), (0, 0)))
    line = OPENFWI_FRAME.shot_x_m, OPENFWI_FRAME
    moved, (note,) = align_wavelet(early, record.live[0], *line)
    assert note.code == "time_aligned" and "The record was moved by +" in note.sentence
    lag = moved[2].argmax(axis=0) - record.traces[0, 2].argmax(axis=0)
    assert np.abs(np.median(lag)) <= 3
    for kept in (record.traces[0], np.pad(record.traces[0][:, 4:], ((0, 0), (0, 4), (0, 0)))):
        same, notes = align_wavelet(kept, record.live[0], *line)
        assert notes == () and same is kept
    noise = np.random.default_rng(0).standard_normal(early.shape).astype(np.float32)
    assert align_wavelet(noise, record.live[0], *line)[1] == ()


@lru_cache
def recorded(peak_hz: float) -> Float32:
    """``(1, shot, time, receiver)`` over layers, in two dimensions."""
    return simulate(mixed(1, 8)[0], survey=replace(OPENFWI, peak_hz=peak_hz))


def likeness(one: np.ndarray, other: np.ndarray) -> float:
    """The cosine between them."""
    return float(np.vdot(one, other) / np.linalg.norm(one) / np.linalg.norm(other))


def turned(traces: np.ndarray, degrees: float) -> np.ndarray:
    """``(shot, time, receiver)`` with another phase at every frequency."""
    spectrum = np.fft.rfft(traces, 2 * traces.shape[1], axis=1) * np.exp(1j * np.radians(degrees))
    return np.fft.irfft(spectrum, axis=1)[:, : traces.shape[1]].astype(np.float32)


@pytest.mark.parametrize("peak_hz", [10.0, 15.0, 20.0])
@pytest.mark.parametrize("degrees", [-120, -90, -60, 60, 90, 120])
def test_a_wavelet_of_another_phase_is_made_one_of_training(degrees: float, peak_hz: float) -> None:
    record = prepare(recorded(peak_hz))
    other = turned(record.traces[0], degrees)
    found, notes = align_wavelet(other, record.live[0], OPENFWI_FRAME.shot_x_m, OPENFWI_FRAME)
    assert [note.code for note in notes] == ["wavelet_matched"]
    assert likeness(other, record.traces[0]) < 0.6 < 0.84 < likeness(found, record.traces[0])


@pytest.mark.parametrize("degrees", [-25, 0, 25, 155, 180, -155])
@pytest.mark.parametrize("peak_hz", [8.0, 15.0, 20.0])
def test_a_phase_of_training_stays_either_way_up(degrees: float, peak_hz: float) -> None:
    record = prepare(recorded(peak_hz))
    other = turned(record.traces[0], degrees)
    found, notes = align_wavelet(other, record.live[0], OPENFWI_FRAME.shot_x_m, OPENFWI_FRAME)
    assert notes == () and found is other


def test_a_filtered_record_is_positive_whatever_it_was() -> None:
    record = prepare(recorded(15.0))
    other = turned(record.traces[0], 90)[None]
    one, opposite = (prepare(sign * other, replace(OPENFWI, dt_s=0.004), shape=True) for sign in (1, -1))
    np.testing.assert_allclose(one.traces, opposite.traces, atol=1e-6)
    assert [n.code for n in one.notes[0]] == [n.code for n in opposite.notes[0]] == ["wavelet_matched"]


def test_what_is_muted_tells_no_wavelet_and_refuses_nothing() -> None:
    record = prepare(recorded(15.0))
    live, line = record.live[0], (OPENFWI_FRAME.shot_x_m, OPENFWI_FRAME)
    early = turned(record.traces[0], 90)
    early[:, :200] = 0
    found, notes = align_wavelet(early, live, *line)
    assert notes == () and found is early
    silent = np.zeros_like(early)
    assert align_wavelet(silent, live, *line) == (silent, ())
    some = recorded(15.0).copy()
    some[0, 0, :, -1] = 0
    some[0, 0, -1, -1] = 1e-3  # live, and silent on the frame's grid
    shaped = prepare(some, replace(OPENFWI, peak_hz=15.0), shape=True)
    assert np.isfinite(shaped.traces).all()


def test_an_explosion_of_every_frequency_becomes_like_the_frames_wavelet() -> None:
    """Minimum phase from 1 to 32 Hz: its mean frequency is one of training, its band is none."""
    source = band_wavelet(1.0, 32.0, 0.001, slopes=(3, 3), impulsive=True, delay_s=0.0)
    survey = replace(OPENFWI, dt_s=0.001)
    velocity = np.repeat([2900.0, 3300.0, 3800.0, 4200.0, 4500.0], 14)[None, :, None] * np.ones((1, 1, 70))
    record = simulate(velocity, survey=survey, wavelet=source)
    wanted = prepare(simulate(velocity), OPENFWI).traces[0]
    plain, suited = (prepare(record, survey, shape=shape) for shape in (False, True))
    codes = {note.code for note in suited.notes[0]}
    assert {"band_shaped", "wavelet_matched"} <= codes
    assert "in a band that is wider than theirs" in next(n.sentence for n in suited.notes[0] if n.code == "band_shaped")

    assert likeness(plain.traces[0], wanted) < 0.5 < 0.75 < likeness(suited.traces[0], wanted)


def test_where_the_band_lacks_the_frames_peak_it_is_said() -> None:
    scale = Scale(20)
    survey = scale.frame(OPENFWI_FRAME).survey
    quick = replace(survey, dt_s=survey.dt_s / 4)
    record = gather(20.0, quick, samples=4000)
    prepared = prepare(record, quick, scale=scale, shape=True)
    (note,) = [note for note in prepared.notes[0] if note.code == "band_missing"]
    assert "at 0.75 Hz, the frame's peak frequency at this scale" in note.sentence
    np.testing.assert_array_equal(prepared.traces, prepare(record, quick, scale=scale).traces)
