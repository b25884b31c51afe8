"""The output of ``seisbind bulk``: a folder of Parquet parts, each whole or absent; the same command continues it.

The folder is on this machine, or in an object store.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from seisbind.model.errors import GalleryError, InvalidConfig
from seisbind.model.files import lock
from seisbind.service.bulk.chunks import TALLY, Chunk, Outcome
from seisbind.service.bulk.parquet import need_pyarrow
from seisbind.service.bulk.places import is_url, output_place, split_url, write_at
from seisbind.service.bulk.run import Tally

MANIFEST = "_manifest.json"  # readers of folders of Parquet leave out what begins with _ or .


class PartsFolder:
    """The folder at ``place``, made if it is not there. Use ``with``.

    The kernel keeps a second run out of a folder of this machine. Object stores have no locks: two runs of one command
    would make the same parts, each under the name that it has anyway.

    Args:
        place: a path or a URL.
        asked: all that parts depend on, as JSON; written into the folder, and compared with what is there.

    Raises:
        InvalidConfig: it is of other inputs, options, weights or another gallery; or no such folder, or in use.
        DatasetError: the object store refuses.
    """

    def __init__(self, place: Path | str, asked: dict[str, object]) -> None:
        self.place = output_place(str(place))
        self._handle: int | None = None
        try:
            if not is_url(self.place):
                self._lock(Path(self.place))
            self._names = self._listed()
            self._begin(json.loads(json.dumps(asked)))
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._handle is not None:
            os.close(self._handle)

    def _lock(self, path: Path) -> None:
        if path.exists() and not path.is_dir():
            raise InvalidConfig(f"--out {path} has to be a folder, of parts; there is a file.")
        path.mkdir(parents=True, exist_ok=True)
        self._handle = os.open(path, os.O_RDONLY)
        try:
            lock(self._handle)
        except BlockingIOError as error:
            raise InvalidConfig(f"Another run is writing {path}. Wait for it, or give another --out.") from error
        for torn in path.glob(".*.parquet.*"):  # of a run that was killed
            torn.unlink()

    def _listed(self) -> set[str]:
        """Names of parts, and of the manifest, that are there."""
        if is_url(self.place):
            bucket, key = split_url(self.place)
            folder = key.rstrip("/") + "/" if key.rstrip("/") else ""
            names = {each.removeprefix(folder) for each in bucket.listing(folder.rstrip("/"))}
        else:
            names = {each.name for each in Path(self.place).iterdir()}
        return {name for name in names if name == MANIFEST or (name.endswith(".parquet") and "/" not in name)}

    def _file(self, name: str) -> Any:
        """What pyarrow and json read: a path, or the content of an object."""
        if not is_url(self.place):
            return Path(self.place) / name
        bucket, key = split_url(self.place)
        return io.BytesIO(bucket.read(f"{key.rstrip('/')}/{name}".lstrip("/")))

    def _begin(self, asked: dict[str, object]) -> None:
        if MANIFEST not in self._names:
            if self._names:
                raise InvalidConfig(
                    f"{self.place} holds Parquet files that seisbind bulk did not write; give another --out."
                )
            write_at(self.place, MANIFEST, json.dumps(asked, indent=1).encode())
            return
        manifest = self._file(MANIFEST)
        try:
            before = json.loads(manifest.read_bytes() if isinstance(manifest, Path) else manifest.read())
        except ValueError as error:
            raise InvalidConfig(f"{MANIFEST} of {self.place} cannot be read; give another --out.") from error
        other = [name for name in asked if not isinstance(before, dict) or before.get(name) != asked[name]]
        if other:
            raise InvalidConfig(
                f"{self.place} was made with other {', '.join(other)} than this run has. It was left as it is; give "
                f"another --out, or go on with what {MANIFEST} says."
            )

    def tally(self, chunk: Chunk) -> tuple[int, int] | None:
        """Items answered and failed of a part that is there and whole; else None."""
        pyarrow = need_pyarrow()
        if chunk.name not in self._names:
            return None
        try:
            metadata = pyarrow.parquet.read_schema(self._file(chunk.name)).metadata
            found = json.loads(metadata[TALLY])
            return int(found["answered"]), int(found["failed"])
        except (pyarrow.ArrowException, KeyError, TypeError, ValueError):
            return None  # it is made again

    def write(self, outcome: Outcome) -> None:
        """Write a part. It is on the disk, or in the store, when this returns."""
        write_at(self.place, outcome.chunk.name, outcome.part)


def write_parts(
    folder: PartsFolder,
    chunks: Sequence[Chunk],
    execute: Callable[[Sequence[Chunk]], Iterator[Outcome]],
    *,
    fail_fast: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> Tally:
    """Have every chunk that has no part done, and write its part.

    Args:
        fail_fast: stop after the first part with an error.
        progress: called with the number of items that are done.

    Raises:
        GalleryError: something is wrong with more than a chunk or a file; parts that are done are kept.
    """
    answered = failed = 0
    missing: list[Chunk] = []
    for chunk in chunks:
        found = folder.tally(chunk)
        if found is None:
            missing.append(chunk)
        else:
            answered, failed = answered + found[0], failed + found[1]
    earlier = answered + failed
    progress(earlier)
    for outcome in execute(missing) if missing else ():
        if outcome.stopped is not None:
            raise GalleryError(f"Bulk stopped at {outcome.chunk.file}: {outcome.stopped}")
        folder.write(outcome)
        answered, failed = answered + outcome.answered, failed + outcome.failed
        progress(answered + failed)
        if fail_fast and outcome.failed:
            break
    return Tally(answered, failed, earlier)
