"""Bulk retrieval: many files, or stacks larger than memory, answered into a file that a later run continues."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from seisbind.model.errors import ServerRefused, ServerUnreachable
from seisbind.service.bulk.backends import Backend, Failure, RetrieveOptions
from seisbind.service.bulk.chunks import Chunk
from seisbind.service.bulk.gather_jobs import answers
from seisbind.service.bulk.jsonl import AnswerLines

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
    files: Sequence[Path | str],
    backend: Backend,
    options: RetrieveOptions,
    out: Path,
    *,
    fail_fast: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> Tally:
    """Write a line for each gather of ``files`` that has none yet into ``out``, in their order.

    A file is one chunk from its first gather without a line on, whose answers are written as they come.

    Args:
        fail_fast: stop after the first gather that has an error.
        progress: called with the number of gathers that have their line.

    Raises:
        InvalidConfig: see `AnswerLines`.
        SeisBindError: what is wrong is not wrong with one file or gather alone; what was answered is kept.
    """
    names = list(map(str, files))
    with AnswerLines(out, options.to_json(), backend) as lines:
        earlier = done = sum(lines.tallies[name].lines for name in names)
        progress(done)
        left = [
            Chunk(number, name, lines.tallies[name].lines)
            for number, name in enumerate(names)
            if not lines.tallies[name].complete
        ]
        found = ((chunk.file, *each) for chunk in left for each in answers(backend, chunk, options.geometry))
        for name, gathers, answer in found:
            lines.write(name, gathers, answer)
            done += 1
            progress(done)
            if fail_fast and isinstance(answer, Failure):
                break
        tallies = [lines.tallies[name] for name in names]
    return Tally(sum(each.answered for each in tallies), sum(each.failed for each in tallies), earlier)


def exit_code(error: BaseException) -> ExitCode:
    """The exit code of a run that ``error`` stopped."""
    if isinstance(error, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    gave_up = isinstance(error, ServerRefused) and (error.status in (408, 429) or error.status >= 500)
    return ExitCode.UNREACHABLE if gave_up or isinstance(error, ServerUnreachable) else ExitCode.UNUSABLE
