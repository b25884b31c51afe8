"""A section as a file, npz, SEG-Y or png; and the partial file from which an interrupted one goes on."""

from __future__ import annotations

import io
import json
from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import TypeAdapter, ValidationError

from seisbind.model.errors import InvalidConfig
from seisbind.model.files import AppendedLines, replacing
from seisbind.service.engine.answers import WindowAnswer
from seisbind.service.engine.engine import Engine
from seisbind.service.engine.section import Section, SectionPlan, WindowReading
from seisbind.service.formats.npy import npz
from seisbind.service.formats.segy import write_velocity

Float32 = NDArray[np.float32]

SUFFIXES = (".npz", ".sgy", ".segy", ".png")
PART = ".part"  # after the name of the output
COLOURS = "viridis"  # as all pictures of velocity
UNKNOWN = "#d0d0d0"
PICTURE_INCHES = (12.0, 2.6)  # of a panel
DPI = 110
MODELS = ("value", "low", "high")
ANSWER: TypeAdapter[WindowAnswer] = TypeAdapter(WindowAnswer)


def check_suffix(path: Path) -> None:
    """Raises InvalidConfig for a name that says no format."""
    if path.suffix.lower() not in SUFFIXES:
        raise InvalidConfig(f"{path} ends with {path.suffix!r}; a section is written as {', '.join(SUFFIXES)}.")


def save_section(section: Section, path: Path) -> None:
    """Write a section; ``path`` is replaced when all is written.

    Raises:
        InvalidConfig: an unknown suffix.
        OSError: it cannot be written.
    """
    check_suffix(path)
    make = {".npz": section_npz, ".png": section_png}.get(path.suffix.lower(), section_segy)
    with replacing(path) as temporary:
        temporary.write_bytes(make(section))


def about(section: Section) -> dict[str, object]:
    """All that is not an array, for JSON."""
    return {
        "scale": {"s": section.scale.s, "k": section.scale.k},
        "weights": section.weights,
        "gallery": section.gallery,
        "notes": [asdict(note) for note in section.notes],
        "windows": [ANSWER.dump_python(window, mode="json") for window in section.windows],
    }


def arrays_of(section: Section) -> dict[str, NDArray[np.generic]]:
    """Its arrays by name; ``low`` and ``high`` where the weights state intervals."""
    names = ("x_m", "depth_m", "velocity", "low", "high", "disagreement", "weight")
    return {name: array for name in names if (array := getattr(section, name)) is not None}


def section_npz(section: Section) -> bytes:
    """Its arrays, and ``about``: JSON as bytes."""
    text = json.dumps(about(section), allow_nan=False).encode()
    arrays: dict[str, ArrayLike] = {**arrays_of(section), "about": np.frombuffer(text, np.uint8)}
    return npz(arrays)


def section_segy(section: Section) -> bytes:
    """The velocities as SEG-Y in depth, 0 where nothing is known."""
    known = np.nan_to_num(section.velocity, nan=0.0)
    title = "SECTION ALONG A LINE; 0 M/S: NOTHING IS KNOWN THERE"
    return write_velocity(known, cell_m=section.cell_m, title=title, x0_m=float(section.x_m[0]))


def section_png(section: Section) -> bytes:
    """The velocities, and below them half the 90 % interval or, without one, the disagreement of windows."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    colours = colormaps[COLOURS].with_extremes(bad=UNKNOWN)
    doubt: NDArray[np.floating] = section.disagreement
    doubt_name = "windows disagree (m/s)"
    if section.low is not None and section.high is not None:
        doubt, doubt_name = (section.high - section.low) / 2, "half of 90 % interval (m/s)"
    half = section.cell_m / 2
    extent = (section.x_m[0] - half, section.x_m[-1] + half, section.depth_m[-1] + half, -half)
    figure = Figure(figsize=(PICTURE_INCHES[0], 2 * PICTURE_INCHES[1]), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    for number, (values, name) in enumerate(((section.velocity, "velocity (m/s)"), (doubt, doubt_name)), start=1):
        axes = figure.add_subplot(2, 1, number)
        some = np.isfinite(values).any()
        image = axes.imshow(
            values if some else np.zeros_like(values), cmap=colours, extent=extent, aspect="auto",
            interpolation="nearest",
        )  # fmt: skip
        axes.set_xlabel("x (m)")
        axes.set_ylabel("depth (m)")
        figure.colorbar(image, ax=axes, label=name)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


class PartialSection:
    """Blocks of windows that are done, in a file beside the output; a block that was cut off is dropped. Use ``with``.

    Args:
        out: of the section.
        refine: iterations that each window is refined by, at most; 0: none is.

    Attributes:
        done: number of a block → its readings.

    Raises:
        InvalidConfig: the file is of another line, scale, step, refinement, weights or gallery, or of no section, or
            another run writes it.
        OSError: it cannot be read or written.
    """

    def __init__(self, out: Path, engine: Engine, plan: SectionPlan, *, refine: int = 0) -> None:
        self.path = out.with_name(out.name + PART)
        self.done: dict[int, list[WindowReading]] = {}
        self._shape = plan.frame.velocity_shape
        self._asked = {
            "line": plan.line.digest,
            "traces": len(plan.line),
            "scale": [plan.scale.s, plan.scale.k],
            "starts_m": [float(plan.starts_m[0]), float(plan.starts_m[-1]), len(plan)],
            "weights": engine.embedder.fingerprint,
            "gallery": [engine.gallery.name, engine.gallery.generation],
        } | ({"refine": refine} if refine else {})
        try:
            self._lines = AppendedLines(self.path)
        except BlockingIOError as error:
            raise InvalidConfig(f"Another run is writing {out}. Wait for it, or give another --out.") from error
        try:
            self._continue()
        except BaseException:
            self._lines.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._lines.close()

    def add(self, number: int, readings: Sequence[WindowReading]) -> None:
        """Keep a block; it is in the hands of the operating system on return."""
        self._write({"block": number, "windows": [_dumped(reading) for reading in readings]})

    def remove(self) -> None:
        """Delete the file, once the section is saved."""
        self.path.unlink()

    def _write(self, line: dict[str, object]) -> None:
        self._lines.append(json.dumps(line).encode() + b"\n")

    def _continue(self) -> None:
        for number, text in enumerate(self._lines.whole()):
            try:
                line = json.loads(text)
                if number == 0:
                    self._check(line["asked"])
                else:
                    self.done[int(line["block"])] = [self._loaded(each) for each in line["windows"]]
            except InvalidConfig:
                raise
            except (ValueError, KeyError, TypeError, ValidationError) as error:
                raise InvalidConfig(
                    f"Line {number + 1} of {self.path} is none that seisbind section writes. It was left as it is; "
                    "remove it, or give another --out."
                ) from error
        if not self._lines.begin():
            self._write({"asked": self._asked})

    def _check(self, asked: object) -> None:
        now = json.loads(json.dumps(self._asked))
        if asked != now:
            raise InvalidConfig(
                f"{self.path} was begun with another line, scale, step, refinement, weights or gallery: "
                f"{json.dumps(asked)[:400]}; this run has {json.dumps(now)[:400]}. Remove it, or give another --out."
            )

    def _loaded(self, one: dict[str, object]) -> WindowReading:
        models = {name: self._model(one[name]) for name in MODELS}
        start_m, lit = one["start_m"], one["lit"]
        if not isinstance(start_m, float) or not isinstance(lit, list):
            raise ValueError("no window")
        return WindowReading(ANSWER.validate_python(one["answer"], strict=False), start_m, np.asarray(lit), **models)

    def _model(self, text: object) -> Float32 | None:
        if text is None:
            return None
        return np.frombuffer(b64decode(str(text)), dtype="<f4").reshape(self._shape).astype(np.float32)


def _dumped(reading: WindowReading) -> dict[str, object]:
    models: dict[str, Float32 | None] = {name: getattr(reading, name) for name in MODELS}
    packed = {
        name: None if model is None else b64encode(np.asarray(model, "<f4").tobytes()).decode()
        for name, model in models.items()
    }
    answer = ANSWER.dump_python(reading.answer, mode="json")
    return {"start_m": float(reading.start_m), "lit": reading.lit.tolist(), "answer": answer, **packed}
