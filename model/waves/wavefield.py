"""Shot gathers of velocity models: one call for two wave-equation solvers.

``deepwave`` is the library of that name: any device, thin perfectly matched layers, batches. ``openfwi`` is the
operator that made OpenFWI's files, its leaking sponge included (`openfwi_operator`). Both answer in OpenFWI's sign,
timing and amplitude; where nothing has come back from a boundary they agree to a few tenths of a per cent.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seisbind.model.errors import InvalidConfig, InvalidSurvey, MissingExtra
from seisbind.model.frame import OPENFWI_FRAME, Frame, Survey
from seisbind.model.ground.descriptors import check_velocity
from seisbind.model.waves.wavelet import check_wavelet, ricker

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]
Engine = Literal["deepwave", "openfwi"]

ON_CELL_M = 0.0005  # positions are decimal numbers; half a millimetre is rounding, more is another position
SPONGE_CELLS = 120  # OpenFWI's padding
PML_CELLS = 20  # of deepwave's layer; what comes back from it is 0.07 % of the record's rms
MIN_CELLS_PER_WAVELENGTH = 4.0  # OpenFWI's own slowest map has 4.5
SPECTRUM_FLOOR = 0.1  # frequencies above this share of the wavelet's largest count: 2.2 peak frequencies of a Ricker
COURANT = 0.65  # of deepwave, sqrt(2) v dt / dx; keeps OpenFWI's own 1 ms up to 4596 m/s (its default: 4243)
MAPS_PER_CALL = 64  # on a GPU: 64 maps of 5 shots are about 0.3 GB of wavefields and records


class GridDispersionWarning(UserWarning):
    """The shortest wavelengths are too few cells long to travel at their velocity."""


@dataclass(frozen=True, slots=True)
class Boundary:
    """The boundary of a map; the default absorbs as the engine was made to.

    Attributes:
        width_cells: absorbing cells outside the map. None: 120 of sponge for ``openfwi``, 20 of matched layer for
            ``deepwave``. Fewer reflect more (``deepwave``: 0.24 % of the record's rms at 10).
        strength: factor on the sponge's damping, ``openfwi`` only. 0 lets the wave run through the frame and back in on
            the other side (see `openfwi_operator`).
        free_surface: pressure is zero at depth 0 and nothing absorbs above it; sources and receivers must lie deeper.

    Raises:
        InvalidConfig: a width outside 2-1000 cells or a strength outside 0-100.
    """

    width_cells: int | None = None
    strength: float = 1.0
    free_surface: bool = False

    def __post_init__(self) -> None:
        if self.width_cells is not None and not 2 <= self.width_cells <= 1000:
            raise InvalidConfig(f"An absorbing width of {self.width_cells} cells; 2 to 1000 are possible.")
        if not 0 <= self.strength <= 100:
            raise InvalidConfig(f"Boundary strength {self.strength:g} is outside 0-100; OpenFWI's is 1.")


ABSORBING = Boundary()
FREE_SURFACE = Boundary(free_surface=True)


def simulate(
    velocity: ArrayLike,
    *,
    frame: Frame = OPENFWI_FRAME,
    survey: Survey | None = None,
    engine: Engine = "deepwave",
    boundary: Boundary = ABSORBING,
    wavelet: ArrayLike | None = None,
    samples: int | None = None,
    cell_m: float | None = None,
    device: str = "cpu",
) -> Float32:
    """Shot gathers of velocity models, constant-density acoustic.

    Row n is the pressure ``(n + 1) dt`` after the wavelet's first sample. The source adds ``(v dt)^2 w_n`` to one cell,
    so amplitudes scale with the wavelet and, as in OpenFWI, with the area of a cell.

    Args:
        velocity: ``(batch, depth, x)`` or ``(depth, x)``, m/s.
        frame: its survey, samples and cell size are used where they are not given. Its fastest velocity and peak
            frequency tune ``deepwave``'s layer, so that a result does not depend on the other models of the batch.
        survey: shots and receivers in metres from the map's first column and top row, on cells; a shot or receiver may
            lie beside the map by less than the absorbing frame (there the map's edge continues). Also the sampling
            interval.
        engine: ``deepwave`` or ``openfwi``.
        boundary: what surrounds the map.
        wavelet: ``(n,)`` source time function sampled as the survey; None: `ricker` at the survey's peak frequency, or
            the frame's if it has none.
        samples: recorded samples.
        cell_m: cell size along both axes, m.
        device: a torch device; ``deepwave`` only.

    Returns:
        ``(batch, shot, time, receiver)`` float32.

    Raises:
        InvalidVelocityModel: see `check_velocity`; also too fast for the time step (``openfwi``; ``deepwave`` refines
            its step).
        InvalidSurvey: positions off the cells or outside the frame, no samples, an unusable wavelet.
        InvalidConfig: an unknown engine, or an option that the engine does not have.
        MissingExtra: the engine is not installed.

    Warns:
        GridDispersionWarning: fewer than 4 cells per wavelength.
    """
    maps = check_velocity(velocity)
    survey = frame.survey if survey is None else survey
    samples = frame.record_samples if samples is None else samples
    cell_m = frame.cell_m if cell_m is None else cell_m
    if engine not in get_args(Engine):
        raise InvalidConfig(f"There is no engine {engine!r}; choose from {', '.join(get_args(Engine))}.")
    if samples < 1:
        raise InvalidSurvey(f"{samples} samples were asked for; at least 1 is needed.")
    if not (np.isfinite(cell_m) and cell_m > 0):
        raise InvalidSurvey(f"A cell size of {cell_m:g} m; it must be positive.")
    if engine == "openfwi" and device != "cpu":
        raise InvalidConfig(f"The openfwi engine runs on the CPU, not on {device!r}; use engine='deepwave' there.")
    if engine == "deepwave" and boundary.strength != 1:
        raise InvalidConfig("deepwave's layer has no strength to change; use width_cells, or engine='openfwi'.")
    peak_hz = survey.peak_hz or frame.peak_hz
    source = check_wavelet(ricker(peak_hz, survey.dt_s) if wavelet is None else wavelet, np.float32)
    sources, receivers = _cells(survey, maps.shape[1:], boundary, engine, cell_m)
    if not len(maps):
        return np.zeros((0, len(sources), samples, len(receivers)), dtype=np.float32)
    _warn_of_dispersion(float(maps.min()), source, survey.dt_s, cell_m)
    if engine == "openfwi":
        return _by_openfwi(maps, source, sources, receivers, boundary, samples, survey.dt_s, cell_m)
    fastest_m_s = frame.velocity_m_s[1]
    return _by_deepwave(
        maps, source, sources, receivers, boundary, samples, survey.dt_s, cell_m, peak_hz, fastest_m_s, device
    )


def stable_step_s(frame: Frame, dt_s: float) -> float:
    """The longest step, a whole part of ``dt_s``, at which ``openfwi`` is stable for the frame's fastest velocity.

    OpenFWI's own Courant number is the limit: what is nearer to that of the scheme leaves no room for a sponge.
    """
    own = OPENFWI_FRAME
    longest_s = frame.cell_m / frame.velocity_m_s[1] * (own.velocity_m_s[1] * own.record_dt_s / own.cell_m)
    return dt_s / max(1, math.ceil(dt_s / longest_s - 1e-9))


def stable_boundary(boundary: Boundary, velocity: Float32, dt_s: float, cell_m: float) -> Boundary:
    """``boundary`` with no stronger a sponge than ``openfwi`` is stable with beside a map ``(depth, x)``."""
    from seisbind.model.waves.openfwi_operator import Sponge

    edge = max(float(each.max()) for each in (velocity[0], velocity[-1], velocity[:, 0], velocity[:, -1]))
    sponge = Sponge(boundary.width_cells or SPONGE_CELLS, boundary.strength)
    strength = sponge.stable_strength(vmin_m_s=float(velocity.min()), edge_m_s=edge, dt_s=dt_s, cell_m=cell_m)
    return replace(boundary, strength=strength)


def _cells(
    survey: Survey, shape: tuple[int, ...], boundary: Boundary, engine: Engine, cell_m: float
) -> tuple[Int64, Int64]:
    """``(shot, 2)`` and ``(receiver, 2)`` cells (depth, x) of a survey; x may be negative or beyond the map."""
    frame = boundary.width_cells or (SPONGE_CELLS if engine == "openfwi" else PML_CELLS)
    out = []
    for what, x_m, depth_m in (
        ("shot", survey.shot_x_m, survey.source_depth_m),
        ("receiver", survey.receiver_x_m, survey.receiver_depth_m),
    ):
        metres = np.stack([np.full(len(x_m), depth_m), np.asarray(x_m)], axis=1)
        cells = np.rint(metres / cell_m).astype(np.int64)
        off = np.abs(metres - cells * cell_m).max(axis=1)
        worst = int(off.argmax())
        if off[worst] > ON_CELL_M:
            raise InvalidSurvey(
                f"A {what} at depth {metres[worst, 0]:g} m, x {metres[worst, 1]:g} m lies {off[worst]:g} m off the "
                f"cells of {cell_m:g} m; move it, or resample the velocity model to cells that divide its position."
            )
        top = 1 if boundary.free_surface else 0
        if cells[:, 0].min() < top or cells[:, 0].max() >= shape[0]:
            raise InvalidSurvey(
                f"A {what} depth of {depth_m:g} m; {top * cell_m:g} to {(shape[0] - 1) * cell_m:g} m are possible "
                f"{'below a free surface' if top else 'in this map'}."
            )
        if cells[:, 1].min() < -frame or cells[:, 1].max() >= shape[1] + frame:
            raise InvalidSurvey(
                f"{what.capitalize()}s from {min(x_m):g} to {max(x_m):g} m; the map covers 0 to "
                f"{(shape[1] - 1) * cell_m:g} m and its frame {frame * cell_m:g} m on each side."
            )
        out.append(cells)
    return out[0], out[1]


def _warn_of_dispersion(vmin_m_s: float, wavelet: Float32, dt_s: float, cell_m: float) -> None:
    points = max(1024, 2 * len(wavelet))
    spectrum = np.abs(np.fft.rfft(wavelet, points))
    highest_hz = float(np.fft.rfftfreq(points, dt_s)[spectrum >= SPECTRUM_FLOOR * spectrum.max()].max())
    cells = vmin_m_s / (highest_hz * cell_m) if highest_hz else np.inf
    if cells < MIN_CELLS_PER_WAVELENGTH:
        warnings.warn(
            f"Only {cells:.1f} cells per wavelength at {highest_hz:.0f} Hz and {vmin_m_s:g} m/s; below "
            f"{MIN_CELLS_PER_WAVELENGTH:g} the wave is dispersed by the grid. Cells of "
            f"{cell_m * cells / MIN_CELLS_PER_WAVELENGTH:.1f} m or a lower peak frequency avoid it.",
            GridDispersionWarning,
            stacklevel=3,
        )


def _by_openfwi(
    maps: Float32,
    wavelet: Float32,
    sources: Int64,
    receivers: Int64,
    boundary: Boundary,
    samples: int,
    dt_s: float,
    cell_m: float,
) -> Float32:
    from seisbind.model.waves.openfwi_operator import Sponge, propagate

    sponge = Sponge(boundary.width_cells or SPONGE_CELLS, boundary.strength, boundary.free_surface)
    out = np.empty((len(maps), len(sources), samples, len(receivers)), dtype=np.float32)
    for v, gather in zip(maps, out, strict=True):
        gather[:] = propagate(
            v,
            wavelet=wavelet,
            source_cells=sources,
            receiver_cells=receivers,
            samples=samples,
            dt_s=dt_s,
            cell_m=cell_m,
            sponge=sponge,
        )
    return out


def _deepwave() -> ModuleType:
    try:
        import deepwave
    except ImportError as error:
        raise MissingExtra("deepwave is not installed: pip install 'seisbind[simulation]'.") from error
    return deepwave  # type: ignore[no-any-return]


def _by_deepwave(
    maps: Float32,
    wavelet: Float32,
    sources: Int64,
    receivers: Int64,
    boundary: Boundary,
    samples: int,
    dt_s: float,
    cell_m: float,
    peak_hz: float,
    fastest_m_s: float,
    device: str,
) -> Float32:
    import torch

    deepwave = _deepwave()
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise InvalidConfig(f"Device {device!r} was asked for, but torch sees no CUDA device; use device='cpu'.")
    # A map that reaches the outermost positions, whose edge deepwave continues into its layer
    left = max(0, -int(min(sources[:, 1].min(), receivers[:, 1].min())))
    right = max(0, int(max(sources[:, 1].max(), receivers[:, 1].max())) + 1 - maps.shape[2])
    # deepwave's free surface lies a cell above its first row, ours on the map's
    top = 1 if boundary.free_surface else 0
    maps = np.ascontiguousarray(np.pad(maps, ((0, 0), (0, 0), (left, right)), mode="edge")[:, top:])
    shift = np.array([-top, left])
    width = boundary.width_cells or PML_CELLS

    rows = samples + 1  # deepwave records before a step, OpenFWI after it
    amplitudes = np.zeros(rows, dtype=np.float32)
    amplitudes[: min(rows, len(wavelet))] = -wavelet[:rows]
    out = np.empty((len(maps), len(sources), samples, len(receivers)), dtype=np.float32)
    per_call = 1 if device == "cpu" else MAPS_PER_CALL
    for start in range(0, len(maps), per_call):
        some = maps[start : start + per_call]
        every_shot = torch.from_numpy(np.repeat(some, len(sources), axis=0))  # (map * shot, depth, x)
        at_sources = torch.from_numpy(np.tile(sources + shift, (len(some), 1))[:, None])  # (map * shot, 1, 2)
        at_receivers = torch.from_numpy(
            np.tile(receivers + shift, (len(every_shot), 1, 1))
        )  # (map * shot, receiver, 2)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="At least six grid cells")  # see GridDispersionWarning
            record = deepwave.scalar(
                (every_shot if len(some) > 1 else every_shot[0]).to(device),
                cell_m,
                dt_s,
                source_amplitudes=torch.from_numpy(amplitudes).expand(len(every_shot), 1, rows).to(device),
                source_locations=at_sources.to(device),
                receiver_locations=at_receivers.to(device),
                accuracy=4,
                pml_width=[0 if top else width, width, width, width],
                boundary=["free" if top else "pml", "pml", "pml", "pml"],
                pml_freq=peak_hz,
                courant_number=COURANT,
                max_vel=max(fastest_m_s, float(some.max())),
            ).receiver_amplitudes  # (map * shot, receiver, time)
        record = record[:, :, 1:].transpose(1, 2).reshape(len(some), len(sources), samples, len(receivers))
        out[start : start + per_call] = record.cpu().numpy()
    return out
