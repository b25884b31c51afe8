"""SEG-2: the same traces as SEG-Y get the same answer, and what a file gets wrong is refused or said."""

from __future__ import annotations

import io
import runpy
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from seg2_writer import described, seg2, shots
from seisbind.model.errors import SeisBindError
from seisbind.model.survey.preparation import OPENFWI
from seisbind.service.engine.inspection import inspect_record
from seisbind.service.formats.line_file import open_line, read_line
from seisbind.service.formats.reader import Upload, read_gathers, read_velocity
from seisbind.service.formats.seg2 import looks_like_seg2, read_seg2
from wire import RAW, peak_bytes

Float32 = NDArray[np.float32]
RECEIVERS = tuple(10.0 * i for i in range(48))
COUNT = 400
FUZZ = Path(__file__).parents[3] / "benchmarks" / "fuzz.py"
TRACES = np.rint(np.random.default_rng(3).standard_normal((len(RECEIVERS), COUNT)) * 6000)
PLAIN = described(120.5, RECEIVERS, 0.002)


def read(body: bytes) -> Upload:
    return read_gathers(body)


def codes(body: bytes) -> list[str]:
    return [note.code for note in read(body).notes]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("code", [1, 2, 3, 4, 5])
def test_every_format_code_in_either_order(code: int, order: str) -> None:
    upload = read(seg2(TRACES, PLAIN, code=code, order=order))
    assert codes(seg2(TRACES, PLAIN, code=code, order=order)) == []
    np.testing.assert_allclose(upload.gathers[0].T, TRACES, atol=1 if code == 3 else 0)
    assert (upload.ingest.format, upload.ingest.byte_order) == ("seg2", "little" if order == "<" else "big")
    assert upload.survey.shot_x_m == (120.5,) and upload.survey.receiver_x_m == RECEIVERS
    assert upload.survey.dt_s == 0.002


def test_a_20_bit_float_has_an_exponent() -> None:
    values = np.array([-(30000 << 9), 30000 << 9, -1, 0] * 100)
    body = seg2(np.tile(values, (48, 1)), PLAIN, code=3)
    np.testing.assert_array_equal(read(body).gathers[0].T, np.tile(values, (48, 1)))


def test_amplitudes_are_those_of_one_shot() -> None:
    headers = [each | {"DESCALING_FACTOR": "0.25", "STACK": "4"} for each in PLAIN]
    headers[3] = headers[3] | {"DESCALING_FACTOR": "5.0E-1"}
    upload = read(seg2(TRACES, headers, code=1))
    expected = TRACES * 0.0625
    expected[3] *= 2
    np.testing.assert_array_equal(upload.gathers[0].T, expected.astype(np.float32))
    assert codes(seg2(TRACES, headers, code=1)) == ["stack_divided"]


@pytest.mark.parametrize(("unit", "metre", "code"), [("FEET", 0.3048, "feet"), ("CENTIMETERS", 0.01, "units_converted"),
                                                     ("NONE", 1.0, "metres_assumed")])  # fmt: skip
def test_units_of_length(unit: str, metre: float, code: str) -> None:
    headers = described(120.5 / metre, [x / metre for x in RECEIVERS], 0.002)
    upload = read(seg2(TRACES, headers, file={"UNITS": unit}))
    assert [note.code for note in upload.notes] == [code]
    np.testing.assert_allclose(upload.survey.receiver_x_m, RECEIVERS, atol=0.01)


def test_a_delay_shifts_and_a_fraction_of_a_microsecond_is_kept() -> None:
    early = [each | {"DELAY": "-0.010"} for each in PLAIN]
    upload = read(seg2(TRACES, early))
    np.testing.assert_array_equal(upload.gathers[0].T, TRACES[:, 5:])
    assert codes(seg2(TRACES, early)) == ["delay_applied"]
    finer = [each | {"SAMPLE_INTERVAL": "0.0019531"} for each in PLAIN]
    assert read(seg2(TRACES, finer)).survey.dt_s == pytest.approx(0.0019531, rel=1e-12)


def test_auxiliary_traces_and_components() -> None:
    headers = [each | {"TRACE_TYPE": "SEISMIC_DATA", "RECEIVER": "VERTICAL_GEOPHONE"} for each in PLAIN]
    headers[0] = headers[0] | {"TRACE_TYPE": "UPHOLE_TIME"}
    upload = read(seg2(TRACES, headers))
    assert {note.code for note in upload.notes} == {"auxiliary_traces", "not_pressure"}
    assert upload.ingest.receivers == len(RECEIVERS) - 1


def changed(at: int, kind: str, value: int) -> bytes:
    body = bytearray(seg2(TRACES, PLAIN))
    struct.pack_into("<" + kind, body, at, value)
    return bytes(body)


FIRST = struct.unpack_from("<I", seg2(TRACES, PLAIN), 32)[0]  # byte of the first trace
SECOND = struct.unpack_from("<I", seg2(TRACES, PLAIN), 36)[0]


def with_header(**strings: str) -> bytes:
    return seg2(TRACES, [PLAIN[0] | strings, *PLAIN[1:]])


REFUSED: dict[str, tuple[str, str, bytes]] = {
    "no pointers": ("malformed_upload", "states 0 traces", changed(6, "H", 0)),
    "more traces than pointers": ("malformed_upload", "states 65535 traces", changed(6, "H", 65535)),
    "pointers beyond the file": ("malformed_upload", "65567 bytes", changed(4, "H", 65535)),
    "a trace beyond the file": ("malformed_upload", "4294967295", changed(32, "I", 0xFFFFFFFF)),
    "a trace within the pointers": ("malformed_upload", "pointers to traces", changed(32, "I", 40)),
    "one trace twice": ("malformed_upload", "share bytes", changed(32, "I", SECOND)),
    "no trace there": ("malformed_upload", "begins with", changed(32, "I", FIRST + 4)),
    "more samples than bytes": ("malformed_upload", "4294967295 samples", changed(FIRST + 8, "I", 0xFFFFFFFF)),
    "no samples": ("malformed_upload", "0 samples", changed(FIRST + 8, "I", 0)),
    "fewer samples than others": ("malformed_upload", "one length", changed(FIRST + 8, "I", 399)),
    "a format code that is none": ("unsupported_dtype", "format code 9", changed(FIRST + 12, "B", 9)),
    "a string of one byte": ("malformed_upload", "states 1 bytes", changed(FIRST + 32, "H", 1)),
    "a string beyond its block": ("malformed_upload", "states 60000 bytes", changed(FIRST + 32, "H", 60000)),
    "cut off": ("malformed_upload", "cut off", seg2(TRACES, PLAIN)[:-1]),
    "only a descriptor": ("malformed_upload", "cut off", seg2(TRACES, PLAIN)[:31]),
    "a number that is none": ("malformed_upload", "'abc', no number", with_header(DESCALING_FACTOR="abc")),
    "an infinite position": ("malformed_upload", "no number", with_header(RECEIVER_LOCATION="inf 0 0")),
    "a position in space": ("invalid_survey", "on no line", with_header(SOURCE_LOCATION="1e12 0 0")),
    "no amplitude": ("malformed_upload", "no amplitudes", with_header(DESCALING_FACTOR="0")),
    "several starts": ("invalid_survey", "DELAY", with_header(DELAY="0.1")),
    "several intervals": ("invalid_survey", "different sampling intervals", with_header(SAMPLE_INTERVAL="0.004")),
    "no interval": ("invalid_survey", "no sampling interval", seg2(TRACES, [{"DELAY": "0"}] * 48)),
    "a negative interval": ("invalid_survey", "SAMPLE_INTERVAL", with_header(SAMPLE_INTERVAL="-0.002")),
    "many strings": ("malformed_upload", "128 strings", with_header(**{f"K{i}": "" for i in range(200)})),
    "units that are none": ("invalid_survey", "UNITS", seg2(TRACES, PLAIN, file={"UNITS": "DEGREES"})),
    "radar": ("invalid_gather", "RADAR", seg2(TRACES, [each | {"TRACE_TYPE": "RADAR"} for each in PLAIN])),
    "a terminator of seven bytes": ("unsupported_format", "SEG-2", changed(8, "B", 7)),
    "no positions": ("invalid_survey", ".", seg2(TRACES, [{"SAMPLE_INTERVAL": "0.002"}] * 48)),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_contradicts_itself_is_refused_with_the_numbers(name: str) -> None:
    code, words, body = REFUSED[name]
    with pytest.raises(SeisBindError, match=words) as caught:
        read(body)
    assert caught.value.code == code

    def refused() -> None:
        with pytest.raises(SeisBindError):
            read(body)

    assert peak_bytes(refused) < 2 * len(body) + (1 << 20)


def test_a_velocity_model_is_none() -> None:
    with pytest.raises(SeisBindError, match="SEG-2"):
        read_velocity(seg2(TRACES, PLAIN))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_mutated_files_are_read_or_refused_within_twice_their_bytes(data: st.DataObject) -> None:
    body = bytearray(SMALL)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body) - 1))
        some = data.draw(st.sampled_from([b"\0", b"\xff", b"\xff\xff", b"\xff\xff\xff\xff", b"9", b"\x80", b"\1\0"]))
        body[at : at + len(some)] = some
    content = bytes(body[: data.draw(st.integers(1, len(body)))]) if data.draw(st.booleans()) else bytes(body)
    if not looks_like_seg2(content):
        return
    try:
        file = read_seg2(content)
    except SeisBindError as error:
        assert len(str(error)) < 500
    else:
        assert file.words.nbytes <= 2 * len(content)


SMALL = seg2(TRACES[:3, :8], PLAIN[:3], code=1)


def test_the_same_answer_as_segy_over_http(served: Any, gathers: Float32) -> None:
    field = shots(gathers[0], OPENFWI.shot_x_m, OPENFWI.receiver_x_m, 0.001)
    answers = []
    for body in (field, runpy.run_path(str(FUZZ))["segy"](gathers[0], 0.001)):
        response = served.http.post("/v1/retrieve", content=body, params={"top_k": 10}, headers=RAW)
        assert response.status_code == 200, response.text
        answers.append(response.json())
    assert [answer["ingest"]["format"] for answer in answers] == ["seg2", "segy"]
    assert len(answers[0]["results"][0]["matches"]) == 10
    assert answers[0]["results"] == answers[1]["results"]


def test_inspected() -> None:
    found = inspect_record(seg2(TRACES, PLAIN, code=2))
    assert (found.format, found.spread.receivers, found.traces.dt_s) == ("seg2", 48, 0.002)
    assert found.spread.receiver_x_m == (0.0, 470.0) and found.refusal is None


def test_a_file_a_shot_is_one_line(tmp_path: Path) -> None:
    files = []
    for number, x in enumerate((0.0, 120.0, 350.0)):
        files.append(tmp_path / f"{number}.sg2")
        files[-1].write_bytes(seg2(TRACES + number, described(x, RECEIVERS, 0.002)))
    line = open_line(files)
    assert len(line) == 3 * len(RECEIVERS) and line.samples == COUNT
    np.testing.assert_array_equal(np.unique(line.positions.source_xy_m[:, 0]), [0, 120, 350])
    np.testing.assert_array_equal(line.read(np.array([0, 48, 96]), 10), [TRACES[0, :10] + i for i in range(3)])
    assert read_line(files[0].read_bytes()).notes == ()


@pytest.mark.parametrize("code", [1, 2, 3, 4, 5])
@pytest.mark.filterwarnings("ignore")
def test_as_obspy_reads_it(code: int) -> None:
    obspy = pytest.importorskip("obspy", reason="another reader of SEG-2, which no extra installs")
    for order in "<>":
        body = seg2(TRACES, [each | {"DESCALING_FACTOR": "0.5"} for each in PLAIN], code=code, order=order)
        stream = obspy.read(io.BytesIO(body), format="SEG2")
        assert len(stream) == len(RECEIVERS) and stream[0].stats.delta == 0.002
        ours = read_seg2(body).words
        theirs = np.array([trace.data * trace.stats.calib for trace in stream])
        np.testing.assert_array_equal(ours, theirs.astype(np.float32))
