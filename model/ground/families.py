"""Random velocity models: OpenFWI's ten families, five that OpenFWI does not have, and broad ground (`geology`).

The layered families follow the laws measured on published maps (`seisbind.model.ground.layers`). The B and Style
families, of which few or no maps could be measured, follow the published descriptions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seisbind.model.errors import InvalidConfig
from seisbind.model.frame import OPENFWI_FRAME, Frame
from seisbind.model.ground import faults, geology, layers, textures
from seisbind.model.ground.layers import GRID, HIGH_M_S, LOW_M_S, Float

CHUNK = 64  # maps drawn at a time: the temporaries of a faulted map are 0.3 MB


def _layer_counts(rng: np.random.Generator, count: int, low: int, high: int) -> NDArray[np.int64]:
    return rng.integers(low, high + 1, count)


def _layered(rng: np.random.Generator, count: int, *, curved: bool, increasing: bool) -> Float:
    number = _layer_counts(rng, count, 4, 8)
    depth = layers.draw_interfaces(rng, number, curved=curved)
    return layers.paint(depth, layers.draw_velocities(rng, number, increasing=increasing))


def _fault_a(rng: np.random.Generator, count: int, *, curved: bool) -> Float:
    """2 to 4 layers, one fault, interfaces and plane blurred."""
    number = _layer_counts(rng, count, 2, 4)
    depth = np.repeat(layers.draw_partition(rng, number)[:, :, None], GRID, axis=2)
    if curved:
        depth = depth + layers.draw_folds(rng, count, amplitude=(1.5, 7.0))
    drawn = faults.draw_faults(rng, count, tips=not curved)
    moved = faults.fault(depth, drawn, blur_cells=faults.PLANE_SD_CELLS)
    return layers.paint_blurred(moved, layers.draw_halves(rng, number)) + faults.gouge(drawn, rng)


def _fault_b(rng: np.random.Generator, count: int, *, curved: bool) -> Float:
    """6 to 8 layers a side; each side of a fault has its own layers, increasing velocities and inner fault."""
    sides = []
    for _ in range(2):
        number = _layer_counts(rng, count, 6, 8)
        thickness = rng.uniform(5, 12, (count, int(number.max(initial=1)) - 1, 1))
        depth = np.repeat(np.cumsum(thickness, axis=1) + rng.uniform(0, 12, (count, 1, 1)), GRID, axis=2)
        if curved:
            depth = depth + layers.draw_folds(rng, count, amplitude=(8.0, 20.0))
        depth = np.where(np.arange(depth.shape[1])[:, None] >= number[:, None, None] - 1, np.inf, depth)
        velocity = layers.draw_velocities(rng, number, increasing=True)
        inner = faults.draw_faults(rng, count, strength=1.6)
        sides.append(layers.paint(faults.fault(depth, inner, blur_cells=0.0), velocity))
    share = faults.displaced(faults.draw_faults(rng, count), blur_cells=0.0)
    return np.where(share > 0, sides[1], sides[0])


def _style(family: str) -> Callable[[np.random.Generator, int], Float]:
    return lambda rng, count: textures.style(rng, count, family=family, cells=GRID)


def _gradient(rng: np.random.Generator, count: int) -> Float:
    """A smooth trend with depth, straight or saturating, and a smooth departure from it."""
    z = np.linspace(0.0, 1.0, GRID)[:, None]
    top = rng.uniform(1500, 2600, count)[:, None, None]
    rise = rng.uniform(600, 2200, count)[:, None, None]
    power = rng.uniform(0.5, 1.6, count)[:, None, None]
    length = np.stack([rng.uniform(6, 20, count), rng.uniform(10, 30, count)], axis=1)
    field = textures.random_field(rng, count, GRID, length=length, slope=np.zeros(count))
    return np.asarray(top + rise * z**power + rng.uniform(40, 350, count)[:, None, None] * field)


def _inclusion(rng: np.random.Generator, count: int) -> Float:
    """Curved increasing layers holding one to three tilted lenses of another velocity."""
    velocity = _layered(rng, count, curved=True, increasing=True)
    z, x = np.mgrid[:GRID, :GRID] + 0.5
    number = _layer_counts(rng, count, 1, 3)
    for k in range(3):
        centre = rng.uniform(10, GRID - 10, (2, count, 1, 1))
        half = rng.uniform(3, 9, (count, 1, 1)), rng.uniform(6, 22, (count, 1, 1))
        tilt = rng.uniform(-0.5, 0.5, (count, 1, 1))
        contrast = rng.uniform(300, 1100, (count, 1, 1)) * rng.choice([-1.0, 1.0], (count, 1, 1))
        along = (x - centre[1]) / half[1]
        inside = ((z - centre[0] - tilt * (x - centre[1])) / half[0]) ** 2 + along**2 < 1
        velocity += np.where(inside & (k < number)[:, None, None], contrast, 0.0)
    return velocity


def _salt(rng: np.random.Generator, count: int) -> Float:
    """Slow layers pierced and lifted by a fast body with a rough outline and constant velocity."""
    number = _layer_counts(rng, count, 4, 8)
    z, x = np.mgrid[:GRID, :GRID] + 0.5
    middle = rng.uniform(12, GRID - 12, (count, 1, 1))
    top = rng.uniform(10, 42, (count, 1, 1))
    half = rng.uniform(7, 22, (count, 1, 1))
    depth = layers.draw_interfaces(rng, number, curved=True, relief=0.4)
    lift = rng.uniform(0, 12, (count, 1, 1)) * np.exp(-(((x[:1] - middle) / (1.3 * half)) ** 2))
    velocity = layers.paint(
        depth - lift, LOW_M_S + 0.6 * (layers.draw_velocities(rng, number, increasing=True) - LOW_M_S)
    )
    rough = textures.random_field(rng, count, GRID, length=np.full((count, 2), 6.0), slope=np.zeros(count))
    base = np.where(rng.random((count, 1, 1)) < 0.5, 2.0 * GRID, top + rng.uniform(12, 35, (count, 1, 1)))
    inside = ((x - middle) / (half * (0.75 + 0.5 * z / GRID))) ** 2 + 0.25 * rough < 1 - np.exp(-(z - top) / 5)
    inside &= (z > top) & (z < base + 3 * rough)
    return np.where(inside, rng.uniform(4000, 4500, (count, 1, 1)), velocity)


def _dipping(rng: np.random.Generator, count: int) -> Float:
    """Straight layers dipping one way, cut by an unconformity under layers dipping otherwise."""
    x = np.arange(GRID) + 0.5
    maps = []
    for steepest in (0.15, 0.9):
        number = _layer_counts(rng, count, 4, 8)
        depth = layers.draw_interfaces(rng, number, curved=False)
        dip = rng.uniform(-steepest, steepest, (count, 1, 1))
        fan = 1 + rng.uniform(-0.3, 0.3, (count, 1, 1)) * (x / GRID - 0.5)  # wedges that pinch out
        maps.append((depth * fan + dip * (x - GRID / 2), layers.draw_velocities(rng, number, increasing=True)))
    upper, lower = (
        layers.paint(d, LOW_M_S + scale * (v - LOW_M_S)) for (d, v), scale in zip(maps, (0.6, 1.0), strict=True)
    )
    surface = rng.uniform(15, 45, (count, 1, 1)) + rng.uniform(-0.25, 0.25, (count, 1, 1)) * (x - GRID / 2)
    return np.where(np.arange(GRID)[:, None] < surface, upper, lower)


def _channel(rng: np.random.Generator, count: int) -> Float:
    """Flat increasing layers with one to three channels cut into them, each with its own fill."""
    velocity = _layered(rng, count, curved=False, increasing=True)
    z, x = np.mgrid[:GRID, :GRID] + 0.5
    number = _layer_counts(rng, count, 1, 3)
    for k in range(3):
        top = rng.uniform(3, 50, (count, 1, 1))
        half, deep = rng.uniform(6, 25, (count, 1, 1)), rng.uniform(5, 16, (count, 1, 1))
        across = (x - rng.uniform(8, GRID - 8, (count, 1, 1))) / half
        inside = (z > top) & (z < top + deep * (1 - across**2))
        contrast = rng.uniform(200, 900, (count, 1, 1)) * np.where(rng.random((count, 1, 1)) < 0.7, -1.0, 1.0)
        velocity += np.where(inside & (k < number)[:, None, None], contrast, 0.0)
    return velocity


_MAKERS: dict[str, Callable[[np.random.Generator, int], Float]] = {
    "FlatVel-A": lambda rng, count: _layered(rng, count, curved=False, increasing=True),
    "FlatVel-B": lambda rng, count: _layered(rng, count, curved=False, increasing=False),
    "CurveVel-A": lambda rng, count: _layered(rng, count, curved=True, increasing=True),
    "CurveVel-B": lambda rng, count: _layered(rng, count, curved=True, increasing=False),
    "FlatFault-A": lambda rng, count: _fault_a(rng, count, curved=False),
    "FlatFault-B": lambda rng, count: _fault_b(rng, count, curved=False),
    "CurveFault-A": lambda rng, count: _fault_a(rng, count, curved=True),
    "CurveFault-B": lambda rng, count: _fault_b(rng, count, curved=True),
    "Style-A": _style("Style-A"),
    "Style-B": _style("Style-B"),
    "Gradient": _gradient,
    "Inclusion": _inclusion,
    "Salt": _salt,
    "Dipping": _dipping,
    "Channel": _channel,
}
FAMILIES: tuple[str, ...] = tuple(_MAKERS)[:10]
EXTRA_FAMILIES: tuple[str, ...] = tuple(_MAKERS)[10:]
BROAD_FAMILIES: tuple[str, ...] = tuple(geology.MAKERS)
FIRST_BROAD = BROAD_FAMILIES[:6]  # that there were when the figures of training and refinement began
GROUPS = {"openfwi": FAMILIES, "extra": EXTRA_FAMILIES, "broad": BROAD_FAMILIES}


def expanded(names: Sequence[str]) -> tuple[str, ...]:
    """``names``, with the families of a group (`GROUPS`) in place of its name."""
    return tuple(family for name in names for family in GROUPS.get(name, (name,)))


def generate(family: str, count: int, rng: np.random.Generator, *, frame: Frame = OPENFWI_FRAME) -> NDArray[np.float32]:
    """Random velocity models of one family.

    Args:
        family: one of `FAMILIES`, `EXTRA_FAMILIES` or `BROAD_FAMILIES`.
        count: how many, 0 or more.
        rng: the only source of randomness; the same state gives the same maps.
        frame: of the maps. They are drawn in OpenFWI's cells and velocities, of which each cell of another frame takes
            the nearest, so that interfaces stay sharp, and its velocity range the same share.

    Returns:
        ``(count, depth, x)`` float32, m/s within the frame's velocities, on its cells: (count, 70, 70) and 1500 to
        4500 m/s for OpenFWI's.

    Raises:
        InvalidConfig: the family is unknown or the count negative.
    """
    _check(family, count)
    if family in geology.MAKERS:
        return draw_wide(family, count, rng, frame=frame)
    own = frame.velocity_shape == (GRID, GRID) and frame.velocity_m_s == (LOW_M_S, HIGH_M_S)
    velocity = np.empty((count, *frame.velocity_shape), dtype=np.float32)
    for start in range(0, count, CHUNK):
        part = velocity[start : start + CHUNK]
        drawn = np.clip(_MAKERS[family](rng, len(part)), LOW_M_S, HIGH_M_S)
        part[:] = drawn if own else _to_frame(drawn, frame)
    return velocity


def draw_wide(
    family: str, count: int, rng: np.random.Generator, *, beside: int = 0, frame: Frame = OPENFWI_FRAME
) -> NDArray[np.float32]:
    """`generate` for one of `BROAD_FAMILIES`, with ``beside`` more cells on each side: (count, depth, x + 2 beside)."""
    wide = frame.x_cells + 2 * beside
    low, high = frame.velocity_m_s
    velocity = np.empty((count, frame.depth_cells, wide), dtype=np.float32)
    for each in velocity:
        drawn = geology.draw_section(rng, family, wide, depth_cells=frame.depth_cells)
        each[:] = low + (drawn - LOW_M_S) / (HIGH_M_S - LOW_M_S) * (high - low)
    return velocity


def _to_frame(drawn: Float, frame: Frame) -> Float:
    """Maps ``(map, GRID, GRID)`` of `LOW_M_S` to `HIGH_M_S` in a frame's cells and velocities."""
    rows, columns = (((np.arange(cells) + 0.5) * GRID / cells).astype(np.intp) for cells in frame.velocity_shape)
    low, high = frame.velocity_m_s
    share = (drawn[:, rows[:, None], columns] - LOW_M_S) / (HIGH_M_S - LOW_M_S)
    return np.asarray(low + share * (high - low))


def mixed(
    count: int, seed: int, families: Sequence[str] = FAMILIES, *, frame: Frame = OPENFWI_FRAME
) -> tuple[NDArray[np.float32], NDArray[np.str_]]:
    """Random velocity models of several families in equal shares, shuffled.

    Args:
        count: how many in all; what does not divide evenly goes to the first families.
        seed: the same seed, count and families give the same maps in the same order on every machine.
        families: different ones, see `generate`.
        frame: see `generate`.

    Returns:
        The velocity ``(count, depth, x)`` float32 in m/s and the family ``(count,)`` of each map.

    Raises:
        InvalidConfig: no family, one unknown or named twice, or the count negative.
    """
    drawn, order = shares(count, seed, families, frame=frame)
    velocity = np.concatenate([share.draw() for share in drawn])
    return velocity[order], np.repeat(np.asarray(families, dtype=np.str_), [share.count for share in drawn])[order]


@dataclass(frozen=True, slots=True)
class Share:
    """The models of one family among those of `mixed`, which any process can draw."""

    family: str
    count: int
    stream: np.random.SeedSequence
    frame: Frame

    def draw(self) -> NDArray[np.float32]:
        """``(count, depth, x)``, m/s."""
        return generate(self.family, self.count, np.random.default_rng(self.stream), frame=self.frame)


def shares(
    count: int, seed: int, families: Sequence[str], *, frame: Frame = OPENFWI_FRAME
) -> tuple[list[Share], NDArray[np.int64]]:
    """The families of `mixed`, and where each of its models is among theirs, one family after another. Raises as it."""
    if not families or len(set(families)) != len(families):
        raise InvalidConfig(f"Name one or more different families; got {list(families)}.")
    for family in families:
        _check(family, count)
    order, *streams = np.random.SeedSequence(seed).spawn(1 + len(families))
    each, rest = divmod(count, len(families))
    drawn = [
        Share(family, each + (i < rest), stream, frame)
        for i, (family, stream) in enumerate(zip(families, streams, strict=True))
    ]
    return drawn, np.random.default_rng(order).permutation(count)


def checksum(families: Sequence[str]) -> str:
    """SHA-256 of two maps of each family at seed 0: it changes with the generator."""
    samples = [generate(family, 2, np.random.default_rng(0)) for family in families]
    return hashlib.sha256(np.stack(samples).tobytes()).hexdigest()


def _check(family: str, count: int) -> None:
    if family not in _MAKERS and family not in geology.MAKERS:
        raise InvalidConfig(
            f"No family {family!r}; the families are {', '.join((*_MAKERS, *geology.MAKERS))}; "
            f"groups of them are {', '.join(GROUPS)}."
        )
    if count < 0:
        raise InvalidConfig(f"Cannot make {count} velocity models; ask for 0 or more.")
