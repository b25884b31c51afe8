"""The frame that weights are made for: cells, receivers, shots, samples and velocities as one object.

Everything that is sized, checked, simulated or drawn takes these numbers from a `Frame`. Only `OPENFWI_FRAME` has those
of OpenFWI. Weights, galleries and pairs that were stored without a frame have OpenFWI's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seisbind.model.errors import InvalidConfig, InvalidSurvey

MAX_SHOTS = 64  # a gather of more shots than this is a stack of gathers sent with the wrong axes
# A patch of the seismic encoder's stem: OpenFWI's Ricker is 17 of its samples long, so 5 still see each of its lobes
PATCH_SAMPLES, PATCH_RECEIVERS = 5, 2
MAP_STEP = 2  # the map head predicts every second cell of a velocity model, each the mean of 2 x 2
MIN_CELLS, MAX_CELLS = 16, 1000  # along depth or x, and of receivers; the networks halve them four times
MAX_SAMPLES = 10_000
MAX_NAME = 80
WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TRAINED_PEAK = (8 / 15, 28 / 15)  # of the peak frequency: the range that training draws wavelets from
DT_LIMITS_S = (1e-4, 0.008)  # of a line of the frame's own size
ANY_DT_S = (1e-7, 1.0)  # of a line of any size: `seisbind.model.scale`
MAX_POSITION_M = 1e8  # of any map projection: eastings with a zone number before them reach 6e7
VELOCITY_LIMITS_M_S = (300.0, 9000.0)  # slower than any sediment, faster than any crustal rock


@dataclass(frozen=True, slots=True)
class Survey:
    """Positions and sampling of a 2-D line, in metres along x and seconds.

    Raises:
        InvalidSurvey: positions not finite, too far off or not increasing (receivers); a sampling interval that no line
            of any size has.
    """

    shot_x_m: tuple[float, ...]
    receiver_x_m: tuple[float, ...]
    dt_s: float
    peak_hz: float | None = None
    source_depth_m: float = 10.0
    receiver_depth_m: float = 10.0

    def __post_init__(self) -> None:
        if not self.shot_x_m or not self.receiver_x_m:
            raise InvalidSurvey("A survey needs at least one shot and one receiver.")
        if len(self.shot_x_m) > MAX_SHOTS:
            raise InvalidSurvey(f"A gather of {len(self.shot_x_m)} shots; at most {MAX_SHOTS} are used at a time.")
        positions = np.asarray(self.shot_x_m + self.receiver_x_m, dtype=np.float64)
        check_finite(positions)
        farthest = float(positions[np.abs(positions).argmax()])
        if abs(farthest) > MAX_POSITION_M:
            raise InvalidSurvey(
                f"A position is {farthest:g} m; shots and receivers lie within {MAX_POSITION_M:g} m of the origin. Are "
                "they in another unit?"
            )
        if len(self.receiver_x_m) > 1 and np.diff(self.receiver_x_m).min() <= 0:
            at = int(np.diff(self.receiver_x_m).argmin())
            raise InvalidSurvey(
                f"Receiver positions must increase; receiver {at + 1} at {self.receiver_x_m[at + 1]:g} m follows "
                f"{self.receiver_x_m[at]:g} m. Sort the traces by position."
            )
        if not ANY_DT_S[0] <= self.dt_s < ANY_DT_S[1]:  # also true of NaN
            check_dt(self.dt_s, DT_LIMITS_S)


def check_finite(positions_m: NDArray[np.float64]) -> None:
    """Raises InvalidSurvey for positions of shots and receivers that are not finite."""
    wrong = int((~np.isfinite(positions_m)).sum())
    if wrong:
        raise InvalidSurvey(
            f"{wrong} of {len(positions_m)} shot and receiver positions are not finite numbers in metres. Correct them."
        )


def check_dt(dt_s: float, limits_s: tuple[float, float]) -> None:
    """Raises InvalidSurvey for a sampling interval outside ``limits_s``."""
    if not limits_s[0] <= dt_s <= limits_s[1]:
        raise InvalidSurvey(
            f"Sampling interval {dt_s:g} s is outside {limits_s[0]:g}-{limits_s[1]:g} s; is it given in milliseconds?"
        )


@dataclass(frozen=True, slots=True)
class Frame:
    """The survey line and the velocity models that encoders are made for. Two frames with the same numbers are equal.

    Attributes:
        depth_cells, x_cells, cell_m: of velocity models; even numbers, and metres along both axes.
        velocity_m_s: lowest and highest velocity drawn at random; the encoders' unit comes from it.
        receivers, receiver_spacing_m: of the line, the first at x = 0.
        shot_x_m: of the line's own shots, increasing.
        samples, dt_s: that the encoders see.
        record_samples, record_dt_s: of a recording as it is simulated; arrays are assumed to have them.
        peak_hz: of the source's wavelet.
        name: used in messages; not compared.
        survey: the line as a `Survey`, sources and receivers a cell below the surface.

    Raises:
        InvalidConfig: a number out of range, or numbers that do not go together.
    """

    depth_cells: int
    x_cells: int
    cell_m: float
    velocity_m_s: tuple[float, float]
    receivers: int
    receiver_spacing_m: float
    shot_x_m: tuple[float, ...]
    samples: int
    dt_s: float
    record_samples: int
    record_dt_s: float
    peak_hz: float
    name: str = field(default="the frame", compare=False)
    survey: Survey = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_line()
        line = tuple(self.receiver_spacing_m * i for i in range(self.receivers))
        object.__setattr__(
            self, "survey", Survey(self.shot_x_m, line, self.record_dt_s, self.peak_hz, self.cell_m, self.cell_m)
        )

    def _check_numbers(self) -> None:
        if not (self.name.isprintable() and 0 < len(self.name) <= MAX_NAME):
            raise InvalidConfig(f"A frame's 'name' is 1 to {MAX_NAME} printable characters; got {self.name[:99]!r}.")
        for name, step, low, high in (
            ("depth_cells", MAP_STEP, MIN_CELLS, MAX_CELLS),
            ("x_cells", MAP_STEP, MIN_CELLS, MAX_CELLS),
            ("receivers", PATCH_RECEIVERS, MIN_CELLS, MAX_CELLS),
            ("samples", PATCH_SAMPLES, MIN_CELLS * PATCH_SAMPLES, MAX_SAMPLES),
            ("record_samples", 1, 1, MAX_SAMPLES),
        ):
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high or value % step:
                raise InvalidConfig(
                    f"A frame's {name!r} is {value!r}; it is a whole number from {low} to {high}"
                    f"{f', a multiple of {step}' if step > 1 else ''}."
                )
        for name, lower, upper in (
            ("cell_m", 0.01, 1000.0),
            ("receiver_spacing_m", 0.01, 1000.0),
            ("dt_s", *DT_LIMITS_S),
            ("record_dt_s", *DT_LIMITS_S),
            ("peak_hz", 0.1, 1000.0),
        ):
            number = getattr(self, name)
            if not lower <= number <= upper:  # also false for NaN
                raise InvalidConfig(f"A frame's {name!r} is {number:g}; it lies between {lower:g} and {upper:g}.")

    def _check_line(self) -> None:
        lower, upper = VELOCITY_LIMITS_M_S
        if len(self.velocity_m_s) != 2 or not lower <= self.velocity_m_s[0] < self.velocity_m_s[1] <= upper:
            raise InvalidConfig(
                f"A frame's 'velocity_m_s' is {self.velocity_m_s}; it is the slowest and the fastest velocity, between "
                f"{lower:g} and {upper:g} m/s."
            )
        shots, inside = self.shot_x_m, all(0 <= x <= self.line_m for x in self.shot_x_m)
        if not 2 <= len(shots) <= MAX_SHOTS or not inside or any(a >= b for a, b in pairwise(shots)):
            raise InvalidConfig(
                f"A frame's 'shot_x_m' is {shots[:8]}; it is 2 to {MAX_SHOTS} increasing positions on the line, 0 to "
                f"{self.line_m:g} m."
            )
        if self.record_dt_s > self.dt_s or self.record_samples * self.record_dt_s < self.duration_s - self.dt_s:
            raise InvalidConfig(
                f"A frame's recording is {self.record_samples} samples of {self.record_dt_s * 1e3:g} ms; the encoders "
                f"see {self.samples} of {self.dt_s * 1e3:g} ms, for which it is too short or too coarse."
            )
        if self.peak_hz > 0.25 / self.dt_s:
            raise InvalidConfig(
                f"A frame's 'peak_hz' is {self.peak_hz:g}; with samples of {self.dt_s * 1e3:g} ms it is at most half "
                f"the Nyquist frequency, {0.25 / self.dt_s:g} Hz."
            )

    @property
    def dt_limits_s(self) -> tuple[float, float]:
        """Sampling intervals of records that are read."""
        return DT_LIMITS_S

    @property
    def highest_peak_hz(self) -> float:
        """No source's peak frequency is stated above this."""
        return 1000.0

    @property
    def line_m(self) -> float:
        """From the first to the last receiver."""
        return self.receiver_spacing_m * (self.receivers - 1)

    @property
    def duration_s(self) -> float:
        """Of what the encoders see."""
        return self.samples * self.dt_s

    @property
    def gather_shape(self) -> tuple[int, int, int]:
        """(shot, time, receiver) of a recording in the frame's own layout."""
        return len(self.shot_x_m), self.record_samples, self.receivers

    @property
    def prepared_shape(self) -> tuple[int, int, int]:
        """(shot, time, receiver) of the frame's own gathers as the encoders see them."""
        return len(self.shot_x_m), self.samples, self.receivers

    @property
    def velocity_shape(self) -> tuple[int, int]:
        """(depth, x) of a velocity model."""
        return self.depth_cells, self.x_cells

    @property
    def map_shape(self) -> tuple[int, int]:
        """(depth, x) of the coarse velocity model that the map head predicts."""
        return self.depth_cells // MAP_STEP, self.x_cells // MAP_STEP

    @property
    def middle_m_s(self) -> float:
        """Middle of the velocity range."""
        return (self.velocity_m_s[0] + self.velocity_m_s[1]) / 2

    @property
    def spread_m_s(self) -> float:
        """The encoders' unit of velocity: a third of the range."""
        return (self.velocity_m_s[1] - self.velocity_m_s[0]) / 3

    @property
    def trained_peak_hz(self) -> tuple[float, float]:
        """Lowest and highest peak frequency that training draws wavelets from."""
        return self.peak_hz * TRAINED_PEAK[0], self.peak_hz * TRAINED_PEAK[1]

    @property
    def on_node_m(self) -> float:
        """A receiver this close to one of the line is that one."""
        return self.receiver_spacing_m / 10

    @property
    def max_gap_m(self) -> float:
        """Traces further apart are not interpolated: at OpenFWI's 15 Hz and 1500 m/s, 50 m is half a wavelength."""
        return 3 * self.receiver_spacing_m

    @property
    def shot_margin_m(self) -> float:
        """A shot further outside the line than this was never trained on."""
        return 2 * self.receiver_spacing_m

    @property
    def min_line_m(self) -> float:
        """Half the line: less aperture does not determine the middle of the model."""
        return self.receiver_spacing_m * ((self.receivers - 1) // 2)

    @property
    def min_record_s(self) -> float:
        """In OpenFWI's frame 0.6 s, about the two-way time to 700 m at 2300 m/s."""
        return 0.6 * self.duration_s

    @property
    def duration_text(self) -> str:
        """``second``, or ``0.6 s``: after "the first", say."""
        return "second" if self.duration_s == 1 else f"{self.duration_s:g} s"

    @property
    def cells_text(self) -> str:
        """``70 x 70 cells of 10 m``."""
        return f"{self.depth_cells} x {self.x_cells} cells of {self.cell_m:g} m"

    def __str__(self) -> str:
        shots = ", ".join(f"{x:g}" for x in self.shot_x_m)
        return (
            f"{self.name} ({self.cells_text}, {self.velocity_m_s[0]:g}-{self.velocity_m_s[1]:g} m/s; shots at {shots} "
            f"m into {self.receivers} receivers every {self.receiver_spacing_m:g} m; {self.peak_hz:g} Hz; "
            f"{self.record_samples} samples of {self.record_dt_s * 1e3:g} ms, encoded as {self.samples} of "
            f"{self.dt_s * 1e3:g} ms)"
        )

    def to_dict(self) -> dict[str, Any]:
        """All fields but `survey`, for JSON."""
        values = {name: getattr(self, name) for name in FIELDS}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, raw: object) -> Frame:
        """The frame that `to_dict` wrote.

        Raises:
            InvalidConfig: fields missing or unknown, or numbers that are no frame.
        """
        if not isinstance(raw, Mapping):
            raise InvalidConfig(f"A frame is an object with {', '.join(FIELDS)}; got {type(raw).__name__}.")
        wrong = sorted({*raw, "name"} ^ set(FIELDS))
        if wrong:
            raise InvalidConfig(f"A frame has {', '.join(FIELDS)}; missing or unknown: {', '.join(wrong)}.")
        values: dict[str, Any] = {}
        for name, value in raw.items():
            try:
                if name in WHOLE:
                    values[name] = value
                elif name in LISTS:
                    values[name] = tuple(map(float, value))
                else:
                    values[name] = str(value) if name == "name" else float(value)
            except (TypeError, ValueError) as error:
                raise InvalidConfig(f"A frame's {name!r} is {value!r}; it should be of numbers.") from error
        return cls(**values)


FIELDS = tuple(each.name for each in fields(Frame) if each.init)
WHOLE = ("depth_cells", "x_cells", "receivers", "samples", "record_samples")
LISTS = ("velocity_m_s", "shot_x_m")

OPENFWI_FRAME = Frame(
    depth_cells=70,
    x_cells=70,
    cell_m=10.0,
    velocity_m_s=(1500.0, 4500.0),
    receivers=70,
    receiver_spacing_m=10.0,
    shot_x_m=(0.0, 170.0, 340.0, 520.0, 690.0),
    samples=250,
    dt_s=0.004,
    record_samples=1000,
    record_dt_s=0.001,
    peak_hz=15.0,
    name="OpenFWI",
)


def in_words(count: int) -> str:
    """``five`` for 5; from ten on the number itself."""
    return WORDS[count] if count < len(WORDS) else str(count)


def stored_frame(raw: object) -> Frame:
    """The frame stored in a file; None, as in files older than frames, is OpenFWI's. Raises InvalidConfig."""
    return OPENFWI_FRAME if raw is None else Frame.from_dict(raw)


def load_frame(path: Path) -> Frame:
    """A frame from a JSON file with the fields of `Frame`.

    Raises:
        InvalidConfig: no such file, not JSON, or no frame.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidConfig(f"{path} cannot be read: {error.strerror}. Give a JSON file of a frame.") from error
    except ValueError as error:
        raise InvalidConfig(f"{path} is not JSON: {error}.") from error
    try:
        return Frame.from_dict(raw)
    except InvalidConfig as error:
        raise InvalidConfig(f"{path}: {error}") from error
