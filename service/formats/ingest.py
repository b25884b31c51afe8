"""What reading an upload found: the file's own words, and what had to be assumed."""

from __future__ import annotations

from dataclasses import dataclass

from seisbind.model.survey.notes import Note


@dataclass(frozen=True, slots=True)
class Ingest:
    """A report on one upload of gathers.

    Attributes:
        format: ``npy``, ``npz``, ``segy`` or ``su``.
        sample_format: how samples were stored, as in ``float32`` or ``IBM float32``.
        byte_order: ``big`` or ``little``.
        gathers: in the upload.
        shots, receivers, samples: of each gather as it was used.
        traces: in a field file, used or not; None of arrays.
        dt_s: sampling interval used.
        shot_x_m, receiver_x_m: lowest and highest position used, metres along the line.
        units: of positions in the file: ``m``, ``ft``; the report itself is in metres.
        assumptions: what was assumed or done while reading; also among the warnings of each answer.
    """

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
