"""Progress bars on a terminal, and a line of progress now and then in a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LIFE_S = 30.0  # between two lines in a pipe
PIPE_WIDTH = 120  # columns of a table without a terminal


def console() -> Console:
    """Standard output, for tables."""
    return Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH)


@contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error that counts to ``total``, or further; call the value with the number done."""
    start, last = time.monotonic(), 0
    printed = start
    out = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=out,
        disable=not out.is_terminal,
    ) as bar:
        task = bar.add_task(what, total=total)

        def progress(done: int) -> None:
            nonlocal last, printed
            last = done
            bar.update(task, completed=done, total=max(total, done))
            if not out.is_terminal and time.monotonic() - printed >= LIFE_S:
                printed = time.monotonic()
                print(f"{what}: {done} of {max(total, done)} in {printed - start:.0f} s", file=sys.stderr, flush=True)

        yield progress
    if not out.is_terminal:
        print(f"{what}: {last} in {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)
