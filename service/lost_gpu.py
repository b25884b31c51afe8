"""A GPU that a process has lost: every later call to it fails, so the process ends, and whatever started it starts
another."""

from __future__ import annotations

import logging
import os

import torch

log = logging.getLogger(__name__)

EXIT_CODE = 1
MEMORY = ("out of memory", "ALLOC_FAILED")  # of CUDA and of its libraries: passes, and is no loss


def is_lost(error: BaseException) -> bool:
    """Whether ``error`` is one of CUDA that is not one of memory: its context answers nothing any more."""
    if not isinstance(error, RuntimeError) or isinstance(error, torch.OutOfMemoryError):
        return False
    said = str(error)
    return "CUDA error" in said and not any(word in said for word in MEMORY)


def end_if_lost(error: BaseException) -> None:
    """End this process, at once, if ``error`` says that its GPU is lost: what waits for it would wait for ever."""
    if is_lost(error):
        log.critical("The GPU is lost; this process ends, to be started again: %s", str(error).splitlines()[0])
        _end(EXIT_CODE)


def _end(code: int) -> None:
    logging.shutdown()
    os._exit(code)  # no thread is waited for: the one that the GPU holds may never return
