"""The gallery: velocity models, their records, and the two indices that find them, as one object.

One module because all methods read or replace one view of the records, under one lock.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike

from seisbind.index.approximate.info import ApproximateInfo
from seisbind.index.approximate.probe import LiveRecall
from seisbind.index.coding import CodedModels, named
from seisbind.index.info import HISTOGRAM_PARTS, Distribution, GalleryInfo
from seisbind.index.search.device import DeviceSearch, place
from seisbind.index.search.filter import Filter
from seisbind.index.search.loading import LoadedView, load_view, refresh_view
from seisbind.index.search.mapped import SnapshotDamaged, SnapshotWatch
from seisbind.index.search.mapped_writer import is_large, lacks_lists, write_snapshots
from seisbind.index.search.policy import ApproximatePolicy
from seisbind.index.search.snapshots import recover_snapshots
from seisbind.index.search.view import Hits
from seisbind.index.storage.codec import rounded
from seisbind.index.storage.database import (
    OPENINGS,
    RECORDS,
    GalleryReplaced,
    always_replaced,
    identity,
    translate_errors,
)
from seisbind.index.storage.folder import (
    BUILDING,
    LOCK,
    SPACES,
    drop_building,
    install,
    new_gallery,
    no_step,
    size_bytes,
)
from seisbind.index.storage.lock import WriterLock
from seisbind.index.storage.record import Added, Float32, Record, RowLookup, utc_now
from seisbind.index.storage.record_writer import M, RecordWriter
from seisbind.index.storage.records import Records
from seisbind.index.validation import check_batch, unit_vectors
from seisbind.index.verify import VerifyReport, verify
from seisbind.model.errors import (
    GalleryDamaged,
    GalleryError,
    GalleryNotFound,
    GalleryWriteFailed,
    InvalidQuery,
    UnknownModel,
)
from seisbind.model.frame import OPENFWI_FRAME, Frame
from seisbind.model.ground.descriptors import check_velocity

log = logging.getLogger(__name__)

T = TypeVar("T")

REPLAYED_SHARE = 32  # closing writes no snapshot where the next opening has to read less than this fraction ...
MAX_REPLAYED = 4096  # ... and no more models than this from the records, which takes a fraction of a second
DIGEST_DIGITS = 16  # of a state's digest, to tell galleries apart
MAX_K = 1000  # hits per query: as many as a page or a table can use, which limits the size of an answer


class Gallery:
    """A gallery in a folder: `create` or `open` one, and close it, or use ``with``.

    Any number of galleries may read a folder while one writes it. All methods may be called from any thread: searches
    run on an immutable `View` and need no lock; `Records` guards its connection; ``_changing`` lets one change or
    refresh in at a time, ``_snapshotting`` one snapshot, beside changes. A gallery opened for writing must not be used
    on both sides of a fork.
    """

    def __init__(
        self,
        path: Path,
        records: Records,
        writer: RecordWriter | None,
        loaded: LoadedView,
        at_step: Callable[[str], None],
        exact: bool = False,
    ) -> None:
        self.path = path
        self.fingerprint = records.fingerprint
        self.embeddings_fingerprint = records.embeddings_fingerprint
        self.dimension = records.dimension
        self.frame = records.frame
        self.precision_m_s = records.precision_m_s
        self._records = records
        self._writer = writer
        self._at_step = at_step
        self._changing = threading.RLock()
        self._snapshotting = threading.RLock()  # taken before the other where both are
        self._compacting = threading.Lock()
        self._notes = loaded.notes
        self._mapped = loaded.mapped
        self._row_of = loaded.row_of  # changes before ``_view`` does: see `_lookup`
        self._view = loaded.view
        self._approximate = ApproximatePolicy(exact, self._say)
        self._approximate.opened(loaded.view)
        # models that the snapshots lack, or have too many; a large gallery that is not mapped yet lacks all
        mapped = loaded.mapped
        self._behind = len(loaded.view) + 1 if mapped is None and is_large(loaded.view) else loaded.behind
        self._lacks_lists = mapped is not None and lacks_lists(loaded.view, mapped.facts)
        self._snapshot_generation = -1 if self._behind else self._view.generation
        self._compared = (-1, -1, False)  # data version and generation, and whether they went together: `is_current`
        self._device: DeviceSearch | None = None
        self._files = ExitStack()  # closed by `close`
        self._closed = False
        self._watch = SnapshotWatch(loaded.mapped, self._compare_list, self._heal) if loaded.mapped else None

    def _lookup(self) -> RowLookup:
        """The view is read first, so that the rows are never older than it."""
        view = self._view
        return RowLookup(view.generation, self._row_of, view.last_row, view.holds)

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        fingerprint: str,
        dimension: int = 256,
        frame: Frame = OPENFWI_FRAME,
        overwrite: bool = False,
        precision_m_s: float = 0.0,
        at_step: Callable[[str], None] = no_step,
    ) -> Gallery:
        """Make an empty gallery in the folder ``path`` and open it for writing.

        Args:
            fingerprint: of the weights whose embeddings it will hold. A `Fingerprint` says theirs, too, and then the
                gallery is opened with all weights that make the same ones.
            dimension: of the embeddings.
            frame: of the weights.
            overwrite: replace a gallery that is there already, with everything in it, at once (see `gallery_builder`).
            precision_m_s: of its maps: each velocity that it stores may be off by this much (see `stored`); 0 is exact.
            at_step: called with a name at each step of a change, for crash tests.

        Raises:
            GalleryError: there is a gallery already, or a folder with other files.
            GalleryLocked: it is being written.
            GalleryWriteFailed: the disk refused.
            InvalidConfig: a precision that no gallery can have, see `seisbind.index.storage.codec`.
        """
        with (
            new_gallery(
                path,
                fingerprint=fingerprint,
                dimension=dimension,
                frame=frame,
                overwrite=overwrite,
                precision_m_s=precision_m_s,
                at_step=at_step,
            ) as lock,
            translate_errors(path, "create a gallery"),
        ):
            install(path, at_step=at_step)
            return cls._open(path, fingerprint, frame, lock, at_step)

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
        precision_m_s: float = 0.0,
        at_step: Callable[[str], None] = no_step,
    ) -> Iterator[Gallery]:
        """A new gallery to fill, which takes its place in the folder ``path`` when the block ends, whole or not at all.

        Until then, and if the block raises or the process is killed, the previous gallery stays and can be opened. No
        other process can write it meanwhile, and the disk needs room for both.

        Args and errors: as `create`.
        """
        with new_gallery(
            path,
            fingerprint=fingerprint,
            dimension=dimension,
            frame=frame,
            overwrite=overwrite,
            precision_m_s=precision_m_s,
            at_step=at_step,
        ) as lock:
            with cls.open(path / BUILDING, fingerprint=fingerprint, writable=True, at_step=at_step) as gallery:
                yield gallery
            with translate_errors(path, "put the new gallery"):
                install(path, at_step=at_step)
            lock.release()

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        fingerprint: str | None,
        frame: Frame | None = None,
        writable: bool = False,
        exact: bool = False,
        at_step: Callable[[str], None] = no_step,
    ) -> Gallery:
        """Open the gallery in the folder ``path``.

        Args:
            fingerprint: of the weights that queries come from (see `fingerprint.embeds_alike`); None not to compare it.
            frame: of those weights; None not to compare it.
            writable: take its lock for writing, which one gallery object at a time can.
            exact: never search approximately, whatever the size.

        Raises:
            GalleryNotFound: there is none.
            GalleryDamaged: its records are not what was written. (A damaged index is rebuilt: see `GalleryInfo.notes`.)
            GalleryError: its format belongs to another version of SeisBind.
            GalleryLocked: ``writable``, and another holds the lock; the sentence says who.
            WeightsMismatch: it was made with weights of other embeddings, or for another frame.
        """
        if not (path / RECORDS).is_file():
            raise GalleryNotFound(f"There is no gallery at {path}. 'seisbind gallery build' makes one.")
        lock = WriterLock(path / LOCK) if writable else None
        try:
            return cls._open(path, fingerprint, frame, lock, at_step, exact)
        except BaseException:
            if lock is not None:
                lock.release()
            raise

    @classmethod
    def _open(
        cls,
        path: Path,
        fingerprint: str | None,
        frame: Frame | None,
        lock: WriterLock | None,
        at_step: Callable[[str], None],
        exact: bool = False,
    ) -> Gallery:
        """The gallery owns ``lock`` once this has returned."""
        for _ in range(OPENINGS):
            with suppress(GalleryReplaced), ExitStack() as files:
                writer = None
                if lock is not None:  # the writer first: after a crash it is the one that may recover the log
                    writer = files.enter_context(closing(RecordWriter(path / RECORDS, at_step=at_step)))
                records = files.enter_context(closing(Records(path / RECORDS)))
                records.check_weights(fingerprint, frame)
                at_step("open:records")
                if lock is not None:
                    recover_snapshots(path)
                    drop_building(path)
                gallery = cls(path, records, writer, load_view(records, path), at_step, exact)
                if lock is not None:
                    gallery._files.callback(lock.release)
                gallery._files.push(files.pop_all())
                return gallery
        raise always_replaced(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._view)

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.path.resolve().name

    @property
    def generation(self) -> int:
        """The number of changes so far, as searched: each change made here adds one, and `refresh` updates it."""
        return self._view.generation

    @property
    def notes(self) -> tuple[str, ...]:
        """See `GalleryInfo.notes`."""
        return self._notes

    def stored(self, velocity: ArrayLike) -> Float32:
        """Maps, m/s, as this gallery stores them: float32 and rounded to its precision; exact ones stay as they are.

        Describe and embed these, not the maps they were made from. Rounding again changes nothing.

        Raises:
            InvalidVelocityModel: see `seisbind.model.ground.descriptors.check_velocity`.
        """
        return rounded(check_velocity(velocity), self.precision_m_s)

    def families(self) -> dict[str, int]:
        """How many models each family has, by name. Models without a family are not counted."""
        view = self._view
        return view.statistics.by_name(view.columns.labels)

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
    ) -> Added:
        """Add models in one transaction: when this returns all of them are on the disk, and if it raises, none is.

        Args:
            velocity: ``(model, depth, x)``, m/s; what is stored, and what ids are made from, is `stored` of it.
            descriptors: ``(model, 13)``, see `seisbind.model.ground.descriptors.describe`.
            velocity_embeddings, physics_embeddings: ``(model, dimension)``, unit length.
            model_ids: letters, digits and ``._:-``, at most 128; by default ``v-`` and 16 digits of the map's SHA-256.
            families, tags: per model.
            source: where all of them came from.
            skip_existing: leave out models whose id is taken by the same map, instead of refusing the batch, and those
                whose map another model has.

        Returns:
            The id of every model given, in order; of one that was left out, the id that has its map. `Added` also says
            which have the map of another model.

        Raises:
            InvalidQuery: arrays that do not go together, an embedding that is not of unit length, an id that is taken.
            InvalidVelocityModel: see `seisbind.model.ground.descriptors.check_velocity`.
            GalleryWriteFailed: the disk refused.
        """
        models = check_batch(
            velocity,
            descriptors,
            velocity_embeddings,
            physics_embeddings,
            dimension=self.dimension,
            model_ids=model_ids,
            families=families,
            tags=tags,
            source=source,
            added_at=utc_now(),
            precision_m_s=self.precision_m_s,
        )
        return self._add(models, skip_existing)

    @property
    def codes(self) -> bool:
        """Whether it takes models that are coded already, see `add_coded`: those of format 1 do not."""
        return self._records.format_version > 1

    def add_coded(
        self,
        models: CodedModels,
        *,
        model_ids: Sequence[str] | None = None,
        families: Sequence[str | None] | None = None,
        tags: Sequence[Sequence[str]] | None = None,
        source: str | None = None,
        skip_existing: bool = False,
    ) -> Added:
        """`add` for models that `seisbind.index.coding.code_models` has coded, for this dimension and precision.

        Raises:
            InvalidQuery: as `add`; or they are coded for another dimension.
            GalleryError: the gallery is of format 1, see `codes`.
            GalleryWriteFailed: the disk refused.
        """
        if not self.codes:
            raise GalleryError(f"{self.path} has gallery format 1, which holds no coded maps: add them as they are.")
        if models.velocity_embeddings.shape[1] != self.dimension:
            raise InvalidQuery(
                f"The models are coded with embeddings of {models.velocity_embeddings.shape[1]} numbers; those of "
                f"{self.path} have {self.dimension}. Code them for that dimension."
            )
        words = named(
            models, model_ids=model_ids, families=families, tags=tags, source=source, added_at=utc_now()
        )  # fmt: skip
        return self._add(words, skip_existing)

    def _add(self, models: Sequence[M], skip_existing: bool) -> Added:
        if not models:
            return Added((), {}, ())
        with self._changing:
            state, columns, written, same_map = self._writing("add").add(
                models, self._lookup(), skip_existing=skip_existing
            )
            left_out = same_map if skip_existing else {}
            ids = [left_out.get(model.model_id, model.model_id) for model in models]
            added = Added(ids, same_map, [model.model_id for model in written])
            if not written:
                return added
            self._row_of.update(zip(columns.ids, columns.rows.tolist(), strict=True))
            vectors = [np.stack([getattr(model, f"{space}_embedding") for model in written]) for space in SPACES]
            try:
                self._view = self._view.extended(state, columns, *vectors)
            except SnapshotDamaged as error:  # in what was to be joined; the records have the new ones, too
                self._heal(error)
            self._behind += len(written)
            self._at_step("add:published")
        return added

    def remove(self, model_ids: Sequence[str]) -> int:
        """Remove models in one transaction; returns how many.

        Once more than an eighth of what is in memory are removed models, this also drops them, which copies the others:
        it then takes seconds for a large gallery, which searches and other changes do not wait for.

        Raises:
            UnknownModel: one is not there; then none is removed.
            GalleryWriteFailed: the disk refused; then none is removed.
        """
        with self._changing:
            state, rows = self._writing("remove").remove(model_ids, self._lookup())
            for model_id in set(model_ids):
                del self._row_of[model_id]
            self._view = self._view.without(state, rows)
            self._behind += len(rows)
        self._compact()
        return len(rows)

    def _compact(self) -> None:
        """Drop removed models from memory if they are many.

        That copies the whole gallery, beside searches and changes: what is changed meanwhile is made up for.
        """
        before = self._view
        if not before.sparse or not self._compacting.acquire(blocking=False):
            return
        try:
            compacted = before.compacted()
            self._at_step("compact:copied")
            with self._changing:
                self._view = compacted.caught_up(before, self._view)
        except SnapshotDamaged as error:
            self._heal(error)
        finally:
            self._compacting.release()

    def search_velocity(
        self, queries: ArrayLike, k: int, *, filter: Filter | None = None, exact: bool | None = None
    ) -> Hits:
        """The models whose velocity embedding is nearest to each query.

        Args:
            queries: ``(query, dimension)``, unit length.
            k: 1 to `MAX_K`.
            filter: which models may be returned.
            exact: True for an exact search; None for an approximate one where `approximate` says that one is served,
                with no filter and with few matches. `Hits.approximate` says which it was.

        Returns:
            For each query ``min(k, allowed)`` hits, most similar first, equal ones in the order they were added.

        Raises:
            InvalidQuery: ``k`` out of range, queries of another shape, not finite or not of unit length.
        """
        return self._search("velocity", queries, k, filter, exact=bool(exact) or not self._approximate.allowed)

    def search_physics(self, queries: ArrayLike, k: int, *, filter: Filter | None = None) -> Hits:
        """As `search_velocity`, by the physics embedding; always exact."""
        return self._search("physics", queries, k, filter, exact=True)

    def _search(self, space: str, queries: ArrayLike, k: int, condition: Filter | None, *, exact: bool) -> Hits:
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= MAX_K:
            raise InvalidQuery(f"k is a whole number from 1 to {MAX_K}; got {k!r}.")
        vectors = unit_vectors(queries, self.dimension, "queries")
        view = self._view

        def search() -> Hits:
            nonlocal view
            view = self._view
            return view.search(space, vectors, int(k), condition, exact=exact, device=self._device)

        hits = self._sound(search)
        if hits.approximate is not None:
            self._approximate.searched(view, vectors, hits)
        return hits

    @property
    def approximate(self) -> ApproximateInfo | None:
        """The index by which `search_velocity` searches approximately; None where it is always exact."""
        lists, searching = self._view.searched_lists, self._approximate.allowed and self._device is None
        return lists.info if lists is not None and searching else None

    @property
    def live_recall(self) -> LiveRecall:
        """Recall of approximate searches since this was opened, of which a few are made exactly, too."""
        return self._approximate.live

    def _say(self, note: str) -> None:
        self._notes = (*self._notes, note)

    def search_on(
        self,
        device: torch.device,
        *,
        on_fall_back: Callable[[str], object] = lambda reason: None,
        twin: bool = False,
    ) -> None:
        """Search on ``device`` from now on, exactly: a GPU that has room for all vectors in fp16, or the CPU.

        The answers are those of exact searches on the CPU. Where they do not fit, or the GPU fails now or later, the
        CPU searches, and a log line says so; `notes` do, where that is known now.

        Args:
            on_fall_back: called with ``memory`` or ``lost`` each time that the CPU searches in place of ``device``.
            twin: run the code for GPUs on a CPU, too: slower, for tests.
        """
        if device.type == "cpu" and not twin:
            self._device = None
            return
        found, note = self._sound(lambda: place(self._view, device, on_fall_back=on_fall_back))
        self._device = found
        if note:
            log.warning("%s", note)
            self._say(note)

    @property
    def search_device(self) -> str:
        """Where searches run now: ``cpu``, or ``cuda:0`` and so on."""
        device = self._device
        return "cpu" if device is None or device.lost else str(device.device)

    @property
    def device_bytes(self) -> int:
        """Of the vectors that lie on the device of `search_on`."""
        return 0 if self._device is None else self._device.bytes

    def record(self, model_id: str) -> Record:
        """The record of one model. Raises UnknownModel, GalleryDamaged."""
        return self._records.records([model_id], self._lookup())[0]

    def records(self, model_ids: Sequence[str]) -> list[Record]:
        """The records of several models, in that order. Raises UnknownModel, GalleryDamaged."""
        return self._records.records(model_ids, self._lookup())

    def velocity(self, model_id: str) -> Float32:
        """The map of one model, ``(depth, x)`` float32, m/s. Raises UnknownModel, GalleryDamaged."""
        return self._records.velocities([model_id], self._lookup())[0]

    def velocities(self, model_ids: Sequence[str]) -> list[Float32]:
        """The maps of several models, in that order. Raises as `velocity` does."""
        return self._records.velocities(model_ids, self._lookup())

    def embeddings(self, model_ids: Sequence[str]) -> tuple[Float32, Float32]:
        """Velocity and physics embeddings, ``(model, dimension)`` each, as they are searched. Raises UnknownModel."""

        def read() -> tuple[Float32, Float32]:
            with self._changing:
                view = self._view
                rows = [self._row_of.get(model_id, 0) for model_id in model_ids]
            for model_id, row in zip(model_ids, rows, strict=True):
                if not row:
                    raise UnknownModel(f"No velocity model {model_id!r} in the gallery at {self.path}.")
            positions = view.positions(np.asarray(rows, np.int64))
            return view.velocity.vectors_at(positions), view.physics.vectors_at(positions)

        return self._sound(read)

    def model_ids(self) -> list[str]:
        """All ids, in the order they were added."""
        view = self._view
        return list(view.columns.ids_at(view.alive))

    def refresh(self) -> bool:
        """Load what another process has added and removed since; True if there was something.

        Raises:
            GalleryDamaged: what is there now is damaged; the previous state goes on being served.
            GalleryError: the gallery was replaced by another one; open it again.
        """
        with self._changing:
            self._records.check_in_place()
            changed = self._refresh()
        self._compact()
        return changed

    def _refresh(self) -> bool:
        before, now = self._view, refresh_view(self._view, self._records)
        if now is None:
            self._load_again()
            return True
        self._row_of.update(now.row_of)
        for model_id in now.gone:
            del self._row_of[model_id]
        self._view = now.view
        return now.view is not before

    def _compare_list(self) -> None:
        with closing(Records(self.path / RECORDS)) as records:  # its own, for it takes seconds
            records.check_rest(records.state(), after=0, count=0, digest=bytes(32))

    def _heal(self, error: GalleryError) -> None:
        """Say what is damaged, and serve what the records have instead of a snapshot that is."""
        with self._changing:
            if self._closed or (isinstance(error, SnapshotDamaged) and self._mapped is None):
                return  # done by another thread
            log.warning("%s", error)
            self._notes = (*self._notes, str(error))
            if isinstance(error, SnapshotDamaged):
                self._load_again()

    def _sound(self, work: Callable[[], T]) -> T:
        """What ``work`` returns, with the snapshot replaced where it is damaged."""
        try:
            return work()
        except SnapshotDamaged as error:
            self._heal(error)
            return work()

    def _load_again(self) -> None:
        """From the records, and from snapshots that are read and not mapped."""
        loaded = load_view(self._records, self.path, mapped=False)
        self._row_of, self._view, self._mapped = loaded.row_of, loaded.view, None
        self._snapshot_generation, self._behind = -1, len(loaded.view) + 1

    @contextmanager
    def unchanging(self) -> Iterator[None]:
        """Everything inside searches and reads the gallery of one moment, the present one.

        What other threads or processes change meanwhile is not seen, and other threads wait for the block before they
        read: otherwise a model could be found whose record is gone.
        """
        with self._changing, self._records.reading():
            self._refresh()
            yield

    def snapshot(self, *, lists: bool = True) -> None:
        """Write indices and columns beside the records, so that the next opening reads no records but the catalogue.

        What is there when it begins is written; models may be searched, added and removed meanwhile.

        Args:
            lists: also make the approximate index of a very large gallery, which takes longer than the rest. Otherwise
                that of before is kept while none of its models was removed; one that was left out is made by the next
                writer that closes.

        Raises:
            GalleryError: opened for reading.
            GalleryWriteFailed: the disk refused. The records are not touched.
        """
        self._writing("snapshot")

        def write() -> tuple[int, int]:
            with self._changing:
                view, behind = self._view, self._behind
            self._lacks_lists = not write_snapshots(
                view, self.path, fingerprint=self.fingerprint, at_step=self._at_step, lists=lists
            )
            return view.generation, behind

        with self._snapshotting, translate_errors(self.path, "snapshot"):
            if self._view.generation != self._snapshot_generation or (lists and self._lacks_lists):
                self._snapshot_generation, behind = self._sound(write)
                with self._changing:
                    self._behind = max(0, self._behind - behind)

    def _writing(self, doing: str) -> RecordWriter:
        if self._writer is None:
            raise GalleryError(f"{self.path} was opened for reading. Open it with writable=True to {doing}.")
        return self._writer

    def info(self) -> GalleryInfo:
        """A description of this gallery, as of now."""
        view = self._view
        return GalleryInfo(
            path=self.path,
            count=len(view),
            families=view.statistics.by_name(view.columns.labels),
            fingerprint=self.fingerprint,
            dimension=self.dimension,
            format_version=self._records.format_version,
            generation=view.generation,
            bytes=size_bytes(self.path),
            created_at=self._records.created_at,
            descriptor_ranges=view.statistics.ranges(),
            notes=self._notes,
            frame=self.frame,
            digest=view.state.digest.hex()[:DIGEST_DIGITS],
            search_device=self.search_device,
            precision_m_s=self.precision_m_s,
            approximate=None if view.lists is None else view.lists.info,
            searched="exact" if self.approximate is None else "approximate",
        )

    @property
    def stamp(self) -> str:
        """See `GalleryInfo.stamp`."""
        state = self._view.state
        return f"{state.generation}-{state.digest.hex()[:8]}"

    def marks(self) -> tuple[object, object]:
        """What is searched here, and what is in the folder now: equal unless another process has changed it.

        Cheap: whoever looks again and again opens nothing. A mark says nothing of whether the gallery can be served.
        """
        view, place = self._view, self._records.identity
        served = (place, view.generation, view.state.digest)
        try:
            there = identity(self.path / RECORDS)
            if there == place:
                state = self._records.state()
                return served, (place, state.generation, state.digest)
            facts = (self.path / RECORDS).stat()
            return served, (there, facts.st_size, facts.st_mtime_ns)
        except (GalleryError, FileNotFoundError) as error:
            return served, type(error).__name__

    def is_current(self) -> bool:
        """Whether what is searched is what the folder holds: no other process has changed it since. In microseconds."""
        seen = (self._records.data_version(), self._view.generation)
        if self._compared[:2] != seen:
            self._compared = (*seen, self._records.state().generation == seen[1])
        return self._compared[2]

    def distribution(self) -> Distribution:
        """How the descriptors of all models are distributed, as of now; goes through all of them."""
        view = self._view
        return Distribution(view.generation, view.columns.histograms(view.alive, HISTOGRAM_PARTS))

    def verify(self) -> VerifyReport:
        """Read every byte and compare it with its checksum, SQLite's structure and the snapshots included."""
        with self._changing:
            return verify(self._records, self._view, self.path)

    def close(self, *, lists: bool = True) -> None:
        """Write a snapshot if one is due, with ``lists`` as `snapshot`'s, and close the files. May be called twice.

        It is due if the next opening would have to read more than `MAX_REPLAYED` models or a `REPLAYED_SHARE`-th of the
        gallery from the records: closing after a few changes to a large gallery takes no longer than to a small one. A
        snapshot that cannot be written is logged and not raised: the records have everything.
        """
        if self._watch is not None:
            self._watch.close(wait=self._writer is not None)
        with self._snapshotting, self._changing, self._files:
            behind = self._behind > min(len(self._view) // REPLAYED_SHARE, MAX_REPLAYED)
            due = behind or (lists and self._lacks_lists)
            try:
                if self._writer is not None and due and not self._closed:
                    self.snapshot(lists=lists)
            except (GalleryWriteFailed, GalleryDamaged) as error:
                log.warning("No snapshot was written on closing: %s", error)
            finally:
                self._closed = True
