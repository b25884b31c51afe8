"""A velocity model as an inversion takes it: on the user's grid, smoothed, its water sharp, its interval as bounds."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seisbind.model.errors import InvalidQuery
from seisbind.model.frame import MAX_POSITION_M, VELOCITY_LIMITS_M_S
from seisbind.service.formats.velocity_model import VelocityModel, nodes

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Known = NDArray[np.bool_]

MAX_NODES = 2_000_000  # 26 MB with bounds; 50 km every 12.5 m to a depth of 6 km
MAX_COUNT = 65_535  # rows or columns: what headers of SEG-Y hold, where a column has 240 bytes of its own
WATER_M_S = 1500.0
GROUND_OVER_WATER = 1.05  # what is read faster than this times the water is ground
ON_NODE = 1e-6  # of a step


@dataclass(frozen=True, slots=True)
class Grid:
    """Nodes that a model is wanted on, in true metres.

    Attributes:
        dx_m, dz_m: steps; ``dz_m`` None: ``dx_m``.
        x0_m, z0_m: first column and row; None: the model's.
        nx, nz: columns and rows; None: as many as lie on the model.

    Raises:
        InvalidQuery: numbers that no grid has.
    """

    dx_m: float
    dz_m: float | None = None
    x0_m: float | None = None
    z0_m: float | None = None
    nx: int | None = None
    nz: int | None = None

    def __post_init__(self) -> None:
        for name, step in (("dx", self.dx_m), ("dz", self.dz_m)):
            if step is not None and not 0 < step <= MAX_POSITION_M:  # also false for NaN
                raise InvalidQuery(f"A grid's {name} is {step:g} m; a step is larger than 0 m.")
        for name, first in (("x0", self.x0_m), ("z0", self.z0_m)):
            if first is not None and not -MAX_POSITION_M <= first <= MAX_POSITION_M:
                raise InvalidQuery(
                    f"A grid's {name} is {first:g} m; it lies within {MAX_POSITION_M:g} m of the origin."
                )
        for name, count in (("nx", self.nx), ("nz", self.nz)):
            if count is not None and not 1 <= count <= MAX_COUNT:
                raise InvalidQuery(f"A grid's {name} is {count}; it is 1 to {MAX_COUNT}.")

    def axes(self, model: VelocityModel) -> tuple[Float64, Float64]:
        """Positions of the rows and the columns. Raises InvalidQuery for none, and for too many."""
        rows, columns = model.value.shape
        dz_m = self.dx_m if self.dz_m is None else self.dz_m
        ends = {}
        for name, first, step, count, own, last in (
            ("z", self.z0_m, dz_m, self.nz, model.depth0_m, model.depth0_m + (rows - 1) * model.step_z_m),
            ("x", self.x0_m, self.dx_m, self.nx, model.x0_m, model.x0_m + (columns - 1) * model.cell_m),
        ):
            first = own if first is None else first
            if count is None:
                count = int(np.floor(min((last - first) / step + ON_NODE, float(MAX_NODES)))) + 1
            if count < 1:
                raise InvalidQuery(
                    f"The grid begins at {name} = {first:g} m; the model ends at {last:g} m. Give n{name}, or begin "
                    "before."
                )
            if count > MAX_COUNT:
                raise InvalidQuery(
                    f"The grid has more than {MAX_COUNT} nodes along {name}, every {step:g} m. Take larger steps, or a "
                    "part."
                )
            ends[name] = first, step, count
        found = ends["z"][2] * ends["x"][2]
        if found > MAX_NODES:
            raise InvalidQuery(
                f"The grid has {ends['x'][2]} x {ends['z'][2]} = {found} nodes; at most {MAX_NODES} are written. Take "
                "larger steps, or a part."
            )
        return nodes(*ends["z"]), nodes(*ends["x"])


@dataclass(frozen=True, slots=True)
class Water:
    """A layer of water on top, kept sharp and at its velocity.

    Attributes:
        velocity_m_s: of it.
        depth_m: of its bottom; None: in each column down to the first cell that is read as ground, which is faster
            by `GROUND_OVER_WATER`.

    Raises:
        InvalidQuery: numbers that no water has.
    """

    velocity_m_s: float = WATER_M_S
    depth_m: float | None = None

    def __post_init__(self) -> None:
        low, high = VELOCITY_LIMITS_M_S
        if not low <= self.velocity_m_s <= high:
            raise InvalidQuery(f"The water's velocity is {self.velocity_m_s:g} m/s; it lies in {low:g}-{high:g} m/s.")
        if self.depth_m is not None and not 0 < self.depth_m <= MAX_POSITION_M:
            raise InvalidQuery(f"The water's depth is {self.depth_m:g} m; it is larger than 0 m.")

    def bottom(self, value: Float64, z_m: Float64) -> Float64:
        """``(column,)`` depth of the first ground under a model ``(depth, column)`` in m/s.

        Raises:
            InvalidQuery: no water, or nothing else.
        """
        columns = value.shape[1]
        last = float(z_m[-1])
        if self.depth_m is not None:
            if self.depth_m > last:
                raise InvalidQuery(f"The water is {self.depth_m:g} m deep; the model ends at {last:g} m.")
            return np.full(columns, self.depth_m)
        slowest, fastest = float(value[0].min()), GROUND_OVER_WATER * self.velocity_m_s
        ground = value > fastest
        if ground[0].all():
            raise InvalidQuery(
                f"Water of {self.velocity_m_s:g} m/s lies on no part of the model: its first row is {slowest:.0f} m/s "
                f"or more, and over {fastest:.0f} m/s is ground. Give the water's depth."
            )
        if not ground.any(axis=0).all():
            raise InvalidQuery(
                f"Some of the model is nowhere faster than {fastest:.0f} m/s, so that the bottom of water of "
                f"{self.velocity_m_s:g} m/s cannot be told. Give the water's depth."
            )
        return np.asarray(z_m[ground.argmax(axis=0)], np.float64)


@dataclass(frozen=True, slots=True)
class StartOptions:
    """What is asked of a starting model.

    Attributes:
        grid: None: the model's own.
        smooth_m: standard deviation of a Gaussian over slowness, metres.
        water: kept sharp and exact.
        extend: whether nodes outside of what is known get the nearest known value; else they have no number.
    """

    grid: Grid | None = None
    smooth_m: float = 0.0
    water: Water | None = None
    extend: bool = False


AS_READ = StartOptions()


def parse_start(
    *, grid: str | None = None, smooth_m: float | None = None, water: str | None = None, extend: bool = False
) -> StartOptions:
    """Options as a command or a request states them.

    Args:
        grid: ``dx=12.5,dz=5,x0=0,z0=0,nx=200,nz=100``, of which only ``dx`` has to be there.
        water: ``depth=120,velocity=1480``, one of them or both.

    Raises:
        InvalidQuery: other names, a name twice, no numbers, or numbers that cannot be.
    """
    found_grid = found_water = None
    if grid is not None:
        numbers = _numbers(grid, "grid", ("dx", "dz", "x0", "z0", "nx", "nz"), "dx=12.5")
        if "dx" not in numbers:
            raise InvalidQuery(f"A grid has its step dx, as in dx=12.5; got {grid[:60]!r}.")
        for name in ("nx", "nz"):
            if not numbers.get(name, 1.0).is_integer():
                raise InvalidQuery(f"A grid's {name} is {numbers[name]:g}; it is a whole number.")
        nx, nz = (int(numbers[name]) if name in numbers else None for name in ("nx", "nz"))
        found_grid = Grid(numbers["dx"], numbers.get("dz"), numbers.get("x0"), numbers.get("z0"), nx, nz)
    if water is not None:
        numbers = _numbers(water, "water", ("depth", "velocity"), "depth=60")
        found_water = Water(numbers.get("velocity", WATER_M_S), numbers.get("depth"))
    smooth_m = 0.0 if smooth_m is None else smooth_m
    if not 0 <= smooth_m <= MAX_POSITION_M:
        raise InvalidQuery(f"A model is smoothed over 0 m or more; got {smooth_m:g} m.")
    return StartOptions(found_grid, smooth_m, found_water, extend)


def starting_model(model: VelocityModel, wanted: StartOptions) -> VelocityModel:
    """``model`` as it is wanted; `AS_READ` changes nothing.

    Smoothing and interpolation are of slowness, so that vertical travel times stay. Bounds are the interval, not
    smoothed, within the velocities of training, and widened where the smoothed model leaves them; where a model was
    extended they are all the velocities of training. Steps larger than the model's are taken through a filter.

    Args:
        model: columns of NaN are unknown.

    Raises:
        InvalidQuery: a grid with too many nodes or on nothing that is known, smoothing over more than the model, or
            water that is not there.
    """
    if wanted == AS_READ:
        return model
    known: Known = np.asarray(np.isfinite(model.value).all(axis=0))
    own_z, own_x = model.axes
    extent_m = max(own_z[-1] - own_z[0], own_x[-1] - own_x[0])
    if wanted.smooth_m > extent_m:
        raise InvalidQuery(f"Smoothing over {wanted.smooth_m:g} m; the model has {extent_m:g} m along its longer side.")
    z_m, x_m = model.axes if wanted.grid is None else wanted.grid.axes(model)
    columns = np.arange(len(own_x))
    left = np.maximum.accumulate(np.where(known, columns, -1))
    right = np.minimum.accumulate(np.where(known, columns, len(own_x))[::-1])[::-1]
    nearest = np.where((left < 0) | ((right < len(own_x)) & (right - columns < columns - left)), right, left)
    filled = np.asarray(model.value, np.float64)[:, nearest]
    bottom_m = None if wanted.water is None else wanted.water.bottom(filled, own_z)

    def on_grid(part: Float32, smooth_m: float) -> Float64:
        return _resampled(part[:, nearest], (own_z, own_x), (z_m, x_m), smooth_m, bottom_m)

    rows, across = _inside(z_m, own_z, np.ones(len(own_z), bool)), _inside(x_m, own_x, known)
    on_known = rows[:, None] & across
    if not on_known.any():
        raise InvalidQuery(
            f"Nothing is known on the grid, x {x_m[0]:g} to {x_m[-1]:g} m, depth {z_m[0]:g} to {z_m[-1]:g} m: the "
            f"model is of x {own_x[known][0]:g} to {own_x[known][-1]:g} m, depth {own_z[0]:g} to {own_z[-1]:g} m."
        )
    value = on_grid(model.value, wanted.smooth_m)
    bounds: list[Float64] = []
    if model.interval is not None:
        low, high = (on_grid(part, 0.0) for part in model.interval)
        slowest, fastest = model.range_m_s or (-np.inf, np.inf)
        low = np.minimum(np.where(on_known, np.clip(low, slowest, fastest), slowest), value)
        high = np.maximum(np.where(on_known, np.clip(high, slowest, fastest), fastest), value)
        bounds = [np.where(np.isfinite(part), part, np.nan) for part in (low, high)]
    if wanted.water is not None and bottom_m is not None:
        wet = z_m[:, None] < np.interp(x_m, own_x, bottom_m) - ON_NODE * model.step_z_m
        value, *bounds = (np.where(wet, wanted.water.velocity_m_s, part) for part in (value, *bounds))
    if not wanted.extend:
        value, *bounds = (np.where(on_known, part, np.nan) for part in (value, *bounds))
    value32, *bounds32 = (part.astype(np.float32) for part in (value, *bounds))
    low32, high32 = bounds32 or (None, None)
    dz_m, dx_m = (model.step_z_m, model.cell_m) if wanted.grid is None else (wanted.grid.dz_m, wanted.grid.dx_m)
    return VelocityModel(
        value32, low32, high32, dx_m, float(x_m[0]), float(z_m[0]),
        dz_m=None if dz_m == dx_m else dz_m, range_m_s=model.range_m_s, known=None if on_known.all() else on_known,
    )  # fmt: skip


def _numbers(text: str, what: str, known: Collection[str], example: str) -> dict[str, float]:
    """The numbers of ``name=1.5,other=2``."""
    found: dict[str, float] = {}
    for word in text.split(","):
        name, equals, number = (part.strip() for part in word.partition("="))
        if name not in known or not equals or name in found:
            raise InvalidQuery(
                f"The {what} has {', '.join(known)}, each once at most, as in {example}; got {text[:60]!r}."
            )
        try:
            found[name] = float(number)
        except ValueError as error:
            raise InvalidQuery(f"The {what}'s {name} is no number: {number[:60]!r}.") from error
        if not np.isfinite(found[name]):
            raise InvalidQuery(f"The {what}'s {name} is {found[name]:g}; it is a finite number.")
    return found


def _resampled(
    part: Float32,
    own: tuple[Float64, Float64],
    wanted: tuple[Float64, Float64],
    smooth_m: float,
    bottom_m: Float64 | None,
) -> Float64:
    """A part of a model, m/s, on other axes ``(depth, x)``; what lies over ``bottom_m`` continues what lies below."""
    from scipy.ndimage import gaussian_filter1d  # 0.1 s, which clients of a server do without

    slowness = 1 / np.asarray(part, np.float64)
    if bottom_m is not None:
        first = (own[0][:, None] >= bottom_m - ON_NODE).argmax(axis=0)
        slowness = np.take_along_axis(slowness, np.maximum(np.arange(len(slowness))[:, None], first), axis=0)
    for axis, (from_m, to_m) in enumerate(zip(own, wanted, strict=True)):
        step = from_m[1] - from_m[0]
        to_step = to_m[1] - to_m[0] if len(to_m) > 1 else step
        # the variance of a triangle as wide as two steps: linear interpolation has it at the model's own step
        coarser = max(0.0, min(to_step, from_m[-1] - from_m[0]) ** 2 - step**2) / 6
        sigma = np.sqrt(smooth_m**2 + coarser) / step
        if sigma > 0:
            slowness = gaussian_filter1d(slowness, sigma, axis=axis, mode="nearest")
        at = np.clip((to_m - from_m[0]) / step, 0, len(from_m) - 1)
        at = np.where(np.abs(at - np.rint(at)) < ON_NODE, np.rint(at), at)
        before = np.minimum(at.astype(int), len(from_m) - 2)
        share = np.expand_dims(at - before, 1 - axis)
        slowness = np.take(slowness, before, axis) * (1 - share) + np.take(slowness, before + 1, axis) * share
    return np.asarray(1 / slowness, np.float64)


def _inside(wanted_m: Float64, own_m: Float64, known: Known) -> Known:
    """Which positions lie in a known cell: within half a step of its node."""
    at = (wanted_m - own_m[0]) / (own_m[1] - own_m[0])
    last = len(own_m) - 1
    within = (at >= -0.5 - ON_NODE) & (at <= last + 0.5 + ON_NODE)
    return np.asarray(within & known[np.clip(np.rint(at), 0, last).astype(int)])
