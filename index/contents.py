"""What a search sees: the models of one moment and their vectors, never changed once made."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seisbind.index.faiss_index import Bool, Float32, Int64, VectorIndex
from seisbind.index.folder import SPACES
from seisbind.index.record import Catalogue, Ids
from seisbind.index.records import Records
from seisbind.index.snapshot import Snapshot, load_snapshot

log = logging.getLogger(__name__)

DEAD_SHARE = 8  # vectors of removed models are dropped when they are more than this fraction of all


@dataclass(frozen=True, slots=True, eq=False)
class Contents:
    """Position i holds row ``rows[i]``, model ``ids[i]``, and vector i of both indices, if ``alive[i]``.

    A change makes a new object, and whoever is searching keeps the old one until done.
    """

    generation: int
    rows: Int64  # ascending
    ids: Ids
    alive: Bool
    velocity: VectorIndex
    physics: VectorIndex

    def __len__(self) -> int:
        return int(np.count_nonzero(self.alive))

    def positions(self, rows: Int64) -> Int64:
        """Where the living ones of ``rows`` are."""
        if not len(self.rows):
            return np.empty(0, np.int64)
        at = np.minimum(np.searchsorted(self.rows, rows), len(self.rows) - 1)
        return np.asarray(at[(self.rows[at] == rows) & self.alive[at]], np.int64)

    def allowed(self, rows: Int64) -> Bool:
        """``rows`` as the mask that `VectorIndex.search` takes."""
        mask = np.zeros(len(self.rows), np.bool_)
        mask[self.positions(rows)] = True
        return mask

    def extended(self, generation: int, rows: Int64, ids: Ids, velocity: Float32, physics: Float32) -> Contents:
        """These and further models, whose ``rows`` are higher than any before."""
        return Contents(
            generation,
            np.concatenate([self.rows, rows]),
            np.concatenate([self.ids, ids]),
            np.concatenate([self.alive, np.ones(len(rows), np.bool_)]),
            self.velocity.extended(velocity),
            self.physics.extended(physics),
        )

    def without(self, generation: int, rows: Int64) -> Contents:
        """These but for ``rows``."""
        alive = self.alive.copy()
        alive[self.positions(rows)] = False
        rest = replace(self, generation=generation, alive=alive)
        if np.count_nonzero(~alive) * DEAD_SHARE <= len(alive):
            return rest
        kept = np.flatnonzero(alive)
        return Contents(
            generation,
            self.rows[kept],
            self.ids[kept],
            alive[kept],
            VectorIndex.build(self.velocity.taken(kept)),
            VectorIndex.build(self.physics.taken(kept)),
        )

    def refreshed(self, records: Records) -> Contents:
        """These brought up to date with the records, or themselves if nothing has changed."""
        with records.reading():
            if records.generation() == self.generation:
                return self
            catalogue = records.catalogue()
            new = catalogue.rows > (self.rows[-1] if len(self.rows) else 0)
            velocity, physics = records.embeddings(catalogue.rows[new])
        gone = self.rows[self.alive & ~np.isin(self.rows, catalogue.rows)]
        return self.without(catalogue.generation, gone).extended(
            catalogue.generation, catalogue.rows[new], catalogue.ids[new], velocity, physics
        )


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """What opening found: the contents, sentences about snapshots that were not believed, and whether both snapshots
    held exactly these contents."""

    contents: Contents
    notes: tuple[str, ...]
    snapshots_current: bool


def load_contents(records: Records, folder: Path) -> Loaded:
    """Contents from the snapshots where they can be believed, and from the records for the rest.

    Raises:
        GalleryDamaged: the records themselves are not what was written.
    """
    notes: list[str] = []
    with records.reading():
        catalogue = records.catalogue()
        snapshots = {space: _believed(records, folder, space, catalogue, notes) for space in SPACES}
        missing = np.zeros(len(catalogue.rows), np.bool_)
        for snapshot in snapshots.values():
            held = snapshot.keys if snapshot else np.empty(0, np.int64)
            missing |= ~np.isin(catalogue.keys, held)
        replayed = records.embeddings(catalogue.rows[missing])
    indices = [
        _index(catalogue, snapshots[space], missing, vectors) for space, vectors in zip(SPACES, replayed, strict=True)
    ]
    alive = np.ones(len(catalogue.rows), np.bool_)
    contents = Contents(catalogue.generation, catalogue.rows, catalogue.ids, alive, *indices)
    current = all(s is not None and np.array_equal(s.keys, catalogue.keys) for s in snapshots.values())
    return Loaded(contents, tuple(notes), current)


def _believed(records: Records, folder: Path, space: str, catalogue: Catalogue, notes: list[str]) -> Snapshot | None:
    """The snapshot of one space if it is what its manifest says; otherwise None, and a note that says why."""
    try:
        snapshot = load_snapshot(folder, space, fingerprint=records.fingerprint, dimension=records.dimension)
        if any(len(np.unique(keys)) < len(keys) for keys in (snapshot.keys, catalogue.keys)):
            raise ValueError("two models have one key")
        if snapshot.generation > catalogue.generation:
            notes.append(
                f"The {space} snapshot was made after change {snapshot.generation} and the records end at change "
                f"{catalogue.generation}: an older copy of the records was put back, or changes were lost."
            )
            log.warning(notes[-1])
        return snapshot
    except FileNotFoundError:
        reason = "it is missing"
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: FAISS
        reason = str(error)
    if len(catalogue.rows):
        notes.append(f"The {space} snapshot was not used and its index was rebuilt from the records: {reason}.")
        log.warning("%s (%s)", notes[-1], folder)
    return None


def _index(
    catalogue: Catalogue, snapshot: Snapshot | None, missing: Bool, replayed: NDArray[np.float32]
) -> VectorIndex:
    """The index of one space over the whole catalogue, in its order.

    Args:
        missing: ``(model,)``, whose vectors came from the records; replayed: these vectors.
    """
    count, dimension = len(catalogue.rows), replayed.shape[1]
    if snapshot is None:  # then everything is missing
        return VectorIndex.build(replayed)
    held = len(snapshot.keys)
    if held <= count and np.array_equal(snapshot.keys, catalogue.keys[:held]) and not missing[:held].any():
        return snapshot.index.extended(replayed)  # the usual case: nothing removed since, nothing copied
    vectors = np.empty((count, dimension), np.float32)
    vectors[missing] = replayed
    order = np.argsort(snapshot.keys)
    wanted = catalogue.keys[~missing]
    at = order[np.searchsorted(snapshot.keys, wanted, sorter=order)]
    vectors[~missing] = snapshot.index.taken(at)
    return VectorIndex.build(vectors)
