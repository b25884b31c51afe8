"""The snapshot of a large gallery: one file that is mapped and not read, so that all processes of a host share it.

``mapped.bin`` holds the columns, the ids in order, of each space the vectors and their codes in eight bits, and for a
very large gallery the lists of an approximate index, each section at a multiple of `BLOCK`; then a CRC-32 of each
block, and last a description of all that with its own checksum. A block is compared with its checksum before anything
in it is used (`MappedFile.check`), the columns at once, and all of them again and again while the gallery is open
(`MappedFile.check_all`). A CRC-32 misses no flip of a bit, nor of several within 32 bits, and one in four thousand
million of all other changes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import zlib
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seisbind.index.approximate.info import ApproximateInfo
from seisbind.index.approximate.lists import Lists, StoredLists
from seisbind.index.scanning.codes import Codes
from seisbind.index.search.columns import Columns, Statistics
from seisbind.index.search.labels import Labels
from seisbind.index.search.vectors import VectorIndex
from seisbind.index.search.view import View
from seisbind.index.storage.folder import MAPPED, SPACES
from seisbind.index.storage.record import CHECKSUM, GalleryState, Int64
from seisbind.model.errors import GalleryDamaged, GalleryError
from seisbind.model.ground.descriptors import NAMES

log = logging.getLogger(__name__)

FORMAT_VERSION = 2  # facts may have further entries and the file further sections: unknown ones are passed over
MAGIC = b"SBNDMAP\n"
BLOCK = 1 << 16  # bytes under one checksum, which takes ten microseconds
RECHECK_S = 600.0  # between two looks at all blocks, each of which takes about half a second for a million models

DTYPES: dict[str, Any] = {
    "rows": "<i8",
    "order": "<i8",
    "checksums": CHECKSUM,
    "family": "<i4",
    "tag_set": "<i4",
    "descriptors": "<f4",
    "source": "<i4",
    "added": "<i8",
}


class SnapshotDamaged(GalleryDamaged):
    """A block of a mapped snapshot is not what was written. The records have everything; ``code`` is the parent's."""


class MappedFile:
    """A snapshot that was opened: what is in it, and which of its blocks have been compared with their checksums.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it cannot be trusted; the sentence is a clause that says why.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        size = path.stat().st_size
        with path.open("rb") as handle:
            if size < 16:
                raise ValueError(f"{path.name} has {size} bytes")
            handle.seek(-16, 2)
            end = handle.read(16)
            length = int.from_bytes(end[:8], "little")
            if end[8:] != MAGIC or length > size - 16:
                raise ValueError(f"{path.name} does not end as it was written")
            handle.seek(-16 - length, 2)
            self.facts = _parse(handle.read(length))
            blocks = self.facts["blocks"]
            start = blocks * BLOCK
            if start + 4 * blocks + length + 16 != size:
                raise ValueError(f"{path.name} has {size} bytes, which are not those it describes")
            handle.seek(start)
            table = handle.read(4 * blocks)
        if hashlib.sha256(table).hexdigest() != self.facts["table_sha256"]:
            raise ValueError(f"the checksums of {path.name} are not those that were written")
        self._checksums = np.frombuffer(table, "<u4").tolist()
        # Copy on write: nothing is written, and torch takes no array that it could not write to.
        self._bytes = np.asarray(np.memmap(path, np.uint8, mode="c", shape=(start,)))
        self._sound = np.zeros(blocks, np.bool_)

    def array(self, name: str, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
        """A section as it is in the file. Raises ValueError if it has another size."""
        start, size = self.facts["sections"][name]
        return np.asarray(self._bytes[start : start + size].view(dtype).reshape(shape))

    def check(self, first: int, last: int) -> None:
        """Compare the bytes from ``first`` up to ``last`` that have not been compared yet. Raises SnapshotDamaged."""
        first, last = first // BLOCK, -(-last // BLOCK)
        for block in np.flatnonzero(~self._sound[first:last]) + first:
            self._compare(int(block))

    def checker(self, name: str, count: int) -> Callable[[slice | Int64], None]:
        """A function that checks the rows that it is given, of the ``count`` of a section."""
        start, size = self.facts["sections"][name]
        row = size // max(count, 1)

        def check(rows: slice | Int64) -> None:
            if isinstance(rows, slice):
                first, last, _ = rows.indices(count)
                self.check(start + first * row, start + last * row)
                return
            for ends in (rows * row + start, (rows + 1) * row - 1 + start):
                blocks = ends // BLOCK
                for block in np.unique(blocks[~self._sound[blocks]]):
                    self._compare(int(block))

        return check

    def _compare(self, block: int) -> None:
        sound = zlib.crc32(self._bytes[block * BLOCK : (block + 1) * BLOCK].data) == self._checksums[block]
        self._sound[block] = sound
        if not sound:
            raise SnapshotDamaged(f"Block {block} of {self.path} does not match its checksum.")

    def check_all(self, stopping: threading.Event) -> None:
        """Compare every block, also those that were sound before, until ``stopping``. Raises SnapshotDamaged."""
        for block in range(len(self._checksums)):
            if stopping.is_set():
                return
            self._compare(block)


class SnapshotWatch:
    """Compares a file with its checksums again and again while it is mapped, on a thread of its own.

    What is flipped in it after it was compared would otherwise be searched until the gallery is opened again. The list
    of models in the records, which opening did not read, is compared with its digest once.

    Args:
        compare_list: raises GalleryError.
        damaged: called with what was found; the last thing that the thread does.
    """

    def __init__(
        self, file: MappedFile, compare_list: Callable[[], None], damaged: Callable[[GalleryError], None]
    ) -> None:
        self._stopping = threading.Event()
        self._comparing = threading.Lock()  # held while the mapped file is read
        self._work = threading.Thread(
            target=self._run, args=(file, compare_list, damaged), name="snapshot watch", daemon=True
        )
        self._work.start()

    def _run(self, file: MappedFile, compare_list: Callable[[], None], damaged: Callable[[GalleryError], None]) -> None:
        try:
            self._compare(file)
            compare_list()
            while not self._stopping.wait(RECHECK_S):
                self._compare(file)
        except GalleryError as error:
            try:
                damaged(error)
            except GalleryError as worse:  # of the records themselves: what is searched stays as it is, checked
                log.error("%s", worse)

    def _compare(self, file: MappedFile) -> None:
        with self._comparing:
            file.check_all(self._stopping)

    def close(self, *, wait: bool) -> None:
        """Stop: the file is not read any more when this returns, a block later; what is still found is not used.

        Args:
            wait: until it reads the records no more, either. SQLite leaves its log beside them, with the last changes
                in it, if another connection is open when that of the writer is closed.
        """
        self._stopping.set()
        with self._comparing:
            pass
        if wait:
            self._work.join()


class RowOf(MutableMapping[str, int]):
    """The row of each model id: those of a mapped snapshot, found in their order, and what has changed since."""

    __slots__ = ("_changes", "_ids", "_order", "_rows")

    def __init__(self, ids: NDArray[np.bytes_], order: Int64, rows: Int64) -> None:
        self._ids, self._order, self._rows = ids, order, rows
        self._changes: dict[str, int | None] = {}

    def __getitem__(self, model_id: str) -> int:
        row = self._changes[model_id] if model_id in self._changes else self._mapped(model_id)
        if row is None:
            raise KeyError(model_id)
        return row

    def _mapped(self, model_id: str) -> int | None:
        key = model_id.encode(errors="surrogatepass")  # whatever is asked for; ids are ASCII
        if len(key) > self._ids.itemsize:
            return None
        wanted = np.array([key], self._ids.dtype)  # of the same length, or all ids would be copied to compare them
        at = int(np.searchsorted(self._ids, wanted, sorter=self._order)[0])
        if at == len(self._ids) or self._ids[self._order[at]] != key:
            return None
        return int(self._rows[self._order[at]])

    def __setitem__(self, model_id: str, row: int) -> None:
        self._changes[model_id] = row

    def __delitem__(self, model_id: str) -> None:
        self[model_id]
        self._changes[model_id] = None

    def __iter__(self) -> Iterator[str]:
        changes = dict(self._changes)
        yield from (model_id for model_id, row in changes.items() if row is not None)
        yield from (model_id for model_id in map(bytes.decode, self._ids.tolist()) if model_id not in changes)

    def __len__(self) -> int:
        return sum(1 for _ in self)


@dataclass(frozen=True, slots=True, eq=False)
class MappedSnapshot:
    """A gallery as it was when the snapshot was written."""

    file: MappedFile
    view: View
    row_of: RowOf

    @classmethod
    def load(cls, folder: Path, *, fingerprint: str, dimension: int) -> MappedSnapshot:
        """Map the snapshot in ``folder`` and check its columns.

        Raises:
            FileNotFoundError: there is none.
            ValueError, KeyError, TypeError, GalleryDamaged: it cannot be trusted.
        """
        file = MappedFile(folder / MAPPED)
        facts = file.facts
        if (facts["fingerprint"], facts["dimension"]) != (fingerprint, dimension):
            raise ValueError("it belongs to another gallery")
        file.check(0, facts["columns_end"])
        state = GalleryState(facts["generation"], facts["count"], bytes.fromhex(facts["digest"]))
        count = state.count
        sizes = {name: count * np.dtype(dtype).itemsize for name, dtype in DTYPES.items()}
        sizes |= {"descriptors": 4 * len(NAMES) * count, "ids": facts["id_bytes"] * count, "labels": None}
        if any(start + size > facts["columns_end"] for start, size in map(facts["sections"].__getitem__, sizes)):
            raise ValueError("its columns do not end where it says")
        sizes |= {f"{space}.vectors": 4 * dimension * count for space in SPACES}
        sizes |= {f"{space}.codes": dimension * count for space in SPACES}
        if any(facts["sections"][name][1] != size for name, size in sizes.items() if size is not None):
            raise ValueError("its sections are not of the sizes that its models have")
        held = {name: file.array(name, dtype, (count,)) for name, dtype in DTYPES.items() if name != "descriptors"}
        ids = file.array("ids", np.dtype(("S", facts["id_bytes"])), (count,))
        columns = Columns.of(
            Labels.load(file.array("labels", np.uint8, (-1,)).tobytes()),
            held["rows"],
            ids,
            held["checksums"],
            held["family"],
            held["tag_set"],
            file.array("descriptors", "<f4", (len(NAMES), count)),
            held["source"],
            held["added"],
        )
        columns.labels.check(columns.family, columns.tag_set, columns.source)
        if not columns.family.max(initial=-1) < len(facts["families"]) <= len(columns.labels.families):
            raise ValueError("it counts other families than it names")
        if count and not (held["order"].min() >= 0 and held["order"].max() < count):
            raise ValueError("its ids are in no order")
        ends = np.array(facts["ranges"], np.float32).reshape(2, len(NAMES))
        statistics = Statistics(np.array(facts["families"], np.int64), ends[0], ends[1])
        indices = []
        for space in SPACES:
            vectors, codes = f"{space}.vectors", f"{space}.codes"
            unit, error = facts["codes"][space]
            index = VectorIndex.mapped(
                file.array(vectors, "<f4", (count, dimension)),
                file.checker(vectors, count),
                Codes(file.array(codes, np.int8, (count, dimension)), unit, error, file.checker(codes, count)),
            )
            indices.append(index)
        view = View(state, columns, np.ones(count, np.bool_), statistics, indices[0], indices[1], _lists_of(file))
        return cls(file, view, RowOf(ids, held["order"], held["rows"]))


def _lists_of(file: MappedFile) -> StoredLists | None:
    """The approximate index of the velocity embeddings, if one was made: also one that is not served, which has no
    section. Raises KeyError, TypeError."""
    facts = file.facts.get("approximate", {}).get("velocity")
    if facts is None:
        return None

    info = ApproximateInfo.parse(facts)
    if not 0 <= info.models <= file.facts["count"] or (info.served and "velocity.lists" not in file.facts["sections"]):
        raise ValueError("its approximate index is not in it")

    def read() -> Lists:
        start, size = file.facts["sections"]["velocity.lists"]
        file.check(start, start + size)
        content = file.array("velocity.lists", np.uint8, (size,))
        try:
            return Lists.read(content, count=info.models, dimension=file.facts["dimension"])
        except ValueError as error:  # of another version of FAISS: the exact search needs no lists
            raise SnapshotDamaged(f"The approximate index in {file.path} cannot be used: {error}.") from error

    return StoredLists(info, read)


def dump_facts(facts: dict[str, Any]) -> bytes:
    """Canonical JSON with its own checksum: no byte of it can change unnoticed."""
    check = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return json.dumps(facts | {"check": check}, sort_keys=True).encode()


def _parse(text: bytes) -> dict[str, Any]:
    """The inverse of `dump_facts`. Raises ValueError if ``text`` is anything else, or of another version."""
    try:
        facts: dict[str, Any] = json.loads(text)
        del facts["check"]
        if dump_facts(facts) != text:
            raise ValueError
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError("its description is damaged") from error
    if facts["format"] != FORMAT_VERSION:
        raise ValueError(f"its format is {facts['format']!r:.40}, this version reads {FORMAT_VERSION}")
    if not _is_sane(facts):
        raise ValueError("its description is none")
    return facts


def _is_sane(facts: dict[str, Any]) -> bool:
    """Whether all that is read has the kind that it is read as, and what it points to is in the file.

    A checksum shows that it is what somebody wrote, and not that it was this program.
    """

    def whole(*each: object) -> bool:
        return all(type(number) is int and 0 <= number < 1 << 62 for number in each)

    def numbers(each: object) -> bool:
        return isinstance(each, list) and all(type(number) in (int, float) for number in each)

    sections, codes, approximate = (facts.get(name) for name in ("sections", "codes", "approximate"))
    families, ranges = facts.get("families"), facts.get("ranges")
    if not whole(*(facts.get(name) for name in ("blocks", "generation", "count", "dimension", "columns_end"))):
        return False
    room = facts["blocks"] * BLOCK
    return (
        type(facts.get("id_bytes")) is int
        and 0 < facts["id_bytes"] <= 1 << 10
        and facts["columns_end"] <= room
        and all(isinstance(facts.get(name), str) for name in ("fingerprint", "digest", "table_sha256"))
        and isinstance(sections, dict)
        and {*DTYPES, "ids", "labels"} | {f"{space}.{what}" for space in SPACES for what in ("vectors", "codes")}
        <= {*sections}
        and all(
            isinstance(ends, list) and len(ends) == 2 and whole(*ends) and ends[0] % BLOCK == 0 and sum(ends) <= room
            for ends in sections.values()
        )
        and isinstance(codes, dict)
        and all(numbers(codes.get(space)) and len(codes[space]) == 2 for space in SPACES)
        and isinstance(families, list)
        and whole(*families)
        and isinstance(ranges, list)
        and len(ranges) == 2
        and all(numbers(each) and len(each) == len(NAMES) for each in ranges)
        and isinstance(approximate, dict)
        and all(isinstance(each, dict) for each in approximate.values())
    )
