"""The command line in the process of the tests: one of its own would load torch anew each time."""

from __future__ import annotations

import subprocess
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from unittest.mock import patch

from seisbind.service.commands.main import main


def seisbind(*arguments: object) -> subprocess.CompletedProcess[str]:
    """What `seisbind` with ``arguments`` prints, and its exit code, as a process would return them."""
    words, out, err = ["seisbind", *map(str, arguments)], StringIO(), StringIO()
    code: object = 0
    with patch.object(sys, "argv", words), redirect_stdout(out), redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("default")  # as in a process, and not the errors that they are to tests
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    return subprocess.CompletedProcess(words, int(str(code)), out.getvalue(), err.getvalue())
