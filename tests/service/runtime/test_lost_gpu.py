"""A GPU that is lost ends the process; one whose memory is full does not."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from seisbind.service import lost_gpu
from wire import RAW, npy

Float32 = NDArray[np.float32]
LOST = "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be asynchronously reported"


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError(LOST), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"), True),
        (torch.OutOfMemoryError("CUDA out of memory."), False),
        (RuntimeError("CUDA error: out of memory"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("CUDA error"), False),
    ],
)
def test_what_is_lost(error: Exception, lost: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(lost_gpu, "_end", ended.append)
    lost_gpu.end_if_lost(error)
    assert ended == [1] * lost


def test_the_process_ends_and_says_why() -> None:
    code = f"from seisbind.service.lost_gpu import end_if_lost; end_if_lost(RuntimeError({LOST!r})); print('goes on')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1 and not done.stdout
    assert "The GPU is lost" in done.stderr and "illegal memory access" in done.stderr


def test_a_request_that_meets_it_ends_the_server(
    serve: Any, gallery_path: Any, gathers: Float32, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(lost_gpu, "_end", ended.append)
    served = serve(gallery=gallery_path)

    def fail(*given: Any, **more: Any) -> Any:
        raise RuntimeError(LOST)

    monkeypatch.setattr(type(served.serving.embedder), "embed_gathers", fail)
    for ask in (
        lambda: served.http.post("/v1/retrieve", content=npy(gathers[0]), headers=RAW),
        lambda: httpx.get(served.http.base_url.join("/readyz"), timeout=60),
    ):
        ended.clear()
        with suppress(httpx.HTTPError):  # what it would answer, if it did not end
            ask()
        assert ended
