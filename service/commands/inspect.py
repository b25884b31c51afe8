"""``seisbind inspect``: what a record is, and what would be done with it, before it is asked about."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from seisbind.model.frame import Frame
    from seisbind.model.inspection.signal import Signal
    from seisbind.service.engine.inspection import Inspection

REFUSED = 4  # exit code: it was looked at, and a retrieval would be refused
LISTED = 20  # numbers of traces in a table


def inspect(
    file: Annotated[
        Path, typer.Argument(help="An npy, npz, SEG-Y, SU, SEG-2 or MDIO file of gathers, of any geometry.")
    ],
    gather: Annotated[int, typer.Option(min=0, help="Which gather of a stack, from 0.")] = 0,
    weights: Annotated[Path | None, typer.Option(help="That would be asked; default: those that ship.")] = None,
    dt_s: Annotated[float | None, typer.Option("--dt-s", help="Sampling interval, seconds.")] = None,
    shot_x_m: Annotated[
        str | None, typer.Option("--shot-x-m", help="Shot positions, metres, separated by commas.")
    ] = None,
    receiver_x_m: Annotated[
        str | None, typer.Option("--receiver-x-m", help="Receiver positions, metres, separated by commas.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write a picture here, as PNG.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Look at a record: geometry, band, noise, wavelet, faulty traces, scales, and what would be refused.

    Ends with 0: seisbind retrieve takes it as it is, 4: it was looked at and would be refused, 1: it cannot be read.
    """
    from seisbind.service.bulk.backends import LIMITS
    from seisbind.service.client.calls import file_bytes
    from seisbind.service.engine.inspection import inspect_record
    from seisbind.service.http.parameters import parse_geometry
    from seisbind.service.schemas import RetrieveFields

    fields = RetrieveFields.model_construct(dt_s=dt_s, shot_x_m=shot_x_m, receiver_x_m=receiver_x_m, peak_hz=None)
    frame = _frame(weights)
    found = inspect_record(file_bytes(file), geometry=parse_geometry(fields), gather=gather, limits=LIMITS, frame=frame)
    if out is not None:
        from seisbind.model.files import replacing
        from seisbind.service.runtime.record_picture import record_png

        with replacing(out) as partial:
            partial.write_bytes(record_png(found, title=file.name))
    if as_json:
        import json

        print(json.dumps(to_json(found, frame), indent=1))
    else:
        _print_tables(file, found, frame)
        if out is not None:
            print(f"Picture: {out}")
    sys.exit(0 if found.refusal is None else REFUSED)


def _frame(weights: Path | None) -> Frame:
    from seisbind.model.encoders.weights_file import load_weights

    return load_weights(weights).description.frame


def to_json(found: Inspection, frame: Frame) -> dict[str, Any]:
    """What is printed with --json; ranges are pairs, lengths metres, times seconds."""
    traces, spread = found.traces, found.spread
    refusal = None if found.refusal is None else {"code": found.refusal.code, "detail": found.refusal.sentence}
    return {
        "format": found.format,
        "gathers": found.gathers,
        "gather": found.gather,
        "geometry": {
            name: getattr(spread, name)
            for name in (
                "kind", "traces", "shots", "shot_x_m", "shot_spacing_m", "receivers", "receiver_x_m",
                "receiver_spacing_m", "widest_gap_m", "channels", "offset_m", "aperture_m", "length_m", "across_m",
                "fold",
            )
        },
        "sampling": {
            "samples": traces.samples.shape[1],
            "dt_s": traces.dt_s,
            "start_s": traces.start_s,
            "record_s": traces.record_s,
        },
        "signal": None if found.signal is None else _signal_json(found.signal),
        "frame": frame.name,
        "auto": _auto_json(found, frame),
        "notes": [{"code": note.code, "detail": note.sentence} for note in found.notes],
        "refused": refusal,
    }  # fmt: skip


def _signal_json(signal: Signal) -> dict[str, Any]:
    band, noise, wavelet = signal.band, signal.noise, signal.wavelet
    return {
        "traces": signal.traces,
        "band": {
            "dominant_hz": band.dominant_hz,
            "mean_hz": band.mean_hz,
            "within_10_db_hz": band.within_10_db,
            "within_20_db_hz": band.within_20_db,
        },
        "signal_over_noise_db": {"before_arrivals": noise.before_arrivals_db, "coherence": noise.coherence_db},
        "wavelet": {
            "peak_hz": wavelet.peak_hz,
            "phase": wavelet.phase,
            "rotation_deg": wavelet.rotation_deg,
            "dt_s": wavelet.dt_s,
            "zero_phase": wavelet.zero_phase.round(4).tolist(),
            "minimum_phase": wavelet.minimum_phase.round(4).tolist(),
        },
        "dead": signal.dead.tolist(),
        "clipped": signal.clipped.tolist(),
        "reversed": signal.reversed.tolist(),
        "not_finite": signal.not_finite,
    }


def _auto_json(found: Inspection, frame: Frame) -> dict[str, Any]:
    """As `schemas.ScaleBody`, with the windows that there would be; or the refusal."""
    from dataclasses import asdict

    from seisbind.service.engine.bodies import scale_body
    from seisbind.service.engine.inspection import Refusal

    if isinstance(found.auto, Refusal):
        return {"refused": {"code": found.auto.code, "detail": found.auto.sentence}}
    return scale_body(found.auto, frame).model_dump() | {"windows": [asdict(each) for each in found.windows]}


def _print_tables(file: Path, found: Inspection, frame: Frame) -> None:
    from rich.table import Table

    from seisbind.model.survey.scaling import ChosenScale
    from seisbind.service.terminal.console import console

    out = console()
    which = f", gather {found.gather} of {found.gathers}" if found.gathers > 1 else ""
    table = Table("", f"{file.name}{which}", title_justify="left")
    for name, text in (*_geometry_rows(found), *_signal_rows(found.signal), *_scale_rows(found)):
        table.add_row(name, text)
    out.print(table, markup=False)
    for note in found.notes:
        out.print(f"{note.code}: {note.sentence}", markup=False)
    if found.refusal is None:
        out.print("seisbind retrieve takes it as it is.", markup=False)
    else:
        out.print(f"seisbind retrieve refuses it: {found.refusal.sentence} [{found.refusal.code}]", markup=False)
    auto = found.auto
    said = f"takes {auto.reason(frame)}" if isinstance(auto, ChosenScale) else f"refuses it: {auto.sentence}"
    out.print(f"With --scale auto it {said}", markup=False)


def _geometry_rows(found: Inspection) -> list[tuple[str, str]]:
    from seisbind.model.inspection.spread import WORDS

    spread, traces = found.spread, found.traces
    low, high = spread.channels
    across = f", up to {spread.across_m:.1f} m across the line" if spread.across_m else ""
    return [
        ("spread", f"{spread.kind}: {WORDS[spread.kind]}"),
        ("shots", f"{spread.shots} at {_metres(spread.shot_x_m)}{_every(spread.shot_spacing_m)}"),
        (
            "receivers",
            f"{spread.receivers} at {_metres(spread.receiver_x_m)}{_every(spread.receiver_spacing_m)}, "
            f"{low if low == high else f'{low} to {high}'} a shot over {spread.aperture_m:.6g} m{across}",
        ),
        ("offsets", f"{_metres(spread.offset_m)}, fold {spread.fold}"),
        (
            "samples",
            f"{traces.samples.shape[1]} of {traces.dt_s * 1e3:g} ms from {traces.start_s:g} s on: "
            f"{traces.record_s:g} s",
        ),
    ]


def _signal_rows(signal: Signal | None) -> list[tuple[str, str]]:
    if signal is None:
        return [("signal", "none: every trace is dead, or has hardly a sample")]
    band, noise, wavelet = signal.band, signal.noise, signal.wavelet
    told = [
        f"{value:.0f} dB {how}"
        for value, how in ((noise.before_arrivals_db, "over what precedes the first arrivals"),
                           (noise.coherence_db, "or more by neighbouring traces"))
        if value is not None
    ]  # fmt: skip
    turned = (
        "" if wavelet.rotation_deg is None else f", the zero-phase one turned by {wavelet.rotation_deg:.0f} degrees"
    )
    rows = [
        (
            "band",
            f"{band.dominant_hz:.3g} Hz dominant; {_hertz(band.within_10_db)} within 10 dB, "
            f"{_hertz(band.within_20_db)} within 20 dB",
        ),
        ("signal over noise", "; ".join(told) or "cannot be told: no quiet before the arrivals, no neighbours"),
        ("wavelet", f"peak at {wavelet.peak_hz:.3g} Hz, phase {wavelet.phase}{turned}"),
    ]
    for name in ("dead", "clipped", "reversed"):
        numbers = getattr(signal, name)
        rows.append((f"{name} traces", _listed(numbers.tolist(), signal.traces)))
    if signal.not_finite:
        rows.append(("samples", f"{signal.not_finite} are NaN or infinite"))
    return rows


def _scale_rows(found: Inspection) -> list[tuple[str, str]]:
    """What `auto` was chosen within; its own sentence is printed below the table."""
    from seisbind.model.survey.scaling import ChosenScale

    if not isinstance(found.auto, ChosenScale) or not found.auto.limits:
        return []
    rows = []
    if (band := found.auto.band) is not None:
        rows.append(("signal at", f"{_hertz((band.low_hz, band.high_hz))}, most at {band.peak_hz:.3g} Hz"))
    low, high = found.auto.lowest, found.auto.highest
    return [
        *rows,
        ("scale, at least", f"{low.low:.3g}, by the {low.name}"),
        ("scale, at most", f"{high.high:.3g}, by the {high.name}"),
        *(
            (
                f"at scale {each.s:.3g}",
                f"{each.count} window{'s' if each.count > 1 else ''} of {each.line_m:.0f} m, {each.depth_m:.0f} m "
                f"deep, from {each.record_s:.3g} s at {each.peak_hz:.3g} Hz",
            )
            for each in found.windows
        ),
    ]


def _listed(numbers: list[int], looked_at: int) -> str:
    if not numbers:
        return f"none of {looked_at}"
    more = f" and {len(numbers) - LISTED} more" if len(numbers) > LISTED else ""
    return f"{len(numbers)} of {looked_at}: {', '.join(map(str, numbers[:LISTED]))}{more} (from 0)"


def _metres(bounds: tuple[float, float]) -> str:
    return f"{bounds[0]:.6g} m" if bounds[0] == bounds[1] else f"{bounds[0]:.6g} to {bounds[1]:.6g} m"


def _hertz(bounds: tuple[float, float]) -> str:
    return f"{bounds[0]:.3g} to {bounds[1]:.3g} Hz"


def _every(spacing_m: float | None) -> str:
    return "" if spacing_m is None else f" every {spacing_m:.4g} m"
