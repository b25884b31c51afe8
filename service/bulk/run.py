"""Bulk retrieval: many files, or stacks larger than memory, answered into a file that a later run continues."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from seisbind.model.errors import SeisBindError, ServerRefused, ServerUnreachable
from seisbind.service.bulk.backends import Backend, Failure, RetrieveOptions, failure
from seisbind.service.bulk.inputs import open_gathers
from seisbind.service.bulk.jsonl import AnswerLines
from seisbind.service.formats.reader import Geometry
from seisbind.service.schemas import StreamAnswer

PARQUET = ".parquet"


class ExitCode(IntEnum):
    """Exit codes of ``seisbind retrieve --out``."""

    ANSWERED = 0  # all gathers
    FAILED = 1  # some gathers have an error in place of an answer
    UNUSABLE = 2  # an option, a gallery or an output that cannot be used; nothing was asked after that
    UNREACHABLE = 3  # no server, or one that kept refusing; the same command continues
    INTERRUPTED = 130  # Ctrl-C; the same command continues


@dataclass(frozen=True, slots=True)
class Tally:
    """Lines of the files of this run, those of ``earlier`` runs included."""

    answered: int
    failed: int
    earlier: int


def lines_of(out: Path) -> Path:
    """The file of JSON lines: the output itself, or the one beside a Parquet table that the table is made from."""
    return out.with_name(out.name + ".jsonl") if out.suffix == PARQUET else out


def retrieve_all(
    files: Sequence[Path],
    backend: Backend,
    options: RetrieveOptions,
    out: Path,
    *,
    fail_fast: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> Tally:
    """Write a line for each gather of ``files`` that has none yet into ``out``.

    Args:
        fail_fast: stop after the first gather that has an error.
        progress: called with the number of gathers that have their line.

    Raises:
        InvalidConfig: see `AnswerLines`.
        SeisBindError: what is wrong is not wrong with one file or gather alone; what was answered is kept.
    """
    with AnswerLines(out, options.to_json(), backend) as lines:
        earlier = done = sum(lines.tallies[file].lines for file in files)
        progress(done)
        for file, gathers, found in _answers(files, backend, options.geometry, lines):
            lines.write(file, gathers, found)
            done += 1
            progress(done)
            if fail_fast and isinstance(found, Failure):
                break
        tallies = [lines.tallies[file] for file in files]
    return Tally(sum(each.answered for each in tallies), sum(each.failed for each in tallies), earlier)


def exit_code(error: BaseException) -> ExitCode:
    """The exit code of a run that ``error`` stopped."""
    if isinstance(error, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    gave_up = isinstance(error, ServerRefused) and (error.status in (408, 429) or error.status >= 500)
    return ExitCode.UNREACHABLE if gave_up or isinstance(error, ServerUnreachable) else ExitCode.UNUSABLE


def _answers(
    files: Sequence[Path], backend: Backend, geometry: Geometry, lines: AnswerLines
) -> Iterator[tuple[Path, int | None, StreamAnswer | Failure]]:
    """For each gather without a line its file, how many gathers that has, and the answer."""
    for file in files:
        if lines.tallies[file].complete:
            continue
        try:
            opened = open_gathers(file, geometry)
            if opened.stack is not None:
                for found in backend.stack(opened.stack, opened.geometry, lines.tallies[file].lines):
                    yield file, opened.stack.shape[0], found
                continue
            answer = backend.file(opened.content)
            for index, result in enumerate(answer.results):
                one = StreamAnswer(index=index, weights=answer.weights, gallery=answer.gallery, result=result)
                yield file, len(answer.results), one
        except SeisBindError as error:
            yield file, None, failure(error, None)
