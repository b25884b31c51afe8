"""Answers as a Parquet table: rows are gathers, columns quantities. Needs pyarrow, the extra ``parquet``."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path
from typing import Any

from seisbind.model.errors import MissingExtra
from seisbind.model.ground.descriptors import DESCRIPTORS
from seisbind.service.bulk.jsonl import AnswerLine

ROWS = 10_000  # in a row group, which is held in memory


def need_pyarrow() -> Any:
    """The package. Raises MissingExtra if it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtra(
            "A .parquet output needs pyarrow: pip install 'seisbind[parquet]'. Or give an --out that ends with .jsonl."
        ) from error
    return pyarrow


def write_parquet(lines: Path, out: Path) -> None:
    """The table of what ``lines`` holds, complete or not at all.

    Raises:
        MissingExtra: there is no pyarrow.
        OSError: it cannot be written.
    """
    pyarrow = need_pyarrow()
    schema = answer_schema(pyarrow)
    unfinished = out.with_name(out.name + ".unfinished")
    with lines.open("rb") as read, pyarrow.parquet.ParquetWriter(unfinished, schema) as writer:
        rows = (answer_row(AnswerLine.model_validate_json(text)) for text in read)
        while some := list(islice(rows, ROWS)):
            writer.write_table(pyarrow.Table.from_pylist(some, schema))
    with unfinished.open("rb") as written:
        os.fsync(written.fileno())
    unfinished.replace(out)


def answer_schema(pyarrow: Any) -> Any:
    """The columns of answers."""
    text, number, words = pyarrow.string(), pyarrow.float64(), pyarrow.list_(pyarrow.string())
    columns = {
        "file": text,
        "gather": pyarrow.int64(),
        "error_code": text,
        "error_detail": text,
        "model_id": words,
        "family": words,
        "similarity": pyarrow.list_(number),
        "likely": pyarrow.bool_(),
        "score": number,
        "reason": text,
        "in_gallery": number,
        "ranked_by": text,
        "warnings": words,
    }
    for d in DESCRIPTORS:
        columns |= {d.name: number, f"{d.name}_low": number, f"{d.name}_high": number}
    columns |= {"weights": text, "gallery": text, "generation": pyarrow.int64()}
    return pyarrow.schema(list(columns.items()))


def answer_row(line: AnswerLine) -> dict[str, object]:
    """An answer as a row of `answer_schema`."""
    row: dict[str, object] = {
        "file": line.file,
        "gather": line.gather,
        "weights": line.weights.fingerprint,
        "gallery": line.gallery.name,
        "generation": line.gallery.generation,
    }
    if line.error is not None:
        row |= {"error_code": line.error.code, "error_detail": line.error.detail}
    if line.result is not None:
        matches, likeness = line.result.matches, line.result.in_distribution
        row |= {
            "model_id": [match.model_id for match in matches],
            "family": [match.family for match in matches],
            "similarity": [match.similarity for match in matches],
            "likely": likeness.likely,
            "score": likeness.score,
            "reason": likeness.reason,
            "in_gallery": line.result.in_gallery,
            "ranked_by": line.result.ranked_by,
            "warnings": [warning.code for warning in line.result.warnings],
        }
        for name, q in (line.result.physics or {}).items():
            row |= {name: q.value, f"{name}_low": q.low, f"{name}_high": q.high}
    return row
