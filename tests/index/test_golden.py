"""A gallery of each released format still opens and gives the answers recorded with it (promise 20).

``golden/format-1`` was made by `make` below, at the commit that added it; it is never made again. A new format adds a
folder of its own.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seisbind.index import Filter, Gallery

GOLDEN = Path(__file__).parent / "golden"


def answers(gallery: Gallery) -> dict[str, Any]:
    """What is recorded of a gallery, as JSON has it."""
    queries = np.eye(8, dtype=np.float32)
    some = Filter.parse({"family": ["FlatVel-A", "CurveVel-A"], "mean_velocity": [2500, None]})
    return {
        "velocity": [
            [(h.model_id, round(h.similarity, 6)) for h in hits] for hits in gallery.search_velocity(queries, 3)
        ],
        "physics": [
            [(h.model_id, round(h.similarity, 6)) for h in hits]
            for hits in gallery.search_physics(queries, 3, filter=some)
        ],
        "records": {
            record.model_id: [record.family, record.tags, record.source, record.added_at, record.checksum]
            for record in gallery.records(gallery.model_ids())
        },
        "mean of each map": [round(float(gallery.velocity(each).mean()), 2) for each in gallery.model_ids()],
    }


def make(path: Path, make_batch: Callable[..., Any]) -> None:
    """How a golden gallery is made: ten models added, two of them removed, so that the rows have gaps."""
    with Gallery.create(path, fingerprint="golden", dimension=8) as gallery:
        make_batch(10, dimension=8, cells=5).add_to(gallery, source="golden")
        gallery.remove(["m2", "m9"])
    (path / "writer.lock").unlink()
    with Gallery.open(path, fingerprint="golden") as gallery:
        recorded = json.dumps(answers(gallery), indent=1)
    for leftover in path.glob("records.sqlite-*"):
        leftover.unlink()
    path.with_suffix(".json").write_text(recorded + "\n")


@pytest.mark.parametrize("name", ["format-1", "format-2"])
def test_a_released_format_still_answers(tmp_path: Path, name: str) -> None:
    shutil.copytree(GOLDEN / name, tmp_path / name)
    with Gallery.open(tmp_path / name, fingerprint="golden") as gallery:
        assert json.loads(json.dumps(answers(gallery))) == json.loads((GOLDEN / f"{name}.json").read_text())
        assert gallery.info().notes == ()
        assert gallery.verify().ok
