"""The log of a run: ``log.csv``, a row every ten steps, and ``log.png``, the same as curves."""

from __future__ import annotations

import csv
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from matplotlib.figure import Figure

from seisbind.model.files import replacing

TABLE, PICTURE = "log.csv", "log.png"
NOT_LOSSES = ("step", "samples", "scale", "learning_rate")


class RunLog:
    """Written by one process.

    Args:
        folder: of the run.
        step: of its checkpoint. Rows that a killed run wrote after it are dropped: those steps run again.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._path = folder / TABLE
        if self._path.exists():
            lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines[1:] if int(line.split(",", 1)[0]) <= step]
            self._path.write_text("".join(lines[:1] + kept) if kept else "", encoding="utf-8")
        self._file = self._path.open("a", newline="", encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, row: dict[str, Any]) -> None:
        writer = csv.DictWriter(self._file, list(row))
        if self._file.tell() == 0:
            writer.writeheader()
        writer.writerow(row)
        self._file.flush()

    def draw(self) -> None:
        """Draw the table: the loss, its terms before weighting, and the learning rate over steps."""
        with self._path.open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if len(rows) < 2:
            return
        steps = [int(row["step"]) for row in rows]
        figure = Figure(figsize=(9, 5), layout="constrained")
        losses, rates = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        for name in (name for name in rows[0] if name not in NOT_LOSSES):
            losses.plot(steps, [float(row[name]) for row in rows], label=name.replace("_", " "), lw=1)
        losses.set_ylabel("loss and its terms")
        losses.legend(loc="upper right", fontsize=8)
        rates.plot(steps, [float(row["learning_rate"]) for row in rows], color="0.3", lw=1)
        rates.set_ylabel("learning rate")
        rates.set_xlabel("step")
        with replacing(self._path.with_name(PICTURE)) as partial:
            figure.savefig(partial, format="png", dpi=110)
