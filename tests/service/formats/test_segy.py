"""Field files: the same gather as npy and as SEG-Y is the same, and what a file gets wrong is refused or said.

Files are written by hand here, byte for byte, so that each can be wrong in one place.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from seisbind.model.errors import InvalidGather, InvalidSurvey, SeisBindError, UploadRefused
from seisbind.model.frame import Survey
from seisbind.model.survey.notes import Note
from seisbind.model.survey.preparation import OPENFWI, prepare
from seisbind.service.bulk.backends import GalleryBackend, RetrieveOptions
from seisbind.service.formats.npy import Limits, npy
from seisbind.service.formats.reader import Geometry, read_gathers, read_velocity
from seisbind.service.formats.segy_samples import CODINGS, decode
from seisbind.service.schemas import RetrieveAnswer

Float32 = NDArray[np.float32]
RAW = {"Content-Type": "application/octet-stream"}

# first byte of each field, counted from 1 (SEG-Y revision 1)
BINARY = {"dt": (3217, "H"), "samples": (3221, "H"), "format": (3225, "h"), "system": (3255, "h"),
          "revision": (3501, "H"), "fixed": (3503, "h"), "extended": (3505, "h")}  # fmt: skip
TRACE = {"record": (9, "i"), "channel": (13, "i"), "kind": (29, "h"), "offset": (37, "i"), "scalco": (71, "h"),
         "sx": (73, "i"), "sy": (77, "i"), "gx": (81, "i"), "gy": (85, "i"), "units": (89, "h"), "delay": (109, "h"),
         "samples": (115, "H"), "dt": (117, "H"), "time_scalar": (215, "h")}  # fmt: skip
WIDTH = {1: "u4", 2: "i4", 3: "i2", 5: "f4", 6: "f8", 8: "i1"}


def ibm(values: NDArray[Any]) -> NDArray[np.uint32]:
    """IBM System/360 single precision, rounded to nearest."""
    mantissa, exponent = np.frexp(np.abs(values.astype(np.float64)))
    sixteens = -(-exponent // 4)
    fraction = np.rint(np.ldexp(mantissa, exponent - 4 * sixteens + 24)).astype(np.int64)
    sixteens, fraction = np.where(fraction == 1 << 24, sixteens + 1, sixteens), np.where(
        fraction == 1 << 24, 1 << 20, fraction
    )  # fmt: skip
    words = (np.signbit(values).astype(np.int64) << 31) | ((sixteens + 64) << 24) | fraction
    return np.where(values == 0, 0, words).astype(np.uint32)


@dataclass
class Field:
    """A field file in the making: traces ``(trace, time)`` and what its headers say (a number, or one a trace)."""

    traces: NDArray[Any]
    headers: dict[str, Any]
    binary: dict[str, int]
    order: str = ">"
    text: bytes = b"\xc3" + b"\x40" * 3199  # EBCDIC: C, spaces
    cut: int = 0
    words: NDArray[Any] | None = None  # instead of the traces, coded
    extended: int = field(default=0)

    def with_(self, **headers: Any) -> Field:
        return replace(self, headers=self.headers | headers)

    def with_binary(self, **binary: int) -> Field:
        return replace(self, binary=self.binary | binary)

    def coded(self, code: int) -> Field:
        return self.with_binary(format=code)

    def shuffled(self, seed: int = 1) -> Field:
        return self.picked(np.random.default_rng(seed).permutation(len(self.traces)))

    def picked(self, traces: NDArray[Any]) -> Field:
        headers = {name: value[traces] if np.ndim(value) else value for name, value in self.headers.items()}
        return replace(self, traces=self.traces[traces], headers=headers)

    def blocks(self, order: str) -> bytes:
        code = self.binary["format"]
        words = self.words
        if words is None:
            words = ibm(self.traces) if code == 1 else self.traces.astype(WIDTH.get(code, "f4"))
        words = words.astype(words.dtype.newbyteorder(order))
        out = []
        for number, samples in enumerate(words):
            header = bytearray(240)
            for name, value in self.headers.items():
                byte, kind = TRACE[name]
                struct.pack_into(order + kind, header, byte - 1, int(value[number] if np.ndim(value) else value))
            out += [bytes(header), samples.tobytes()]
        return b"".join(out)

    def segy(self) -> bytes:
        binary = bytearray(400)
        for name, value in self.binary.items():
            byte, kind = BINARY[name]
            struct.pack_into(self.order + kind, binary, byte - 3201, value)
        body = self.text + bytes(binary) + b"\x40" * 3200 * self.extended + self.blocks(self.order)
        return body[: len(body) - self.cut]

    def su(self) -> bytes:
        return self.coded(5).blocks(self.order)


def make(gather: Float32, *, scale: float = 1.0, survey: Survey | None = None) -> Field:
    """``gather`` (shot, time, receiver), positions in metres over ``scale``, in a well-behaved file of IEEE floats."""
    survey = survey or (OPENFWI if gather.shape[0] == 5 else SMALL)
    shots, samples, receivers = gather.shape
    sx = np.repeat(np.rint(np.asarray(survey.shot_x_m) / scale), receivers).astype(int)
    gx = np.tile(np.rint(np.asarray(survey.receiver_x_m) / scale), shots).astype(int)
    headers = {
        "record": np.repeat(np.arange(shots) + 101, receivers), "channel": np.tile(np.arange(receivers) + 1, shots),
        "kind": 1, "offset": np.rint((gx - sx) * scale).astype(int), "scalco": 1, "sx": sx, "sy": 0, "gx": gx, "gy": 0,
        "units": 1, "samples": samples, "dt": round(survey.dt_s * 1e6),
    }  # fmt: skip
    binary = {"dt": round(survey.dt_s * 1e6), "samples": samples, "format": 5, "system": 1, "revision": 0x100}
    return Field(gather.transpose(0, 2, 1).reshape(-1, samples), headers, binary)


SMALL = Survey((0.0, 120.0, 350.0), tuple(10.0 * i for i in range(36)), 0.004)


def gather_of(survey: Survey, samples: int) -> Float32:
    """A direct wave at 2000 m/s in band-limited noise: ``(shot, time, receiver)``."""
    time_s = np.arange(samples)[:, None] * survey.dt_s
    offset_m = np.abs(np.subtract.outer(np.asarray(survey.shot_x_m), np.asarray(survey.receiver_x_m)))
    a2 = np.square(np.pi * 15.0 * (time_s - 0.08 - offset_m[:, None, :] / 2000.0))
    noise = np.random.default_rng(7).standard_normal((len(survey.shot_x_m), samples, len(survey.receiver_x_m)))
    return np.asarray((1 - 2 * a2) * np.exp(-a2) * 100 + np.cumsum(noise, axis=1) * 0.01, dtype=np.float32)


GATHER, SHORT = gather_of(OPENFWI, 1000), gather_of(SMALL, 250)
GOOD, SOUND = make(GATHER), make(SHORT)


def codes(notes: tuple[Note, ...]) -> set[str]:
    return {note.code for note in notes}


def turned(degrees: float) -> Field:
    """`GOOD` in decimetres, on a line at an angle to x, far from the origin."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    one = make(GATHER)
    sx, gx = one.headers["sx"] * 10, one.headers["gx"] * 10
    at = {"sx": sx * c, "sy": sx * s, "gx": gx * c, "gy": gx * s}
    return one.with_(scalco=-10, **{name: np.rint(x + 4_000_000).astype(int) for name, x in at.items()})


SAME: dict[str, tuple[Callable[[], bytes], set[str]]] = {
    "IEEE": (lambda: GOOD.segy(), set()),
    "IBM": (lambda: GOOD.coded(1).segy(), set()),
    "IEEE double": (lambda: GOOD.coded(6).segy(), set()),
    "int32": (lambda: replace(GOOD, traces=np.rint(GOOD.traces * 1e4)).coded(2).segy(), set()),
    "int16": (lambda: replace(GOOD, traces=np.rint(GOOD.traces * 250)).coded(3).segy(), set()),
    "IEEE, little-endian": (lambda: replace(GOOD, order="<").segy(), {"little_endian"}),
    "IBM, little-endian": (lambda: replace(GOOD, order="<").coded(1).segy(), {"little_endian"}),
    "traces in any order": (lambda: GOOD.shuffled().segy(), {"traces_sorted"}),
    "receivers descending": (lambda: GOOD.picked(np.arange(350)[::-1]).segy(), set()),
    "scalco 0": (lambda: GOOD.with_(scalco=0).segy(), {"scalco_zero"}),
    "scalco -100": (lambda: make(GATHER, scale=0.01).with_(scalco=-100).segy(), set()),
    "scalco 10": (lambda: make(GATHER, scale=10).with_(scalco=10).segy(), set()),
    "scalco 5": (lambda: make(GATHER, scale=5).with_(scalco=5).segy(), {"scalco_unusual"}),
    "scalco of each trace's own": (
        lambda: GOOD.with_(
            scalco=np.where(np.arange(350) % 2, 1, -10),
            **{n: np.where(np.arange(350) % 2, GOOD.headers[n], GOOD.headers[n] * 10) for n in ("sx", "gx")},
        ).segy(),
        {"scalco_mixed"},
    ),
    "feet": (
        lambda: make(GATHER, scale=0.003048).with_(scalco=-100, offset=0).with_binary(system=2).segy(),
        {"feet"},
    ),
    "unit unknown": (lambda: GOOD.with_binary(system=0).segy(), {"metres_assumed"}),
    "along y": (
        lambda: GOOD.with_(sx=0, gx=0, sy=GOOD.headers["sx"], gy=GOOD.headers["gx"]).segy(),
        {"projected"},
    ),
    "at 30 degrees": (lambda: turned(30).segy(), {"projected"}),
    "at -75 degrees": (lambda: turned(-75).segy(), {"projected"}),
    "one record number for all": (lambda: GOOD.with_(record=1).segy(), set()),
    "a record number for each trace": (lambda: GOOD.with_(record=np.arange(350)).segy(), set()),
    "revision 0": (lambda: GOOD.with_binary(revision=0, extended=9).segy(), set()),
    "extended headers": (lambda: replace(GOOD, extended=2).with_binary(extended=2).segy(), set()),
    "an ASCII textual header": (lambda: replace(GOOD, text=(b"C" + b" " * 79) * 40).segy(), set()),
    "no textual header": (lambda: replace(GOOD, text=bytes(3200)).segy(), set()),
    "recorded from 20 ms before the shot": (
        lambda: replace(GOOD, traces=np.pad(GOOD.traces, ((0, 0), (20, 0)))).with_(delay=-20, samples=1020)
        .with_binary(samples=1020).segy(),
        {"delay_applied"},
    ),
    "recorded for 3 s": (
        lambda: make(np.pad(GATHER, ((0, 0), (0, 2000), (0, 0)))).segy(),
        {"record_long"},
    ),
    "SU, little-endian": (lambda: replace(GOOD, order="<").su(), {"metres_assumed"}),
    "SU, big-endian": (lambda: GOOD.su(), {"metres_assumed"}),
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_the_same_gather_as_npy_and_as_a_field_file(name: str) -> None:
    """Promise 12: units, byte order, trace order, sample format, direction of the line change nothing."""
    write, said = SAME[name]
    expected = prepare(GATHER)
    upload = read_gathers(write())
    assert codes(upload.notes) == said
    assert codes(upload.ingest.assumptions) == said
    assert upload.survey.dt_s == OPENFWI.dt_s
    found = prepare(upload.gathers, upload.survey)
    assert found.live.all()
    np.testing.assert_allclose(found.shot_x_m, expected.shot_x_m, atol=0.06)
    quantum = {"int32": 1e4, "int16": 250.0}.get(name, 1.0)
    coarse = {"int16": 4e-3, "int32": 1e-4, "IBM": 2e-4, "IBM, little-endian": 2e-4}.get(name, 1e-5)
    np.testing.assert_allclose(found.traces / quantum, expected.traces, atol=coarse, rtol=1e-5)


def test_ibm_numbers_are_ibms() -> None:
    """Known words; and vacuity: read as IEEE, 1.5 is 9.5."""
    words = np.array([0x41100000, 0xC276A000, 0x00000000, 0x41180000, 0x40199999], dtype=">u4")
    np.testing.assert_allclose(decode(words, CODINGS[1]), [1.0, -118.625, 0.0, 1.5, 0.1], rtol=1e-6)
    assert decode(words, CODINGS[5])[3] == 9.5
    values = np.float32([1.5, -118.625, 3e-12, 1e20, 0])
    np.testing.assert_allclose(decode(ibm(values), CODINGS[1]), values, rtol=1e-6)


def mislabelled(code: int, words: NDArray[Any]) -> Field:
    return replace(SOUND, words=words).coded(code)


def moved(**changes: tuple[int, int]) -> Field:
    """`SOUND` with single trace headers changed: name = (trace, value)."""
    headers = {}
    for name, (at, value) in changes.items():
        headers[name] = np.array(np.broadcast_to(SOUND.headers.get(name, 0), len(SOUND.traces)))
        headers[name][at] = value
    return SOUND.with_(**headers)


def twice(factor: float) -> Field:
    """`SOUND` with trace 40 once more at the end, times ``factor``."""
    again = SOUND.picked(np.append(np.arange(108), 40))
    again.traces[-1] *= factor
    return again


def ambiguous() -> Field:
    """6 traces of 2 samples, and a binary header that states so many that the bytes fit it too."""
    few = replace(SOUND, traces=np.ones((6, 2)), headers={"samples": 2, "dt": 4000, "kind": 1})
    return few.with_binary(samples=64)  # 6 x (240 + 4 x 2) bytes = 3 x (240 + 4 x 64)


def towed() -> Field:
    """A cable of 36 receivers that follows 60 m behind its source, which moves by 50 m."""
    sx, gx = SOUND.headers["sx"] * 0, SOUND.headers["gx"]
    shift = np.repeat([0, 50, 100], 36)
    return SOUND.with_(sx=sx + shift + 410, gx=gx + shift, offset=0)


INTEGERS = np.rint(SOUND.traces * 1e3).astype(np.int32)


def short_line() -> Field:
    """Twenty-four traces a shot, half a second."""
    short = make(SHORT[:, :125])
    return short.picked(np.flatnonzero((short.headers["channel"] <= 24) & (short.headers["record"] < 103)))


REFUSED: dict[str, tuple[str, str, Callable[[], Field]]] = {
    "dt 0": ("invalid_survey", "Pass dt_s", lambda: SOUND.with_(dt=0).with_binary(dt=0)),
    "two dt": ("invalid_survey", "two sampling intervals", lambda: SOUND.with_(dt=2000)),
    "mixed dt": ("invalid_survey", "different sampling", lambda: moved(dt=(5, 2000))),
    "dt of a minute": ("invalid_survey", "0.0001-0.008", lambda: SOUND.with_(dt=60_000).with_binary(dt=60_000)),
    "format 0": ("malformed_upload", "format code 0", lambda: replace(SOUND.coded(0), words=SOUND.traces)),
    "format 77": ("malformed_upload", "format code 77", lambda: replace(SOUND.coded(77), words=SOUND.traces)),
    "format 4": ("unsupported_dtype", "fixed point", lambda: replace(SOUND.coded(4), words=SOUND.traces)),
    "IEEE called IBM": ("malformed_upload", "IEEE floats", lambda: mislabelled(1, SOUND.traces)),
    "IBM called IEEE": ("malformed_upload", "IBM floats", lambda: mislabelled(5, ibm(SOUND.traces))),
    "IEEE called int32": ("malformed_upload", "as floats are", lambda: mislabelled(2, SOUND.traces)),
    "IBM called int32": ("malformed_upload", "as floats are", lambda: mislabelled(2, ibm(SOUND.traces))),
    "int32 called IEEE": ("malformed_upload", "beyond 1e30", lambda: mislabelled(5, INTEGERS)),
    "int32 called IBM": ("malformed_upload", "IEEE floats|beyond 1e30", lambda: mislabelled(1, INTEGERS)),
    "int16 called IEEE": ("malformed_upload", "make no trace", lambda: mislabelled(5, INTEGERS.astype(np.int16))),
    "IEEE called int16": ("malformed_upload", "make no trace|states", lambda: mislabelled(3, SOUND.traces)),
    "samples in the other order": ("malformed_upload", "byte order", lambda: mislabelled(5, SOUND.traces.byteswap())),
    "cut in a trace": ("malformed_upload", "cut off", lambda: replace(SOUND, cut=7)),
    "cut in the headers": ("malformed_upload", "cut off", lambda: replace(SOUND, cut=len(SOUND.segy()) - 3000)),
    "no trace": ("malformed_upload", "cut off", lambda: replace(SOUND, cut=len(SOUND.segy()) - 3600)),
    "samples in no header": ("malformed_upload", "Neither", lambda: SOUND.with_(samples=0).with_binary(samples=0)),
    "samples wrong in both": ("malformed_upload", "cut off", lambda: SOUND.with_(samples=9).with_binary(samples=9)),
    "samples wrong in a trace": ("malformed_upload", "Trace 8 states 100", lambda: moved(samples=(7, 100))),
    "ambiguous samples": ("malformed_upload", "fits both", ambiguous),
    "unknown many headers": ("malformed_upload", "extended", lambda: SOUND.with_binary(extended=-1)),
    "headers that are not there": ("malformed_upload", "no trace|cut off", lambda: SOUND.with_binary(extended=60)),
    "duplicates that differ": ("malformed_upload", "Traces 41 and 109", lambda: twice(1.5)),
    "several components": ("malformed_upload", "one component", lambda: moved(kind=(3, 14))),
    "no seismic trace": ("invalid_gather", "None of the 108", lambda: SOUND.with_(kind=5)),
    "no positions": ("invalid_survey", "no geometry", lambda: SOUND.with_(sx=0, gx=0, offset=0)),
    "degrees": ("invalid_survey", "angles", lambda: SOUND.with_(units=3, offset=0)),
    "a wrong scalar": ("invalid_survey", "0.1 times", lambda: make(SHORT, scale=0.1).with_(scalco=-100)),
    "a crooked line": ("invalid_survey", "no 2-D line", lambda: SOUND.with_(gy=(SOUND.headers["gx"] // 100) ** 2 * 10)),
    "sources on a line of their own": ("invalid_survey", "no 2-D line", lambda: SOUND.with_(sy=200)),
    "a towed cable too short to read": (
        "invalid_survey", "each 60 to 60 m off .* 0 pseudo-shots have traces over 25% of the window; at least 2",
        lambda: towed().picked(np.flatnonzero(SOUND.headers["channel"] > 24)),
    ),
    "a mixed delay": ("invalid_survey", "one start", lambda: moved(delay=(9, 40))),
    "a long delay": ("invalid_survey", "after the shot", lambda: SOUND.with_(delay=600)),
    "a short record": ("invalid_gather", r"0.6 s are needed\.$", lambda: make(SHORT[:, :140])),
    "a short record of a short line": (
        "invalid_gather", r"0.500 s .* 0.6 s are needed\. The receiver line is 230 m long; at least 340 m", short_line,
    ),
    "a short record of no line": (
        "invalid_gather", r"0.6 s are needed\. No shot lies among its receivers",
        lambda: replace(towed(), traces=towed().traces[:, :140]).with_(samples=140).with_binary(samples=140),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_field_file_that_is_wrong_is_refused(name: str) -> None:
    """Promise 5, the errors."""
    code, words, write = REFUSED[name]
    with pytest.raises((UploadRefused, InvalidSurvey, InvalidGather), match=words) as refused:
        read_gathers(write().segy())
    assert refused.value.code == code
    assert refused.value.sentence.endswith((".", ")"))


SAID: dict[str, tuple[set[str], Callable[[], Field]]] = {
    "samples wrong in the file header": ({"samples_disagree"}, lambda: SOUND.with_binary(samples=600)),
    "samples wrong in all traces": ({"samples_disagree"}, lambda: SOUND.with_(samples=1500)),
    "dt in the traces only": ({"dt_partly_stated"}, lambda: SOUND.with_binary(dt=0)),
    "dt in the file header only": ({"dt_partly_stated"}, lambda: SOUND.with_(dt=0)),
    "duplicates": ({"duplicate_traces", "traces_sorted"}, lambda: twice(1.0)),
    "missing traces": ({"missing_traces"}, lambda: SOUND.picked(np.delete(np.arange(108), [3, 40, 41]))),
    "cut between traces": ({"missing_traces"}, lambda: SOUND.picked(np.arange(106))),
    "traces marked dead": ({"marked_dead"}, lambda: moved(kind=(50, 2))),
    "auxiliary traces": ({"auxiliary_traces", "missing_traces"}, lambda: moved(kind=(50, 6))),
    "vertical geophones": ({"not_pressure"}, lambda: SOUND.with_(kind=12)),
    "offsets that mean something else": (
        {"offsets_disagree"}, lambda: SOUND.with_(offset=np.arange(108) * 37 % 1000),
    ),
    "offsets in the unit of the coordinates": (
        {"offsets_scaled"},
        lambda: make(SHORT, scale=0.1).with_(scalco=-10, offset=SOUND.headers["offset"] * 10),
    ),
    "metres called degrees": ({"coordinate_units_contradicted"}, lambda: SOUND.with_(units=3)),
    "receivers that drift by centimetres": (
        set(), lambda: make(SHORT, scale=0.01).with_(scalco=-100, gx=make(SHORT, scale=0.01).headers["gx"]
                                                     + np.repeat([0, 20, -20], 36)),
    ),
    "a few numbers only": (
        {"format_unverified"}, lambda: replace(SOUND, traces=np.where(np.arange(250) == 9, SOUND.traces, 0)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SAID)
def test_what_is_doubtful_in_a_field_file_is_said(name: str) -> None:
    """Promise 5, the warnings."""
    said, write = SAID[name]
    upload = read_gathers(write().segy())
    assert codes(upload.notes) == said
    assert upload.survey.shot_x_m == SMALL.shot_x_m
    assert upload.survey.receiver_x_m == pytest.approx(SMALL.receiver_x_m, abs=0.3)


def test_a_zero_with_an_exponent_is_still_ibms() -> None:
    words = ibm(SOUND.traces)
    words[:, :30] = 0x40000000
    upload = read_gathers(replace(SOUND, words=words).coded(1).segy())
    assert upload.notes == ()
    assert not upload.gathers[:, :30].any()


def test_a_missing_or_dead_trace_is_dead_and_the_others_are_themselves() -> None:
    for file in (SOUND.picked(np.delete(np.arange(108), 40)), moved(kind=(40, 2))):
        upload = read_gathers(file.segy())
        expected = SHORT.copy()
        expected[1, :, 4] = 0
        np.testing.assert_array_equal(upload.gathers, expected)
        assert not prepare(upload.gathers, upload.survey).live[0, 1, 4]


def test_the_best_stretch_of_a_long_line_is_taken() -> None:
    """A rolling split spread of 1440 m: within 690 m, every shot is recorded by every receiver."""
    shot_x = np.arange(0.0, 2400, 100)
    station = np.arange(-700, 3100, 10)
    pairs = [(i, x, g) for i, x in enumerate(shot_x) for g in station[np.abs(station - x) <= 720]]
    record, sx, gx = (np.array(column).astype(int) for column in zip(*pairs, strict=True))
    traces = np.random.default_rng(0).standard_normal((len(pairs), 250)).astype(np.float32)
    headers = SOUND.headers | {"record": record, "channel": 0, "sx": sx, "gx": gx, "offset": gx - sx}
    upload = read_gathers(replace(SOUND, traces=traces, headers=headers).segy())
    (note,) = upload.notes
    assert note.code == "line_window"
    assert len(upload.survey.shot_x_m) == 8
    assert upload.survey.receiver_x_m[0] <= upload.survey.shot_x_m[0]
    where = {(s, g): i for i, (_, s, g) in enumerate(pairs)}
    for s, x in enumerate(upload.survey.shot_x_m):
        for r, g in enumerate(upload.survey.receiver_x_m[:70]):
            np.testing.assert_array_equal(upload.gathers[s, :, r], traces[where[x, g]])


def test_a_towed_cable_is_answered_by_pseudo_shots() -> None:
    """Shots every 25 m, a cable of 350 m from 60 m behind: pseudo-shots of two sides, their gap dead."""
    sx = np.repeat(np.arange(0, 2000, 25), 36)
    gx = sx - 60 - np.tile(np.arange(36) * 10, 80)
    traces = np.sin((np.abs(sx - gx)[:, None] + 10) * np.arange(250) / 3000).astype(np.float32)
    headers = SOUND.headers | {"record": np.repeat(np.arange(80), 36), "channel": 0, "sx": sx, "gx": gx, "offset": 0}
    file = replace(SOUND, traces=traces, headers=headers)
    upload = read_gathers(file.segy())
    (note,) = upload.notes
    assert note.code == "moving_spread" and "by reciprocity" in note.sentence
    assert upload.gathers.shape == (5, 250, 70)
    offset = np.subtract.outer(np.asarray(upload.survey.shot_x_m), np.asarray(upload.survey.receiver_x_m))
    live = upload.gathers.any(axis=1)
    assert not live[np.abs(offset) < 55].any()
    before_last = np.asarray(upload.survey.receiver_x_m) <= 1970
    assert live[(offset > 85) & (offset < 385)].all()
    assert live[(offset < -85) & (offset > -385) & before_last].all()
    for shot, receiver in np.argwhere(live & (np.abs(offset % 10) < 1e-6)):
        if offset[shot, receiver] > 0:
            expected = np.sin((abs(offset[shot, receiver]) + 10) * np.arange(250) / 3000)
            np.testing.assert_allclose(upload.gathers[shot, :, receiver], expected, atol=1e-3)
    prepared = prepare(upload.gathers, upload.survey, move_shots=False)
    np.testing.assert_array_equal(prepared.live[0], live)
    shuffled = read_gathers(file.shuffled().segy())
    np.testing.assert_allclose(shuffled.gathers, upload.gathers, atol=1e-6)


def test_shots_repeated_at_one_place_stay_apart() -> None:
    upload = read_gathers(SOUND.with_(sx=100, offset=0).segy())
    assert upload.survey.shot_x_m == (100.0,) * 3
    np.testing.assert_array_equal(upload.gathers, SHORT)


def test_positions_that_are_passed_go_before_the_files() -> None:
    bare = SOUND.with_(sx=0, gx=0, offset=0, units=3, dt=0).with_binary(dt=0, system=0)
    given = Geometry(0.004, SMALL.shot_x_m, SMALL.receiver_x_m, 20.0)
    for file in (bare, bare.shuffled()):
        upload = read_gathers(file.segy(), geometry=given)
        assert (upload.survey.shot_x_m, upload.survey.receiver_x_m) == (SMALL.shot_x_m, SMALL.receiver_x_m)
        assert (upload.survey.dt_s, upload.survey.peak_hz) == (0.004, 20.0)
        np.testing.assert_array_equal(upload.gathers, SHORT)
    shots_only = read_gathers(SOUND.with_(sx=7, offset=0).segy(), geometry=Geometry(shot_x_m=SMALL.shot_x_m))
    assert shots_only.survey.receiver_x_m == SMALL.receiver_x_m
    np.testing.assert_array_equal(shots_only.gathers, SHORT)
    receivers_only = read_gathers(
        SOUND.with_(gx=7, offset=0).segy(), geometry=Geometry(receiver_x_m=SMALL.receiver_x_m)
    )
    assert receivers_only.survey.shot_x_m == SMALL.shot_x_m
    np.testing.assert_array_equal(receivers_only.gathers, SHORT)
    said = read_gathers(SOUND.segy(), geometry=Geometry(dt_s=0.003))
    assert said.survey.dt_s == 0.003
    assert codes(said.notes) == {"dt_overridden"}
    for wrong in (Geometry(shot_x_m=(1.0, 2.0)), Geometry(receiver_x_m=(0.0, 10.0))):
        with pytest.raises(InvalidSurvey, match="were passed"):
            read_gathers(SOUND.segy(), geometry=wrong)


def test_the_limit_holds_before_anything_is_made() -> None:
    with pytest.raises(UploadRefused, match="the limit is 100000"):
        read_gathers(SOUND.coded(8).segy(), limits=Limits(unpacked_bytes=100_000))


def test_a_field_file_is_no_velocity_model() -> None:
    for body in (SOUND.segy(), SOUND.su()):
        with pytest.raises(UploadRefused, match="Velocity models") as refused:
            read_velocity(body)
        assert refused.value.code == "unsupported_format"


def mutations(body: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Bytes flipped, set or moved, mostly in the headers; pieces cut out or doubled."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        changed = bytearray(body)
        for _ in range(int(rng.integers(1, 6))):
            kind = rng.integers(6)
            at = int(rng.integers(len(changed)))
            if kind < 2:
                at = 3200 + int(rng.integers(400))
            elif kind < 4:
                at = 3600 + 1240 * int(rng.integers(20)) + int(rng.integers(240))
            at = min(at, len(changed) - 1)
            if rng.random() < 0.9:
                changed[at] = int(rng.choice([0, 1, 2, 5, 0x7F, 0x80, 0xFF, int(rng.integers(256))]))
            elif rng.random() < 0.5:
                del changed[at : at + int(rng.integers(2000))]
            else:
                changed[at:at] = changed[at : at + int(rng.integers(2000))]
            if not changed:
                changed = bytearray(1)
        yield bytes(changed)


@pytest.mark.parametrize("what", ["IEEE", "IBM", "little", "SU"])
def test_only_documented_errors_leave_the_reader(what: str) -> None:
    """Promise 4 for field files: a seeded 150 mutations of each; both outcomes must occur."""
    file = SOUND.shuffled()
    body = {"IEEE": file.segy, "IBM": file.coded(1).segy, "little": replace(file, order="<").segy, "SU": file.su}[
        what
    ]()
    limits = Limits(unpacked_bytes=1 << 20)
    outcomes: dict[str, int] = {}
    for changed in mutations(body, 150, seed=11):
        try:
            upload = read_gathers(changed, limits=limits)
            prepared = prepare(upload.gathers, upload.survey)
            assert np.isfinite(prepared.traces).all()
            outcome = "read"
        except SeisBindError as error:
            assert isinstance(error, (UploadRefused, InvalidSurvey, InvalidGather))
            outcome = error.code
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    assert outcomes["read"] >= 10, outcomes
    assert len(outcomes) >= 3, outcomes


def test_another_reader_agrees(tmp_path: Path) -> None:
    """segyio reads what is written here as it is read here, and what it writes is read back."""
    segyio = pytest.importorskip("segyio", reason="segyio, a second reader, is not installed")
    for code in (1, 5, 2, 3):
        path = tmp_path / f"{code}.segy"
        file = SOUND if code in (1, 5) else replace(SOUND, traces=np.rint(SOUND.traces * 200))
        path.write_bytes(file.coded(code).segy())
        with segyio.open(path, ignore_geometry=True) as opened:
            theirs = opened.trace.raw[:]
            assert opened.header[37][segyio.TraceField.GroupX] == 10
        ours = read_gathers(path.read_bytes()).gathers.transpose(0, 2, 1).reshape(theirs.shape)
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    spec = segyio.spec()
    spec.format, spec.samples, spec.tracecount = 1, np.arange(250) * 4, 108
    with segyio.create(tmp_path / "theirs.segy", spec) as made:
        for i, trace in enumerate(SOUND.traces):
            made.header[i] = {
                segyio.TraceField.FieldRecord: int(SOUND.headers["record"][i]),
                segyio.TraceField.SourceX: int(SOUND.headers["sx"][i]) * 10,
                segyio.TraceField.GroupX: int(SOUND.headers["gx"][i]) * 10,
                segyio.TraceField.SourceGroupScalar: -10,
                segyio.TraceField.TRACE_SAMPLE_COUNT: 250,
                segyio.TraceField.TRACE_SAMPLE_INTERVAL: 4000,
            }
            made.trace[i] = trace
        made.bin.update(hdt=4000, hns=250, mfeet=1)
    upload = read_gathers((tmp_path / "theirs.segy").read_bytes())
    assert (upload.survey.shot_x_m, upload.survey.receiver_x_m) == (SMALL.shot_x_m, SMALL.receiver_x_m)
    np.testing.assert_allclose(upload.gathers, SHORT, rtol=2e-6)


def test_over_http_in_a_form_and_raw(served: Any, gathers: Float32) -> None:
    """The same hits as from the npy, and a report on the file."""
    body = make(gathers[0]).coded(1).shuffled().segy()
    as_npy = served.http.post("/v1/retrieve", files={"file": npy(gathers[0])}).json()
    form = served.http.post("/v1/retrieve", files={"file": ("field.bin", body)}, data={"top_k": 5})
    assert form.status_code == 200, form.text
    answer = RetrieveAnswer.model_validate_json(form.content)
    assert answer.ingest.model_dump(exclude={"assumptions"}) == {
        "format": "segy", "sample_format": "IBM float32", "byte_order": "big", "gathers": 1, "shots": 5,
        "receivers": 70, "samples": 1000, "traces": 350, "dt_s": 0.001, "shot_x_m": (0.0, 690.0),
        "receiver_x_m": (0.0, 690.0), "units": "m",
    }  # fmt: skip
    assert [w.code for w in answer.ingest.assumptions] == ["traces_sorted"]
    (result,) = answer.results
    assert result.warnings[0].code == "traces_sorted"
    assert [m.model_id for m in result.matches] == [m["model_id"] for m in as_npy["results"][0]["matches"]]
    assert as_npy["ingest"]["format"] == "npy"
    for kind in ("application/octet-stream", "application/vnd.seg-y"):
        raw = served.http.post("/v1/retrieve", content=body, headers={"Content-Type": kind})
        assert raw.json()["results"] == form.json()["results"]
    for path in ("/v1/search", "/v1/models"):
        refused = served.http.post(path, content=body, headers=RAW)
        assert refused.status_code in (403, 415)


def test_of_a_file_of_many_shots_five_are_used() -> None:
    survey = Survey(tuple(40.0 * i for i in range(18)), OPENFWI.receiver_x_m, 0.004)
    gather = gather_of(survey, 250)
    upload = read_gathers(make(gather, survey=survey).shuffled().segy())
    prepared = prepare(upload.gathers, upload.survey)
    said = [note.code for note in (*upload.notes, *prepared.notes[0])]
    assert said == ["traces_sorted", "shots_chosen", "shots_moved", "dead_traces"]
    assert np.abs(prepared.shot_x_m[0] - OPENFWI.shot_x_m).max() <= 10
    (chosen,) = (note.sentence for note in prepared.notes[0] if note.code == "shots_chosen")
    used = chosen.partition("those at ")[2].partition(" m:")[0].split(", ")
    at = [survey.shot_x_m.index(float(x)) for x in used]
    alone = prepare(gather[at], replace(survey, shot_x_m=tuple(survey.shot_x_m[i] for i in at)))
    np.testing.assert_array_equal(prepared.traces, alone.traces)


def test_refusals_over_http(served: Any) -> None:
    for name, (code, _, write) in REFUSED.items():
        response = served.http.post("/v1/retrieve", content=write().segy(), headers=RAW)
        assert (response.status_code, response.json()["code"]) == (422, code), name


def test_the_command_reads_files_by_content(
    tmp_path: Path, gallery_path: Path, weights: Path, gathers: Float32
) -> None:
    for name, body in (("a.dat", make(gathers[0]).segy()), ("b.segy", npy(gathers[0]))):
        (tmp_path / name).write_bytes(body)
    with GalleryBackend(gallery_path, weights, "cpu", RetrieveOptions(top_k=3)) as backend:
        field_file, array = (backend.file((tmp_path / name).read_bytes()) for name in ("a.dat", "b.segy"))
    assert (field_file.ingest.format, array.ingest.format) == ("segy", "npy")
    assert [m.model_id for m in field_file.results[0].matches] == [m.model_id for m in array.results[0].matches]


def test_every_note_about_a_field_file_is_documented() -> None:
    root = Path(__file__).parents[3]
    formats = ("seg2", "segy", "segy_gather", "segy_samples", "trace_headers")
    modules = ("model/survey/line.py", *(f"service/formats/{name}.py" for name in formats))
    made = {code for name in modules for code in re.findall(r'Note\("(\w+)"', (root / name).read_text("utf-8"))}
    table = (root / "docs" / "formats.md").read_text("utf-8").partition("### What is said")[2].partition("### ")[0]
    first_column = " ".join(re.findall(r"^\| (`.*?) \|", table, re.MULTILINE))
    assert made == set(re.findall(r"`(\w+)`", first_column))
    tested = set().union(*(codes for codes, _ in SAID.values()), *(codes for _, codes in SAME.values()))
    assert made - tested <= {
        "line_window",
        "shots_thinned",
        "dt_overridden",
        "moving_spread",
        "stack_divided",
        "units_converted",
    }  # tests of their own


VIKING = Path(__file__).parents[4] / "shared" / "data" / "viking_small.segy"


def test_a_marine_record_is_read_through_its_best_window() -> None:
    """4 shots, a cable of 120 channels towed 262 m behind: no shot among its receivers, so by reciprocity."""
    if not VIKING.exists():
        pytest.skip("the field record is not here; it is not part of the repository")
    body = VIKING.read_bytes()
    assert "moving_spread" in codes(read_gathers(body).notes)
    given = Geometry(shot_x_m=(0.0, 25.0, 50.0, 75.0), receiver_x_m=tuple(25.0 * i for i in range(120)))
    upload = read_gathers(body, geometry=given)  # whoever says so is believed, and told what the file says
    assert {"samples_disagree", "record_long"} <= codes(upload.notes)
    assert upload.ingest.sample_format == "IBM float32"
