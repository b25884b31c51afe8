"""``seisbind gallery verify`` on a gallery that nothing else opens."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from seisbind.index import Gallery


def test_a_gallery_that_cannot_be_opened_is_verified(tmp_path: Path) -> None:
    path = tmp_path / "g"
    Gallery.create(path, fingerprint="w").close()
    with closing(sqlite3.connect(path / "records.sqlite", isolation_level=None)) as connection:
        connection.execute("UPDATE meta SET value = '3' WHERE name = 'count'")
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "seisbind",
            "gallery",
            "verify",
            path,
            "--json",
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 1, run.stderr
    report = json.loads(run.stdout)
    assert not report["ok"] and "do not match their checksum" in report["problems"][0]
