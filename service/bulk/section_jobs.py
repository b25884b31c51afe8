"""Jobs over lines: each file is one line, and becomes a velocity section as `seisbind section` makes it, and a row."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from seisbind.model.errors import InvalidConfig, SeisBindError
from seisbind.model.scale import AutoScale, Scale
from seisbind.service.bulk.backends import failure
from seisbind.service.bulk.chunks import Chunk, Outcome, Row, make_part
from seisbind.service.bulk.parquet import need_pyarrow
from seisbind.service.bulk.places import local_copy, write_at
from seisbind.service.client.calls import scale_fields

FORMATS = ("npz", "png", "sgy")


@dataclass(frozen=True, slots=True)
class SectionJob:
    """What is done with every line. A `chunks.Job`.

    Attributes:
        out: where the worker writes the sections; a path or a URL that every worker reaches.
        formats: of `FORMATS`; what is written of a section.
        step_m: from one window to the next; None for half a window.
    """

    gallery: str
    weights: Path | None
    device: str
    out: str
    scale: Scale | AutoScale
    step_m: float | None = None
    formats: tuple[str, ...] = ("npz",)
    kind: str = "section"

    def __post_init__(self) -> None:
        unknown = [each for each in self.formats if each not in FORMATS]
        if unknown:
            raise InvalidConfig(f"--write is any of {', '.join(FORMATS)}, separated by commas; got {unknown[0]!r}.")

    def asked(self) -> dict[str, object]:
        """See `chunks.Job.asked`."""
        return {"step_m": self.step_m, "formats": list(self.formats), **scale_fields(self.scale)}

    def chunks(self, files: Sequence[str]) -> list[Chunk]:
        """See `chunks.Job.chunks`: a line each."""
        return [Chunk(number, name) for number, name in enumerate(files)]

    def holding(self) -> AbstractContextManager[None]:
        """See `chunks.Job.holding`: nothing."""
        return nullcontext()

    def open(self) -> SectionWorker:
        """See `chunks.Job.open`."""
        return SectionWorker(self)


class SectionWorker:
    """Holds the encoder and the gallery. A `chunks.Worker`.

    Raises:
        SeisBindError: weights or gallery cannot be opened.
    """

    def __init__(self, job: SectionJob) -> None:
        from seisbind.index import open_store
        from seisbind.model.encoders.embedder import Embedder
        from seisbind.service.engine.engine import Engine

        self._job = job
        embedder = Embedder.load(job.weights, device=job.device)
        self._gallery = open_store(job.gallery, fingerprint=embedder.fingerprint, frame=embedder.frame)
        self.engine = Engine(embedder, self._gallery)

    def close(self) -> None:
        """Close the gallery."""
        self._gallery.close()

    def source(self) -> dict[str, object]:
        """See `chunks.Worker.source`."""
        from seisbind.service.engine.bodies import gallery_body, weights_body

        weights, gallery = weights_body(self.engine.embedder.weights), gallery_body(self.engine.info())
        return {"weights": weights.model_dump(mode="json"), "gallery": gallery.model_dump(mode="json")}

    def part(self, chunk: Chunk) -> Outcome:
        """See `chunks.Worker.part`. The section's files are written before."""
        info = self.engine.info()
        row: Row = {
            "file": chunk.file,
            "weights": self.engine.embedder.fingerprint,
            "gallery": info.name,
            "generation": info.generation,
        }
        try:
            row |= self._section(chunk)
        except SeisBindError as error:
            found = failure(error, None)
            row |= {"error_code": found.code, "error_detail": found.detail}
        return make_part(chunk, [row], section_schema())

    def _section(self, chunk: Chunk) -> Row:
        from seisbind.service.engine.section import make_section, plan_section
        from seisbind.service.engine.section_file import section_npz, section_png, section_segy
        from seisbind.service.formats.line_file import open_line

        with local_copy(chunk.file) as path:
            line, frame = open_line([path]), self.engine.frame
            plan = plan_section(line, frame=frame, scale=self._job.scale, step_m=self._job.step_m)
            found = make_section(self.engine, plan)
        makers = {"npz": section_npz, "png": section_png, "sgy": section_segy}
        stem = f"{chunk.number:06}-{PurePosixPath(chunk.file.rstrip('/')).stem}"
        names = [f"{stem}.{each}" for each in self._job.formats]
        for each, name in zip(self._job.formats, names, strict=True):
            write_at(self._job.out, name, makers[each](found))
        read = [window for window in found.windows if window.lack is None]
        likely = [window.likely for window in read if window.likely is not None]
        return {
            "sections": names,
            "x_first_m": float(found.x_m[0]),
            "x_last_m": float(found.x_m[-1]),
            "cell_m": found.cell_m,
            "columns": len(found.x_m),
            "depth_cells": len(found.depth_m),
            "known": float((found.weight > 0).mean()),
            "mean_velocity": float(np.nanmean(found.velocity)),
            "windows": len(found.windows),
            "windows_read": len(read),
            "likely": sum(likely) / len(likely) if likely else None,
            "model_id": [window.model_id for window in read],
            "scale_s": found.scale.s,
            "scale_k": found.scale.k,
            "notes": [note.code for note in found.notes],
        }


def section_schema() -> Any:
    """The columns of a row for each line. Raises MissingExtra."""
    pyarrow = need_pyarrow()
    text, number, whole, words = pyarrow.string(), pyarrow.float64(), pyarrow.int64(), pyarrow.list_(pyarrow.string())
    columns = {"file": text, "error_code": text, "error_detail": text, "sections": words}
    columns |= {"x_first_m": number, "x_last_m": number, "cell_m": number, "columns": whole, "depth_cells": whole}
    columns |= {"known": number, "mean_velocity": number, "windows": whole, "windows_read": whole, "likely": number}
    columns |= {"model_id": words, "scale_s": number, "scale_k": number, "notes": words}
    columns |= {"weights": text, "gallery": text, "generation": whole}
    return pyarrow.schema(list(columns.items()))
