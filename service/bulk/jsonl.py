"""The output of bulk retrieval: one JSON line for each gather, which the same command continues after any stop."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ValidationError

from seisbind.model.errors import InvalidConfig
from seisbind.model.files import AppendedLines
from seisbind.service.bulk.backends import Backend, Failure
from seisbind.service.schemas import GalleryBody, RetrievalBody, StreamAnswer, WeightsBody


class AnswerLine(BaseModel):
    """A line: the ``result`` or the ``error`` of one gather. ``gather`` is None for a file that could not be read.

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
    error: Failure | None = None

    def to_json(self) -> bytes:
        """With its line end; of ``result`` and ``error`` the one that there is."""
        return self.model_dump_json(exclude={"error" if self.error is None else "result"}).encode() + b"\n"


@dataclass(slots=True)
class FileTally:
    """The lines of one file of gathers. ``gathers``: how many lines it gets; None before the first."""

    answered: int = 0
    failed: int = 0
    gathers: int | None = None

    @property
    def lines(self) -> int:
        return self.answered + self.failed

    @property
    def complete(self) -> bool:
        return self.gathers is not None and self.lines >= self.gathers

    def add(self, line: AnswerLine) -> None:
        """Count one line."""
        if line.error is None:
            self.answered += 1
        else:
            self.failed += 1
        self.gathers = self.lines if line.gather is None else line.gathers or 1  # nothing comes after such a failure


class AnswerLines:
    """The file at ``path``, from its last whole line on. Use ``with``.

    A line that was cut off, as by a kill in the middle of a write, is dropped; nothing that was written whole is
    asked for or written again. The kernel keeps a second run out as long as this one lives.

    Attributes:
        tallies: for each file of gathers, by its name, its lines; those of earlier runs included.

    Raises:
        InvalidConfig: it is no such file, it was made with other options, weights or gallery, or another run writes it.
        OSError: it cannot be read or written.
    """

    def __init__(self, path: Path, asked: Mapping[str, object], backend: Backend) -> None:
        if path.exists() and not path.is_file():
            raise InvalidConfig(f"{path} is no file that a run could continue; --json prints answers.")
        self.path = path
        self.tallies: defaultdict[str, FileTally] = defaultdict(FileTally)
        self._asked = dict(asked)
        self._backend = backend
        try:
            self._lines = AppendedLines(path)
        except BlockingIOError as error:
            raise InvalidConfig(f"Another run is writing {path}. Wait for it, or give another --out.") from error
        try:
            self._continue()
        except BaseException:
            self._lines.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._lines.close()

    def write(self, file: str, gathers: int | None, found: StreamAnswer | Failure) -> None:
        """Add one line; it is in the hands of the operating system on return."""
        source = found if isinstance(found, StreamAnswer) else self._backend
        line = AnswerLine(
            file=file,
            gather=found.index,
            gathers=gathers,
            asked=self._asked,
            weights=source.weights,
            gallery=source.gallery,
            result=found.result if isinstance(found, StreamAnswer) else None,
            error=None if isinstance(found, StreamAnswer) else found,
        )
        self.tallies[file].add(line)
        self._lines.append(line.to_json())

    def _continue(self) -> None:
        last = None
        for number, text in enumerate(self._lines.whole(), start=1):
            line = self._parse(text, number)
            self.tallies[line.file].add(line)
            if last is None or last.error is not None or line.error is None:
                last = line  # an answer has what answered; an error only what was asked
        if last is not None:
            self._check_same_run(last)
        self._lines.begin()

    def _parse(self, text: bytes, number: int) -> AnswerLine:
        try:
            return AnswerLine.model_validate(json.loads(text) | {"result": None})
        except (ValueError, TypeError, ValidationError) as error:
            raise InvalidConfig(
                f"Line {number} of {self.path} is none that seisbind retrieve writes. It was left as it is; give "
                "another --out."
            ) from error

    def _check_same_run(self, last: AnswerLine) -> None:
        for what, before, now in (
            ("other options", last.asked, json.loads(json.dumps(self._asked))),
            ("other weights", last.weights.model_dump(), self._backend.weights.model_dump()),
            ("another gallery", last.gallery.model_dump(), self._backend.gallery.model_dump()),
        ):
            if before != now:
                raise InvalidConfig(
                    f"{self.path} was made with {what}: {json.dumps(before)}; this run has {json.dumps(now)}. It was "
                    "left as it is; give another --out, or go on with what it was made with."
                )
