"""``seisbind inspect`` on files of every kind, those that a retrieval refuses among them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from seisbind.model.errors import SeisBindError
from seisbind.model.ground.families import mixed
from seisbind.model.scale import AutoScale
from seisbind.model.survey.preparation import OPENFWI
from seisbind.model.survey.scaling import ChosenScale
from seisbind.model.waves.wavefield import simulate
from seisbind.service.commands.inspect import REFUSED
from seisbind.service.commands.main import app
from seisbind.service.engine.inspection import Inspection, inspect_record
from seisbind.service.formats.npy import npy, npz
from seisbind.service.formats.reader import read_gathers
from seisbind.service.formats.segy import FIELDS, header_dtype

Float32 = NDArray[np.float32]


def su(traces: Float32, **headers: Any) -> bytes:
    """An SU file of ``(trace, time)``."""
    made = np.zeros(len(traces), header_dtype(FIELDS, "little"))
    for name, value in ({"kind": 1, "samples": traces.shape[1], "dt_us": 1000, "scalco": 1} | headers).items():
        made[name] = value
    return b"".join(h.tobytes() + t.tobytes() for h, t in zip(made, traces.astype("<f4"), strict=True))


def segy(traces: Float32, **headers: Any) -> bytes:
    """The same as big-endian SEG-Y, IEEE floats, metres."""
    made = np.zeros(len(traces), header_dtype(FIELDS, "big"))
    for name, value in ({"kind": 1, "samples": traces.shape[1], "dt_us": 1000, "scalco": 1} | headers).items():
        made[name] = value
    binary = bytearray(400)
    for byte, value in ((3217, int(made["dt_us"][0])), (3221, traces.shape[1]), (3225, 5), (3255, 1)):
        binary[byte - 3201 : byte - 3199] = value.to_bytes(2, "big")
    body = b"".join(h.tobytes() + t.tobytes() for h, t in zip(made, traces.astype(">f4"), strict=True))
    text = b"".join(f"C{number:2d}".encode().ljust(80) for number in range(1, 41))
    return text + bytes(binary) + body


@pytest.fixture(scope="module")
def streamer() -> tuple[Float32, dict[str, NDArray[np.int64]]]:
    """Eight shots into 24 channels that are towed behind them, simulated: traces and headers."""
    shot_x = np.arange(8) * 20.0 + 400
    survey = replace(OPENFWI, shot_x_m=tuple(shot_x))
    gather = simulate(mixed(1, seed=11)[0], survey=survey, engine="deepwave")[0]
    traces, source, group = [], [], []
    for number, x in enumerate(shot_x):
        for channel in range(24):
            receiver = x - 50 - 10 * channel
            traces.append(gather[number, :, round(receiver / 10)])
            source.append(x)
            group.append(receiver)
    record = np.repeat(np.arange(8) + 1, 24)
    headers = {"source_x": np.array(source, np.int64), "group_x": np.array(group, np.int64), "record": record,
               "channel": np.tile(np.arange(24) + 1, 8)}  # fmt: skip
    return np.stack(traces), headers


def run(*words: object) -> Any:
    return CliRunner().invoke(app, ["inspect", *map(str, words)])


def test_a_gather_that_is_taken_as_it_is(gathers: Float32, tmp_path: Path) -> None:
    np.save(tmp_path / "gather.npy", gathers[0])
    done = run(tmp_path / "gather.npy", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["refused"] is None and told["geometry"]["kind"] == "fixed"
    assert (told["geometry"]["shots"], told["geometry"]["receivers"], told["sampling"]["record_s"]) == (5, 70, 1.0)
    assert told["auto"]["s"] == 1 and [each["count"] for each in told["auto"]["windows"] if each["s"] == 1] == [1]
    assert told["auto"]["windows"][0]["s"] < 1 < told["auto"]["windows"][-1]["s"]
    assert 8 < told["signal"]["band"]["dominant_hz"] < 20
    assert [note["code"] for note in told["notes"]] == ["assumed_line", "assumed_dt"]
    said = run(tmp_path / "gather.npy")
    assert said.exit_code == 0
    for words in ("5 at 0 to 690 m", "Hz dominant", "none of 350", "scale, at most", "takes it as it is"):
        assert words in said.stdout


def test_a_towed_streamer_is_described_and_read_by_reciprocity(
    streamer: tuple[Float32, dict[str, Any]], tmp_path: Path
) -> None:
    traces, headers = streamer
    for write, name in ((segy, "towed.sgy"), (su, "towed.su")):
        (tmp_path / name).write_bytes(write(traces, **headers))
        done = run(tmp_path / name, "--json", "--out", tmp_path / "picture.png")
        assert done.exit_code == 0, done.output
        told = json.loads(done.stdout)
        assert told["geometry"]["kind"] == "towed"
        assert told["geometry"]["offset_m"] == [50.0, 280.0]
        assert (told["geometry"]["shots"], told["geometry"]["channels"]) == (8, [24, 24])
        assert told["refused"] is None and "moving_spread" in [note["code"] for note in told["notes"]]
        (aperture,) = [each for each in told["auto"]["limits"] if each["name"] == "aperture"]
        assert aperture["high"] == told["auto"]["windows"][-1]["s"] == pytest.approx(230 / 340)
        assert "Receivers over 230 m" in aperture["detail"]
        assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert "takes it as it is" in run(tmp_path / "towed.su").stdout


def look(file: bytes, **options: Any) -> Inspection:
    return inspect_record(file, **options)


def test_one_record_as_every_format_is_told_the_same(gathers: Float32) -> None:
    gather = gathers[0]
    flat = gather.transpose(0, 2, 1).reshape(350, 1000)
    headers = {
        "source_x": np.repeat(np.array(OPENFWI.shot_x_m, np.int64), 70), "group_x": np.tile(np.arange(70) * 10, 5),
        "record": np.repeat(np.arange(5), 70),
    }  # fmt: skip
    found = [look(npy(gather)), look(npz({"gathers": gather, "dt_s": np.array(0.001)})),
             look(segy(flat, **headers)), look(su(flat, **headers))]  # fmt: skip
    shuffled = np.random.default_rng(0).permutation(350)
    found.append(look(segy(flat[shuffled], **{name: value[shuffled] for name, value in headers.items()})))
    first = found[0]
    assert [each.format for each in found] == ["npy", "npz", "segy", "su", "segy"]
    for each in found[1:]:
        assert each.spread.kind == "fixed" and each.spread.fold == first.spread.fold
        assert each.signal is not None and first.signal is not None
        assert each.signal.band.within_20_db == pytest.approx(first.signal.band.within_20_db)
        assert each.signal.noise.before_arrivals_db == pytest.approx(first.signal.noise.before_arrivals_db, abs=0.01)
        assert isinstance(each.auto, ChosenScale) and isinstance(first.auto, ChosenScale)
        assert each.auto.band is not None and first.auto.band is not None
        assert each.auto.band.high_hz == pytest.approx(first.auto.band.high_hz)
        assert [w.s for w in each.windows] == pytest.approx([w.s for w in first.windows])
        assert each.refusal is None


def test_headers_that_say_units_delays_and_angles(streamer: tuple[Float32, dict[str, Any]]) -> None:
    traces, headers = streamer
    plain = look(segy(traces, **headers))
    centimetres = {name: headers[name] * 100 for name in ("source_x", "group_x")}
    scaled = look(segy(traces, **(headers | centimetres | {"scalco": -100})))
    assert scaled.spread.offset_m == plain.spread.offset_m
    rotated = headers | {"source_y": 2 * headers["source_x"], "group_y": 2 * headers["group_x"]}
    turned = look(segy(traces, **rotated))
    assert turned.spread.kind == "towed"
    assert turned.spread.offset_m == pytest.approx(np.array(plain.spread.offset_m) * 5**0.5, rel=1e-6)
    assert turned.spread.across_m == pytest.approx(0, abs=1e-6)
    late = look(segy(traces, **headers, delay_ms=200))
    assert late.traces.start_s == 0.2 and late.traces.record_s == pytest.approx(1.2)
    angles = look(segy(traces, **headers, coordinate_units=2))
    assert "angles" in {note.code for note in angles.notes} and angles.refusal is not None
    bare = look(segy(traces, record=headers["record"], offset=headers["group_x"] - headers["source_x"]))
    assert "offsets_only" in {note.code for note in bare.notes}
    assert bare.spread.offset_m == plain.spread.offset_m
    dead = look(segy(traces, **headers, kind=np.where(np.arange(len(traces)) < 24, 2, 1)))
    assert dead.signal is not None and dead.signal.dead.tolist() == list(range(24))
    auxiliary = look(segy(traces, **headers, kind=np.where(np.arange(len(traces)) < 24, 6, 1)))
    assert auxiliary.spread.shots == 7


def test_a_gather_of_a_stack(gathers: Float32, tmp_path: Path) -> None:
    np.save(tmp_path / "stack.npy", gathers)
    told = [json.loads(run(tmp_path / "stack.npy", "--json", "--gather", i).stdout) for i in range(3)]
    assert [(each["gathers"], each["gather"]) for each in told] == [(3, 0), (3, 1), (3, 2)]
    assert len({json.dumps(each["signal"]) for each in told}) == 3
    assert "no gather 3" in str(run(tmp_path / "stack.npy", "--gather", 3).exception)


REFUSED_FILES = {
    "a record too short": lambda g: npy(g[:, :300]),
    "a line too short": lambda g: npz({"gathers": g[:, :, :20], "shot_x_m": OPENFWI.shot_x_m[:5],
                                       "receiver_x_m": np.arange(20) * 10.0, "dt_s": np.array(0.001)}),
    "all zero": lambda g: npy(g * 0),
    "NaN": lambda g: npy(np.where(np.arange(70) == 3, np.nan, g)),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED_FILES)
def test_what_is_refused_has_its_reason(name: str, gathers: Float32, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(REFUSED_FILES[name](gathers[0]))
    done = run(tmp_path / "file", "--json", "--out", tmp_path / "picture.png")
    assert done.exit_code == REFUSED, done.output
    refused = json.loads(done.stdout)["refused"]
    assert refused["code"] in ("invalid_gather", "invalid_survey") and len(refused["detail"]) > 40
    assert run(tmp_path / "file").exit_code == REFUSED


UNREADABLE = {
    "text": (b"not a gather", "unsupported_format"),
    "nothing": (b"", "malformed_upload"),
    "shots without positions": (npy(np.ones((3, 100, 7), np.float32)), "invalid_survey"),
    "no geometry at all": (segy(np.ones((4, 300), np.float32)), "invalid_survey"),
    "no interval": (segy(np.ones((4, 300), np.float32), dt_us=0, offset=10), "invalid_survey"),
    "auxiliary alone": (segy(np.ones((4, 300), np.float32), kind=6, offset=10), "invalid_gather"),
    "too few axes": (npy(np.ones((100, 70), np.float32)), "malformed_upload"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_is_the_usual_error(name: str, tmp_path: Path) -> None:
    content, code = UNREADABLE[name]
    (tmp_path / "file").write_bytes(content)
    done = run(tmp_path / "file", "--out", tmp_path / "picture.png")
    assert done.exit_code == 1 and isinstance(done.exception, SeisBindError)
    assert done.exception.code == code
    assert not (tmp_path / "picture.png").exists()
    assert run(tmp_path / "none").exit_code == 1


def test_damaged_field_files_are_looked_at_or_refused(streamer: tuple[Float32, dict[str, Any]]) -> None:
    """Whatever is flipped: a report, or one of our errors."""
    traces, headers = streamer
    body = segy(traces[:48, :300], **{name: value[:48] for name, value in headers.items()})
    rng, outcomes = np.random.default_rng(4), set()
    for _ in range(150):
        damaged = bytearray(body)
        at = rng.integers(3200, 3200 + 400 + 240) if rng.random() < 0.5 else rng.integers(len(body))
        for offset in range(int(rng.integers(1, 5))):
            damaged[min(int(at) + offset, len(body) - 1)] = int(rng.integers(256))
        try:
            look(bytes(damaged))
            outcomes.add("looked at")
        except SeisBindError:
            outcomes.add("refused")
    assert outcomes == {"looked at", "refused"}


@pytest.mark.parametrize("length_m", [690.0, 5000.0])
def test_what_is_said_of_scales_is_what_a_retrieval_chooses(length_m: float, gathers: Float32) -> None:
    """The same limits and band, from one place; and windows that cover the line at each scale."""
    factor = length_m / 690
    survey = {"shot_x_m": np.array(OPENFWI.shot_x_m) * factor, "receiver_x_m": np.array(OPENFWI.receiver_x_m) * factor}
    file = npz({"gathers": gathers[0], "dt_s": np.array(0.001 * factor), **survey})
    found = look(file)
    chosen = read_gathers(file, scale=AutoScale()).chosen
    assert chosen is not None and isinstance(found.auto, ChosenScale)
    assert (found.auto.limits, found.auto.scale) == (chosen.limits, chosen.scale)
    low, high = chosen.lowest, chosen.highest
    assert all(limit.low <= low.low and high.high <= limit.high for limit in chosen.limits)
    assert (found.windows[0].s, found.windows[-1].s) == (low.low, high.high)
    for each in found.windows:
        reached = each.line_m + (each.count - 1) * each.line_m / 2
        assert reached >= length_m - 1e-6 and (each.count == 1 or length_m - 1e-6 > reached - each.line_m / 2)
