"""The finite-difference operator that made OpenFWI's gathers, compiled for one CPU core.

Constant-density acoustic pressure, second order in time and fourth in space, inside a sponge: the operator and its
constants are those that reproduce its files to float32 rounding (see `propagate`). The outer edges of the frame are
joined, left to right and top to bottom: what crosses the sponge on one side comes in on the other, and OpenFWI's files
show it (up to 5 % of a FlatVel-A record's rms, after 0.75 s). The wave equation is in `_step`; `_active_runs` limits
it to the cells that matter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seisbind.model.errors import InvalidSurvey, InvalidVelocityModel, MissingExtra
from seisbind.model.ground.descriptors import check_velocity
from seisbind.model.waves.wavelet import check_wavelet

try:
    from numba import njit
except ImportError as error:  # pragma: no cover - the suite runs with the extra
    raise MissingExtra(
        "OpenFWI's operator is compiled by numba, which is not installed: pip install 'seisbind[simulation]'."
    ) from error

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]

HALO = 2  # cells on each side that the fourth-order stencil reads and nothing updates
MAX_COURANT = math.sqrt(3) / math.sqrt(8)  # v dt / dx of this stencil in 2-D: 2 / sqrt(2 * 16 / 3)
SPONGE_DECAY = math.log(1e7)  # OpenFWI's theoretical reflection coefficient of 1e-7
BLOCK = 4  # cells a side of the coarse cells on which travel times are found
FRONT_CELLS = 12  # computed beyond the travel-time front: coarse times err by 2-4 cells and the front is not sharp
REFRESH_STEPS = 4  # steps between looks at which cells matter: the wave advances by under 3 cells


@dataclass(frozen=True, slots=True)
class Sponge:
    """The absorbing frame around a velocity map; the default is OpenFWI's.

    Attributes:
        cells: padding on every side by edge replication. Opposite outer edges are joined (periodic).
        strength: factor on OpenFWI's ``kappa = 3 vmin ln(1e7) / (2 a)``, 1/s, where ``a = (cells - 1) dx`` and vmin is
            the map's own minimum. The damping grows as ``kappa (distance / a)^2`` outwards.
        free_surface: no padding on top. Pressure is zero on the plane of the top row (depth index 0), and the two rows
            above it are the antisymmetric images of the two below; beyond the bottom of the frame it is zero.
    """

    cells: int = 120
    strength: float = 1.0
    free_surface: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.cells <= 1000:
            raise InvalidSurvey(f"A sponge of {self.cells} cells; 2 to 1000 are possible, OpenFWI has 120.")
        if not 0 <= self.strength <= 100:
            raise InvalidSurvey(f"Sponge strength {self.strength:g} is outside 0-100; OpenFWI's is 1.")

    def pads(self) -> tuple[int, int]:
        """Cells above the map, and cells to its left (the same to its right and below)."""
        return (0 if self.free_surface else self.cells), self.cells

    def stable_strength(self, *, vmin_m_s: float, edge_m_s: float, dt_s: float, cell_m: float) -> float:
        """The strength, or the largest at which the scheme is stable in the frame, where velocities reach ``edge_m_s``.

        There the shortest wave, of alternating signs, grows unless ``32/3 (v dt / dx)^2 + 2 K <= 4``.
        """
        courant = edge_m_s * dt_s / cell_m
        per_strength = 3 * vmin_m_s * SPONGE_DECAY / (2 * (self.cells - 1) * cell_m) * dt_s  # of K, at the outer edge
        return min(self.strength, max(0.0, 2 - 2 * (courant / MAX_COURANT) ** 2) / per_strength)

    def damping(self, shape: tuple[int, int], *, vmin_m_s: float, dt_s: float, cell_m: float) -> Float32:
        """``K = d dt`` of every cell of the padded map.

        Args:
            shape: (depth, x) of the map without its frame.

        Returns:
            ``(depth + pads, x + pads)`` float32, dimensionless; the columns' value in the corners.
        """
        top, side = self.pads()
        width_m = (self.cells - 1) * cell_m
        kappa = self.strength * 3 * vmin_m_s * SPONGE_DECAY / (2 * width_m)
        profile = kappa * (np.arange(self.cells) * cell_m / width_m) ** 2 * dt_s  # outwards
        out = np.zeros((shape[0] + top + side, shape[1] + 2 * side), dtype=np.float32)
        if top:
            out[:top] = profile[::-1, None]
        out[top + shape[0] :] = profile[:, None]
        out[:, :side] = profile[::-1]
        out[:, side + shape[1] :] = profile
        return out


OPENFWI_SPONGE = Sponge()


def propagate(
    velocity: ArrayLike,
    *,
    wavelet: ArrayLike,
    source_cells: ArrayLike,
    receiver_cells: ArrayLike,
    samples: int,
    dt_s: float,
    cell_m: float,
    sponge: Sponge = OPENFWI_SPONGE,
) -> Float32:
    """Shot gathers of one velocity map by OpenFWI's operator.

    With ``A = (v dt / dx)^2``, ``L(p) = 4/3 (4 neighbours at distance 1) - 1/12 (4 neighbours at distance 2)`` and the
    sponge's ``K``: ``p_next = (2 - 5A - K) p - (1 - K) p_prev + A L(p)``, then ``(v_source dt)^2 w_n`` is added at the
    source, then row n is recorded. Agrees with OpenFWI's files to float32 rounding.

    Args:
        velocity: ``(depth, x)`` float32, m/s.
        wavelet: ``(n,)`` source time function, one value a step; zero after its end.
        source_cells: ``(shot, 2)`` int, (depth, x) index in ``velocity``; x may lie in the frame beside the map.
        receiver_cells: ``(receiver, 2)`` int, likewise.
        samples: time steps, each recorded.
        dt_s: time step, s.
        cell_m: cell size along both axes, m.
        sponge: the absorbing frame.

    Returns:
        ``(shot, time, receiver)`` float32, pressure in OpenFWI's unit.

    Raises:
        InvalidVelocityModel: see `check_velocity`; also a map too fast for ``dt_s`` (Courant limit).
        InvalidSurvey: no samples, an empty or non-finite wavelet, or a position outside the frame.
    """
    maps = check_velocity(velocity)
    if len(maps) != 1:
        raise InvalidVelocityModel(f"One map at a time; got {len(maps)}.")
    v = maps[0]
    _check_courant(float(v.max()), dt_s=dt_s, cell_m=cell_m)
    w = check_wavelet(wavelet, np.float64)
    if samples < 1:
        raise InvalidSurvey(f"{samples} samples were asked for; at least 1 is needed.")
    top, side = sponge.pads()
    sources = _check_cells(source_cells, v.shape, sponge, "source")
    receivers = _check_cells(receiver_cells, v.shape, sponge, "receiver")

    padded = np.pad(v, ((top, side), (side, side)), mode="edge")
    courant2 = np.square(padded.astype(np.float64) * dt_s / cell_m)
    if sponge.free_surface:
        courant2[0] = 0  # the plane itself never moves
    keep = 1 - sponge.damping(v.shape, vmin_m_s=float(v.min()), dt_s=dt_s, cell_m=cell_m).astype(np.float64)
    gain = np.square(padded[tuple(sources.T)].astype(np.float64) * dt_s)
    source_terms = (gain[:, None] * w).astype(np.float32)  # (shot, n)

    gather: Float32 = _shots(
        np.pad(courant2, HALO).astype(np.float32),
        np.pad(keep, HALO).astype(np.float32),
        source_terms,
        sources + HALO,
        receivers + HALO,
        samples,
        sponge.free_surface,
        _slowness(padded, dt_s, cell_m),
    )
    return gather


def _check_courant(vmax_m_s: float, *, dt_s: float, cell_m: float) -> None:
    """Raise InvalidVelocityModel where the scheme would be unstable: ``vmax dt / dx`` above 0.612."""
    courant = vmax_m_s * dt_s / cell_m
    if not courant <= MAX_COURANT:
        raise InvalidVelocityModel(
            f"{vmax_m_s:g} m/s at steps of {dt_s * 1e3:g} ms on cells of {cell_m:g} m has a Courant number of "
            f"{courant:.3f}; the scheme is stable up to {MAX_COURANT:.3f}. Use steps of at most "
            f"{MAX_COURANT * cell_m / vmax_m_s * 1e3:.3f} ms or larger cells."
        )


def _check_cells(cells: ArrayLike, shape: tuple[int, ...], sponge: Sponge, what: str) -> Int64:
    """``(n, 2)`` int64 indices into the padded map of cells given relative to the un-padded one.

    Raises:
        InvalidSurvey: not integer pairs, above or below the map, outside the frame, or on a free surface.
    """
    array = np.asarray(cells)
    if array.ndim != 2 or array.shape[1] != 2 or not len(array) or array.dtype.kind not in "iu":
        raise InvalidSurvey(f"The {what} cells are (n, 2) integers (depth, x); got {array.dtype} {array.shape}.")
    top, side = sponge.pads()
    depth, x = array[:, 0], array[:, 1]
    if depth.min() < 0 or depth.max() >= shape[0] or x.min() < -side or x.max() >= shape[1] + side:
        raise InvalidSurvey(
            f"A {what} lies outside: depth cells {depth.min()}-{depth.max()} of 0-{shape[0] - 1}, x cells "
            f"{x.min()}-{x.max()} of {-side}-{shape[1] + side - 1} (the frame of {side} cells included)."
        )
    if sponge.free_surface and depth.min() == 0:
        raise InvalidSurvey(f"A {what} lies on the free surface (depth cell 0), where pressure is always zero.")
    return np.ascontiguousarray(array.astype(np.int64) + np.array([top, side]))


def _slowness(padded: Float32, dt_s: float, cell_m: float) -> NDArray[np.float64]:
    """``(depth / 4, x / 4)``: steps that a wave needs to cross a coarse cell, by its fastest fine cell."""
    depth, x = (-n % BLOCK for n in padded.shape)
    whole = np.pad(padded, ((0, depth), (0, x)), mode="edge")
    fastest = whole.reshape(whole.shape[0] // BLOCK, BLOCK, whole.shape[1] // BLOCK, BLOCK).max(axis=(1, 3))
    return np.asarray(BLOCK * cell_m / (fastest.astype(np.float64) * dt_s))


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _travel_steps(slowness: NDArray[np.float64], cells: Int64, wraps_down: bool) -> NDArray[np.float64]:
    """First arrival, in steps, from the nearest of ``cells`` to each coarse cell of the frame that wraps around.

    Fast sweeping of the eikonal equation (Zhao 2005, Math. Comp. 74, eq. 2.3-2.4) until nothing moves by a step.
    """
    depth, x = slowness.shape
    t = np.full((depth + 2, x + 2), 1e9)
    for k in range(len(cells)):
        t[(cells[k, 0] - HALO) // BLOCK + 1, (cells[k, 1] - HALO) // BLOCK + 1] = 0.0
    moved = 1e9
    while moved >= 1:
        moved = 0.0
        for sweep in range(4):
            t[:, 0], t[:, -1] = t[:, -2], t[:, 1]
            if wraps_down:
                t[0], t[-1] = t[-2], t[1]
            for a in range(depth):
                i = a + 1 if sweep % 2 == 0 else depth - a
                for b in range(x):
                    j = b + 1 if sweep < 2 else x - b
                    s = slowness[i - 1, j - 1]
                    vertical = min(t[i - 1, j], t[i + 1, j])
                    horizontal = min(t[i, j - 1], t[i, j + 1])
                    new = min(vertical, horizontal) + s
                    if abs(vertical - horizontal) < s:
                        new = 0.5 * (vertical + horizontal + math.sqrt(2 * s * s - (vertical - horizontal) ** 2))
                    if new < t[i, j]:
                        moved = max(moved, t[i, j] - new)
                        t[i, j] = new
    return t[1:-1, 1:-1]


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _active_runs(
    n: int,
    samples: int,
    ahead: NDArray[np.float64],
    back: NDArray[np.float64],
    margin: NDArray[np.float64],
    runs: Int64,
) -> int:
    """Fill ``runs`` (run, 3) with (coarse row, first, last coarse column + 1) that matter at step n; return how many.

    A cell matters once the wave can have reached it, as long as what it sends can still reach a receiver.
    """
    count = 0
    for i in range(ahead.shape[0]):
        start = -1
        for j in range(ahead.shape[1]):
            if ahead[i, j] <= n + margin[i, j] and back[i, j] <= samples - n + margin[i, j]:
                if start < 0:
                    start = j
                    runs[count, 0], runs[count, 1] = i, j
                runs[count, 2] = j + 1
            elif start >= 0:
                start = -1
                count += 1
        if start >= 0:
            count += 1
    return count


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _wrap(p: Float32, free_surface: bool) -> None:
    """Fill the halo: periodic, except above and below a free surface (antisymmetric images, zero)."""
    depth, x = p.shape
    if free_surface:
        for k in range(1, HALO + 1):
            p[HALO - k] = -p[HALO + k]
    else:
        p[:HALO] = p[depth - 2 * HALO : depth - HALO]
        p[depth - HALO :] = p[HALO : 2 * HALO]
    p[:, :HALO] = p[:, x - 2 * HALO : x - HALO]
    p[:, x - HALO :] = p[:, HALO : 2 * HALO]


@njit(cache=True, nogil=True, fastmath={"contract", "nsz"})  # type: ignore[untyped-decorator]
def _step(p: Float32, q: Float32, courant2: Float32, keep: Float32, runs: Int64) -> None:
    """Replace ``q`` (the field a step before ``p``) by the field a step after ``p``, on the runs of coarse cells."""
    near, far, five = np.float32(4 / 3), np.float32(-1 / 12), np.float32(5)
    depth, x = p.shape
    for run in range(len(runs)):
        lo = HALO + runs[run, 1] * BLOCK
        hi = min(HALO + runs[run, 2] * BLOCK, x - HALO)
        top = HALO + runs[run, 0] * BLOCK
        for i in range(top, min(top + BLOCK, depth - HALO)):
            a, k, new, here = courant2[i, lo:hi], keep[i, lo:hi], q[i, lo:hi], p[i, lo:hi]
            up1, up2, down1, down2 = p[i - 1, lo:hi], p[i - 2, lo:hi], p[i + 1, lo:hi], p[i + 2, lo:hi]
            left1, left2 = p[i, lo - 1 : hi - 1], p[i, lo - 2 : hi - 2]
            right1, right2 = p[i, lo + 1 : hi + 1], p[i, lo + 2 : hi + 2]
            for j in range(hi - lo):
                ring1 = (up1[j] + down1[j]) + (left1[j] + right1[j])
                ring2 = (up2[j] + down2[j]) + (left2[j] + right2[j])
                spread = near * ring1 + far * ring2 - five * here[j]
                new[j] = here[j] + k[j] * (here[j] - new[j]) + a[j] * spread


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _shots(
    courant2: Float32,
    keep: Float32,
    source_terms: Float32,
    sources: Int64,
    receivers: Int64,
    samples: int,
    free_surface: bool,
    slowness: NDArray[np.float64],
) -> Float32:
    """(shot, time, receiver). Maps carry `HALO` cells more on each side than the frame, and so do the indices."""
    out = np.zeros((len(sources), samples, len(receivers)), dtype=np.float32)
    back = _travel_steps(slowness, receivers, not free_surface)
    margin = slowness * (FRONT_CELLS / BLOCK)
    runs = np.empty((slowness.size, 3), dtype=np.int64)
    for shot in range(len(sources)):
        ahead = _travel_steps(slowness, sources[shot : shot + 1], not free_surface)
        p, q = np.zeros_like(courant2), np.zeros_like(courant2)
        count = 0
        for n in range(samples):
            if n % REFRESH_STEPS == 0:
                count = _active_runs(n, samples, ahead, back, margin, runs)
            _wrap(p, free_surface)
            _step(p, q, courant2, keep, runs[:count])
            p, q = q, p
            if n < source_terms.shape[1]:
                p[sources[shot, 0], sources[shot, 1]] += source_terms[shot, n]
            for r in range(len(receivers)):
                out[shot, n, r] = p[receivers[r, 0], receivers[r, 1]]
    return out
