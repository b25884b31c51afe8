"""The records of a gallery: what SQLite stores, from which every index is derived.

Every byte is under a checksum that is compared when it is read: a map under ``velocity_sha256``, the two embeddings
under ``embeddings_sha256``, both of these and all other columns under ``checksum``, and the set of
(row, id, checksum) under one digest of the whole, which `Records.catalogue` compares. SQLite's own indices are under
none of them, so nothing that is served is looked up through one alone: a model is read by its row, and what is there
has to be the model that was asked for.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from seisbind.index.storage.codec import decode_embedding, decode_map
from seisbind.index.storage.database import (
    COLUMNS,
    GalleryReplaced,
    check_id,
    connect,
    damaged,
    format_version,
    is_still,
    read_facts,
    stored_precision,
    translate_errors,
)
from seisbind.index.storage.record import (
    CHECKSUM,
    LITTLE,
    Catalogue,
    Float32,
    GalleryState,
    Int64,
    NewModel,
    Record,
    RecordColumns,
    RowLookup,
    digest_entry,
    embeddings_sha256,
    milliseconds,
    objects,
    record_checksum,
    velocity_sha256,
    xor,
)
from seisbind.model.errors import GalleryDamaged, GalleryError, InvalidQuery, UnknownModel, WeightsMismatch
from seisbind.model.fingerprint import Fingerprint, embeds_alike
from seisbind.model.frame import Frame, stored_frame
from seisbind.model.ground.descriptors import NAMES

_MODEL = f"SELECT {COLUMNS}, (SELECT json_group_array(tag) FROM tags WHERE tags.row = models.row) FROM models"

ENTRIES = 1000  # of the list of models read at once, 100 KB

T = TypeVar("T")


class Records:
    """The records in one SQLite file, to read, from any thread; `RecordWriter` changes them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._connection, self.identity = connect(path, writable=False)
        try:
            with self.reading() as connection:
                facts = read_facts(connection, path.parent)
                self.fingerprint: str = facts["fingerprint"]
                self.embeddings_fingerprint: str | None = facts.get("embeddings")
                self.made_with = Fingerprint(self.fingerprint, embeddings=self.embeddings_fingerprint or "")
                self.dimension = int(facts["dimension"])
                self.created_at: str = facts["created_at"]
                self.format_version = format_version(connection)
                self.precision_m_s = stored_precision(facts)
                self.frame = stored_frame(json.loads(facts.get("frame", "null")))  # galleries of before had none
        except BaseException:
            self.close()
            raise

    def check_weights(self, fingerprint: str | None, frame: Frame | None) -> None:
        """Raises WeightsMismatch if the gallery is of another frame, or of weights with other embeddings.

        None is not compared. ``fingerprint``: see `fingerprint.embeds_alike`.
        """
        folder = self.path.parent
        if frame is not None and frame != self.frame:
            raise WeightsMismatch(
                f"The gallery at {folder} is of another frame than these weights: {self.frame} there, {frame} "
                "here. Use weights of that frame, or build the gallery again with these."
            )
        if fingerprint is not None and not embeds_alike(fingerprint, self.fingerprint, self.embeddings_fingerprint):
            raise WeightsMismatch(
                f"The gallery at {folder} was made with weights {self.fingerprint}; these are {fingerprint}, whose "
                "embeddings are others. Use those weights, or build the gallery again with these."
            )

    def check_in_place(self) -> None:
        """Raises GalleryReplaced if another gallery has taken the place of this one."""
        if not is_still(self.path, self.identity):
            raise GalleryReplaced(self.path.parent)

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """One consistent view of the file for everything read inside."""
        connection = self._connection
        with self._lock, translate_errors(self.path.parent, "read"):
            outermost = not connection.in_transaction
            if outermost:
                connection.execute("BEGIN")
            try:
                yield connection
            except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
                if isinstance(error, GalleryError | UnknownModel | InvalidQuery):
                    raise
                raise self._damaged(f"a value of the wrong kind ({error})") from error
            finally:
                if outermost and connection.in_transaction:
                    connection.execute("ROLLBACK")

    def state(self) -> GalleryState:
        """The present state; two equal generations have the same content."""
        with self.reading() as connection:
            return GalleryState.of(read_facts(connection, self.path.parent))

    def data_version(self) -> int:
        """Another number after each change by another connection; in microseconds, for it reads no record."""
        with self._lock, translate_errors(self.path.parent, "read"):
            return int(self._connection.execute("PRAGMA data_version").fetchone()[0])

    def catalogue(self) -> Catalogue:
        """Every model's row, id and checksum.

        Raises:
            GalleryDamaged: they are not the ones that were written.
        """
        with self.reading() as connection:
            state = self.state()
            found = connection.execute("SELECT row, model_id, checksum FROM models ORDER BY row").fetchall()
            digest = xor(digest_entry(*entry) for entry in found)
            if (len(found), digest) != (state.count, state.digest):
                raise self._damaged("the list of models does not match its digest")
            ids = objects([entry[1] for entry in found])
            checksums = np.frombuffer(b"".join(entry[2] for entry in found), CHECKSUM)
            rows = np.fromiter((entry[0] for entry in found), np.int64, len(found))
        return Catalogue(state, rows, ids, checksums)

    def columns(self, rows: Int64 | None = None, *, after: int = 0) -> RecordColumns:
        """The records of ``rows`` (ascending), or of all rows higher than ``after``, by column.

        Raises:
            GalleryDamaged: one is missing or not what was written.
        """
        first, last = (after + 1, 2**63 - 1) if rows is None else (int(rows[0]), int(rows[-1])) if len(rows) else (1, 0)
        wanted = None if rows is None else set(rows.tolist())
        held: list[tuple[int, Record]] = []
        with self.reading() as connection:
            found = connection.execute(f"{_MODEL} WHERE row BETWEEN ? AND ? ORDER BY row", (first, last))
            for columns in found:
                if wanted is None or columns[0] in wanted:
                    held.append(self._decoded(columns))
        if rows is not None and len(held) != len(rows):
            raise self._damaged(f"the records of {len(rows) - len(held)} models are missing")
        records = [record for _, record in held]
        return RecordColumns(
            np.fromiter((row for row, _ in held), np.int64, len(held)),
            objects([record.model_id for record in records]),
            np.frombuffer(b"".join(bytes.fromhex(record.checksum) for record in records), CHECKSUM),
            [record.family for record in records],
            [record.tags for record in records],
            np.array([record.descriptors for record in records], np.float32).reshape(len(records), len(NAMES)),
            [record.source for record in records],
            np.array([milliseconds(record.added_at) for record in records], np.int64),
        )

    def page(self, after: int, count: int) -> list[tuple[int, Record]]:
        """Up to ``count`` records of the rows higher than ``after``, ascending, each with its row.

        Raises:
            GalleryDamaged: one is not what was written.
        """
        with self.reading() as connection:
            found = connection.execute(f"{_MODEL} WHERE row > ? ORDER BY row LIMIT ?", (after, count)).fetchall()
            return [self._decoded(columns) for columns in found]

    def check_rest(self, state: GalleryState, *, after: int, count: int, digest: bytes) -> None:
        """Compare a list of models that was read in parts with ``state``, which was read before its first part.

        Nothing is compared if there was a change since.

        Args:
            after: the last row of the list; the rest is read here, without its records.
            count, digest: of the list.

        Raises:
            GalleryDamaged: list and rest are not what was written.
        """
        with self.reading() as connection:
            if self.state().generation != state.generation:
                return
            found = connection.execute(
                "SELECT row, model_id, checksum FROM models WHERE row > ? ORDER BY row", (after,)
            )
            while entries := found.fetchmany(ENTRIES):
                count += len(entries)
                digest = xor([digest, *(digest_entry(*entry) for entry in entries)])
            if (count, digest) != (state.count, state.digest):
                raise self._damaged("the list of models does not match its digest")

    def rows_until(self, last: int) -> Int64:
        """The stored rows up to ``last``."""
        with self.reading() as connection:
            found = connection.execute("SELECT row FROM models WHERE row <= ? ORDER BY row", (last,)).fetchall()
            return np.fromiter((row for (row,) in found), np.int64, len(found))

    def rows_and_ids(self) -> tuple[Int64, list[str]]:
        """Rows and ids as they are stored, not compared with the digest as `catalogue` does."""
        with self.reading() as connection:
            found = connection.execute("SELECT row, model_id FROM models ORDER BY row").fetchall()
            return np.fromiter((row for row, _ in found), np.int64, len(found)), [model_id for _, model_id in found]

    def embeddings(self, rows: Int64) -> tuple[Float32, Float32]:
        """The velocity and physics embeddings of ``rows`` (ascending), ``(len(rows), dimension)`` each.

        Raises:
            GalleryDamaged: one is missing or not what was written.
        """
        shape = (len(rows), self.dimension)
        velocity, physics = np.empty(shape, np.float32), np.empty(shape, np.float32)
        if not len(rows):
            return velocity, physics
        position = {row: i for i, row in enumerate(rows.tolist())}
        with self.reading() as connection:
            found = connection.execute(
                "SELECT row, e.velocity, e.physics, embeddings_sha256 FROM embeddings e JOIN models USING (row) "
                "WHERE row BETWEEN ? AND ?",
                (int(rows[0]), int(rows[-1])),
            )
            for row, velocity_bytes, physics_bytes, sha256 in found:
                i = position.pop(row, None)
                if i is None:
                    continue
                if self.format_version > 1:
                    try:
                        velocity_bytes, physics_bytes = (
                            decode_embedding(blob, self.dimension) for blob in (velocity_bytes, physics_bytes)
                        )
                    except ValueError as error:
                        raise self._damaged(f"an embedding of row {row}: {error}") from error
                if embeddings_sha256(velocity_bytes, physics_bytes) != sha256:
                    raise self._damaged(f"the embeddings of row {row} do not match their checksum")
                velocity[i] = np.frombuffer(velocity_bytes, LITTLE)
                physics[i] = np.frombuffer(physics_bytes, LITTLE)
        if position:
            raise self._damaged(f"the embeddings of {len(position)} models are missing")
        return velocity, physics

    def models(self, after: int, count: int) -> list[tuple[int, str, NewModel]]:
        """Up to ``count`` models of the rows higher than ``after``, ascending, whole: row, checksum and model of each.

        Raises:
            GalleryDamaged: one is not what was written.
        """
        with self.reading() as connection:
            page = self.page(after, count)
            in_velocity, in_physics = self.embeddings(np.array([row for row, _ in page], np.int64))
            found = []
            for i, (row, record) in enumerate(page):
                velocity = self._velocity(connection, row, record.model_id)
                if velocity is None:
                    raise self._damaged(f"the record of {record.model_id!r} cannot be found")
                words = (record.model_id, record.family, record.tags, record.source, record.added_at)
                model = NewModel(*words, record.descriptors, velocity, in_velocity[i], in_physics[i])
                found.append((row, record.checksum, model))
            return found

    def last_row(self) -> int:
        """The highest row that was ever used; the next one is higher."""
        with self.reading() as connection:
            found = connection.execute("SELECT max(seq) FROM sqlite_sequence WHERE name = 'models'").fetchone()
            return int(found[0] or 0)

    def records(self, model_ids: Sequence[str], lookup: RowLookup) -> list[Record]:
        """The records of ``model_ids``, in that order.

        Raises:
            UnknownModel: one of them is not there.
            GalleryDamaged: one is not what was written.
        """
        with self.reading() as connection:
            return [self._found(connection, model_id, lookup, self._record) for model_id in model_ids]

    def velocities(self, model_ids: Sequence[str], lookup: RowLookup) -> list[Float32]:
        """The maps of ``model_ids``, ``(depth, x)`` float32, m/s, in that order. Raises as `records` does."""
        with self.reading() as connection:
            return [self._found(connection, model_id, lookup, self._velocity) for model_id in model_ids]

    def _found(
        self,
        connection: sqlite3.Connection,
        model_id: str,
        lookup: RowLookup,
        read: Callable[[sqlite3.Connection, int, str], T | None],
    ) -> T:
        """What ``read`` reads of a model by its row.

        A row is missing and that is damage only if ``lookup`` and this transaction are of one generation, and the row
        is of that generation too. Otherwise there was a change, here or in another process: the model may have been
        removed or added, or have a new row.
        """
        row = lookup.row_of.get(model_id)
        found = None if row is None else read(connection, row, model_id)
        if found is not None:
            return found
        if self.state().generation == lookup.generation:
            if row is None:
                raise self._unknown(model_id)
            if lookup.holds(row, model_id):
                raise self._damaged(f"the record of {model_id!r} cannot be found")
        new = connection.execute("SELECT row FROM models WHERE model_id = ?", (model_id,)).fetchone()
        found = None if new is None else read(connection, new[0], model_id)
        if found is None:
            raise self._unknown(model_id)
        return found

    def _record(self, connection: sqlite3.Connection, row: int, model_id: str) -> Record | None:
        columns = connection.execute(f"{_MODEL} WHERE row = ?", (row,)).fetchone()
        if columns is None:
            return None
        check_id(self.path.parent, columns[1], model_id)
        return self._decoded(columns)[1]

    def _velocity(self, connection: sqlite3.Connection, row: int, model_id: str) -> Float32 | None:
        """One map, checked against its own checksum: the rest of the record is not read."""
        found = connection.execute(
            "SELECT model_id, depth, x, velocity_sha256, velocity FROM models LEFT JOIN velocities USING (row) "
            "WHERE row = ?",
            (row,),
        ).fetchone()
        if found is None:
            return None
        held, depth, x, sha256, blob = found
        check_id(self.path.parent, held, model_id)
        if blob is not None and self.format_version > 1:
            try:
                blob = decode_map(blob, (depth, x))
            except ValueError as error:
                raise self._damaged(f"the velocity map of {model_id}: {error}") from error
        if blob is None or velocity_sha256(blob, (depth, x)) != sha256:
            raise self._damaged(f"the velocity map of {model_id} does not match its checksum")
        return np.frombuffer(blob, LITTLE).reshape(depth, x).astype(np.float32)

    def structure(self) -> list[str]:
        """What SQLite's own checks find wrong: pages, indices, references. Empty if all is well."""
        try:
            with self.reading() as connection:
                pages = [line for (line,) in connection.execute("PRAGMA integrity_check") if line != "ok"]
                references = connection.execute("PRAGMA foreign_key_check").fetchall()
        except GalleryDamaged as error:
            return [str(error)]
        return [f"records.sqlite: {line}" for line in pages] + [
            f"records.sqlite: row {row} of {table} belongs to no model" for table, row, *_ in references
        ]

    def _unknown(self, model_id: str) -> UnknownModel:
        return UnknownModel(f"No velocity model {model_id!r} in the gallery at {self.path.parent}.")

    def _decoded(self, columns: tuple[Any, ...]) -> tuple[int, Record]:
        """Row and record out of the columns of `_MODEL`, compared with the record's checksum."""
        row, model_id, family = columns[:3]
        stored = columns[3 : 3 + len(NAMES)]
        source, added_at, depth, x, of_velocity, of_embeddings, checksum, tags = columns[3 + len(NAMES) :]
        words = (model_id, family, tuple(sorted(json.loads(tags))), source, added_at, (depth, x))
        if record_checksum(words, stored, of_velocity, of_embeddings) != checksum:
            raise self._damaged(f"the record of {model_id!r} does not match its checksum")
        return row, Record(*words[:5], np.array(stored, np.float32), words[5], checksum.hex())

    def _damaged(self, what: str) -> GalleryDamaged:
        return damaged(self.path.parent, what)
