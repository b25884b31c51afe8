"""The records of a gallery: what is kept in SQLite, which is the truth that every index is derived from.

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from seisbind.index.storage.database import connect, facts_check, told
from seisbind.index.storage.record import (
    CHECKSUM,
    LITTLE,
    Catalogue,
    Described,
    Float32,
    Int64,
    NewModel,
    Record,
    State,
    digest_entry,
    embeddings_sha256,
    objects,
    record_checksum,
    velocity_sha256,
    xor,
)
from seisbind.model.errors import GalleryDamaged, GalleryError, InvalidQuery, UnknownModel
from seisbind.model.frame import stored_frame
from seisbind.model.ground.descriptors import NAMES

_COLUMNS = (
    "row, model_id, family, "
    + ", ".join(NAMES)
    + ", source, added_at, depth, x, velocity_sha256, embeddings_sha256, checksum"
)
_MODEL = f"SELECT {_COLUMNS}, (SELECT json_group_array(tag) FROM tags WHERE tags.row = models.row) FROM models"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Known:
    """What a gallery in memory knows of its models: the row of each id, as of a number of changes, and the last row."""

    generation: int
    row_of: Mapping[str, int]
    last_row: int


class Records:
    """The records in one SQLite file.

    Two connections, each behind its own lock: one reads, one (of a writable gallery) writes, so that reading goes on
    while a large batch is being written and never sees it half done. Both may be used from any thread.
    """

    def __init__(self, path: Path, *, writable: bool, at_step: Callable[[str], None]) -> None:
        self.path = path
        self._at_step = at_step
        self._read_lock = threading.RLock()
        self._write_lock = threading.RLock()
        # The writer first: after a crash it is the one that may recover the log.
        self._writer = connect(path, writable=True)[0] if writable else None
        try:
            self._reader, self.identity = connect(path, writable=False)
        except BaseException:
            if self._writer is not None:
                self._writer.close()
            raise
        try:
            with self.reading() as connection:
                facts = self._facts(connection)
                self.fingerprint: str = facts["fingerprint"]
                self.dimension = int(facts["dimension"])
                self.created_at: str = facts["created_at"]
                self.frame = stored_frame(json.loads(facts.get("frame", "null")))  # galleries of before had none
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        with self._read_lock:
            self._reader.close()
        if self._writer is not None:
            with self._write_lock, told(self.path.parent, "close"):
                self._writer.close()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """One consistent view of the file for everything read inside."""
        with self._read_lock, told(self.path.parent, "read"):
            outermost = not self._reader.in_transaction
            if outermost:
                self._reader.execute("BEGIN")
            try:
                yield self._reader
            except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
                if isinstance(error, GalleryError | UnknownModel | InvalidQuery):
                    raise
                raise self._damaged(f"a value of the wrong kind ({error})") from error
            finally:
                if outermost and self._reader.in_transaction:
                    self._reader.execute("ROLLBACK")

    @contextmanager
    def _writing(self, doing: str) -> Iterator[sqlite3.Connection]:
        if self._writer is None:
            raise GalleryError(f"{self.path.parent} was opened for reading. Open it with writable=True to {doing}.")
        with self._write_lock, told(self.path.parent, doing):
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._at_step(f"{doing}:before-commit")
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise
            self._at_step(f"{doing}:committed")

    def state(self) -> State:
        """How many changes have been made (two equal numbers, the same content), and what they came to."""
        with self.reading() as connection:
            return self._state(connection)

    def catalogue(self) -> Catalogue:
        """Every model's row, id and checksum.

        Raises:
            GalleryDamaged: they are not the ones that were written.
        """
        with self.reading() as connection:
            state = self._state(connection)
            found = connection.execute("SELECT row, model_id, checksum FROM models ORDER BY row").fetchall()
            digest = xor(digest_entry(*entry) for entry in found)
            if (len(found), digest) != (state.count, state.digest):
                raise self._damaged("the list of models does not match its digest")
            ids = objects([entry[1] for entry in found])
            checksums = np.frombuffer(b"".join(entry[2] for entry in found), CHECKSUM)
            rows = np.fromiter((entry[0] for entry in found), np.int64, len(found))
        return Catalogue(state.generation, digest, rows, ids, checksums)

    def described(self, rows: Int64 | None = None, *, after: int = 0) -> Described:
        """The small columns of ``rows`` (ascending), or of all rows higher than ``after``.

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
        return Described(
            np.fromiter((row for row, _ in held), np.int64, len(held)),
            objects([record.model_id for record in records]),
            np.frombuffer(b"".join(bytes.fromhex(record.checksum) for record in records), CHECKSUM),
            [record.family for record in records],
            [record.tags for record in records],
            np.array([record.descriptors for record in records], np.float32).reshape(len(records), len(NAMES)),
        )

    def page(self, after: int, count: int) -> list[tuple[int, Record]]:
        """Up to ``count`` records of the rows higher than ``after``, ascending, each with its row.

        Raises:
            GalleryDamaged: one is not what was written.
        """
        with self.reading() as connection:
            found = connection.execute(f"{_MODEL} WHERE row > ? ORDER BY row LIMIT ?", (after, count)).fetchall()
            return [self._decoded(columns) for columns in found]

    def rows_until(self, last: int) -> Int64:
        """The rows up to ``last`` that are there, as they are found."""
        with self.reading() as connection:
            found = connection.execute("SELECT row FROM models WHERE row <= ? ORDER BY row", (last,)).fetchall()
            return np.fromiter((row for (row,) in found), np.int64, len(found))

    def listed(self) -> tuple[Int64, list[str]]:
        """Rows and ids as they are found, whether or not they match the digest; see `catalogue`."""
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
                if embeddings_sha256(velocity_bytes, physics_bytes) != sha256:
                    raise self._damaged(f"the embeddings of row {row} do not match their checksum")
                velocity[i] = np.frombuffer(velocity_bytes, LITTLE)
                physics[i] = np.frombuffer(physics_bytes, LITTLE)
        if position:
            raise self._damaged(f"the embeddings of {len(position)} models are missing")
        return velocity, physics

    def records(self, model_ids: Sequence[str], known: Known) -> list[Record]:
        """The records of ``model_ids``, in that order.

        Raises:
            UnknownModel: one of them is not there.
            GalleryDamaged: one is not what was written.
        """
        with self.reading() as connection:
            return [self._found(connection, model_id, known, self._record) for model_id in model_ids]

    def velocities(self, model_ids: Sequence[str], known: Known) -> list[Float32]:
        """The maps of ``model_ids``, ``(depth, x)`` float32, m/s, in that order. Raises as `records` does."""
        with self.reading() as connection:
            return [self._found(connection, model_id, known, self._velocity) for model_id in model_ids]

    def _found(
        self,
        connection: sqlite3.Connection,
        model_id: str,
        known: Known,
        read: Callable[[sqlite3.Connection, int, str], T | None],
    ) -> T:
        """What ``read`` reads of a model by its row.

        A row that is not there although nothing has changed since it was known is damage. If something has changed, in
        another process or on its way into what is known, the model may have gone, or have come, or have got a new row.
        """
        row = known.row_of.get(model_id)
        found = None if row is None else read(connection, row, model_id)
        if found is not None:
            return found
        if self._state(connection).generation == known.generation:
            if row is None:
                raise self._unknown(model_id)
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
        self._same(columns[1], model_id)
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
        self._same(held, model_id)
        if blob is None or velocity_sha256(blob, (depth, x)) != sha256:
            raise self._damaged(f"the velocity map of {model_id} does not match its checksum")
        return np.frombuffer(blob, LITTLE).reshape(depth, x).astype(np.float32)

    def _same(self, held: object, model_id: str) -> None:
        if held != model_id:
            raise self._damaged(f"where {model_id!r} should be there is {held!r:.150}")

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

    def add(
        self, models: Sequence[NewModel], known: Known, *, skip_existing: bool
    ) -> tuple[State, Described, list[NewModel]]:
        """Write ``models`` in one transaction.

        Returns:
            The state, what was written, and the models written: all of them, or with ``skip_existing`` those
            whose id was free. If that is none, nothing was changed and the state is the one before.

        Raises:
            InvalidQuery: an id is taken. With ``skip_existing`` only if it is taken by another velocity map.
            GalleryWriteFailed: the disk refused; nothing was changed.
        """
        with self._writing("add") as connection:
            models = list(self._free(connection, models, known, skip_existing))
            last = connection.execute("SELECT max(seq) FROM sqlite_sequence WHERE name = 'models'").fetchone()[0]
            rows = np.arange(len(models), dtype=np.int64) + max(last or 0, known.last_row) + 1
            if models:
                self._at_step("add:begun")
            checksums: list[bytes] = []
            for row, model in zip(rows.tolist(), models, strict=True):
                checksums.append(self._insert(connection, row, model))
                if len(checksums) == 1:
                    self._at_step("add:first-row")
            ids = [model.model_id for model in models]
            entries = [digest_entry(*entry) for entry in zip(rows.tolist(), ids, checksums, strict=True)]
            state = self._advance(connection, len(models), entries) if models else self._state(connection)
        descriptors = np.reshape([model.descriptors for model in models], (len(models), len(NAMES)))
        families, tags = [model.family for model in models], [model.tags for model in models]
        stored = np.frombuffer(b"".join(checksums), CHECKSUM)
        return state, Described(rows, objects(ids), stored, families, tags, descriptors.astype(np.float32)), models

    def remove(self, model_ids: Sequence[str], known: Known) -> tuple[State, Int64]:
        """Delete models in one transaction; returns the state and the rows deleted.

        Raises:
            UnknownModel: one of them is not there; nothing was changed.
            GalleryWriteFailed: the disk refused; nothing was changed.
        """
        with self._writing("remove") as connection:
            entries: list[bytes] = []
            rows: list[int] = []
            for model_id in dict.fromkeys(model_ids):
                row = known.row_of.get(model_id)
                if row is None:
                    raise UnknownModel(f"No velocity model {model_id!r} in the gallery; nothing was removed.")
                found = connection.execute("SELECT model_id, checksum FROM models WHERE row = ?", (row,)).fetchone()
                if found is None:
                    raise self._damaged(f"the record of {model_id!r} cannot be found")
                self._same(found[0], model_id)
                entries.append(digest_entry(row, *found))
                rows.append(row)
            self._at_step("remove:begun")
            connection.executemany("DELETE FROM models WHERE row = ?", [(row,) for row in rows])
            state = self._advance(connection, -len(rows), entries)
        return state, np.asarray(rows, np.int64)

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

    def _free(
        self, connection: sqlite3.Connection, models: Sequence[NewModel], known: Known, skip_existing: bool
    ) -> Iterator[NewModel]:
        """The models whose id is not taken, by the gallery or by an earlier one of the same batch."""
        taken: dict[str, bytes] = {}
        for model in models:
            sha256 = velocity_sha256(model.velocity.astype(LITTLE).tobytes(), model.velocity.shape)
            row = known.row_of.get(model.model_id)
            other = taken.get(model.model_id)
            if row is not None:
                stored = connection.execute(
                    "SELECT model_id, velocity_sha256 FROM models WHERE row = ?", (row,)
                ).fetchone()
                if stored is None:
                    raise self._damaged(f"the record of {model.model_id!r} cannot be found")
                self._same(stored[0], model.model_id)
                other = stored[1]
            if other is None:
                taken[model.model_id] = sha256
                yield model
            elif other != sha256:
                raise InvalidQuery(
                    f"The id {model.model_id!r} already belongs to another velocity model; choose another id, "
                    "or remove that model first. Nothing was added."
                )
            elif not skip_existing:
                raise InvalidQuery(
                    f"The velocity model {model.model_id!r} is already in the gallery. Leave it out, or skip those "
                    "that exist (skip_existing). Nothing was added."
                )

    def _insert(self, connection: sqlite3.Connection, row: int, model: NewModel) -> bytes:
        """Write one model; returns the checksum of its record."""
        velocity = model.velocity.astype(LITTLE).tobytes()
        embeddings = tuple(e.astype(LITTLE).tobytes() for e in (model.velocity_embedding, model.physics_embedding))
        depth, x = model.velocity.shape
        words = (model.model_id, model.family, model.tags, model.source, model.added_at, (depth, x))
        stored = model.descriptors.tolist()
        of_velocity, of_embeddings = velocity_sha256(velocity, (depth, x)), embeddings_sha256(*embeddings)
        checksum = record_checksum(words, stored, of_velocity, of_embeddings)
        columns = (
            row, model.model_id, model.family, *stored, model.source, model.added_at, depth, x,
            of_velocity, of_embeddings, checksum,
        )  # fmt: skip
        connection.execute(f"INSERT INTO models ({_COLUMNS}) VALUES ({', '.join('?' * len(columns))})", columns)
        connection.executemany("INSERT INTO tags VALUES (?, ?)", [(tag, row) for tag in model.tags])
        connection.execute("INSERT INTO velocities VALUES (?, ?)", (row, velocity))
        connection.execute("INSERT INTO embeddings VALUES (?, ?, ?)", (row, *embeddings))
        return checksum

    def _advance(self, connection: sqlite3.Connection, change: int, entries: Sequence[bytes]) -> State:
        """Bring the sums over the whole file up to date: number of changes and of models, and digest."""
        facts, before = self._facts(connection), self._state(connection)
        state = State(before.generation + 1, before.count + change, xor([before.digest, *entries]))
        facts["generation"], facts["count"] = str(state.generation), str(state.count)
        facts["digest"] = state.digest.hex()
        facts["check"] = facts_check(facts)
        connection.executemany("UPDATE meta SET value = ? WHERE name = ?", [(v, k) for k, v in facts.items()])
        return state

    def _state(self, connection: sqlite3.Connection) -> State:
        facts = self._facts(connection)
        return State(int(facts["generation"]), int(facts["count"]), bytes.fromhex(facts["digest"]))

    def _facts(self, connection: sqlite3.Connection) -> dict[str, str]:
        facts = dict(connection.execute("SELECT name, value FROM meta").fetchall())
        if facts.get("check") != facts_check(facts):
            raise self._damaged("the facts about the whole gallery do not match their checksum")
        return facts

    def _damaged(self, what: str) -> GalleryDamaged:
        return GalleryDamaged(
            f"The gallery at {self.path.parent} is damaged: {what}. Restore it from a copy, or build it again; "
            "'seisbind gallery verify' lists what is wrong."
        )
