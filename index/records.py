"""The records of a gallery: what is kept in SQLite, which is the truth that every index is derived from.

Every byte is under a checksum that is compared when it is read: a map under ``velocity_sha256``, the two embeddings
under ``embeddings_sha256``, both of these and all other columns under ``checksum``, and the set of
(row, id, checksum) under one digest of the whole, which `Records.catalogue` compares.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from seisbind.index.database import connect, facts_check, told
from seisbind.index.filter import Filter
from seisbind.index.record import (
    LITTLE,
    Catalogue,
    Float32,
    Histogram,
    Int64,
    NewModel,
    Record,
    digest_entry,
    embeddings_sha256,
    record_checksum,
    velocity_sha256,
    xor,
)
from seisbind.model.descriptors import NAMES
from seisbind.model.errors import GalleryDamaged, GalleryError, InvalidQuery, UnknownModel
from seisbind.model.frame import stored_frame

_COLUMNS = (
    "row, model_id, family, "
    + ", ".join(NAMES)
    + ", source, added_at, depth, x, velocity_sha256, embeddings_sha256, checksum"
)
_MODEL = f"SELECT {_COLUMNS}, (SELECT json_group_array(tag) FROM tags WHERE tags.row = models.row) FROM models"


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
        self._writer = connect(path, writable=True) if writable else None
        try:
            self._reader = connect(path, writable=False)
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

    def generation(self) -> int:
        """How many changes have been made: two equal answers, the same content."""
        with self.reading() as connection:
            return int(self._facts(connection)["generation"])

    def catalogue(self) -> Catalogue:
        """Every model's row, id and key.

        Raises:
            GalleryDamaged: they are not the ones that were written.
        """
        with self.reading() as connection:
            facts = self._facts(connection)
            found = connection.execute("SELECT row, model_id, checksum FROM models ORDER BY row").fetchall()
            digest = xor(digest_entry(*entry) for entry in found)
            if str(len(found)) != facts["count"] or digest.hex() != facts["digest"]:
                raise self._damaged("the list of models does not match its digest")
            ids = np.empty(len(found), object)
            ids[:] = [entry[1] for entry in found]
            checksums = b"".join(entry[2] for entry in found)
            rows = np.fromiter((entry[0] for entry in found), np.int64, len(found))
            keys = np.frombuffer(checksums, np.dtype("<i8")).reshape(-1, 4)[:, 0].astype(np.int64)
        return Catalogue(int(facts["generation"]), rows, ids, keys)

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

    def allowed(self, condition: Filter) -> Int64:
        """The rows that a filter lets through, ascending."""
        clauses: list[str] = []
        values: list[str | float] = []
        if condition.families:
            clauses.append(f"family IN ({', '.join('?' * len(condition.families))})")
            values += condition.families
        for name, (low, high) in condition.ranges:
            clauses.append(f"{name} BETWEEN ? AND ?")
            values += (low, high)
        for tag in condition.tags:
            clauses.append("row IN (SELECT row FROM tags WHERE tag = ?)")
            values.append(tag)
        where = f" WHERE {' AND '.join(clauses)}" if clauses else ""
        with self.reading() as connection:
            found = connection.execute(f"SELECT row FROM models{where} ORDER BY row", values).fetchall()
            return np.fromiter((row for (row,) in found), np.int64, len(found))

    def records(self, model_ids: Sequence[str]) -> list[Record]:
        """The records of ``model_ids``, in that order.

        Raises:
            UnknownModel: one of them is not there.
            GalleryDamaged: one is not what was written.
        """
        with self.reading() as connection:
            return [self._decoded(self._row(connection, model_id))[1] for model_id in model_ids]

    def velocity(self, model_id: str) -> Float32:
        """The map of one model, ``(depth, x)`` float32, m/s. Raises as `records` does."""
        return self.velocities([model_id])[0]

    def velocities(self, model_ids: Sequence[str]) -> list[Float32]:
        """The maps of ``model_ids``, in that order. Raises as `records` does."""
        with self.reading() as connection:
            return [self._velocity(connection, model_id) for model_id in model_ids]

    def _velocity(self, connection: sqlite3.Connection, model_id: str) -> Float32:
        """One map, checked against its own checksum: the rest of the record is not read."""
        found = connection.execute(
            "SELECT depth, x, velocity_sha256, velocity FROM models LEFT JOIN velocities USING (row) "
            "WHERE model_id = ?",
            (model_id,),
        ).fetchone()
        if found is None:
            raise self._unknown(model_id)
        depth, x, sha256, blob = found
        if blob is None or velocity_sha256(blob, (depth, x)) != sha256:
            raise self._damaged(f"the velocity map of {model_id} does not match its checksum")
        return np.frombuffer(blob, LITTLE).reshape(depth, x).astype(np.float32)

    def families(self) -> dict[str, int]:
        """How many models each family has, by name; those without a family are not counted."""
        with self.reading() as connection:
            return dict(
                connection.execute(
                    "SELECT family, count(*) FROM models WHERE family IS NOT NULL GROUP BY family ORDER BY family"
                ).fetchall()
            )

    def descriptor_ranges(self) -> dict[str, tuple[float, float]]:
        """Lowest and highest value of each descriptor; empty for an empty gallery."""
        with self.reading() as connection:
            ends = connection.execute(
                "SELECT " + ", ".join(f"min({name}), max({name})" for name in NAMES) + " FROM models"
            ).fetchone()
        if ends[0] is None:
            return {}
        return {name: (ends[2 * i], ends[2 * i + 1]) for i, name in enumerate(NAMES)}

    def histograms(self, parts: int) -> dict[str, Histogram]:
        """How many models lie in each of ``parts`` equal parts of each descriptor's range; empty for an empty gallery.

        One descriptor after another, so that nobody waits for all of them.
        """
        found = {}
        for name in NAMES:
            with self.reading() as connection:
                low, high = connection.execute(f"SELECT min({name}), max({name}) FROM models").fetchone()
                if low is None:
                    return {}
                part = f"min({parts - 1}, CAST(({name} - ?) * {parts} / ? AS INTEGER))"
                grouped = f"SELECT {part} AS part, count(*) FROM models GROUP BY part"
                held = dict(connection.execute(grouped, (low, high - low or 1.0)).fetchall())
            found[name] = Histogram(low, high, tuple(held.get(number, 0) for number in range(parts)))
        return found

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

    def add(self, models: Sequence[NewModel], *, skip_existing: bool) -> tuple[int, Int64, list[NewModel]]:
        """Write ``models`` in one transaction.

        Returns:
            The generation, the rows given, and the models written: all of them, or with ``skip_existing`` those
            whose id was free. If that is none, nothing was changed and the generation is the one before.

        Raises:
            InvalidQuery: an id is taken. With ``skip_existing`` only if it is taken by another velocity map.
            GalleryWriteFailed: the disk refused; nothing was changed.
        """
        with self._writing("add") as connection:
            models = list(self._free(connection, models, skip_existing))
            if not models:
                return int(self._facts(connection)["generation"]), np.empty(0, np.int64), []
            last = connection.execute("SELECT max(seq) FROM sqlite_sequence WHERE name = 'models'").fetchone()[0]
            rows = np.arange(len(models), dtype=np.int64) + (last or 0) + 1
            self._at_step("add:begun")
            entries: list[bytes] = []
            for row, model in zip(rows.tolist(), models, strict=True):
                entries.append(self._insert(connection, row, model))
                if len(entries) == 1:
                    self._at_step("add:first-row")
            generation = self._advance(connection, len(models), entries)
        return generation, rows, models

    def remove(self, model_ids: Sequence[str]) -> tuple[int, Int64]:
        """Delete models in one transaction; returns the generation and the rows deleted.

        Raises:
            UnknownModel: one of them is not there; nothing was changed.
            GalleryWriteFailed: the disk refused; nothing was changed.
        """
        with self._writing("remove") as connection:
            entries: list[bytes] = []
            rows: list[int] = []
            for model_id in dict.fromkeys(model_ids):
                found = connection.execute(
                    "SELECT row, model_id, checksum FROM models WHERE model_id = ?", (model_id,)
                ).fetchone()
                if found is None:
                    raise UnknownModel(f"No velocity model {model_id!r} in the gallery; nothing was removed.")
                entries.append(digest_entry(*found))
                rows.append(found[0])
            self._at_step("remove:begun")
            connection.executemany("DELETE FROM models WHERE row = ?", [(row,) for row in rows])
            generation = self._advance(connection, -len(rows), entries)
        return generation, np.asarray(rows, np.int64)

    def _row(self, connection: sqlite3.Connection, model_id: str) -> tuple[Any, ...]:
        columns: tuple[Any, ...] | None = connection.execute(f"{_MODEL} WHERE model_id = ?", (model_id,)).fetchone()
        if columns is None:
            raise self._unknown(model_id)
        return columns

    def _unknown(self, model_id: str) -> UnknownModel:
        return UnknownModel(f"No velocity model {model_id!r} in the gallery at {self.path.parent}.")

    def _decoded(self, columns: tuple[Any, ...]) -> tuple[int, Record, bytes]:
        """Row, record, and the checksum of the map, out of the columns of `_MODEL`."""
        row, model_id, family = columns[:3]
        stored = columns[3 : 3 + len(NAMES)]
        with np.errstate(over="ignore"):  # only a damaged one is too large, and the checksum is next
            descriptors = np.asarray(stored, np.float64).astype(np.float32)
        source, added_at, depth, x, of_velocity, of_embeddings, checksum, tags = columns[3 + len(NAMES) :]
        record = Record(
            model_id, family, tuple(sorted(json.loads(tags))), source, added_at, descriptors, (depth, x), checksum.hex()
        )
        if record_checksum(record, stored, of_velocity, of_embeddings) != checksum:
            raise self._damaged(f"the record of {model_id!r} does not match its checksum")
        return row, record, of_velocity

    def _free(
        self, connection: sqlite3.Connection, models: Sequence[NewModel], skip_existing: bool
    ) -> Iterator[NewModel]:
        """The models whose id is not taken, by the gallery or by an earlier one of the same batch."""
        taken: dict[str, bytes] = {}
        for model in models:
            sha256 = velocity_sha256(model.velocity.astype(LITTLE).tobytes(), model.velocity.shape)
            stored = connection.execute(
                "SELECT velocity_sha256 FROM models WHERE model_id = ?", (model.model_id,)
            ).fetchone()
            other = stored[0] if stored else taken.get(model.model_id)
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
        """Write one model; returns its share of the digest."""
        velocity = model.velocity.astype(LITTLE).tobytes()
        embeddings = tuple(e.astype(LITTLE).tobytes() for e in (model.velocity_embedding, model.physics_embedding))
        depth, x = model.velocity.shape
        record = Record(
            model.model_id, model.family, model.tags, model.source, model.added_at, model.descriptors, (depth, x), ""
        )
        stored = model.descriptors.tolist()
        of_velocity, of_embeddings = velocity_sha256(velocity, (depth, x)), embeddings_sha256(*embeddings)
        checksum = record_checksum(record, stored, of_velocity, of_embeddings)
        columns = (
            row, model.model_id, model.family, *stored, model.source, model.added_at, depth, x,
            of_velocity, of_embeddings, checksum,
        )  # fmt: skip
        connection.execute(f"INSERT INTO models ({_COLUMNS}) VALUES ({', '.join('?' * len(columns))})", columns)
        connection.executemany("INSERT INTO tags VALUES (?, ?)", [(tag, row) for tag in model.tags])
        connection.execute("INSERT INTO velocities VALUES (?, ?)", (row, velocity))
        connection.execute("INSERT INTO embeddings VALUES (?, ?, ?)", (row, *embeddings))
        return digest_entry(row, model.model_id, checksum)

    def _advance(self, connection: sqlite3.Connection, change: int, entries: Sequence[bytes]) -> int:
        """Bring the sums over the whole file up to date: number of changes and of models, and digest."""
        facts = self._facts(connection)
        generation = int(facts["generation"]) + 1
        facts["generation"] = str(generation)
        facts["count"] = str(int(facts["count"]) + change)
        facts["digest"] = xor([bytes.fromhex(facts["digest"]), *entries]).hex()
        facts["check"] = facts_check(facts)
        connection.executemany("UPDATE meta SET value = ? WHERE name = ?", [(v, k) for k, v in facts.items()])
        return generation

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
