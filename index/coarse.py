"""Coarse velocity models of a gallery, of which those used last are kept in memory.

Ranking compares the same models again and again, and reading one from the records costs a tenth of a millisecond, most
of it outside of the interpreter's lock, which then has to be waited for.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np

from seisbind.index.search.view import Hit
from seisbind.index.storage.record import Float32
from seisbind.index.store import Store

KEPT = 4096  # models: 20 MB of 35 x 35 cells

_Key = tuple[int, str, bytes]  # row, id and descriptors: of no two models, whoever replaces what


class CoarseModels:
    """Reads models that were found, made coarse, and keeps the `KEPT` that were used last. From any thread.

    What is kept was compared with its checksum when it was read. It is used while nobody else has changed the gallery
    since that was opened or refreshed; else all is read, so that a model that is gone is missed.

    Args:
        coarse: makes ``(n, cells, cells)`` of velocity models ``(n, depth, x)``, m/s.
    """

    def __init__(self, gallery: Store, coarse: Callable[[Float32], Float32], *, kept: int = KEPT) -> None:
        self._gallery = gallery
        self._coarse = coarse
        self._most = kept
        self._kept: OrderedDict[_Key, Float32] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def of(self, hits: Sequence[Hit]) -> Float32:
        """``(hit, cells, cells)``, m/s; each model is read once.

        Raises:
            UnknownModel: one was removed since it was found.
            GalleryDamaged: one is not what was written.
        """
        keys = [(hit.row, hit.model_id, hit.descriptors.tobytes()) for hit in hits]
        found = self._look(dict.fromkeys(keys)) if self._gallery.is_current() else {}
        missing = [key for key in dict.fromkeys(keys) if key not in found]
        if missing:
            models = self._coarse(np.stack(self._gallery.velocities([model_id for _, model_id, _ in missing])))
            found |= (new := {key: model.copy() for key, model in zip(missing, models, strict=True)})
            self._keep(new)
        return np.stack([found[key] for key in keys])

    def _look(self, keys: dict[_Key, None]) -> dict[_Key, Float32]:
        with self._lock:
            found = {key: model for key in keys if (model := self._kept.get(key)) is not None}
            for key in found:
                self._kept.move_to_end(key)
            return found

    def _keep(self, new: dict[_Key, Float32]) -> None:
        with self._lock:
            self._kept |= new
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
