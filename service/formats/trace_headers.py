"""What the headers of a field file's traces mean (`segy.TraceFile`), and how they are checked.

Whatever a header leaves open is decided in one place here, and reported: by a note where the decision is safe, by an
error with the numbers where it would be a guess. Meanings of header fields: SEG-Y revision 1 (2002), sections 5 and 6.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from seisbind.model.errors import InvalidGather, InvalidSurvey, MalformedUpload
from seisbind.model.frame import Frame
from seisbind.model.survey.line import TracePositions
from seisbind.model.survey.notes import Note
from seisbind.service.formats.segy import Headers, TraceFile

Float64 = NDArray[np.float64]

FOOT_M = 0.3048
DEAD, DUMMY = 2, 3
SEISMIC = (-1, 0, 1, 11)  # other, unknown, time domain, pressure
AUXILIARY = range(4, 10)  # time break, uphole, sweep, timing, water break, near field
STANDARD_SCALARS = (1, 10, 100, 1000, 10_000)
OFFSET_SHARE = 0.02  # agreement of bytes 37-40 with the positions, of the offset and at least OFFSET_M
OFFSET_M = 2.0
AGREEING = 0.95  # of the traces


def receiver_spread(at: TracePositions) -> tuple[float, float]:
    """From the first to the last receiver of a shot, and between neighbours; medians."""
    axis = int(np.ptp(at.group_xy_m[:, 1]) > np.ptp(at.group_xy_m[:, 0]))
    _, shot = np.unique(at.source_xy_m, axis=0, return_inverse=True)
    order = np.lexsort((at.group_xy_m[:, axis], shot.ravel()))
    sorted_shot, group = shot.ravel()[order], at.group_xy_m[order]
    step = np.hypot(*np.diff(group, axis=0).T)[np.diff(sorted_shot) == 0]
    starts = np.flatnonzero(np.diff(sorted_shot, prepend=-1))
    ends = np.append(starts[1:], len(group)) - 1
    aperture = float(np.median(np.hypot(*(group[ends] - group[starts]).T)))
    return aperture, float(np.median(step[step > 0])) if (step > 0).any() else np.inf


def seismic_traces(headers: Headers, notes: list[Note]) -> NDArray[np.intp]:
    """The numbers of the traces that hold seismic samples (bytes 29-30)."""
    kind = headers["kind"]
    auxiliary = np.isin(kind, (DUMMY, *AUXILIARY))
    seismic = np.flatnonzero(~auxiliary)
    if not len(seismic):
        raise InvalidGather(f"None of the {len(kind)} traces is seismic: bytes 29-30 say dummy or auxiliary.")
    if auxiliary.any():
        text = f"{int(auxiliary.sum())} dummy or auxiliary traces (bytes 29-30) were left out."
        notes.append(Note("auxiliary_traces", text))
    components = np.unique(kind[seismic][~np.isin(kind[seismic], (*SEISMIC, DEAD))])
    if len(components) > 1 or (len(components) and np.isin(kind[seismic], SEISMIC).any()):
        raise MalformedUpload(
            f"The traces are of several kinds (bytes 29-30: {', '.join(map(str, np.unique(kind[seismic])[:8]))}). Send "
            "one component."
        )
    if len(components):
        text = f"The traces are of kind {components[0]} (bytes 29-30), not pressure; taken for pressure."
        notes.append(Note("not_pressure", text))
    return seismic


def sampling_interval(
    file: TraceFile, headers: Headers, given: float | None, limits_s: tuple[float, float], notes: list[Note]
) -> float:
    """The sampling interval: what was passed, or what binary header and traces agree on."""
    stated = [us for us in np.unique(headers["dt_us"]).tolist() if us]
    in_file = file.dt_us
    said = f"binary header {in_file} us, trace headers {', '.join(f'{us:g}' for us in stated[:4]) or 0} us"
    if given is not None:
        if {us for us in (in_file, *stated) if us} - {round(given * 1e6) if 0 < given < 1 else -1}:
            notes.append(Note("dt_overridden", f"dt_s = {given:g} was passed and used; the file says: {said}."))
        return _in_range(given, limits_s)
    if len(stated) > 1:
        raise InvalidSurvey(f"The traces state different sampling intervals: {said}. Send traces of one, or pass dt_s.")
    if in_file and stated and in_file != stated[0]:
        raise InvalidSurvey(f"The file states two sampling intervals: {said}. Pass dt_s.")
    if not in_file and not stated:
        raise InvalidSurvey("The file states no sampling interval (0 us in all headers). Pass dt_s.")
    if (headers["dt_us"] == 0).any() or (file.format == "segy" and not in_file):
        notes.append(Note("dt_partly_stated", f"Some headers state no sampling interval: {said}."))
    return _in_range((in_file or stated[0]) * 1e-6, limits_s)


def _in_range(dt_s: float, limits_s: tuple[float, float]) -> float:
    if not limits_s[0] <= dt_s <= limits_s[1]:
        ends = f"{limits_s[0]:g}-{limits_s[1]:g}"
        raise InvalidSurvey(f"Sampling interval {dt_s:g} s is outside {ends} s; pass dt_s in seconds.")
    return dt_s


def recording_delay(headers: Headers, dt_s: float, frame: Frame, notes: list[Note]) -> int:
    """Samples between the shot and the first sample (bytes 109-110); negative if recording began before the shot."""
    delay = start_samples(headers, dt_s)
    if not delay:
        return 0
    start_ms = headers["delay_ms"][0]
    if delay * dt_s > frame.duration_s - frame.min_record_s:
        raise InvalidSurvey(
            f"Recording starts {start_ms:g} ms after the shot; at least {frame.min_record_s:g} s of the first "
            f"{frame.duration_text} are needed."
        )
    notes.append(Note("delay_applied", f"Recording starts {start_ms:g} ms after the shot; the traces were shifted."))
    return delay


def start_samples(headers: Headers, dt_s: float) -> int:
    """Samples between the shot and the first sample (bytes 109-110), the same for all traces. Raises InvalidSurvey."""
    delays = np.unique(headers["delay_ms"])
    if not delays.any():
        return 0
    scalars = np.unique(headers["time_scalar"])
    if len(delays) > 1 or not set(scalars.tolist()) <= {0, 1}:
        raise InvalidSurvey(
            f"Recording starts {delays.min()} to {delays.max()} ms after the shot (bytes 109-110, scalars "
            f"{scalars.min()} to {scalars.max()} in bytes 215-216). Shift the traces to one start."
        )
    delay = float(delays[0]) / 1e3 / dt_s
    if abs(delay - round(delay)) > 0.01:
        raise InvalidSurvey(f"A delay of {delays[0]} ms is no whole number of samples of {dt_s * 1e3:g} ms.")
    return round(delay)


def length_units(file: TraceFile, headers: Headers, notes: list[Note]) -> tuple[float, str]:
    """Metres in a unit of length of the file (bytes 3255-3256), after checking that positions are lengths at all."""
    system = file.measurement_system
    factor, units = (FOOT_M, "ft") if system == 2 else (1.0, "m")
    if system == 2:
        where = "UNITS" if file.format == "seg2" else "bytes 3255-3256"
        notes.append(Note("feet", f"Positions are in feet ({where}); converted to metres."))
    elif system != 1:
        where = {"segy": f"{system} in bytes 3255-3256", "seg2": "no UNITS"}.get(file.format, "SU files do not say")
        notes.append(Note("metres_assumed", f"The unit of length is not known ({where}); metres assumed."))
    odd = [int(code) for code in np.unique(headers["coordinate_units"]) if code not in (0, 1)]
    if odd:
        if not _offsets_agree(headers, _scalar(headers)):
            raise InvalidSurvey(
                f"Coordinates are given in units of code {odd[0]} (bytes 89-90; 2 to 4 are angles): project them to "
                "metres first, or pass shot_x_m and receiver_x_m."
            )
        text = (
            f"Bytes 89-90 say {odd[0]} (2 to 4 are angles), but offsets in bytes 37-40 are the coordinates' "
            "differences: taken for lengths."
        )
        notes.append(Note("coordinate_units_contradicted", text))
    return factor, units


def _scalar(headers: Headers) -> Float64:
    """What multiplies each trace's coordinates (bytes 71-72): a factor if positive, a divisor if negative."""
    scalco = headers["scalco"].astype(np.float64)
    return np.where(scalco > 0, scalco, np.where(scalco < 0, -1 / np.where(scalco < 0, scalco, -1), 1))


def _distances(headers: Headers, scalar: Float64) -> Float64:
    dx = (headers["group_x"].astype(np.float64) - headers["source_x"]) * scalar
    dy = (headers["group_y"].astype(np.float64) - headers["source_y"]) * scalar
    return np.asarray(np.hypot(dx, dy))


def _offsets_agree(headers: Headers, scalar: Float64, offset_scalar: Float64 | float = 1.0) -> bool:
    """Whether offsets (bytes 37-40) are stated and are the distances between source and group."""
    offset, distance = np.abs(headers["offset"].astype(np.float64)), _distances(headers, scalar)
    allowed = np.maximum(OFFSET_SHARE * distance, OFFSET_M)
    return bool(offset.any() and (np.abs(offset * offset_scalar - distance) <= allowed).mean() >= AGREEING)


def trace_positions(headers: Headers, factor: float, notes: list[Note], given: bool) -> TracePositions:
    """Source and group positions in metres; doubtful scalars are noted, and scalars proved wrong by offsets refused."""
    scalar = _scalar(headers)
    if not given:
        _check_scalar(headers, scalar, notes)
    metres = (scalar * factor)[:, None]
    return TracePositions(
        source_xy_m=np.stack([headers["source_x"], headers["source_y"]], axis=1) * metres,
        group_xy_m=np.stack([headers["group_x"], headers["group_y"]], axis=1) * metres,
        record=headers["record"].astype(np.int64),
        channel=headers["channel"].astype(np.int64),
    )


def _check_scalar(headers: Headers, scalar: Float64, notes: list[Note]) -> None:
    scalco = np.unique(headers["scalco"])
    if (scalco == 0).any():
        notes.append(Note("scalco_zero", "The coordinate scalar (bytes 71-72) is 0; taken for 1."))
    if not np.isin(np.abs(scalco), (0, *STANDARD_SCALARS)).all():
        text = f"The coordinate scalar (bytes 71-72) is {scalco[0]} to {scalco[-1]}, no power of ten; applied as it is."
        notes.append(Note("scalco_unusual", text))
    if len(scalco) > 1:
        text = f"The coordinate scalar differs between traces, {scalco[0]} to {scalco[-1]}; each was applied."
        notes.append(Note("scalco_mixed", text))
    offset = np.abs(headers["offset"].astype(np.float64))
    if not offset.any() or _offsets_agree(headers, scalar):
        return
    if _offsets_agree(headers, scalar, scalar):
        text = (
            f"Offsets in bytes 37-40 fit the positions if the coordinate scalar ({scalco[0]}) is applied to them too."
        )
        notes.append(Note("offsets_scaled", text))
        return
    distance = _distances(headers, scalar)
    far = (offset > 0) & (distance > 0)
    ratio = distance[far] / offset[far]
    if far.mean() >= 0.5 and np.ptp(np.quantile(ratio, (0.1, 0.9))) <= OFFSET_SHARE * np.median(ratio):
        raise InvalidSurvey(
            f"Distances between source and group are {np.median(ratio):g} times the offsets in bytes 37-40: the "
            f"coordinate scalar ({scalco[0]} in bytes 71-72) or the unit of one of them is wrong. Correct the headers, "
            "or pass shot_x_m and receiver_x_m."
        )
    text = "The offsets in bytes 37-40 are not the distances between source and group; the positions were used."
    notes.append(Note("offsets_disagree", text))
