"""The output of ``seisbind bulk``: a folder of Parquet parts, each whole or absent; the same command continues it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

from seisbind.model.errors import GalleryError, InvalidConfig
from seisbind.model.files import lock, replacing
from seisbind.service.bulk.chunks import TALLY, Chunk, Outcome
from seisbind.service.bulk.parquet import need_pyarrow
from seisbind.service.bulk.run import Tally

MANIFEST = "_manifest.json"  # readers of folders of Parquet leave out what begins with _ or .


class PartsFolder:
    """The folder at ``path``, made if it is not there. Use ``with``; the kernel keeps a second run out.

    Args:
        asked: all that parts depend on, as JSON; written into the folder, and compared with what is there.

    Raises:
        InvalidConfig: it is of other inputs, options, weights or another gallery; or no such folder, or in use.
    """

    def __init__(self, path: Path, asked: dict[str, object]) -> None:
        if path.exists() and not path.is_dir():
            raise InvalidConfig(f"--out {path} has to be a folder, of parts; there is a file.")
        self.path = path
        manifest = path / MANIFEST
        if path.is_dir() and not manifest.exists() and any(path.glob("*.parquet")):
            raise InvalidConfig(f"{path} holds Parquet files that seisbind bulk did not write; give another --out.")
        path.mkdir(parents=True, exist_ok=True)
        self._handle = os.open(path, os.O_RDONLY)
        try:
            lock(self._handle)
            self._begin(manifest, json.loads(json.dumps(asked)))
        except BlockingIOError as error:
            os.close(self._handle)
            raise InvalidConfig(f"Another run is writing {path}. Wait for it, or give another --out.") from error
        except BaseException:
            os.close(self._handle)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._handle)

    def _begin(self, manifest: Path, asked: dict[str, object]) -> None:
        for torn in self.path.glob(".*.parquet.*"):  # of a run that was killed
            torn.unlink()
        if not manifest.exists():
            with replacing(manifest) as partial:
                partial.write_text(json.dumps(asked, indent=1), encoding="utf-8")
            return
        try:
            before = json.loads(manifest.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InvalidConfig(f"{manifest} cannot be read; give another --out.") from error
        other = [name for name in asked if not isinstance(before, dict) or before.get(name) != asked[name]]
        if other:
            raise InvalidConfig(
                f"{self.path} was made with other {', '.join(other)} than this run has. It was left as it is; give "
                f"another --out, or go on with what {MANIFEST} says."
            )

    def tally(self, chunk: Chunk) -> tuple[int, int] | None:
        """Gathers answered and failed of a part that is there and whole; else None."""
        pyarrow = need_pyarrow()
        path = self.path / chunk.name
        if not path.exists():
            return None
        try:
            metadata = pyarrow.parquet.read_schema(path).metadata
            found = json.loads(metadata[TALLY])
            return int(found["answered"]), int(found["failed"])
        except (pyarrow.ArrowException, KeyError, TypeError, ValueError):
            return None  # it is made again

    def write(self, outcome: Outcome) -> None:
        """Write a part. It is on the disk when this returns."""
        with replacing(self.path / outcome.chunk.name) as partial:
            partial.write_bytes(outcome.part)


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
        progress: called with the number of gathers that are done.

    Raises:
        GalleryError: something is wrong with more than a gather or a file; parts that are done are kept.
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
