"""Bulk retrieval: many files, or stacks larger than memory, answered into a file that a later run continues."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from seisbind.model.errors import SeisBindError, ServerRefused, ServerUnreachable
from seisbind.service.bulk.backends import Answer, Asker, Failure, Wanted, failure
from seisbind.service.bulk.inputs import GatherFile, open_gathers
from seisbind.service.bulk.jsonl import AnswerLines

PARQUET = ".parquet"


class ExitCode(IntEnum):
    """How ``seisbind retrieve --out`` ends, for scripts."""

    ANSWERED = 0  # all gathers
    FAILED = 1  # some gathers have an error in place of an answer
    UNUSABLE = 2  # an option, a gallery or an output that cannot be used; nothing more was asked
    UNREACHABLE = 3  # no server, or one that went on refusing; the same command continues
    INTERRUPTED = 130  # Ctrl-C; the same command continues


@dataclass(frozen=True, slots=True)
class Tally:
    """Gathers of the files that were named, those of earlier runs included. ``earlier``: how many those are."""

    answered: int
    failed: int
    earlier: int


def lines_of(out: Path) -> Path:
    """The file of JSON lines of an output: itself, or beside a Parquet table the one that it is made of."""
    return out.with_name(out.name + ".jsonl") if out.suffix == PARQUET else out


def retrieve_all(
    files: Sequence[Path],
    asker: Asker,
    wanted: Wanted,
    out: Path,
    *,
    fail_fast: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> Tally:
    """Write a line for each gather of ``files`` that has none yet into ``out``.

    Args:
        fail_fast: stop after the first gather that has an error.
        progress: told how many gathers have their line.

    Raises:
        InvalidConfig: see `AnswerLines`.
        SeisBindError: what is wrong is not wrong with one file or gather alone; what was answered is kept.
    """
    with AnswerLines(out, wanted.stated(), asker) as lines:
        earlier = 0
        for file in files:
            lines.count(file)
            earlier += lines.done(file)
        progress(earlier)
        failed_before = lines.failed
        for file in files:
            if fail_fast and lines.failed > failed_before:
                break
            if lines.complete(file):
                continue
            for gathers, found in _asked(file, asker, wanted, lines.done(file)):
                lines.write(file, gathers, found)
                lines.flush()
                progress(lines.answered + lines.failed)
                if fail_fast and lines.failed > failed_before:
                    break
        return Tally(lines.answered, lines.failed, earlier)


def exit_code(error: BaseException) -> ExitCode:
    """How a run that ``error`` stopped ends."""
    if isinstance(error, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    gave_up = isinstance(error, ServerRefused) and (error.status in (408, 429) or error.status >= 500)
    return ExitCode.UNREACHABLE if gave_up or isinstance(error, ServerUnreachable) else ExitCode.UNUSABLE


def _asked(file: Path, asker: Asker, wanted: Wanted, first: int) -> Iterator[tuple[int | None, Answer | Failure]]:
    """How many gathers a file has, and the answer for each from ``first`` on."""
    opened: GatherFile | None = None
    try:
        opened = open_gathers(file, wanted.geometry)
        if opened.stack is not None:
            for found in asker.stack(opened.stack, opened.geometry, first):
                yield opened.gathers, found
            return
        answer = asker.file(opened.content)
        for number, result in enumerate(answer.results):
            yield len(answer.results), Answer(number, answer.weights, answer.gallery, result)
    except SeisBindError as error:
        yield None, failure(error, None)
