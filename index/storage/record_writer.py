"""Adding and removing records: one transaction a change, with the digest of all models kept up to date in it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np

from seisbind.index.storage.codec import encode_embedding, encode_map
from seisbind.index.storage.database import (
    COLUMNS,
    check_id,
    connect,
    damaged,
    facts_check,
    format_version,
    read_facts,
    translate_errors,
)
from seisbind.index.storage.maps import MapLookup, MapsAhead
from seisbind.index.storage.record import (
    CHECKSUM,
    LITTLE,
    Coded,
    CodedModel,
    GalleryState,
    Int64,
    NewModel,
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
from seisbind.model.errors import InvalidQuery, UnknownModel
from seisbind.model.ground.descriptors import NAMES

_INSERT = f"INSERT INTO models ({COLUMNS}) VALUES ({', '.join('?' * (COLUMNS.count(',') + 1))})"

M = TypeVar("M", NewModel, CodedModel)

AHEAD_MODELS = 32_768  # from so many on the table of maps, which takes 7 us a model, is not left to the first addition


class RecordWriter:
    """The connection that changes the records; one thread at a time may use it.

    ``codes`` is whether maps and embeddings are stored coded, as format 2 has them.

    `Records` reads through another, so that reading goes on while a large batch is written and never sees half of it.
    """

    def __init__(self, path: Path, *, at_step: Callable[[str], None]) -> None:
        self._folder = path.parent
        self._at_step = at_step
        self._connection = connect(path, writable=True)[0]
        self._maps: MapLookup | None = None  # made by the first `add`
        large = int(read_facts(self._connection, self._folder)["count"]) >= AHEAD_MODELS
        self._ahead = MapsAhead(path) if large else None
        self.codes = format_version(self._connection) > 1

    def close(self) -> None:
        if self._ahead is not None:
            self._ahead.close()
        with translate_errors(self._folder, "close"):
            self._connection.close()

    def add(
        self, models: Sequence[M], lookup: RowLookup, *, skip_existing: bool
    ) -> tuple[GalleryState, RecordColumns, list[M], dict[str, str]]:
        """Write ``models`` in one transaction; coded ones only where `codes`.

        Returns:
            The state, what was written, the models written: all of them, or with ``skip_existing`` those whose id was
            free and whose map no other model has; and for each id whose map another model has, the id of that one. If
            none was written, nothing was changed and the state is the one before.

        Raises:
            InvalidQuery: an id is taken. With ``skip_existing`` only if it is taken by another velocity map.
            GalleryWriteFailed: the disk refused; nothing was changed.
        """
        with self._transaction("add") as connection:
            same_map: dict[str, str] = {}
            if self._maps is None and self._ahead is not None:
                self._maps = self._ahead.lookup()
            maps = self._maps = self._maps or MapLookup(connection, self._folder)
            of_map = [_map_sha256(model) for model in models]
            free = list(self._free(connection, models, of_map, lookup, maps, skip_existing, same_map))
            models, of_map = [models[i] for i in free], [of_map[i] for i in free]
            last = connection.execute("SELECT max(seq) FROM sqlite_sequence WHERE name = 'models'").fetchone()[0]
            rows = np.arange(len(models), dtype=np.int64) + max(last or 0, lookup.last_row) + 1
            if models:
                self._at_step("add:begun")
            checksums = self._insert(connection, rows[:1].tolist(), models[:1])
            if models:
                self._at_step("add:first-row")
            checksums += self._insert(connection, rows[1:].tolist(), models[1:])
            ids = [model.model_id for model in models]
            entries = [digest_entry(*entry) for entry in zip(rows.tolist(), ids, checksums, strict=True)]
            state = (
                self._advance(connection, len(models), entries)
                if models
                else GalleryState.of(read_facts(connection, self._folder))
            )
        for row, sha256 in zip(rows.tolist(), of_map, strict=True):
            maps.add(sha256, row)
        descriptors = np.reshape([model.descriptors for model in models], (len(models), len(NAMES)))
        families, tags = [model.family for model in models], [model.tags for model in models]
        stored = np.frombuffer(b"".join(checksums), CHECKSUM)
        columns = RecordColumns(
            rows, objects(ids), stored, families, tags, descriptors.astype(np.float32),
            [model.source for model in models], np.array([milliseconds(model.added_at) for model in models], np.int64),
        )  # fmt: skip
        return state, columns, models, same_map

    def copy(self, rows: Sequence[int], models: Sequence[NewModel], checksums: Sequence[str], *, last: int) -> None:
        """Write ``models`` of another gallery in one transaction, each in the row that it has there.

        Args:
            checksums: of their records there, hexadecimal.
            last: the highest row that was ever used there.

        Raises:
            GalleryDamaged: what would be written has another checksum.
            GalleryWriteFailed: the disk refused; nothing was changed.
        """
        with self._transaction("copy") as connection:
            entries = []
            written = self._insert(connection, rows, models)
            for row, model, checksum, expected in zip(rows, models, written, checksums, strict=True):
                if checksum.hex() != expected:
                    raise damaged(self._folder, f"the record of {model.model_id!r} became another one")
                entries.append(digest_entry(row, model.model_id, checksum))
            self._advance(connection, len(models), entries)
            connection.execute("DELETE FROM sqlite_sequence WHERE name = 'models'")
            connection.execute("INSERT INTO sqlite_sequence VALUES ('models', ?)", (last,))

    def continue_from(self, generation: int) -> None:
        """Count changes from those of another gallery on, of which this is a copy."""
        with self._transaction("continue") as connection:
            facts = read_facts(connection, self._folder)
            facts["generation"] = str(generation)
            self._put(connection, facts)

    def remove(self, model_ids: Sequence[str], lookup: RowLookup) -> tuple[GalleryState, Int64]:
        """Delete models in one transaction; returns the state and the rows deleted.

        Raises:
            UnknownModel: one of them is not there; nothing was changed.
            GalleryWriteFailed: the disk refused; nothing was changed.
        """
        with self._transaction("remove") as connection:
            entries: list[bytes] = []
            rows: list[int] = []
            for model_id in dict.fromkeys(model_ids):
                row = lookup.row_of.get(model_id)
                if row is None:
                    raise UnknownModel(f"No velocity model {model_id!r} in the gallery; nothing was removed.")
                entries.append(digest_entry(row, model_id, self._stored(connection, "checksum", row, model_id)))
                rows.append(row)
            self._at_step("remove:begun")
            connection.executemany("DELETE FROM models WHERE row = ?", [(row,) for row in rows])
            state = self._advance(connection, -len(rows), entries)
        return state, np.asarray(rows, np.int64)

    def _free(
        self,
        connection: sqlite3.Connection,
        models: Sequence[NewModel | CodedModel],
        of_map: Sequence[bytes],
        lookup: RowLookup,
        maps: MapLookup,
        skip_existing: bool,
        same_map: dict[str, str],
    ) -> Iterator[int]:
        """The numbers of the models whose id is not taken, by the gallery or by an earlier one of the same batch.

        ``of_map`` has the SHA-256 of each one's map.

        ``same_map`` is given the ids whose map another model has, and the id of that one; with ``skip_existing`` they
        are left out.
        """
        taken: dict[str, bytes] = {}
        first: dict[bytes, str] = {}
        candidates = maps.rows(of_map)
        for number, (model, sha256) in enumerate(zip(models, of_map, strict=True)):
            row = lookup.row_of.get(model.model_id)
            other = taken.get(model.model_id)
            if row is not None:
                other = self._stored(connection, "velocity_sha256", row, model.model_id)
            if other is None:
                held = self._holder(connection, sha256, candidates[number]) or first.get(sha256)
                if held is not None:
                    same_map[model.model_id] = held
                if held is None or not skip_existing:
                    taken[model.model_id] = sha256
                    first.setdefault(sha256, model.model_id)
                    yield number
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

    def _holder(self, connection: sqlite3.Connection, sha256: bytes, rows: Sequence[int]) -> str | None:
        """The id of a model that has the map, of those in ``rows``."""
        for row in rows:
            found = connection.execute("SELECT model_id, velocity_sha256 FROM models WHERE row = ?", (row,)).fetchone()
            if found is not None and found[1] == sha256:
                return str(found[0])
        return None

    def _insert(
        self, connection: sqlite3.Connection, rows: Sequence[int], models: Sequence[NewModel | CodedModel]
    ) -> list[bytes]:
        """Write models; returns the checksums of their records."""
        of_models, velocities, embeddings, checksums = [], [], [], []
        for row, model in zip(rows, models, strict=True):
            coded = model.coded if isinstance(model, CodedModel) else self._encode(model)
            words = (model.model_id, model.family, model.tags, model.source, model.added_at, coded.shape)
            stored = model.descriptors.tolist()
            sums = (coded.velocity_sha256, coded.embeddings_sha256)
            checksum = record_checksum(words, stored, *sums)
            of_models.append(
                (row, *words[:2], *stored, model.source, model.added_at, *coded.shape, *sums, checksum)
            )  # fmt: skip
            velocities.append((row, coded.velocity))
            embeddings.append((row, coded.velocity_embedding, coded.physics_embedding))
            checksums.append(checksum)
        connection.executemany(_INSERT, of_models)
        tags = [(tag, row) for row, model in zip(rows, models, strict=True) for tag in model.tags]
        connection.executemany("INSERT INTO tags VALUES (?, ?)", tags)
        connection.executemany("INSERT INTO velocities VALUES (?, ?)", velocities)
        connection.executemany("INSERT INTO embeddings VALUES (?, ?, ?)", embeddings)
        return checksums

    def _encode(self, model: NewModel) -> Coded:
        """A model in the format of this gallery."""
        velocity = model.velocity.astype(LITTLE).tobytes()
        in_velocity, in_physics = (
            e.astype(LITTLE).tobytes() for e in (model.velocity_embedding, model.physics_embedding)
        )
        depth, x = model.velocity.shape
        sums = velocity_sha256(velocity, (depth, x)), embeddings_sha256(in_velocity, in_physics)
        if self.codes:
            velocity = encode_map(model.velocity)
            in_velocity, in_physics = map(encode_embedding, (model.velocity_embedding, model.physics_embedding))
        return Coded((depth, x), velocity, in_velocity, in_physics, *sums)

    def _stored(self, connection: sqlite3.Connection, column: str, row: int, model_id: str) -> bytes:
        """One column of a model that must be there."""
        found = connection.execute(f"SELECT model_id, {column} FROM models WHERE row = ?", (row,)).fetchone()
        if found is None:
            raise damaged(self._folder, f"the record of {model_id!r} cannot be found")
        check_id(self._folder, found[0], model_id)
        stored: bytes = found[1]
        return stored

    def _advance(self, connection: sqlite3.Connection, change: int, entries: Sequence[bytes]) -> GalleryState:
        """Update the facts on the whole gallery: the numbers of changes and of models, and the digest."""
        facts = read_facts(connection, self._folder)
        before = GalleryState.of(facts)
        state = GalleryState(before.generation + 1, before.count + change, xor([before.digest, *entries]))
        facts["generation"], facts["count"] = str(state.generation), str(state.count)
        facts["digest"] = state.digest.hex()
        self._put(connection, facts)
        return state

    def _put(self, connection: sqlite3.Connection, facts: dict[str, str]) -> None:
        facts["check"] = facts_check(facts)
        connection.executemany("UPDATE meta SET value = ? WHERE name = ?", [(v, k) for k, v in facts.items()])

    @contextmanager
    def _transaction(self, doing: str) -> Iterator[sqlite3.Connection]:
        connection = self._connection
        with translate_errors(self._folder, doing):
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                self._at_step(f"{doing}:before-commit")
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            self._at_step(f"{doing}:committed")


def _map_sha256(model: NewModel | CodedModel) -> bytes:
    if isinstance(model, CodedModel):
        return model.coded.velocity_sha256
    return velocity_sha256(model.velocity.astype(LITTLE).tobytes(), model.velocity.shape)
