"""Velocity models as pictures, with axes in metres and a colour bar in m/s."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from seisbind.model.descriptors import CELL_M

CACHED = 512  # pictures of about 20 KB
COLOURS = "viridis"  # uniform, and read alike by colour-blind eyes and in grey
DRAWING = threading.Lock()  # matplotlib shares font and text caches between figures


def velocity_png(velocity: NDArray[np.float32], *, title: str) -> bytes:
    """One velocity model ``(depth, x)``, m/s, as a PNG of 480 x 400 pixels. Safe to call from several threads."""
    depth_m, width_m = (n * CELL_M for n in velocity.shape)
    with DRAWING:
        figure = Figure(figsize=(4.8, 4.0), dpi=100, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        image = axes.imshow(velocity, cmap=COLOURS, extent=(0, width_m, depth_m, 0), interpolation="nearest")
        axes.set_title(title, fontsize=9, parse_math=False)
        axes.set_xlabel("x (m)")
        axes.set_ylabel("depth (m)")
        figure.colorbar(image, ax=axes, label="velocity (m/s)")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


class PictureCache:
    """The last `CACHED` pictures, by the checksum of what they show."""

    def __init__(self) -> None:
        self._pictures: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, checksum: str, draw: Callable[[], bytes]) -> bytes:
        """The picture of ``checksum``, drawn if it is not at hand."""
        with self._lock:
            picture = self._pictures.get(checksum)
            if picture is not None:
                self._pictures.move_to_end(checksum)
                return picture
        picture = draw()
        with self._lock:
            self._pictures[checksum] = picture
            while len(self._pictures) > CACHED:
                self._pictures.popitem(last=False)
        return picture
