"""The examples run top to bottom, as a user runs them."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.long
def test_a_first_look_at_a_line(tmp_path: Path) -> None:
    for _ in range(2):  # the second time over the gallery of the first
        done = subprocess.run(
            [sys.executable, EXAMPLES / "first_line.py", "out", "200"],
            cwd=tmp_path,
            env={"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert "200 velocity models" in done.stdout and "mean_velocity" in done.stdout
    assert (tmp_path / "out" / "first-line.png").read_bytes().startswith(b"\x89PNG")
