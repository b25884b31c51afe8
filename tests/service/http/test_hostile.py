"""Uploads made to hurt: each is refused with its code, without the memory or the side effect it was after."""

from __future__ import annotations

import io
import math
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from seisbind.model.survey.preparation import prepare
from seisbind.service.formats.npy import Limits
from seisbind.service.formats.reader import Geometry, read_gathers, read_velocity
from wire import npy, npz, peak_bytes

CAP = 8 << 20  # as `conftest.served`; a gather in float32 is 1.4 MB
BOMB_BYTES = 200 << 20
UNTRAINED = "peak_frequency_untrained"
Float32 = NDArray[np.float32]


def zipped(*members: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return buffer.getvalue()


def with_header(header: str, content: bytes = b"", version: int = 1) -> bytes:
    text = header.encode("latin-1")
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text + content


def bomb() -> bytes:
    """200 MB of zeros in 0.2 MB."""
    header = io.BytesIO()
    shape = {"descr": "<f4", "fortran_order": False, "shape": (BOMB_BYTES // 1_400_000, 5, 1000, 70)}
    npy_format.write_array_header_1_0(header, shape)
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("gathers.npy", "w", force_zip64=True) as member,
    ):
        member.write(header.getvalue())
        for _ in range(BOMB_BYTES // 1_400_000):
            member.write(bytes(1_400_000))
    return buffer.getvalue()


def lying_bomb() -> bytes:
    """The bomb, with a directory that states 1000 bytes."""
    content = bytearray(bomb())
    entry = content.rindex(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = struct.pack("<I", 1000)
    return bytes(content)


def huge_directory() -> bytes:
    """A zip directory of 1 MB that states no members: `zipfile` reads what the size says, not the count."""
    entries = (b"PK\x01\x02" + bytes(42)) * 22_000
    return entries + b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(entries), 0, 0)


def segy(traces: int, samples: int, step: int = 0) -> bytes:
    """8-bit traces; each ``step`` m further, with its source, than the one before."""
    binary = bytearray(400)
    struct.pack_into(">HHHHH", binary, 16, 4000, 0, samples, 0, 8)  # bytes 3217-3226
    header = bytearray(240)
    struct.pack_into(">HH", header, 114, samples, 4000)
    blocks = []
    for number in range(traces):
        struct.pack_into(">iiii", header, 72, number * step, 0, number * step, 0)
        blocks.append(bytes(header) + b"\1" * samples)
    return b"\xc3\x40" + bytes(3198) + bytes(binary) + b"".join(blocks)


def seg2(traces: int, samples: int) -> bytes:
    """Many pointers to one trace of int16: 64 GB if each were read."""
    start = struct.pack("<HHHHBBBBBB18x", 0x3A55, 1, 4 * traces, traces, 1, 0, 0, 1, 10, 0)
    trace = struct.pack("<HHIIB19x", 0x4422, 32, 2 * samples, samples, 1) + bytes(2 * samples)
    return start + struct.pack("<I", 36 + 4 * traces) * traces + bytes(4) + trace


def pickled(touched: Path) -> bytes:
    """An array of dtype object whose unpickling would make a file."""
    payload = b"cos\nsystem\n(S'touch " + str(touched).encode() + b"'\ntR."
    return with_header("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n", payload)


GOOD = np.random.default_rng(0).standard_normal((5, 1000, 70)).astype(np.float32)


def changed(position: tuple[int, ...], value: float) -> Float32:
    array = GOOD.copy()
    array[position] = value
    return array


CORPUS: dict[str, tuple[str, int, Callable[[], bytes]]] = {
    "empty": ("malformed_upload", 422, lambda: b""),
    "text": ("unsupported_format", 415, lambda: b"hello, world"),
    "SEG-Y of zeros": ("malformed_upload", 422, lambda: b"\xc3\x40\xf1" + bytes(4000)),
    "SEG-Y of ones": ("malformed_upload", 422, lambda: b"\xc3\x40\xf1" + b"\xff" * 4000),
    "SEG-Y that ends in its header": ("malformed_upload", 422, lambda: b"\xc3\x40\xf1" * 100),
    "SEG-Y of traces without samples": ("malformed_upload", 422, lambda: segy(traces=2000, samples=0)),
    "SEG-Y of traces of one sample": ("invalid_gather", 422, lambda: segy(traces=20_000, samples=1, step=7)),
    "SEG-Y of single traces": ("invalid_survey", 422, lambda: segy(traces=8_000, samples=160, step=7)),
    "SEG-Y that repeats a trace": ("invalid_survey", 422, lambda: segy(traces=8_000, samples=160)),
    "SEG-2 whose traces are one": ("malformed_upload", 422, lambda: seg2(16_000, 2_000_000)),
    "SU of equal bytes": ("malformed_upload", 422, lambda: b"a" * 300_001),
    "only the magic": ("malformed_upload", 422, lambda: b"\x93NUMPY"),
    "cut in the header": ("malformed_upload", 422, lambda: npy(GOOD)[:40]),
    "cut in the samples": ("malformed_upload", 422, lambda: npy(GOOD)[:-1]),
    "more samples than stated": ("malformed_upload", 422, lambda: npy(GOOD) + b"\0"),
    "a header that lies": (
        "malformed_upload",
        422,
        lambda: with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (2000000000, 70), }", bytes(400)),
    ),
    "a shape beyond 64 bits": (
        "malformed_upload",
        422,
        lambda: with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999, 5), }"),
    ),
    "a negative shape": (
        "malformed_upload",
        422,
        lambda: with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (-5, -5), }", bytes(100)),
    ),
    "a shape of booleans": (
        "malformed_upload",
        422,
        lambda: with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (True, True), }", bytes(4)),
    ),
    "no samples": ("malformed_upload", 422, lambda: npy(np.zeros((0, 5, 1000, 70), np.float32))),
    "a number": ("malformed_upload", 422, lambda: npy(np.float32(1.0).reshape(()))),
    "seven axes": ("malformed_upload", 422, lambda: npy(np.zeros((1,) * 7, np.float32))),
    "two axes": ("malformed_upload", 422, lambda: npy(np.zeros((1000, 70), np.float32))),
    "a huge header": ("malformed_upload", 422, lambda: with_header(" " * 4_000_000, version=2)),
    "a header of brackets": ("malformed_upload", 422, lambda: with_header("(" * 1000)),
    "a header of signs": ("malformed_upload", 422, lambda: with_header("-" * 1000 + "1")),
    "a header that calls": ("malformed_upload", 422, lambda: with_header("__import__('os').getpid()")),
    "a header without keys": ("malformed_upload", 422, lambda: with_header("{}")),
    "an unknown version": ("malformed_upload", 422, lambda: b"\x93NUMPY\x09\x00" + bytes(100)),
    "complex": ("unsupported_dtype", 422, lambda: npy(GOOD.astype(np.complex64))),
    "structured": ("unsupported_dtype", 422, lambda: npy(np.zeros(5, [("a", "<f4")]))),
    "strings": ("unsupported_dtype", 422, lambda: npy(np.array(["a"]))),
    "booleans": ("unsupported_dtype", 422, lambda: npy(GOOD > 0)),
    "long double": ("unsupported_dtype", 422, lambda: npy(np.zeros((5, 4, 70), np.longdouble))),
    "over the cap as float32": ("upload_too_large", 413, lambda: npy(np.ones((13, 5, 1000, 70), np.int8))),
    "too many gathers": ("upload_too_large", 413, lambda: npy(np.ones((6, 5, 600, 70), np.float16))),
    "NaN": ("invalid_gather", 422, lambda: npy(changed((1, 5, 7), math.nan))),
    "infinite": ("invalid_gather", 422, lambda: npy(changed((1, 5, 7), -math.inf))),
    "constant": ("invalid_gather", 422, lambda: npy(np.full((5, 1000, 70), 3.0, np.float32))),
    "too short": ("invalid_gather", 422, lambda: npy(GOOD[:, :100])),
    "beyond float32": ("invalid_gather", 422, lambda: npy(GOOD.astype(np.float64) * 1e300)),
    "zero traces": ("malformed_upload", 422, lambda: npy(GOOD[:, :, :0])),
    "other receivers without positions": ("invalid_survey", 422, lambda: npy(GOOD[:, :, :60])),
    "a million traces": ("invalid_survey", 422, lambda: npy(np.ones((1, 1, 1_000_000), np.float32))),
    "bomb": ("upload_too_large", 413, bomb),
    "bomb that lies": ("malformed_upload", 422, lying_bomb),
    "nested zip": ("malformed_upload", 422, lambda: zipped(("gathers.npy", zipped(("gathers.npy", npy(GOOD)))))),
    "nested by name": ("malformed_upload", 422, lambda: zipped(("gathers.npz", npz(gathers=GOOD)))),
    "a name twice": (
        "malformed_upload",
        422,
        lambda: zipped(("gathers.npy", npy(GOOD)), ("gatherz.npy", npy(GOOD))).replace(b"gatherz", b"gathers"),
    ),
    "a path": ("malformed_upload", 422, lambda: zipped(("../../etc/gathers.npy", npy(GOOD)))),
    "an absolute path": ("malformed_upload", 422, lambda: zipped(("/gathers.npy", npy(GOOD)))),
    "an unknown array": ("malformed_upload", 422, lambda: npz(gathers=GOOD, wells=GOOD)),
    "two gathers arrays": ("malformed_upload", 422, lambda: npz(gathers=GOOD, data=GOOD)),
    "nothing in it": ("malformed_upload", 422, lambda: zipped()),
    "many members": ("upload_too_large", 413, lambda: zipped(*((f"a{i}.npy", b"") for i in range(2000)))),
    "a huge directory": ("upload_too_large", 413, huge_directory),
    "a flipped bit": ("malformed_upload", 422, lambda: flipped(npz(gathers=GOOD))),
    "a comment": ("malformed_upload", 422, lambda: npz(gathers=GOOD)[:-2] + b"\x01\x00x"),
    "dt_s of two numbers": ("malformed_upload", 422, lambda: npz(gathers=GOOD, dt_s=np.array([0.001, 0.002]))),
    "dt_s in milliseconds": ("invalid_survey", 422, lambda: npz(gathers=GOOD, dt_s=np.float64(1.0))),
    "dt_s NaN": ("invalid_survey", 422, lambda: npz(gathers=GOOD, dt_s=np.float64(math.nan))),
    "receivers unsorted": ("invalid_survey", 422, lambda: npz(gathers=GOOD, receiver_x_m=np.arange(70.0)[::-1] * 10)),
    "positions that do not fit": ("invalid_gather", 422, lambda: npz(gathers=GOOD, receiver_x_m=np.arange(60.0) * 10)),
}


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("name", CORPUS)
def test_refused_by_the_server_with_its_code(name: str, served) -> None:  # type: ignore[no-untyped-def]
    code, status, make = CORPUS[name]
    response = served.http.post("/v1/retrieve", content=make(), headers={"Content-Type": "application/octet-stream"})
    assert (response.status_code, response.json()["code"]) == (status, code), response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["detail"].endswith((".", ")", "?")), response.json()["detail"]


@pytest.mark.parametrize("path", ["/v1/search", "/v1/models"])
@pytest.mark.parametrize("name", CORPUS)
def test_no_velocity_model_either(name: str, path: str, writable) -> None:  # type: ignore[no-untyped-def]
    """None of the corpus holds models of 70 x 70 cells: each is refused, and what bounds every upload holds here."""
    code, status, make = CORPUS[name]
    response = writable.http.post(path, content=make(), headers={"Content-Type": "application/octet-stream"})
    assert 400 <= response.status_code < 500, response.text
    found = response.json()["code"]
    if not code.startswith(("invalid", "malformed")):
        assert (response.status_code, found) == (status, code), response.text
    assert found.startswith(("malformed", "unsupported", "upload", "invalid_velocity_model")), response.text
    assert writable.http.get("/v1/gallery").json()["gallery"]["models"] == 60


@pytest.mark.parametrize("name", CORPUS)
def test_refused_within_twice_the_cap(name: str) -> None:
    body = CORPUS[name][2]()
    limits = Limits(unpacked_bytes=CAP, items=5)

    def read() -> None:
        upload = read_gathers(body, limits=limits)
        prepare(upload.gathers, upload.survey)

    assert peak_bytes(read) < 2 * CAP


def test_the_bomb_would_break_the_budget() -> None:
    """Vacuity: `numpy.load` unpacks all of it."""
    body = bomb()
    assert len(body) < 1 << 20
    assert peak_bytes(lambda: np.load(io.BytesIO(body))["gathers"]) > BOMB_BYTES


def test_a_pickle_is_not_opened(tmp_path: Path, served) -> None:  # type: ignore[no-untyped-def]
    touched = tmp_path / "touched"
    for body in (pickled(touched), zipped(("gathers.npy", pickled(touched)))):
        response = served.http.post("/v1/retrieve", files={"file": body})
        assert (response.status_code, response.json()["code"]) == (422, "unsupported_dtype")
    assert not touched.exists()
    # vacuity: the payload does what it says where it is unpickled
    os.environ.setdefault("PATH", "/usr/bin:/bin")
    np.load(io.BytesIO(pickled(touched)), **{"allow_" + "pickle": True})
    assert touched.exists()


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", ">f8", "<f2", ">f2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_real_numbers_of_any_size_and_order_are_read(dtype: str, order: str) -> None:
    array = np.random.default_rng(0).standard_normal((5, 1000, 70)).astype(np.float16)
    body = npy(np.asarray(array.astype(dtype), order=order))  # type: ignore[call-overload]
    upload = read_gathers(body)
    np.testing.assert_array_equal(upload.gathers.astype(np.float32), array.astype(np.float32))


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version_of_npy(version: tuple[int, int]) -> None:
    buffer = io.BytesIO()
    npy_format.write_array(buffer, GOOD, version=version)
    np.testing.assert_array_equal(read_gathers(buffer.getvalue()).gathers, GOOD)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_brings_its_geometry(save: Callable[..., None]) -> None:
    buffer = io.BytesIO()
    positions = np.arange(70) * 12.5
    save(buffer, data=GOOD, dt_s=0.002, shot_x_m=np.arange(5) * 100, receiver_x_m=positions, peak_hz=20)
    upload = read_gathers(buffer.getvalue(), geometry=Geometry(dt_s=0.001))
    assert upload.survey.receiver_x_m == tuple(positions)
    assert upload.survey.shot_x_m == (0.0, 100.0, 200.0, 300.0, 400.0)
    assert (upload.survey.dt_s, upload.survey.peak_hz) == (0.001, 20.0)  # what the sender says goes first
    assert upload.notes == ()


def test_an_assumed_sampling_interval_is_said() -> None:
    assert [note.code for note in read_gathers(npy(np.repeat(GOOD, 2, axis=1))).notes] == ["assumed_dt"]


@pytest.mark.parametrize(("peak_hz", "codes"), [(8, []), (28, []), (7.9, [UNTRAINED]), (45, [UNTRAINED])])
def test_a_wavelet_that_was_never_trained_on_is_said(peak_hz: float, codes: list[str]) -> None:
    notes = read_gathers(npy(GOOD), geometry=Geometry(peak_hz=peak_hz)).notes
    assert [note.code for note in notes] == codes


def test_velocity_models_in_npy_and_npz() -> None:
    velocity = np.full((2, 70, 70), 2000.0)
    for body in (npy(velocity), npz(velocity=velocity), npz(anything=velocity)):
        np.testing.assert_array_equal(read_velocity(body), velocity)


@pytest.mark.parametrize("scale", [1e36, 1e15, 1e-15, 1e-30, 1e-42])
def test_the_unit_of_pressure_does_not_matter(scale: float, embedder, gathers: Float32) -> None:  # type: ignore[no-untyped-def]
    expected = embedder.embed_gathers(prepare(gathers[:1])).embedding
    found = embedder.embed_gathers(prepare(gathers[:1].astype(np.float64) * scale)).embedding
    tolerance = 1e-5 if scale > 1e-38 else 0.05  # below, float32 has few digits
    np.testing.assert_allclose(found, expected, atol=tolerance)
