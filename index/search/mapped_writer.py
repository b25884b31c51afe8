"""Writing the snapshot of a large gallery, in the format of `mapped`."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from seisbind.index.approximate import recall
from seisbind.index.approximate.lists import Lists, StoredLists
from seisbind.index.scanning.codes import encode, residual_bound
from seisbind.index.search.columns import Statistics
from seisbind.index.search.mapped import BLOCK, DTYPES, FORMAT_VERSION, MAGIC, dump_facts
from seisbind.index.search.reranking import source_of
from seisbind.index.search.snapshots import AtStep
from seisbind.index.search.view import View
from seisbind.index.storage.folder import MAPPED, READ, SPACES
from seisbind.model.files import sync

MAPPED_MODELS = 32_768  # smaller galleries have the snapshots of `snapshots`, which are read and checked whole
APPROXIMATE_MODELS = 200_000  # from so many on, an approximate index is made and measured
APPROXIMATE_SPACE = "velocity"  # which gathers are compared in; searches by descriptors are rare, and exact
UNLISTED_SHARE = 8  # an approximate index that lacks more than this fraction of the models is made anew
CHUNK = 8192  # vectors written at a time, 8 MB of 256-d ones


def write_mapped(view: View, folder: Path, *, fingerprint: str, at_step: AtStep, lists: bool = True) -> bool:
    """Write ``view``, which is what the records hold, beside them; see `write_snapshots`.

    Raises:
        OSError: the disk refused. What was there before is still there.
    """
    path = folder / MAPPED
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as handle:
            facts = _write(view, _Blocks(handle), fingerprint, lists=lists)
        at_step(f"{MAPPED}:written")
        sync(temporary)
        at_step(f"{MAPPED}:synced")
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    at_step(f"{MAPPED}:renamed")
    sync(folder)
    return not lacks_lists(view, facts)


def _write(view: View, out: _Blocks, fingerprint: str, *, lists: bool) -> dict[str, Any]:
    kept = np.flatnonzero(view.alive)
    columns = view.columns.select(kept)
    statistics = Statistics.of(columns, np.ones(len(kept), np.bool_))
    arrays: dict[str, NDArray[Any]] = {
        "rows": columns.rows,
        "ids": columns.coded_ids,
        "order": np.argsort(columns.coded_ids, kind="stable"),
        "checksums": columns.checksums,
        "family": columns.family,
        "tag_set": columns.tag_set,
        "descriptors": columns.descriptors,
        "source": columns.source,
        "added": columns.added,
    }
    for name, array in arrays.items():
        with out.section(name):
            out.write(np.ascontiguousarray(array, DTYPES.get(name, array.dtype)))
    with out.section("labels"):
        out.write(columns.labels.dump())
    columns_end = out.size
    codes = {}
    for space in SPACES:
        index, largest, longest = view.index(space), 0.0, 0.0
        parts = [kept[start : start + CHUNK] for start in range(0, len(kept), CHUNK)]
        with out.section(f"{space}.vectors"):
            for part in parts:
                vectors = index.vectors_at(part)
                largest = max(largest, float(np.abs(vectors).max()))
                out.write(vectors.astype("<f4", copy=False))
        with out.section(f"{space}.codes"):
            for part in parts:
                coded, square = encode(index.vectors_at(part), largest)
                longest = max(longest, square)
                out.write(coded)
        codes[space] = residual_bound(largest, longest)
    approximate = {}
    made: Lists | StoredLists | None = None
    if lists and len(kept) >= APPROXIMATE_MODELS:
        made, info = recall.build(source_of(view.index(APPROXIMATE_SPACE), view.alive))
    elif not lists and (made := view.lists) is not None and view.alive[: made.info.models].all():  # none has moved
        info = made.info
    else:
        made = None
    if made is not None:
        approximate[APPROXIMATE_SPACE] = info.to_dict()
        if info.served:
            with out.section(f"{APPROXIMATE_SPACE}.lists"):
                made.dump(out.write)
    facts = {
        "format": FORMAT_VERSION,
        "fingerprint": fingerprint,
        "dimension": view.velocity.dimension,
        "generation": view.generation,
        "count": len(view),
        "digest": view.state.digest.hex(),
        "id_bytes": columns.coded_ids.itemsize,
        "families": statistics.families.tolist(),
        "ranges": [statistics.low.tolist(), statistics.high.tolist()],
        "codes": codes,
        "approximate": approximate,
        "columns_end": columns_end,
        "sections": out.sections,
    }
    out.finish(facts)
    return facts


def lacks_lists(view: View, facts: dict[str, Any]) -> bool:
    """Whether a snapshot, of which these are the facts, has no approximate index that it should have, or one that
    leaves more than a fraction of ``view`` to the exact search."""
    if len(view) < APPROXIMATE_MODELS:
        return False
    held = facts.get("approximate", {}).get(APPROXIMATE_SPACE, {}).get("models", 0)
    return bool((len(view) - held) * UNLISTED_SHARE > len(view))


def is_large(view: View) -> bool:
    """Whether its snapshot is one to map."""
    return len(view) >= MAPPED_MODELS


def write_snapshots(view: View, folder: Path, *, fingerprint: str, at_step: AtStep, lists: bool = True) -> bool:
    """Write ``view``, which is what the records hold, beside them, in the way that fits its size; the other goes.

    Args:
        lists: make the approximate index of a very large gallery; otherwise that of ``view`` is kept if it can be.

    Returns:
        Whether the snapshot has the approximate index that a gallery of this size should have, if it should.

    Raises:
        OSError: the disk refused. What was there before is still there, or will be recognised as not matching.
    """
    whole = True
    if is_large(view):
        whole = write_mapped(view, folder, fingerprint=fingerprint, at_step=at_step, lists=lists)
    else:
        view.write_snapshots(folder, fingerprint=fingerprint, at_step=at_step)
    for name in READ if is_large(view) else (MAPPED,):
        (folder / name).unlink(missing_ok=True)
    return whole


class _Blocks:
    """Writes sections, each from a multiple of `BLOCK` on, and the checksums of all blocks behind them."""

    def __init__(self, handle: BinaryIO) -> None:
        self._handle = handle
        self.size = 0
        self.sections: dict[str, tuple[int, int]] = {}
        self._checksums: list[int] = []
        self._checksum = 0

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        start = self.size
        yield
        self.sections[name] = (start, self.size - start)
        self.write(bytes(-self.size % BLOCK))

    def write(self, content: bytes | NDArray[Any]) -> None:
        left = memoryview(content if isinstance(content, bytes) else content.reshape(-1).view(np.uint8).data)
        self._handle.write(left)
        while left:
            part = left[: BLOCK - self.size % BLOCK]
            self._checksum = zlib.crc32(part, self._checksum)
            self.size += len(part)
            if self.size % BLOCK == 0:
                self._checksums.append(self._checksum)
                self._checksum = 0
            left = left[len(part) :]

    def finish(self, facts: dict[str, Any]) -> None:
        table = np.array(self._checksums, "<u4").tobytes()
        facts |= {"blocks": len(self._checksums), "table_sha256": hashlib.sha256(table).hexdigest()}
        described = dump_facts(facts)
        self._handle.write(table + described + len(described).to_bytes(8, "little") + MAGIC)
