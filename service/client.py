"""A client of the HTTP server: httpx, the server's own schemas, and errors with the server's sentences."""

from __future__ import annotations

import re
from types import TracebackType
from typing import Self

import httpx
from pydantic import ValidationError

from seisbind.model.errors import InvalidConfig, ServerUnreachable, ServiceError
from seisbind.service.schemas import RetrieveAnswer

KEY = re.compile(r"[\x21-\x7e]+")  # what a header can hold
TIMEOUT_S = 60.0  # a stack of 64 gathers takes a CPU core 10 s


class Client:
    """Calls to one server. Use ``with``, or close it.

    Every call raises `ServerUnreachable` if nobody answers and `ServiceError`, with what the server said, if it
    refuses.

    Args:
        key: the API key that the server asks for, if it does.

    Raises:
        InvalidConfig: characters that no key has.
    """

    def __init__(self, url: str, *, key: str | None = None, timeout_s: float = TIMEOUT_S) -> None:
        self.url = url.rstrip("/")
        if key and not KEY.fullmatch(key):  # not repeated: it may be a key with something behind it
            raise InvalidConfig("The API key has characters that no key has. Look for spaces or a line end around it.")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            self._http = httpx.Client(base_url=self.url, timeout=timeout_s, headers=headers)
        except (httpx.InvalidURL, ValueError) as error:
            raise ServerUnreachable(f"{url!r} is no address of a server; expected http://host:port.") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connections."""
        self._http.close()

    def retrieve(self, content: bytes, **fields: str | int | float | None) -> RetrieveAnswer:
        """POST /v1/retrieve: the bytes of an npy, npz, SEG-Y or SU file, and fields as in `schemas.RetrieveFields`."""
        form = {name: str(value) for name, value in fields.items() if value is not None}
        files = {"file": ("gathers", content, "application/octet-stream")}
        response = self._call("POST", "/v1/retrieve", data=form, files=files)
        try:
            return RetrieveAnswer.model_validate_json(response.content)
        except ValidationError as error:
            raise ServiceError(
                f"{self.url} answered something else than a retrieval ({error.error_count()} differences). Is it a "
                "SeisBind server of this version?"
            ) from error

    def velocity_npy(self, model_id: str) -> bytes:
        """GET /v1/models/{id}/velocity.npy."""
        return self._call("GET", f"/v1/models/{model_id}/velocity.npy").content

    def ready(self) -> bool:
        """GET /readyz: whether it is; False also while nobody answers."""
        try:
            return self._http.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def _call(
        self,
        method: str,
        path: str,
        *,
        data: dict[str, str] | None = None,
        files: dict[str, tuple[str, bytes, str]] | None = None,
    ) -> httpx.Response:
        try:
            response = self._http.request(method, path, data=data, files=files)
        except httpx.RequestError as error:
            raise ServerUnreachable(
                f"No answer from {self.url} ({error}). Is the server running? 'seisbind serve' starts one."
            ) from error
        if response.is_success:
            return response
        try:
            said = response.json()
            sentence = f"{said['detail']} [{said['code']}]"
        except (ValueError, KeyError, TypeError):
            sentence = response.text[:200]
        raise ServiceError(f"{self.url} answered {response.status_code}: {sentence}")
