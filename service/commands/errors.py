"""Errors of commands: one line on standard error, with its code in brackets."""

from __future__ import annotations

import sys

from seisbind.model.errors import SeisBindError


def print_error(error: SeisBindError | OSError) -> None:
    """Print the line."""
    if isinstance(error, SeisBindError):
        what, code = str(error), error.code
    else:
        what, code = f"{error.filename}: {error.strerror}" if error.filename else str(error), "os_error"
    print(f"seisbind: {' '.join(what.split())} [{code}]", file=sys.stderr)
