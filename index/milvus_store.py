"""A gallery in Milvus: the same calls as of `Gallery`, over collections that several machines may reach.

One module because all methods read or change the same collections, under one lock.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike

from seisbind.index.approximate.info import ApproximateInfo
from seisbind.index.approximate.probe import LiveRecall
from seisbind.index.cluster.census import PAGE, Census, count
from seisbind.index.cluster.connection import MOST, Connection, in_parts
from seisbind.index.cluster.expressions import expression, words
from seisbind.index.cluster.location import Location
from seisbind.index.cluster.maps import BLOB_FIELDS, NOWHERE, Maps, MilvusMaps, ObjectMaps
from seisbind.index.cluster.rows import ALL, COLUMNS, FIELDS, Sealed, both_fit, map_key, rows_of, sealed
from seisbind.index.gallery import MAX_K
from seisbind.index.info import HISTOGRAM_PARTS, Distribution, GalleryInfo
from seisbind.index.search.filter import Filter
from seisbind.index.search.view import Hit, Hits
from seisbind.index.storage.codec import rounded, step_m_s
from seisbind.index.storage.record import Added, Float32, NewModel, Record, utc_now
from seisbind.index.validation import check_batch, unit_vectors
from seisbind.index.verify import MAX_PROBLEMS, VerifyReport
from seisbind.model.errors import (
    GalleryDamaged,
    GalleryError,
    GalleryNotFound,
    InvalidQuery,
    SeisBindError,
    UnknownModel,
    WeightsMismatch,
)
from seisbind.model.fingerprint import Fingerprint, embeds_alike
from seisbind.model.frame import OPENFWI_FRAME, Frame
from seisbind.model.ground.descriptors import check_velocity

log = logging.getLogger(__name__)

FORMAT_VERSION = 1  # of the collections
PART = 500  # models in one call
EXTRA = 16  # hits asked for beyond k, so that most answers are known to be exact at once
PRODUCT_ERROR = 5e-5  # no product of two unit vectors that Milvus takes in float32 is further off
ROWS_AT_ONCE = 4096  # of hits in one call: 16 MB
SWEEP_AGE = timedelta(hours=1)  # maps are written before their records: younger ones may be of an add under way


@dataclass(frozen=True, slots=True)
class _Facts:
    """What never changes."""

    format_version: int
    fingerprint: str
    dimension: int
    frame: dict[str, Any]
    created_at: str
    maps: str | None
    embeddings: str | None = None
    precision_m_s: float = 0.0


@dataclass(frozen=True, slots=True)
class _State:
    """What each change replaces. ``last_row`` grows before models are written, the others after."""

    generation: int = 0
    count: int = 0
    last_row: int = 0


class MilvusStore:
    """A gallery in Milvus: `create` or `open` one, and close it, or use ``with``. A `Store`; docs/milvus.md says more.

    ``NAME`` holds a row with its velocity embedding for each model, ``NAME_physics`` the same with the physics
    embedding, ``NAME_maps`` the facts, the state, and the maps that are in no object store. A model is there once it is
    in ``NAME``, which is written last and removed from first.

    Methods may be called from any thread. Milvus has neither transactions nor locks: only one process may change a
    gallery at a time, and nothing keeps others from doing so.
    """

    def __init__(
        self, connection: Connection, location: Location, facts: _Facts, state: _State, maps: Maps, writable: bool
    ) -> None:
        self.path: str = location.text
        self.name: str = location.collection
        self.fingerprint = facts.fingerprint
        self.embeddings_fingerprint = facts.embeddings
        self.precision_m_s = facts.precision_m_s
        self.dimension = facts.dimension
        self.frame = Frame.from_dict(facts.frame)
        self._connection, self._maps, self._facts = connection, maps, facts
        self._collections = _collections(location)
        self._state = state
        self._writable = writable
        self._notes: tuple[str, ...] = ()
        self._changing = threading.RLock()
        self._census: Census | None = None
        self._block = threading.local()  # what a thread has found within `unchanging`
        self._files = ExitStack()

    @classmethod
    def create(
        cls,
        url: str,
        *,
        fingerprint: str,
        dimension: int = 256,
        frame: Frame = OPENFWI_FRAME,
        overwrite: bool = False,
    ) -> MilvusStore:
        """Make an empty gallery at ``url`` and open it for writing. As `building`, without what that waits for."""
        with cls.building(url, fingerprint=fingerprint, dimension=dimension, frame=frame, overwrite=overwrite):
            pass
        return cls.open(url, fingerprint=fingerprint, frame=frame, writable=True)

    @classmethod
    @contextmanager
    def building(
        cls,
        url: str,
        *,
        fingerprint: str,
        dimension: int = 256,
        frame: Frame = OPENFWI_FRAME,
        overwrite: bool = False,
        precision_m_s: float = 0.0,
    ) -> Iterator[MilvusStore]:
        """A new gallery to fill, which can be opened once the block has ended.

        One whose building was interrupted cannot be opened, and is dropped by the next `building`.

        Raises:
            GalleryError: there is a gallery already, also with ``overwrite``: Milvus replaces none at once.
            InvalidConfig, MissingExtra, GalleryUnreachable: see `open`.
        """
        step_m_s(precision_m_s)  # refuses what no gallery can have
        location = Location.parse(url)
        with ExitStack() as files:
            connection = files.enter_context(closing(Connection(location)))
            velocity, physics, blobs = names = _collections(location)
            if connection.exists(blobs):
                connection.load(blobs)
                if _read(connection, blobs, "_facts"):
                    raise GalleryError(
                        f"There is a gallery at {location.text} already"
                        + (", and Milvus cannot replace it at once" if overwrite else "")
                        + ". Choose another collection; what is not needed any more is dropped in Milvus itself."
                    )
            for name in names:
                if connection.exists(name):
                    connection.drop(name)
            connection.create(blobs, BLOB_FIELDS, len(NOWHERE))
            connection.create(physics, FIELDS, dimension)
            connection.create(velocity, FIELDS, dimension)
            maps = files.enter_context(closing(_maps(connection, location)))
            _write(connection, blobs, "_state", asdict(_State()))
            embeddings = fingerprint.embeddings if isinstance(fingerprint, Fingerprint) else None
            facts = _Facts(
                FORMAT_VERSION, fingerprint, dimension, frame.to_dict(), utc_now(), location.maps, embeddings or None,
                precision_m_s,
            )  # fmt: skip
            yield cls(connection, location, facts, _State(), maps, True)
            _write(connection, blobs, "_facts", asdict(facts))

    @classmethod
    def open(
        cls, url: str, *, fingerprint: str | None, frame: Frame | None = None, writable: bool = False
    ) -> MilvusStore:
        """Open the gallery at ``url``, such as ``milvus://host:19530/gallery?maps=s3://bucket/prefix``.

        Args:
            fingerprint, frame: of the weights that queries come from; None not to compare them.
            writable: allow changes. That takes no lock: Milvus has none.

        Raises:
            GalleryNotFound: there is none, or its building was interrupted.
            GalleryUnreachable: nobody answers there within seconds.
            GalleryError: its format belongs to another version, its maps are elsewhere, or the token is refused.
            WeightsMismatch: it was made with other weights, or for another frame.
            InvalidConfig: a URL that cannot be read, or with a password in it.
            MissingExtra: `pymilvus` or `obstore` is not installed.
        """
        location = Location.parse(url)
        with ExitStack() as files:
            connection = files.enter_context(closing(Connection(location)))
            velocity, physics, blobs = names = _collections(location)
            if not all(connection.exists(name) for name in names):
                raise GalleryNotFound(f"There is no gallery at {location.text}. 'seisbind gallery build' makes one.")
            connection.load(blobs)
            facts = _facts(_read(connection, blobs, "_facts"), location)
            _check_weights(facts, fingerprint, frame, location)
            connection.load(physics)
            connection.load(velocity)
            maps = files.enter_context(closing(_maps(connection, location)))
            store = cls(connection, location, facts, _State(), maps, writable)
            store._look()
            if writable and store._notes:  # the last change was interrupted: what is there counts from now on
                state = replace(store._state, generation=store._state.generation + 1)
                _write(connection, blobs, "_state", asdict(state))
                store._state = state
            store._files.push(files.pop_all())
            return store

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return self._state.count

    @property
    def generation(self) -> int:
        """The number of changes so far, as of opening, the last change made here or the last `refresh`."""
        return self._state.generation

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence where the number of models is not that of the last change that was finished."""
        return self._notes

    @property
    def stamp(self) -> str:
        """Of the last change that was finished, as `generation`: Milvus keeps no digest of all models."""
        return str(self.generation)

    @property
    def search_device(self) -> str:
        return "milvus"

    @property
    def device_bytes(self) -> int:
        """None here: Milvus holds the vectors."""
        return 0

    def search_on(self, device: torch.device, *, on_fall_back: Callable[[str], object] = lambda reason: None) -> None:
        """Nothing to do: Milvus searches."""

    @property
    def approximate(self) -> ApproximateInfo | None:
        """None: Milvus is asked for exact searches."""
        return None

    @property
    def live_recall(self) -> LiveRecall:
        """Of no searches: all are exact."""
        return LiveRecall(None, 0)

    def stored(self, velocity: ArrayLike) -> Float32:
        """See `Gallery.stored`."""
        return rounded(check_velocity(velocity), self.precision_m_s)

    def marks(self) -> tuple[object, object]:
        """See `Gallery.marks`; generation and count are then those of now."""
        served = self._state.generation, self._state.count
        try:
            self.refresh()
        except GalleryError as error:
            return served, type(error).__name__
        return served, (self._state.generation, self._state.count)

    def is_current(self) -> bool:
        """False: whether others have changed it is not known without asking for as much as there is to read."""
        return False

    def close(self, *, lists: bool = True) -> None:
        """Close the connections. May be called twice. ``lists`` is for `Gallery`: here there are none to make."""
        self._files.close()

    # -- reading ---------------------------------------------------------------------------------------------------

    def _look(self) -> _State:
        """Read the state, and count the models."""
        velocity, _, blobs = self._collections
        found = _read(self._connection, blobs, "_state")
        try:
            state = _State(**{name: int(value) for name, value in (found or {}).items()})
        except (TypeError, ValueError) as error:
            raise GalleryDamaged(f"The gallery at {self.path} is damaged: its state cannot be read.") from error
        held = int(self._connection.query(velocity, "row > 0", ["count(*)"])[0]["count(*)"])
        self._notes = ()
        if held != state.count:
            self._notes = (
                f"{held} velocity models are there, and {state.count} after the last change that was finished: one is "
                "under way, or was interrupted.",
            )
        self._state = replace(state, count=held)
        return self._state

    def refresh(self) -> bool:
        """Read generation and count again; True if there was a change. Searches see changes without it."""
        with self._changing:
            before, now = self._state, self._look()
            changed = (now.generation, now.count) != (before.generation, before.count)
            if changed:
                self._census = None
            return changed

    @contextmanager
    def unchanging(self) -> Iterator[None]:
        """What a search inside finds can be read inside, also if it is removed meanwhile.

        That is all: Milvus has no snapshots, so two searches may see the gallery of different moments.
        """
        self.refresh()
        before = getattr(self._block, "found", None)
        self._block.found = {}
        try:
            yield
        finally:
            self._block.found = before

    def search_velocity(
        self, queries: ArrayLike, k: int, *, filter: Filter | None = None, exact: bool | None = None
    ) -> Hits:
        """As `Gallery.search_velocity`. Raises GalleryUnreachable, GalleryDamaged, too."""
        return self._search(0, queries, k, filter)

    def search_physics(self, queries: ArrayLike, k: int, *, filter: Filter | None = None) -> Hits:
        """As `search_velocity`, by the physics embedding."""
        return self._search(1, queries, k, filter)

    def _search(self, space: int, queries: ArrayLike, k: int, condition: Filter | None) -> Hits:
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= MAX_K:
            raise InvalidQuery(f"k is a whole number from 1 to {MAX_K}; got {k!r}.")
        vectors = unit_vectors(queries, self.dimension, "queries")
        wanted, asked = expression(condition), int(k)
        size = max(1, ROWS_AT_ONCE // (asked + EXTRA))
        found: list[list[Hit]] = []
        for start in range(0, len(vectors), size):
            found += self._search_part(space, vectors[start : start + size], asked, condition, wanted)
        return Hits(found)

    def _search_part(
        self, space: int, vectors: Float32, k: int, condition: Filter | None, wanted: str
    ) -> list[list[Hit]]:
        """More and more hits of each query, until none that is missing can be among the best."""
        answers: list[list[Hit]] = [[] for _ in vectors]
        open_ones, limit = list(range(len(vectors))), min(MOST, k + EXTRA)
        while open_ones:
            asked = [vectors[number].tolist() for number in open_ones]
            results = self._connection.search(self._collections[space], asked, limit, wanted, ALL)
            left = []
            for number, hits in zip(open_ones, results, strict=True):
                found = self._ranked(space, vectors[number], [row for _, row in hits], condition)
                lowest = min((product for product, _ in hits), default=-1.0)
                if len(hits) < limit or (len(found) >= k and found[k - 1].similarity > lowest + PRODUCT_ERROR):
                    answers[number] = found[:k]
                else:
                    left.append(number)
            if left and limit == MOST:
                raise GalleryError(
                    f"More than {MOST} models of {self.path} are equally near to a query; Milvus gives no more, so "
                    "which of them come first cannot be said. Ask with a filter."
                )
            open_ones, limit = left, min(MOST, 4 * limit)
        return answers

    def _ranked(
        self, space: int, query: Float32, rows: Sequence[dict[str, Any]], condition: Filter | None
    ) -> list[Hit]:
        """Hits, each compared with its checksums, by their similarities in float64; equal ones by row."""
        found = {each.record.model_id: each for each in (sealed(row, self.path) for row in rows)}
        if space and found:  # a model whose change was interrupted may be among the physics alone
            held = self._checksums(list(found))
            found = {name: each for name, each in found.items() if held.get(name) == each.record.checksum}
        for each in found.values():
            if condition and not condition.matches(each.record):
                raise GalleryDamaged(
                    f"Milvus gives {each.record.model_id!r} of {self.path} for a filter that it fails."
                )
        kept = getattr(self._block, "found", None)
        if kept is not None:
            kept.update(found)
        ordered = list(found.values())
        vectors = np.asarray([each.vector for each in ordered], np.float64).reshape(-1, self.dimension)
        similarities = np.clip((vectors * query.astype(np.float64)).sum(axis=1), -1.0, 1.0)
        hits = [
            Hit(each.record.model_id, float(similarity), each.row, each.record.family, each.record.descriptors)
            for each, similarity in zip(ordered, similarities, strict=True)
        ]
        return sorted(hits, key=lambda hit: (-hit.similarity, hit.row))

    def _checksums(self, model_ids: Sequence[str]) -> dict[str, str]:
        found: dict[str, str] = {}

        def read(part: Sequence[str]) -> None:
            asked = f"model_id in {words(part)}"
            rows = self._connection.query(self._collections[0], asked, ["model_id", "checksum"])
            found.update((row["model_id"], row["checksum"]) for row in rows)

        in_parts(model_ids, PART, read)
        return found

    def _sealed(self, model_ids: Sequence[str], fields: Sequence[str] = COLUMNS, space: int = 0) -> list[Sealed]:
        """The records of several models, in that order. Raises UnknownModel, GalleryDamaged."""
        found = {} if fields is not COLUMNS else dict(getattr(self._block, "found", None) or {})

        def read(part: Sequence[str]) -> None:
            for row in self._connection.query(self._collections[space], f"model_id in {words(part)}", fields):
                found[row["model_id"]] = sealed(row, self.path)

        asked = [str(each) for each in dict.fromkeys(model_ids) if each not in found]
        in_parts([each for each in asked if _plain(each)], PART, read)
        for model_id in model_ids:
            if model_id not in found:
                raise UnknownModel(f"No velocity model {model_id!r} in the gallery at {self.path}.")
        return [found[model_id] for model_id in model_ids]

    def record(self, model_id: str) -> Record:
        """The record of one model. Raises UnknownModel, GalleryDamaged, GalleryUnreachable."""
        return self.records([model_id])[0]

    def records(self, model_ids: Sequence[str]) -> list[Record]:
        """The records of several models, in that order. Raises as `record` does."""
        return [each.record for each in self._sealed(model_ids)]

    def velocity(self, model_id: str) -> Float32:
        """The map of one model, ``(depth, x)`` float32, m/s. Raises as `record` does."""
        return self.velocities([model_id])[0]

    def velocities(self, model_ids: Sequence[str]) -> list[Float32]:
        """The maps of several models, in that order. Raises as `record` does."""
        return self._maps.get([(each.map_key, each.record.shape) for each in self._sealed(model_ids)])

    def embeddings(self, model_ids: Sequence[str]) -> tuple[Float32, Float32]:
        """Velocity and physics embeddings, ``(model, dimension)`` each. Raises as `record` does."""
        read = [self._sealed(model_ids, ALL, space) for space in (0, 1)]
        for velocity, physics in zip(*read, strict=True):
            self._check_pair(velocity, physics)
        shape = (len(model_ids), self.dimension)
        velocities, others = (np.asarray([each.vector for each in one], np.float32).reshape(shape) for one in read)
        return velocities, others

    def _check_pair(self, velocity: Sealed, physics: Sealed) -> None:
        if velocity.vector is None or physics.vector is None or not both_fit(velocity, velocity.vector, physics.vector):
            raise GalleryDamaged(
                f"The gallery at {self.path} is damaged: the embeddings of {velocity.record.model_id!r} are not those "
                "that it was added with."
            )

    def _pages(self, fields: Sequence[str], space: int = 0) -> Iterator[list[dict[str, Any]]]:
        """All rows, by number."""
        size = PAGE if fields is not ALL else PART
        for first in range(0, self._state.last_row, size):
            asked = f"row > {first} and row <= {first + size}"
            found = self._connection.query(self._collections[space], asked, fields)
            yield sorted(found, key=lambda row: int(row["row"]))

    def model_ids(self) -> list[str]:
        """All ids, in the order they were added."""
        self.refresh()
        return [row["model_id"] for rows in self._pages(["model_id", "row"]) for row in rows]

    def listed(self, *, filter: Filter | None = None, limit: int | None = None) -> Iterator[Record]:
        """The records that fit ``filter``, in the order they were added, each compared with its checksum."""
        self.refresh()
        left = limit
        for rows in self._pages(COLUMNS):
            for row in rows:
                record = sealed(row, self.path).record
                if left != 0 and (not filter or filter.matches(record)):
                    yield record
                    left = None if left is None else left - 1
            if left == 0:
                return

    # -- counting --------------------------------------------------------------------------------------------------

    def _counted(self) -> Census:
        """Goes through all models, the first time and after changes by others."""
        with self._changing:
            if self._census is None or len(self._census) != self._state.count:
                self._census = count(self._connection, self._collections[0], self._state.last_row)
            return self._census

    def families(self) -> dict[str, int]:
        """How many models each family has, by name."""
        return self._counted().families()

    def info(self) -> GalleryInfo:
        """A description of this gallery, as of the last change made here or `refresh`."""
        with self._changing:
            census = self._counted()
            return GalleryInfo(
                path=self.path,
                count=len(self),
                families=census.families(),
                fingerprint=self.fingerprint,
                dimension=self.dimension,
                format_version=self._facts.format_version,
                generation=self.generation,
                bytes=0,  # Milvus does not say
                created_at=self._facts.created_at,
                descriptor_ranges=census.ranges(),
                notes=self._notes,
                frame=self.frame,
                search_device=self.search_device,
                precision_m_s=self.precision_m_s,
            )

    def distribution(self) -> Distribution:
        """How the descriptors of all models are distributed, as of then."""
        with self._changing:
            return Distribution(self.generation, self._counted().histograms(HISTOGRAM_PARTS))

    def verify(self) -> VerifyReport:
        """Read every record, both embeddings and the map of every model, and compare them with their checksums."""
        self.refresh()
        problems: list[str] = []
        held = 0
        for rows in self._pages(ALL):
            others = {row["model_id"]: row for row in self._others([row["model_id"] for row in rows])}
            maps: list[tuple[str, tuple[int, int]]] = []
            for row in rows:
                held += 1
                try:
                    found = sealed(row, self.path)
                    maps.append((found.map_key, found.record.shape))
                    other = others.get(found.record.model_id)
                    if other is None:
                        raise GalleryDamaged(f"{found.record.model_id!r} has no physics embedding.")
                    self._check_pair(found, sealed(other, self.path))
                except GalleryDamaged as error:
                    problems.append(str(error))
            problems += self._damaged_maps(maps)
        more = len(problems) - MAX_PROBLEMS
        shown = problems[:MAX_PROBLEMS] + ([f"and {more} more"] if more > 0 else [])
        return VerifyReport(held, tuple(shown), self._notes)

    def _damaged_maps(self, maps: Sequence[tuple[str, tuple[int, int]]]) -> list[str]:
        """What is wrong with them: all at once first, and one by one to say which."""
        try:
            self._maps.get(maps)
        except GalleryDamaged as error:
            if len(maps) == 1:
                return [str(error)]
            half = len(maps) // 2
            return self._damaged_maps(maps[:half]) + self._damaged_maps(maps[half:])
        return []

    def _others(self, model_ids: Sequence[str]) -> list[dict[str, Any]]:
        asked = [each for each in model_ids if _plain(each)]
        return self._connection.query(self._collections[1], f"model_id in {words(asked)}", ALL) if asked else []

    # -- changing --------------------------------------------------------------------------------------------------

    def _begin(self, doing: str) -> _State:
        """The state before a change."""
        if not self._writable:
            raise GalleryError(f"{self.path} was opened for reading. Open it with writable=True to {doing}.")
        found = _read(self._connection, self._collections[2], "_state")
        state = _State(**(found or {}))
        if state.generation != self._state.generation:  # another process changed it since
            self._look()
            self._census = None
            return self._state
        return replace(state, count=self._state.count)

    def _end(self, state: _State) -> None:
        _write(self._connection, self._collections[2], "_state", asdict(state))
        self._state, self._notes = state, ()

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
        """As `Gallery.add`, without comparing maps with those of other ids; when this returns, every search sees them.

        Milvus has no transactions: others may see some of a batch before the rest, a batch that fails is removed again
        as far as Milvus answers, and what a killed process had written stays.

        Raises:
            GalleryUnreachable: too; whether the batch was removed again is in the sentence.
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
        written = self.add_models(models, skip_existing=skip_existing)
        return Added([model.model_id for model in models], {}, written)

    def add_models(self, models: Sequence[NewModel], *, skip_existing: bool = False) -> list[str]:
        """Add models that are checked already; returns the ids of those that were not there. Raises as `add` does."""
        if not models:
            return []
        with self._changing:
            state = self._begin("add")
            new = list(self._free(models, skip_existing))
            if not new:
                return []
            first = state.last_row + 1
            rows = [rows_of(model, first + number) for number, model in enumerate(new)]
            self._maps.put({map_key(model.velocity): model.velocity for model in new})
            state = replace(state, last_row=state.last_row + len(new))
            _write(self._connection, self._collections[2], "_state", asdict(state))  # no row number is used twice
            try:
                for space in (1, 0):
                    name = self._collections[space]
                    in_parts([pair[space] for pair in rows], PART, partial(self._connection.insert, name))
                self._end(replace(state, generation=state.generation + 1, count=state.count + len(new)))
            except SeisBindError as error:
                self._take_back([model.model_id for model in new], error)
                raise
            if self._census is not None:
                for pair in rows:
                    numbers = tuple(float(value) for value in new[pair[0]["row"] - first].descriptors)
                    self._census.add(pair[0]["row"], pair[0]["family_key"], numbers)
            return [model.model_id for model in new]

    def _take_back(self, model_ids: Sequence[str], error: SeisBindError) -> None:
        try:
            for name in self._collections[:2]:
                in_parts(model_ids, PART, partial(self._connection.delete, name))
        except SeisBindError:
            raise type(error)(
                f"{error.sentence} Some of the {len(model_ids)} models may have been added, for Milvus did not answer "
                "when they were to be removed again: add them once more, with those that exist skipped."
            ) from error

    def _free(self, models: Sequence[NewModel], skip_existing: bool) -> Iterator[NewModel]:
        """The models whose id is not taken, by the gallery or by an earlier one of the same batch."""
        taken: dict[str, str] = {}

        def read(part: Sequence[str]) -> None:
            rows = self._connection.query(
                self._collections[0], f"model_id in {words(part)}", ["model_id", "velocity_sha256"]
            )
            taken.update((row["model_id"], row["velocity_sha256"]) for row in rows)

        in_parts([model.model_id for model in models], PART, read)
        for model in models:
            key, other = map_key(model.velocity), taken.get(model.model_id)
            if other is None:
                taken[model.model_id] = key
                yield model
            elif other != key:
                raise InvalidQuery(
                    f"The id {model.model_id!r} already belongs to another velocity model; choose another id, "
                    "or remove that model first. Nothing was added."
                )
            elif not skip_existing:
                raise InvalidQuery(
                    f"The velocity model {model.model_id!r} is already in the gallery. Leave it out, or skip those "
                    "that exist (skip_existing). Nothing was added."
                )

    def remove(self, model_ids: Sequence[str]) -> int:
        """Remove models; returns how many. Their maps stay until `sweep`.

        Raises:
            UnknownModel: one is not there; then none is removed.
            GalleryUnreachable, GalleryWriteFailed: Milvus did not answer, or refused; some may be removed.
        """
        with self._changing:
            state = self._begin("remove")
            named = list(dict.fromkeys(model_ids))
            try:
                found = self._sealed(named)
            except UnknownModel as error:
                raise UnknownModel(f"{error.sentence} Nothing was removed.") from error
            if found:
                for name in self._collections[:2]:
                    in_parts(named, PART, partial(self._connection.delete, name))
            self._end(replace(state, generation=state.generation + 1, count=state.count - len(found)))
            for each in found:
                if self._census is not None:
                    self._census.remove(each.row)
            return len(found)

    def sweep(self, *, older_than: timedelta = SWEEP_AGE) -> tuple[int, int]:
        """Remove what interrupted changes and removed models have left; returns how many maps and embeddings.

        Nobody may add to the gallery meanwhile. In an object store, maps younger than ``older_than`` are left, and a
        prefix belongs to one gallery: maps that another gallery names would be removed.
        """
        with self._changing:
            self._begin("sweep")
            self._look()
            named = {row["velocity_sha256"] for rows in self._pages(["row", "velocity_sha256"]) for row in rows}
            maps = [key for key in self._maps.keys(older_than) if key not in named]
            in_parts(maps, PART, self._maps.delete)
            models = {row["model_id"] for rows in self._pages(["row", "model_id"]) for row in rows}
            pages = self._pages(["row", "model_id"], 1)
            orphans = [row["model_id"] for rows in pages for row in rows if row["model_id"] not in models]
            in_parts(orphans, PART, partial(self._connection.delete, self._collections[1]))
            return len(maps), len(orphans)


def _collections(location: Location) -> tuple[str, str, str]:
    """Of the velocity embeddings, of the physics embeddings, of everything else."""
    name = location.collection
    return name, f"{name}_physics", f"{name}_maps"


def _maps(connection: Connection, location: Location) -> Maps:
    if location.maps is None:
        return MilvusMaps(connection, _collections(location)[2])
    return ObjectMaps(location.maps)


def _plain(model_id: object) -> bool:
    """Whether it can be an id at all; others are in no gallery, and in no expression."""
    from seisbind.index.validation import MODEL_ID

    return isinstance(model_id, str) and bool(MODEL_ID.fullmatch(model_id))


def _read(connection: Connection, collection: str, name: str) -> dict[str, Any] | None:
    """A row of facts; None if it is not there."""
    for row in connection.query(collection, f"name in {words([name])}", ["name", "content"]):
        with suppress(ValueError):
            found = json.loads(row["content"])
            return found if isinstance(found, dict) else None
    return None


def _write(connection: Connection, collection: str, name: str, facts: dict[str, Any]) -> None:
    connection.upsert(collection, [{"name": name, "content": json.dumps(facts), "vector": NOWHERE}])


def _facts(found: dict[str, Any] | None, location: Location) -> _Facts:
    if found is None:
        raise GalleryNotFound(
            f"The gallery at {location.text} is being built, or its building was interrupted. 'seisbind gallery build' "
            "begins it again."
        )
    if found.get("format_version") != FORMAT_VERSION:
        raise GalleryError(
            f"The gallery at {location.text} has format {found.get('format_version')!r:.20}; this version of SeisBind "
            f"reads {FORMAT_VERSION}."
        )
    try:
        facts = _Facts(**found)
    except TypeError as error:
        raise GalleryDamaged(f"The gallery at {location.text} is damaged: its facts cannot be read.") from error
    if facts.maps != location.maps:
        held, asked = facts.maps or "Milvus itself", location.maps or "Milvus itself"
        raise GalleryError(
            f"The velocity maps of the gallery at {location.text} are in {held}, and the URL says {asked}. Give "
            + (f"?maps={facts.maps}." if facts.maps else "it without maps=.")
        )
    return facts


def _check_weights(facts: _Facts, fingerprint: str | None, frame: Frame | None, location: Location) -> None:
    if fingerprint is not None and not embeds_alike(fingerprint, facts.fingerprint, facts.embeddings):
        raise WeightsMismatch(
            f"The gallery at {location.text} was made with weights {facts.fingerprint}; these are {fingerprint}. Use "
            "those weights, or build the gallery again with these."
        )
    if frame is not None and Frame.from_dict(facts.frame) != frame:
        raise WeightsMismatch(
            f"The gallery at {location.text} is of another frame than these weights: {Frame.from_dict(facts.frame)} "
            f"there, {frame} here. Build the gallery again with these."
        )
