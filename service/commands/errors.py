"""Errors of commands: one line on standard error, with its code in brackets; and what is refused before any work."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from seisbind.model.errors import InvalidConfig, SeisBindError


def check_out(path: Path, *, option: str = "--out") -> None:
    """Whether the file of an option can be written there, before the work for it is done. Raises InvalidConfig."""
    folder = path.parent
    if path.is_dir() or not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        raise InvalidConfig(
            f"{option} {path}: no file can be written there; {folder} has to be a folder that is writable."
        )


def print_error(error: SeisBindError | OSError) -> None:
    """Print the line."""
    if isinstance(error, SeisBindError):
        what, code = str(error), error.code
    else:
        what, code = f"{error.filename}: {error.strerror}" if error.filename else str(error), "os_error"
    print(f"seisbind: {' '.join(what.split())} [{code}]", file=sys.stderr)
