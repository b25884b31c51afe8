"""Gathers with their survey, and velocity models, from files or uploads and what the sender states about them.

Arrays come from `npy`, field files from `segy`, `seg2` and `segy_gather`; the bytes decide which it is, never a name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace

import numpy as np

from seisbind.model.errors import InvalidSurvey, MalformedUpload, UnsupportedFormat, UploadTooLarge
from seisbind.model.frame import OPENFWI_FRAME, Frame, Survey
from seisbind.model.scale import AutoScale, Scale
from seisbind.model.survey.notes import Note
from seisbind.model.survey.scaling import ChosenScale, scale_for
from seisbind.service.formats.npy import NPY_MAGIC, ZIP_MAGIC, Array, Limits, check_array_size, read_arrays
from seisbind.service.formats.seg2 import looks_like_seg2, read_seg2
from seisbind.service.formats.segy import Body, TraceFile, looks_like_segy, looks_like_su, read_segy, read_su
from seisbind.service.formats.segy_gather import read_extent, read_field_record

MAX_RECEIVERS = 1024  # traces in a shot; mapping them to the frame's receivers costs in proportion
SURVEY_KEYS = ("dt_s", "shot_x_m", "receiver_x_m", "peak_hz")
GATHER_KEYS = ("gathers", "data")
VELOCITY_KEYS = ("velocity", "velocities", "data")


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where and how gathers were recorded, as far as that is stated; fields as in `Survey`."""

    dt_s: float | None = None
    shot_x_m: tuple[float, ...] | None = None
    receiver_x_m: tuple[float, ...] | None = None
    peak_hz: float | None = None

    def over(self, other: Geometry) -> Geometry:
        """This geometry, with what it leaves open taken from ``other``."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(other, **{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True, slots=True)
class TraceFormat:
    """A format of traces with headers, told by its first bytes.

    Attributes:
        suffixes: of files that are taken from a folder.
    """

    suffixes: tuple[str, ...]
    looks_like: Callable[[Body], bool]
    read: Callable[[Body], TraceFile]


TRACE_FORMATS = (
    TraceFormat((".sg2", ".seg2", ".dat"), looks_like_seg2, read_seg2),
    TraceFormat((".segy", ".sgy"), looks_like_segy, read_segy),
    TraceFormat((".su",), looks_like_su, read_su),
)
SUFFIXES = (".npy", ".npz", *(suffix for each in TRACE_FORMATS for suffix in each.suffixes))


@dataclass(frozen=True, slots=True)
class Ingest:
    """What reading gathers found; the fields are those of `service.schemas.IngestBody`, which explains them."""

    format: str
    sample_format: str
    byte_order: str
    gathers: int
    shots: int
    receivers: int
    samples: int
    traces: int | None
    dt_s: float
    shot_x_m: tuple[float, float]
    receiver_x_m: tuple[float, float]
    units: str
    assumptions: tuple[Note, ...]


@dataclass(frozen=True, slots=True)
class Upload:
    """``gathers``: ``(batch, shot, time, receiver)`` or one without the batch axis; not yet checked.

    ``chosen``: their scale; None where none was asked for.
    """

    gathers: Array
    survey: Survey
    ingest: Ingest
    chosen: ChosenScale | None = None

    @property
    def notes(self) -> tuple[Note, ...]:
        """What was assumed or done while reading."""
        return self.ingest.assumptions


def read_gathers(
    file: bytes | Array,
    *,
    geometry: Geometry | None = None,
    limits: Limits | None = None,
    frame: Frame = OPENFWI_FRAME,
    scale: Scale | AutoScale | None = None,
) -> Upload:
    """Gathers and their survey from the bytes of an npy, npz, SEG-Y, SU or SEG-2 file, or from an array as from npy.

    An npz holds ``gathers`` (or ``data``, or one array of any name) and may hold ``dt_s``, ``shot_x_m``,
    ``receiver_x_m`` and ``peak_hz``; ``geometry`` overrides what the file says. Without positions, as many shots and
    receivers as the weights' ``frame`` has (OpenFWI's: 5 and 70) are taken for its line. A file of traces is
    one gather of its shots on one line. With a ``scale`` all of this is of the frame at that size; one that is to be
    chosen is chosen here.

    Raises:
        UploadRefused: of no such format, self-contradictory, too large, or not of real numbers.
        InvalidSurvey: a geometry that is missing or cannot be used.
        InvalidGather: a field file whose traces or record are of no use.
    """
    limits = Limits() if limits is None else limits
    if isinstance(file, bytes) and (trace_format := _trace_format(file)) is not None:
        return _read_traces(trace_format.read(file), geometry or Geometry(), limits, frame, scale)
    gathers, geometry = read_stack(file, geometry=geometry, limits=limits)
    chosen, geometry, assumed = _chosen(gathers, geometry, scale, frame)
    return _upload(
        gathers,
        geometry,
        frame,
        chosen,
        format="npz" if isinstance(file, bytes) and file.startswith(ZIP_MAGIC) else "npy",
        sample_format=gathers.dtype.name,
        byte_order="big" if gathers.dtype.str.startswith(">") else "little",
        notes=assumed,
    )


def read_stack(file: bytes | Array, *, geometry: Geometry | None = None, limits: Limits) -> tuple[Array, Geometry]:
    """The gathers of an npy or npz file, or of an array, as stored, and ``geometry`` over that of the file.

    Raises:
        UploadRefused: as `read_gathers`.
    """
    if isinstance(file, np.ndarray):
        check_array_size(file.size, file.nbytes, limits)
        arrays = {"": file}
    else:
        arrays = read_arrays(file, limits=limits)
    stored = {name: arrays.pop(name) for name in SURVEY_KEYS if name in arrays}
    gathers = _only(arrays, GATHER_KEYS, "gathers")
    check_axes(gathers.shape)
    if gathers.ndim == 4 and len(gathers) > limits.items:
        raise UploadTooLarge(f"{len(gathers)} gathers in one request; at most {limits.items}. Send several requests.")
    return gathers, (geometry or Geometry()).over(_stored_geometry(stored))


def check_axes(shape: tuple[int, ...]) -> None:
    """Raises MalformedUpload unless an array of ``shape`` can be one gather or a stack of gathers."""
    if len(shape) not in (3, 4):
        raise MalformedUpload(
            f"Gathers have the axes (shot, time, receiver) or (gather, shot, time, receiver); got shape {shape}."
        )


def read_velocity(body: bytes, *, limits: Limits | None = None) -> Array:
    """Velocity models from the bytes of an npy, or of an npz with ``velocity`` or one array of any name.

    Returns:
        ``(depth, x)``, ``(batch, depth, x)`` or ``(batch, 1, depth, x)`` as stored; not yet checked.

    Raises:
        UploadRefused: as `read_gathers`; files of traces are read as gathers only.
    """
    limits = Limits() if limits is None else limits
    if _trace_format(body) is not None:
        raise UnsupportedFormat("Velocity models are read from npy or npz; this looks like SEG-Y, SU or SEG-2.")
    velocity = _only(read_arrays(body, limits=limits), VELOCITY_KEYS, "velocity")
    if velocity.ndim not in (2, 3, 4):
        raise MalformedUpload(
            f"Velocity models have the axes (depth, x) or (model, depth, x); got shape {velocity.shape}."
        )
    if velocity.ndim > 2 and len(velocity) > limits.items:
        raise UploadTooLarge(f"{len(velocity)} velocity models in one request; at most {limits.items}.")
    return velocity


def _trace_format(body: bytes) -> TraceFormat | None:
    """The format of a file of traces; None if the bytes begin as an npy or npz, or as nothing that is known."""
    if body.startswith((NPY_MAGIC, ZIP_MAGIC)):
        return None
    return next((each for each in TRACE_FORMATS if each.looks_like(body)), None)


def _chosen(
    gathers: Array, geometry: Geometry, asked: Scale | AutoScale | None, frame: Frame
) -> tuple[ChosenScale | None, Geometry, tuple[Note, ...]]:
    """The scale of arrays, with the geometry that it was chosen from, and what was assumed of that."""
    if not isinstance(asked, AutoScale):
        return None if asked is None else ChosenScale(asked), geometry, ()
    shots, samples, receivers = gathers.shape[-3:]
    survey, notes = _survey(geometry, shots=shots, samples=samples, receivers=receivers, frame=frame)
    chosen = scale_for(gathers, survey, asked, frame=frame)
    assumed = tuple(note for note in notes if note.code == "assumed_dt")
    return chosen, geometry.over(Geometry(survey.dt_s, survey.shot_x_m, survey.receiver_x_m)), assumed


def _read_traces(
    traces: TraceFile, geometry: Geometry, limits: Limits, frame: Frame, scale: Scale | AutoScale | None
) -> Upload:
    chosen = None if scale is None or isinstance(scale, AutoScale) else ChosenScale(scale)
    if isinstance(scale, AutoScale):
        extent = read_extent(traces, dt_s=geometry.dt_s, receiver_x_m=geometry.receiver_x_m)
        chosen = extent.choose(scale, frame)
    record = read_field_record(
        traces,
        max_bytes=limits.unpacked_bytes,
        dt_s=geometry.dt_s,
        shot_x_m=geometry.shot_x_m,
        receiver_x_m=geometry.receiver_x_m,
        frame=frame if chosen is None else chosen.scale.frame(frame),
    )
    return _upload(
        record.gathers,
        geometry.over(Geometry(record.dt_s, record.shot_x_m, record.receiver_x_m)),
        frame,
        chosen,
        format=traces.format,
        sample_format=traces.coding.name,
        byte_order=traces.order,
        traces=record.traces,
        units=record.units,
        notes=record.notes,
    )


def _upload(
    gathers: Array,
    geometry: Geometry,
    frame: Frame,
    chosen: ChosenScale | None,
    *,
    format: str,
    sample_format: str,
    byte_order: str,
    traces: int | None = None,
    units: str = "m",
    notes: tuple[Note, ...] = (),
) -> Upload:
    shots, samples, receivers = gathers.shape[-3:]
    if chosen is not None:
        frame = chosen.scale.frame(frame)
        if geometry.shot_x_m is None or geometry.receiver_x_m is None:
            text = (
                f"No positions were given; {frame.name}'s line at {chosen.scale.text} was assumed: {frame.receivers} "
                f"receivers every {frame.receiver_spacing_m:g} m."
            )
            notes = (*notes, Note("assumed_line", text))
    survey, assumed = _survey(geometry, shots=shots, samples=samples, receivers=receivers, frame=frame)
    ingest = Ingest(
        format=format,
        sample_format=sample_format,
        byte_order=byte_order,
        gathers=len(gathers) if gathers.ndim == 4 else 1,
        shots=shots,
        receivers=receivers,
        samples=samples,
        traces=traces,
        dt_s=survey.dt_s,
        shot_x_m=_range(survey.shot_x_m),
        receiver_x_m=_range(survey.receiver_x_m),
        units=units,
        assumptions=(*notes, *assumed),
    )
    return Upload(gathers, survey, ingest, chosen)


def _range(positions: tuple[float, ...]) -> tuple[float, float]:
    return float(min(positions)), float(max(positions))


def _only(arrays: dict[str, Array], keys: tuple[str, ...], what: str) -> Array:
    if len(arrays) == 1:
        return next(iter(arrays.values()))
    raise MalformedUpload(
        f"Expected one array of {what} (named {' or '.join(keys)}) and optionally {', '.join(SURVEY_KEYS)}; "
        f"found {', '.join(sorted(arrays)) or 'none'}."
    )


def _stored_geometry(stored: Mapping[str, Array]) -> Geometry:
    for name, array in stored.items():
        scalar = name in ("dt_s", "peak_hz")
        if array.size > (1 if scalar else MAX_RECEIVERS) or array.ndim > 1:
            raise MalformedUpload(
                f"{name!r} has shape {array.shape}; expected {'one number' if scalar else 'a list of positions'}."
            )

    numbers = {name: tuple(float(x) for x in array.ravel()) for name, array in stored.items()}
    dt_s, peak_hz = numbers.get("dt_s"), numbers.get("peak_hz")
    return Geometry(
        None if dt_s is None else dt_s[0],
        numbers.get("shot_x_m"),
        numbers.get("receiver_x_m"),
        None if peak_hz is None else peak_hz[0],
    )


def _survey(
    geometry: Geometry, *, shots: int, samples: int, receivers: int, frame: Frame
) -> tuple[Survey, tuple[Note, ...]]:
    if receivers > MAX_RECEIVERS:
        raise InvalidSurvey(f"{receivers} traces a shot; at most {MAX_RECEIVERS}. Leave out those far from the line.")
    notes: list[Note] = []
    line, own = frame.survey, (len(frame.shot_x_m), frame.receivers)
    if (geometry.shot_x_m is None or geometry.receiver_x_m is None) and (shots, receivers) != own:
        raise InvalidSurvey(
            f"{shots} shots into {receivers} receivers need positions: pass shot_x_m and receiver_x_m (only "
            f"{own[0]} shots into {own[1]} receivers are taken for {frame.name}'s line without them)."
        )
    if geometry.dt_s is None and samples != frame.record_samples:
        notes.append(Note("assumed_dt", f"No dt_s was given; {frame.record_dt_s * 1e3:g} ms a sample was assumed."))
    peak_hz = geometry.peak_hz
    if peak_hz is not None and not 0 < peak_hz < frame.highest_peak_hz:
        ends = f"between 0 and {frame.highest_peak_hz:g} Hz"
        raise InvalidSurvey(f"peak_hz is {peak_hz:g}; a source's peak frequency lies {ends}.")
    low, high = frame.trained_peak_hz
    if peak_hz is not None and not low <= peak_hz <= high:
        text = f"The source's peak frequency is {peak_hz:g} Hz; the encoders were trained on {low:g} to {high:g} Hz."
        notes.append(Note("peak_frequency_untrained", text))
    survey = Survey(
        shot_x_m=line.shot_x_m if geometry.shot_x_m is None else geometry.shot_x_m,
        receiver_x_m=line.receiver_x_m if geometry.receiver_x_m is None else geometry.receiver_x_m,
        dt_s=line.dt_s if geometry.dt_s is None else geometry.dt_s,
        peak_hz=peak_hz,
    )
    return survey, tuple(notes)
