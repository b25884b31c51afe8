"""The gallery: velocity models, what is known of them, and the two indices that find them, as one thing."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

from seisbind.index.batch import checked_batch, unit_vectors
from seisbind.index.contents import load_contents
from seisbind.index.database import FORMAT_VERSION, RECORDS, create_database, told
from seisbind.index.filter import Filter
from seisbind.index.folder import BUILDING, LOCK, SPACES, install, make_folder, make_room, size_bytes
from seisbind.index.lock import WriterLock
from seisbind.index.record import Float32, Histogram, Record
from seisbind.index.records import Records
from seisbind.index.snapshot import write_snapshot
from seisbind.index.verify import VerifyReport, verify
from seisbind.model.errors import (
    GalleryDamaged,
    GalleryError,
    GalleryNotFound,
    GalleryWriteFailed,
    InvalidConfig,
    InvalidQuery,
    UnknownModel,
    WeightsMismatch,
)
from seisbind.model.frame import OPENFWI_FRAME, Frame

log = logging.getLogger(__name__)

HISTOGRAM_PARTS = 24  # as many bars as a small plot can show
MAX_K = 1000  # hits a query: as many as a page or a table can use, and a bound on what an answer weighs


@dataclass(frozen=True, slots=True)
class Hit:
    """A velocity model found. ``similarity`` is the cosine, -1 to 1; ``row`` breaks ties and is never used again."""

    model_id: str
    similarity: float
    row: int


@dataclass(frozen=True, slots=True)
class GalleryInfo:
    """What a gallery is.

    Attributes:
        families: how many models each has.
        descriptor_ranges: name → (lowest, highest) over all models; empty for an empty gallery.
        bytes: size of the folder.
        created_at: ISO 8601, UTC.
        frame: what its models and embeddings are of.
        notes: sentences on snapshots that were not believed when the gallery was opened.
    """

    path: Path
    count: int
    families: dict[str, int]
    fingerprint: str
    dimension: int
    format_version: int
    generation: int
    bytes: int
    created_at: str
    descriptor_ranges: dict[str, tuple[float, float]]
    notes: tuple[str, ...]
    frame: Frame = OPENFWI_FRAME


@dataclass(frozen=True, slots=True)
class Distribution:
    """How a gallery's descriptors are distributed: name → histogram of `HISTOGRAM_PARTS`; empty for an empty one."""

    generation: int
    histograms: dict[str, Histogram]


def _no_step(step: str) -> None:
    pass


class Gallery:
    """A gallery in a folder. Make one with `Gallery.create` or `Gallery.open`, and close it, or use ``with``.

    Any number of galleries may read a folder while one writes it. All methods may be called from any thread: searches
    run on an immutable `Contents` and need no lock; `Records` guards its connections; ``_changing`` lets one change,
    snapshot or refresh in at a time. A gallery opened for writing must not be used on both sides of a fork.
    """

    def __init__(self, path: Path, records: Records, lock: WriterLock | None, at_step: Callable[[str], None]) -> None:
        self.path = path
        self.fingerprint = records.fingerprint
        self.dimension = records.dimension
        self.frame = records.frame
        self._records = records
        self._lock = lock
        self._at_step = at_step
        self._changing = threading.RLock()
        self._inode = records.path.stat().st_ino
        loaded = load_contents(records, path)
        self._contents = loaded.contents
        self._notes = loaded.notes
        self._snapshot_generation = self._contents.generation if loaded.snapshots_current else -1
        self._closed = False

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        fingerprint: str,
        dimension: int = 256,
        frame: Frame = OPENFWI_FRAME,
        overwrite: bool = False,
        at_step: Callable[[str], None] = _no_step,
    ) -> Gallery:
        """Make an empty gallery in the folder ``path`` and open it for writing.

        Args:
            fingerprint: of the weights whose embeddings it will hold.
            dimension: of the embeddings.
            frame: of the weights.
            overwrite: replace a gallery that is there already, with everything in it, at once (see `building`).
            at_step: called with a name at each step of a change, for crash tests.

        Raises:
            GalleryError: there is a gallery already, or a folder with other files.
            GalleryLocked: it is being written.
            GalleryWriteFailed: the disk refused.
        """
        lock = cls._begun(path, fingerprint, dimension, frame, overwrite, at_step)
        try:
            with told(path, "create a gallery"):
                install(path, at_step=at_step)
                return cls._opened(path, fingerprint, frame, lock, at_step)
        except BaseException:
            lock.release()
            raise

    @classmethod
    @contextmanager
    def building(
        cls,
        path: Path,
        *,
        fingerprint: str,
        dimension: int = 256,
        frame: Frame = OPENFWI_FRAME,
        overwrite: bool = False,
        at_step: Callable[[str], None] = _no_step,
    ) -> Iterator[Gallery]:
        """A new gallery to fill, which is in the folder ``path`` when the block has ended: wholly, or not at all.

        Until then, and if the block raises or the process is killed, what was there before stays, is served to readers
        and can be opened. Nobody else may write it meanwhile, and there has to be room for both.

        Args and errors: as `create`.
        """
        lock = cls._begun(path, fingerprint, dimension, frame, overwrite, at_step)
        try:
            with cls.open(path / BUILDING, fingerprint=fingerprint, writable=True, at_step=at_step) as gallery:
                yield gallery
            with told(path, "put the new gallery"):
                install(path, at_step=at_step)
        finally:
            shutil.rmtree(path / BUILDING, ignore_errors=True)
            lock.release()

    @staticmethod
    def _begun(
        path: Path, fingerprint: str, dimension: int, frame: Frame, overwrite: bool, at_step: Callable[[str], None]
    ) -> WriterLock:
        """Take the lock of ``path`` and put an empty gallery in ``building/`` there."""
        if not fingerprint or not 1 <= dimension <= 4096:
            raise InvalidConfig(f"A gallery needs a fingerprint and 1 to 4096 dimensions; got {dimension}.")
        with told(path, "create a gallery"):
            make_folder(path)
            lock = WriterLock(path / LOCK)
            try:
                fresh = make_room(path, overwrite=overwrite)
                create_database(
                    fresh / RECORDS, fingerprint=fingerprint, dimension=dimension, created_at=_now(), frame=frame
                )
                at_step("create:written")
            except BaseException:
                lock.release()
                raise
        return lock

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        fingerprint: str | None,
        frame: Frame | None = None,
        writable: bool = False,
        at_step: Callable[[str], None] = _no_step,
    ) -> Gallery:
        """Open the gallery in the folder ``path``.

        Args:
            fingerprint: of the weights that queries will come from; None to look without searching by them.
            frame: of those weights; None not to compare it.
            writable: hold it for writing, which one gallery object at a time may.

        Raises:
            GalleryNotFound: there is none.
            GalleryDamaged: its records are not what was written. (A damaged index is rebuilt: see `GalleryInfo.notes`.)
            GalleryError: its format belongs to another version of SeisBind.
            GalleryLocked: ``writable``, and another holds it; the sentence says who.
            WeightsMismatch: it was made with other weights, or for another frame.
        """
        if not (path / RECORDS).is_file():
            raise GalleryNotFound(f"There is no gallery at {path}. 'seisbind gallery build' makes one.")
        lock = WriterLock(path / LOCK) if writable else None
        try:
            return cls._opened(path, fingerprint, frame, lock, at_step)
        except BaseException:
            if lock is not None:
                lock.release()
            raise

    @classmethod
    def _opened(
        cls,
        path: Path,
        fingerprint: str | None,
        frame: Frame | None,
        lock: WriterLock | None,
        at_step: Callable[[str], None],
    ) -> Gallery:
        records = Records(path / RECORDS, writable=lock is not None, at_step=at_step)
        try:
            if frame is not None and frame != records.frame:
                raise WeightsMismatch(
                    f"The gallery at {path} is of another frame than these weights: {records.frame} there, {frame} "
                    "here. Use weights of that frame, or build the gallery again with these."
                )
            if fingerprint is not None and fingerprint != records.fingerprint:
                raise WeightsMismatch(
                    f"The gallery at {path} was made with weights {records.fingerprint}; these are {fingerprint}. Use "
                    "those weights, or build the gallery again with these."
                )
            return cls(path, records, lock, at_step)
        except BaseException:
            records.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._contents)

    @property
    def generation(self) -> int:
        """Of what is being searched, from memory: it moves with each change made here, and with `refresh`."""
        return self._contents.generation

    def families(self) -> dict[str, int]:
        """How many models each family has, by name. Models without a family are not counted."""
        return self._records.families()

    def add(
        self,
        velocity: ArrayLike,
        descriptors: ArrayLike,
        velocity_embeddings: ArrayLike,
        physics_embeddings: ArrayLike,
        *,
        model_ids: Sequence[str] | None = None,
        families: Sequence[str | None] | None = None,
        tags: Sequence[Sequence[str]] | None = None,
        source: str | None = None,
        skip_existing: bool = False,
    ) -> list[str]:
        """Add models in one transaction: when this returns all of them are on the disk, and if it raises, none is.

        Args:
            velocity: ``(model, depth, x)``, m/s.
            descriptors: ``(model, 13)``, see `seisbind.model.descriptors.describe`.
            velocity_embeddings, physics_embeddings: ``(model, dimension)``, unit length.
            model_ids: letters, digits and ``._:-``, at most 128; by default ``v-`` and 16 digits of the map's SHA-256.
            families, tags: per model.
            source: where all of them came from.
            skip_existing: leave out models whose id is taken by the same map, instead of refusing the batch.

        Returns:
            The id of every model given, in order, also of those left out.

        Raises:
            InvalidQuery: arrays that do not go together, an embedding that is not of unit length, an id that is taken.
            InvalidVelocityModel: see `seisbind.model.descriptors.check_velocity`.
            GalleryWriteFailed: the disk refused.
        """
        models = checked_batch(
            velocity,
            descriptors,
            velocity_embeddings,
            physics_embeddings,
            dimension=self.dimension,
            model_ids=model_ids,
            families=families,
            tags=tags,
            source=source,
            added_at=_now(),
        )
        if not models:
            return []
        with self._changing:
            generation, rows, written = self._records.add(models, skip_existing=skip_existing)
            if not written:
                return [model.model_id for model in models]
            ids = np.empty(len(written), object)
            ids[:] = [model.model_id for model in written]
            self._contents = self._contents.extended(
                generation,
                rows,
                ids,
                np.stack([model.velocity_embedding for model in written]),
                np.stack([model.physics_embedding for model in written]),
            )
            self._at_step("add:published")
        return [model.model_id for model in models]

    def remove(self, model_ids: Sequence[str]) -> int:
        """Remove models in one transaction; returns how many.

        Raises:
            UnknownModel: one is not there; then none is removed.
            GalleryWriteFailed: the disk refused; then none is removed.
        """
        with self._changing:
            generation, rows = self._records.remove(model_ids)
            self._contents = self._contents.without(generation, rows)
        return len(rows)

    def search_velocity(self, queries: ArrayLike, k: int, *, filter: Filter | None = None) -> list[list[Hit]]:
        """The models whose velocity embedding is nearest to each query, exactly.

        Args:
            queries: ``(query, dimension)``, unit length.
            k: 1 to `MAX_K`.
            filter: which models may be returned.

        Returns:
            For each query ``min(k, allowed)`` hits, most similar first, equal ones in the order they were added.

        Raises:
            InvalidQuery: ``k`` out of range, queries of another shape, not finite or not of unit length.
        """
        return self._search("velocity", queries, k, filter)

    def search_physics(self, queries: ArrayLike, k: int, *, filter: Filter | None = None) -> list[list[Hit]]:
        """As `search_velocity`, by the physics embedding."""
        return self._search("physics", queries, k, filter)

    def _search(self, space: str, queries: ArrayLike, k: int, condition: Filter | None) -> list[list[Hit]]:
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= MAX_K:
            raise InvalidQuery(f"k is a whole number from 1 to {MAX_K}; got {k!r}.")
        vectors = unit_vectors(queries, self.dimension, "queries")
        contents = self._contents
        allowed = contents.allowed(self._records.allowed(condition)) if condition else contents.alive
        index = contents.velocity if space == "velocity" else contents.physics
        return [
            [
                Hit(contents.ids[position], similarity, row)
                for position, similarity, row in zip(
                    positions.tolist(), similarities.tolist(), contents.rows[positions].tolist(), strict=True
                )
            ]
            for positions, similarities in index.search(vectors, int(k), allowed=allowed)
        ]

    def record(self, model_id: str) -> Record:
        """What is known of one model. Raises UnknownModel, GalleryDamaged."""
        return self._records.records([model_id])[0]

    def records(self, model_ids: Sequence[str]) -> list[Record]:
        """What is known of each model, in the order asked. Raises UnknownModel, GalleryDamaged."""
        return self._records.records(model_ids)

    def velocity(self, model_id: str) -> Float32:
        """The map of one model, ``(depth, x)`` float32, m/s. Raises UnknownModel, GalleryDamaged."""
        return self._records.velocity(model_id)

    def velocities(self, model_ids: Sequence[str]) -> list[Float32]:
        """The maps of several models, in the order asked. Raises as `velocity` does."""
        return self._records.velocities(model_ids)

    def embeddings(self, model_ids: Sequence[str]) -> tuple[Float32, Float32]:
        """Velocity and physics embeddings, ``(model, dimension)`` each, as they are searched. Raises UnknownModel."""
        contents = self._contents
        at: dict[str, int] = dict(zip(contents.ids[contents.alive], np.flatnonzero(contents.alive), strict=True))
        unknown = [model_id for model_id in model_ids if model_id not in at]
        if unknown:
            raise UnknownModel(f"No velocity model {unknown[0]!r} in the gallery at {self.path}.")
        positions = np.asarray([at[model_id] for model_id in model_ids], np.int64)
        return contents.velocity.taken(positions), contents.physics.taken(positions)

    def model_ids(self) -> list[str]:
        """All ids, in the order they were added."""
        contents = self._contents
        return list(contents.ids[contents.alive])

    def refresh(self) -> bool:
        """See what another process has added and removed since; True if there was something.

        Raises:
            GalleryDamaged: what is there now is damaged; what was seen before goes on being served.
            GalleryError: the gallery was replaced by another one; open it again.
        """
        with self._changing:
            try:
                replaced = self._records.path.stat().st_ino != self._inode
            except FileNotFoundError:
                replaced = True
            if replaced:
                raise GalleryError(f"The gallery at {self.path} was replaced by another one; open it again.")
            before = self._contents
            self._contents = before.refreshed(self._records)
            return self._contents is not before

    def snapshot(self) -> None:
        """Write both indices beside the records, so that the next opening need not replay anything.

        Raises:
            GalleryError: opened for reading.
            GalleryWriteFailed: the disk refused. The records are not touched.
        """
        if self._lock is None:
            raise GalleryError(f"{self.path} was opened for reading. Open it with writable=True to snapshot.")
        with self._changing, told(self.path, "snapshot"):
            contents = self._contents
            if contents.generation == self._snapshot_generation:
                return
            kept = np.flatnonzero(contents.alive)
            catalogue = self._records.catalogue()
            for space in SPACES:
                index = contents.velocity if space == "velocity" else contents.physics
                write_snapshot(
                    self.path,
                    space,
                    index.taken(kept),
                    catalogue.keys,
                    fingerprint=self.fingerprint,
                    generation=contents.generation,
                    at_step=self._at_step,
                )
            self._snapshot_generation = contents.generation

    def info(self) -> GalleryInfo:
        """What this gallery is, as of now."""
        return GalleryInfo(
            path=self.path,
            count=len(self),
            families=self.families(),
            fingerprint=self.fingerprint,
            dimension=self.dimension,
            format_version=FORMAT_VERSION,
            generation=self.generation,
            bytes=size_bytes(self.path),
            created_at=self._records.created_at,
            descriptor_ranges=self._records.descriptor_ranges(),
            notes=self._notes,
            frame=self.frame,
        )

    def distribution(self) -> Distribution:
        """How the descriptors of all models are distributed, as of now; reads every record's descriptors."""
        return Distribution(self.generation, self._records.histograms(HISTOGRAM_PARTS))

    def verify(self) -> VerifyReport:
        """Read every byte and compare it with its checksum, SQLite's structure and the snapshots included."""
        with self._changing:
            return verify(self._records, self._contents, self.path)

    def close(self) -> None:
        """Write a snapshot if one is due, and let go of the files. May be called twice.

        A snapshot that cannot be written is logged and not raised: the records have everything.
        """
        with self._changing:
            if self._closed:
                return
            try:
                if self._lock is not None:
                    self.snapshot()
            except (GalleryWriteFailed, GalleryDamaged) as error:
                log.warning("No snapshot was written on closing: %s", error)
            finally:
                self._release()

    def _release(self) -> None:
        self._closed = True
        try:
            self._records.close()
        finally:
            if self._lock is not None:
                self._lock.release()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
