"""The output of bulk retrieval: a JSON line a gather, which the same command continues after whatever stopped it."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from pydantic import BaseModel, ValidationError

from seisbind.model.errors import InvalidConfig
from seisbind.service.bulk.backends import Answer, Asker, Failure
from seisbind.service.schemas import GalleryBody, RetrievalBody, WeightsBody


class FailureBody(BaseModel):
    code: str
    detail: str


class AnswerLine(BaseModel):
    """A line: the ``result`` or the ``error`` of one gather. ``gather`` is None for a file of which none was read.

    Attributes:
        gathers: in the file.
        asked: the options that decide about answers.
        weights, gallery: what gave the answer, or would have.
    """

    file: str
    gather: int | None
    gathers: int | None
    asked: dict[str, object]
    weights: WeightsBody
    gallery: GalleryBody
    result: RetrievalBody | None = None
    error: FailureBody | None = None

    def written(self) -> bytes:
        """As JSON with its line end; of ``result`` and ``error`` the one that there is."""
        return self.model_dump_json(exclude={"error" if self.error is None else "result"}).encode() + b"\n"


class AnswerLines:
    """The file at ``path``, from its last whole line on. Use ``with``.

    A line that was cut off, as by a kill in the middle of a write, is dropped; nothing that was written whole is
    asked for or written again. The kernel keeps a second run out as long as this one lives.

    Attributes:
        answered, failed: lines of the files of this run, earlier runs' included.

    Raises:
        InvalidConfig: it is no such file, it was made with other options, weights or gallery, or another run writes it.
        OSError: it cannot be read or written.
    """

    def __init__(self, path: Path, asked: Mapping[str, object], asker: Asker) -> None:
        if path.exists() and not path.is_file():
            raise InvalidConfig(f"{path} is no file that a run could continue; --json prints answers.")
        self.path = path
        self.answered = self.failed = 0
        self._asked = dict(asked)
        self._asker = asker
        self._done: dict[str, list[int]] = {}  # file: lines, and of them failures
        self._of: dict[str, int] = {}  # file: its gathers
        self._file: BinaryIO = path.open("a+b")
        try:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InvalidConfig(f"Another run is writing {path}. Wait for it, or give another --out.") from error
            self._continue()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def done(self, file: Path) -> int:
        """Gathers of ``file`` that have their line already."""
        return sum(self._done.get(str(file), ()))

    def complete(self, file: Path) -> bool:
        """Whether all of them have."""
        return str(file) in self._of and self.done(file) >= self._of[str(file)]

    def count(self, file: Path) -> None:
        """Take the lines that earlier runs wrote for ``file`` into this run's tally."""
        answered, failed = self._done.get(str(file), (0, 0))
        self.answered += answered
        self.failed += failed

    def write(self, file: Path, gathers: int | None, found: Answer | Failure) -> None:
        """Add one line; it is kept whatever becomes of this process once `flush` has returned."""
        line = AnswerLine(
            file=str(file),
            gather=found.gather,
            gathers=gathers,
            asked=self._asked,
            weights=self._asker.weights,
            gallery=self._asker.gallery,
        )
        if isinstance(found, Failure):
            line.error = FailureBody(code=found.code, detail=found.detail)
            self.failed += 1
        else:
            line.weights, line.gallery, line.result = found.weights, found.gallery, found.result
            self.answered += 1
        self._file.write(line.written())

    def flush(self) -> None:
        """Hand what was written to the operating system."""
        self._file.flush()

    def _continue(self) -> None:
        self._file.seek(0)
        whole, last = 0, None
        for number, text in enumerate(self._file, start=1):
            if not text.endswith(b"\n"):
                break
            line = self._taken(text, number)
            if last is None or last.error is not None or line.error is None:
                last = line  # an answer says what answered; an error only what was to
            whole += len(text)
        if last is not None:
            self._compare(last)
        self._file.truncate(whole)
        self._file.seek(0, os.SEEK_END)

    def _taken(self, text: bytes, number: int) -> AnswerLine:
        try:
            line = AnswerLine.model_validate(json.loads(text) | {"result": None})
        except (ValueError, TypeError, ValidationError) as error:
            raise InvalidConfig(
                f"Line {number} of {self.path} is none that seisbind retrieve writes. It was left as it is; give "
                "another --out."
            ) from error
        done = self._done.setdefault(line.file, [0, 0])
        done[line.error is not None] += 1
        self._of[line.file] = 1 if line.gathers is None or line.gather is None else line.gathers
        if line.gather is None:
            self._of[line.file] = sum(done)  # nothing more can be asked of it
        return line

    def _compare(self, last: AnswerLine) -> None:
        now = self._asker
        for what, before, mine in (
            ("other options", last.asked, json.loads(json.dumps(self._asked))),
            ("other weights", last.weights.model_dump(), now.weights.model_dump()),
            ("another gallery", last.gallery.model_dump(), now.gallery.model_dump()),
        ):
            if before != mine:
                raise InvalidConfig(
                    f"{self.path} was made with {what}: {json.dumps(before)}; this run has {json.dumps(mine)}. It was "
                    "left as it is; give another --out, or go on with what it was made with."
                )
