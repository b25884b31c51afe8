"""Progress bars on a terminal, and a line of progress now and then in a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

LIFE_S = 30.0  # between two lines in a pipe
PIPE_WIDTH = 120  # columns of a table without a terminal


def console() -> Console:
    """Standard output, for tables."""
    return Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH)


class RateColumn(ProgressColumn):
    """How many a second."""

    def render(self, task: Task) -> Text:
        rate = task.finished_speed or task.speed
        return Text("" if rate is None else f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s")


def duration(seconds: float) -> str:
    """``1:02:03`` or ``2:03``, hours where there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error that counts to ``total``, or further; call the value with the number done.

    The first number may be what was done before: rate and time left are those of what follows it.
    """
    start, last = time.monotonic(), 0
    before: int | None = None  # at the line before
    printed = start
    out = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeRemainingColumn(),
        console=out,
        disable=not out.is_terminal,
    ) as bar:
        task = bar.add_task(what, total=total)

        def progress(done: int) -> None:
            nonlocal before, last, printed
            before, last = done if before is None else before, done
            bar.update(task, completed=done, total=max(total, done))
            now = time.monotonic()
            if not out.is_terminal and now - printed >= LIFE_S:
                rate = (done - before) / (now - printed)  # since the line before: processes take their time to start
                printed, before = now, done
                left = f", {rate:.3g}/s, {duration((total - done) / rate)} left" if rate > 0 and done < total else ""
                print(f"{what}: {done} of {max(total, done)} in {now - start:.0f} s{left}", file=sys.stderr, flush=True)

        yield progress
    if not out.is_terminal:
        print(f"{what}: {last} in {time.monotonic() - start:.1f} s", file=sys.stderr, flush=True)
