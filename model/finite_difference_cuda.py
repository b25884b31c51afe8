"""`finite_difference.propagate` for batches of velocity models on a GPU: the same operator, one thread a cell.

The two fields of each shot are the only large arrays (a cell-step reads both and writes one); velocity is read from
the un-padded map and the sponge from its profile, both of which stay in cache.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from seisbind.model.errors import InvalidSurvey, MissingExtra
from seisbind.model.finite_difference import SPONGE_DECAY, check_courant

try:
    from numba import cuda
except ImportError as error:  # pragma: no cover - the suite runs with the extra
    raise MissingExtra("The GPU operator is compiled by numba: pip install 'seisbind[simulation]'.") from error

THREADS = (64, 4)  # along x, along depth


def propagate_batch(
    velocity: NDArray[np.float32],
    *,
    wavelets: NDArray[np.float32],
    source_cells: NDArray[np.int32],
    receiver_row: NDArray[np.int32],
    strength: NDArray[np.float32],
    free_surface: NDArray[np.bool_],
    cells: int,
    samples: int,
    keep_every: int,
    dt_s: float,
    cell_m: float,
) -> torch.Tensor:
    """Shot gathers of many velocity models, each with its own wavelet, depths and absorption.

    Args:
        velocity: ``(batch, depth, x)`` float32, m/s.
        wavelets: ``(batch, n)`` source time functions, one value a step.
        source_cells: ``(batch, shot, 2)`` int32, (depth, x) indices in the map.
        receiver_row: ``(batch,)`` int32, depth index of the receivers; one receiver a column of the map.
        strength: ``(batch,)`` factor on OpenFWI's absorption, see `finite_difference.Sponge`.
        free_surface: ``(batch,)`` whether pressure vanishes on the top row.
        cells: width of the frame, shared by the batch.
        samples: time steps.
        keep_every: record each n-th step only, starting with the first.
        dt_s: time step, s.
        cell_m: cell size, m.

    Returns:
        ``(batch, shot, ceil(samples / keep_every), x)`` float32 on the GPU.

    Raises:
        InvalidVelocityModel: unstable at this time step.
        InvalidSurvey: a source or receiver outside the map.
    """
    batch, depth, width = velocity.shape
    shots = source_cells.shape[1]
    inside = (source_cells >= 0).all() and (source_cells < (depth, width)).all()
    if not inside or receiver_row.min() < 0 or receiver_row.max() >= depth:
        raise InvalidSurvey(f"Sources and receivers must lie on the {depth} x {width} cells of the map.")
    check_courant(float(velocity.max()), dt_s=dt_s, cell_m=cell_m)
    frame_m = (cells - 1) * cell_m
    kappa = strength * 3 * velocity.min(axis=(1, 2)) * SPONGE_DECAY / (2 * frame_m)
    profile = (np.arange(cells) * cell_m / frame_m) ** 2 * dt_s
    damping = (kappa[:, None] * profile).astype(np.float32)  # (batch, cells), outwards
    courant2 = np.square(velocity.astype(np.float64) * dt_s / cell_m).astype(np.float32)
    rows = np.arange(batch)[:, None]
    gain = np.square(velocity[rows, source_cells[..., 0], source_cells[..., 1]].astype(np.float64) * dt_s)
    terms = (gain[:, :, None] * wavelets[:, None, :]).astype(np.float32)  # (batch, shot, n)

    shape = (batch * shots, depth + 2 * cells, width + 2 * cells)
    fields = [torch.zeros(shape, device="cuda") for _ in range(2)]
    recorded = torch.zeros((batch, shots, math.ceil(samples / keep_every), width), device="cuda")
    p, q, record = (cuda.as_cuda_array(t) for t in (*fields, recorded))
    fixed = [cuda.to_device(a) for a in (courant2, damping, terms, source_cells, receiver_row, free_surface)]
    blocks = (math.ceil(shape[2] / THREADS[0]), math.ceil(shape[1] / THREADS[1]), shape[0])
    stream = cuda.external_stream(torch.cuda.current_stream().cuda_stream)
    kernel = _step[blocks, (*THREADS, 1), stream]
    for n in range(samples):
        kernel(p, q, *fixed, cells, shots, n, record, keep_every)
        p, q = q, p
    torch.cuda.synchronize()
    return recorded


@cuda.jit(fastmath=True)  # type: ignore[untyped-decorator]
def _step(
    p: Any,
    q: Any,
    courant2: Any,
    damping: Any,
    terms: Any,
    sources: Any,
    receiver_row: Any,
    free_surface: Any,
    cells: int,
    shots: int,
    n: int,
    record: Any,
    keep_every: int,
) -> None:
    """Replace ``q`` by the field after ``p``; add the source; record. Fields: (batch * shot, depth, x)."""
    j, i = cuda.grid(2)
    field = cuda.blockIdx.z
    height, width = p.shape[1], p.shape[2]
    if i >= height or j >= width:
        return
    b = field // shots
    shot = field - b * shots
    z, x = i - cells, j - cells  # in the map
    free = free_surface[b]
    if free and z <= 0:
        return  # pressure stays zero on the surface; its images are taken by sign below
    here = p[field, i, j]
    left1 = p[field, i, j - 1] if j >= 1 else np.float32(0)
    left2 = p[field, i, j - 2] if j >= 2 else np.float32(0)
    right1 = p[field, i, j + 1] if j + 1 < width else np.float32(0)
    right2 = p[field, i, j + 2] if j + 2 < width else np.float32(0)
    up1 = p[field, i - 1, j] if i >= 1 else np.float32(0)
    up2 = p[field, i - 2, j] if i >= 2 else np.float32(0)
    down1 = p[field, i + 1, j] if i + 1 < height else np.float32(0)
    down2 = p[field, i + 2, j] if i + 2 < height else np.float32(0)
    if free and z == 1:
        up2 = -here
    depth, columns = courant2.shape[1], courant2.shape[2]
    a = courant2[b, min(max(z, 0), depth - 1), min(max(x, 0), columns - 1)]
    k = np.float32(0)
    if x < 0:
        k = damping[b, -x - 1]
    elif x >= columns:
        k = damping[b, x - columns]
    elif z < 0:
        k = damping[b, -z - 1]
    elif z >= depth:
        k = damping[b, z - depth]
    near, far, five = np.float32(4 / 3), np.float32(-1 / 12), np.float32(5)
    spread = near * ((up1 + down1) + (left1 + right1)) + far * ((up2 + down2) + (left2 + right2)) - five * here
    new = here + (np.float32(1) - k) * (here - q[field, i, j]) + a * spread
    if z == sources[b, shot, 0] and x == sources[b, shot, 1] and n < terms.shape[2]:
        new += terms[b, shot, n]
    q[field, i, j] = new
    if z == receiver_row[b] and 0 <= x < columns and n % keep_every == 0:
        record[b, shot, n // keep_every, x] = new
