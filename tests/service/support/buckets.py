"""A bucket of moto's S3 on the loopback."""

from __future__ import annotations

import logging
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def empty_bucket(name: str) -> Iterator[str]:
    """URL of an empty bucket, with what obstore needs in the environment; skips the test where either is missing."""
    server_of = pytest.importorskip("moto.server", reason="moto is not installed: pip install -e '.[dev]'")
    pytest.importorskip("obstore", reason="obstore is not installed: pip install -e '.[cluster]'")
    server: Any = server_of.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # else a line for each request
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT", f"http://{host}:{port}")
        patch.setenv("AWS_ALLOW_HTTP", "true")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test-secret")
        patch.setenv("AWS_REGION", "us-east-1")
        request = urllib.request.Request(f"http://{host}:{port}/{name}", method="PUT")
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert answer.status == 200
        yield f"s3://{name}"
    server.stop()
