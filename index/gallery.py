"""The gallery: velocity models, what is known of them, and the two indices that find them, as one thing."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

from seisbind.index.search.columns import NO_FAMILY, keys_of
from seisbind.index.search.filter import Filter
from seisbind.index.search.snapshots import settle_snapshots, write_columns, write_snapshot
from seisbind.index.search.vectors import Float64, Int64
from seisbind.index.search.view import Contents, load_contents
from seisbind.index.storage.database import FORMAT_VERSION, RECORDS, create_database, identity, told
from seisbind.index.storage.folder import (
    BUILDING,
    LOCK,
    SPACES,
    drop_building,
    install,
    make_folder,
    make_room,
    size_bytes,
)
from seisbind.index.storage.lock import WriterLock
from seisbind.index.storage.record import Float32, Histogram, Record
from seisbind.index.storage.records import Known, Records
from seisbind.index.validation import checked_batch, unit_vectors
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
REPLAYED_SHARE = 32  # closing writes no snapshot where the next opening has to make up for less than this fraction ...
MAX_REPLAYED = 4096  # ... and for no more models than this, which is a fraction of a second
MAX_K = 1000  # hits a query: as many as a page or a table can use, and a bound on what an answer weighs


@dataclass(frozen=True, slots=True)
class Hit:
    """A velocity model found, and what a list of matches says of it, all of one moment.

    Attributes:
        similarity: the cosine, -1 to 1.
        row: breaks ties and is never used again.
        descriptors: ``(13,)`` float32, in the order of `seisbind.model.ground.descriptors.DESCRIPTORS`.
    """

    model_id: str
    similarity: float
    row: int
    family: str | None
    descriptors: Float32 = field(compare=False, repr=False)


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
        if lock is not None:
            settle_snapshots(path)
            drop_building(path)
        loaded = load_contents(records, path)
        self._notes = loaded.notes
        self._row_of: dict[str, int] = {}  # moves before ``_contents`` does: see `_known`
        self._show(loaded.contents)
        self._snapshot_generation = -1 if loaded.behind else self._contents.generation
        self._behind = loaded.behind  # models that the snapshots lack, or have too many
        self._closed = False

    def _show(self, contents: Contents) -> None:
        """Search ``contents`` from now on, which have come from the records as a whole."""
        alive = contents.alive
        self._row_of = dict(zip(contents.ids[alive], contents.rows[alive].tolist(), strict=True))
        self._contents = contents

    def _known(self) -> Known:
        """What is known of the records. The generation is read first: what is known is never older than that."""
        contents = self._contents
        return Known(contents.generation, self._row_of, int(contents.rows[-1]) if len(contents.rows) else 0)

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
            overwrite: replace a gallery that is there already, with everything in it, at once (see `gallery_builder`).
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
            drop_building(path)
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
            drop_building(path)
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
                drop_building(path)
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
        contents = self._contents
        return contents.tally.by_name(contents.columns.labels)

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
            descriptors: ``(model, 13)``, see `seisbind.model.ground.descriptors.describe`.
            velocity_embeddings, physics_embeddings: ``(model, dimension)``, unit length.
            model_ids: letters, digits and ``._:-``, at most 128; by default ``v-`` and 16 digits of the map's SHA-256.
            families, tags: per model.
            source: where all of them came from.
            skip_existing: leave out models whose id is taken by the same map, instead of refusing the batch.

        Returns:
            The id of every model given, in order, also of those left out.

        Raises:
            InvalidQuery: arrays that do not go together, an embedding that is not of unit length, an id that is taken.
            InvalidVelocityModel: see `seisbind.model.ground.descriptors.check_velocity`.
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
            state, described, written = self._records.add(models, self._known(), skip_existing=skip_existing)
            if not written:
                return [model.model_id for model in models]
            self._row_of.update(zip(described.ids, described.rows.tolist(), strict=True))
            self._contents = self._contents.extended(
                state,
                described,
                np.stack([model.velocity_embedding for model in written]),
                np.stack([model.physics_embedding for model in written]),
            )
            self._behind += len(written)
            self._at_step("add:published")
        return [model.model_id for model in models]

    def remove(self, model_ids: Sequence[str]) -> int:
        """Remove models in one transaction; returns how many.

        Raises:
            UnknownModel: one is not there; then none is removed.
            GalleryWriteFailed: the disk refused; then none is removed.
        """
        with self._changing:
            state, rows = self._records.remove(model_ids, self._known())
            for model_id in set(model_ids):
                del self._row_of[model_id]
            self._contents = self._contents.without(state, rows)
            self._behind += len(rows)
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
        allowed = contents.allowed(condition)
        index = contents.velocity if space == "velocity" else contents.physics
        return [
            list(_hits(contents, positions, similarities))
            for positions, similarities in index.search(vectors, int(k), allowed=allowed)
        ]

    def record(self, model_id: str) -> Record:
        """What is known of one model. Raises UnknownModel, GalleryDamaged."""
        return self._records.records([model_id], self._known())[0]

    def records(self, model_ids: Sequence[str]) -> list[Record]:
        """What is known of each model, in the order asked. Raises UnknownModel, GalleryDamaged."""
        return self._records.records(model_ids, self._known())

    def velocity(self, model_id: str) -> Float32:
        """The map of one model, ``(depth, x)`` float32, m/s. Raises UnknownModel, GalleryDamaged."""
        return self._records.velocities([model_id], self._known())[0]

    def velocities(self, model_ids: Sequence[str]) -> list[Float32]:
        """The maps of several models, in the order asked. Raises as `velocity` does."""
        return self._records.velocities(model_ids, self._known())

    def embeddings(self, model_ids: Sequence[str]) -> tuple[Float32, Float32]:
        """Velocity and physics embeddings, ``(model, dimension)`` each, as they are searched. Raises UnknownModel."""
        contents = self._contents
        rows = [self._row_of.get(model_id, 0) for model_id in model_ids]
        for model_id, row in zip(model_ids, rows, strict=True):
            if not len(contents.positions(np.asarray([row], np.int64))):
                raise UnknownModel(f"No velocity model {model_id!r} in the gallery at {self.path}.")
        positions = contents.positions(np.asarray(rows, np.int64))
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
                replaced = identity(self._records.path).file != self._records.identity.file
            except FileNotFoundError:
                replaced = True
            if replaced:
                raise GalleryError(f"The gallery at {self.path} was replaced by another one; open it again.")
            return self._caught_up()

    def _caught_up(self) -> bool:
        before = self._contents
        now = before.refreshed(self._records, self.path)
        if now is not before:
            self._show(now)
        return now is not before

    @contextmanager
    def unchanging(self) -> Iterator[None]:
        """Everything that is searched and read inside is the gallery of one moment, the present one.

        Nothing that another thread or process changes meanwhile is seen, and reading waits for the block in other
        threads: it is for what would otherwise find a model and not find its record.
        """
        with self._changing, self._records.reading():
            self._caught_up()
            yield

    def snapshot(self) -> None:
        """Write indices and columns beside the records, so that the next opening need not replay anything.

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
            keys = keys_of(contents.columns.checksums[kept])
            for space in SPACES:
                index = contents.velocity if space == "velocity" else contents.physics
                write_snapshot(
                    self.path,
                    space,
                    index.taken(kept),
                    keys,
                    fingerprint=self.fingerprint,
                    generation=contents.generation,
                    at_step=self._at_step,
                )
            write_columns(
                self.path,
                contents.columns,
                kept,
                fingerprint=self.fingerprint,
                generation=contents.generation,
                at_step=self._at_step,
            )
            self._snapshot_generation, self._behind = contents.generation, 0

    def info(self) -> GalleryInfo:
        """What this gallery is, as of now."""
        contents = self._contents
        return GalleryInfo(
            path=self.path,
            count=len(contents),
            families=contents.tally.by_name(contents.columns.labels),
            fingerprint=self.fingerprint,
            dimension=self.dimension,
            format_version=FORMAT_VERSION,
            generation=contents.generation,
            bytes=size_bytes(self.path),
            created_at=self._records.created_at,
            descriptor_ranges=contents.tally.ranges(),
            notes=self._notes,
            frame=self.frame,
        )

    def distribution(self) -> Distribution:
        """How the descriptors of all models are distributed, as of now; goes through all of them."""
        contents = self._contents
        return Distribution(contents.generation, contents.columns.histograms(contents.alive, HISTOGRAM_PARTS))

    def verify(self) -> VerifyReport:
        """Read every byte and compare it with its checksum, SQLite's structure and the snapshots included."""
        with self._changing:
            return verify(self._records, self._contents, self.path)

    def close(self) -> None:
        """Write a snapshot if one is due, and let go of the files. May be called twice.

        It is due if the next opening would have to make up for more than `MAX_REPLAYED` models or a `REPLAYED_SHARE`-th
        of the gallery: closing after a few changes to a large gallery takes no longer than to a small one. A snapshot
        that cannot be written is logged and not raised: the records have everything.
        """
        with self._changing:
            if self._closed:
                return
            try:
                due = self._behind > min(len(self._contents) // REPLAYED_SHARE, MAX_REPLAYED)
                if self._lock is not None and due:
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


def _hits(contents: Contents, positions: Int64, similarities: Float64) -> Iterator[Hit]:
    columns = contents.columns
    found = zip(positions.tolist(), similarities.tolist(), columns.descriptors[:, positions].T, strict=True)
    for position, similarity, descriptors in found:
        code = int(columns.family[position])
        family = None if code == NO_FAMILY else columns.labels.families[code]
        yield Hit(columns.ids[position], similarity, int(columns.rows[position]), family, descriptors)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
