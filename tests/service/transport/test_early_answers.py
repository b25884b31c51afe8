"""Answers that are complete before the body of their request: the connection is idle only once that has ended."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.config import Config
from uvicorn.server import ServerState

from seisbind.service.settings import Settings
from seisbind.service.transport.protocol import Protocol


class Wire(asyncio.Transport):
    """What a client is sent."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""

    def write(self, data: Any) -> None:
        self.sent += bytes(data)

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def can_write_eof(self) -> bool:
        return False

    def close(self) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


async def refuse(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


def test_the_keep_alive_of_an_early_answer_begins_when_the_body_has_ended() -> None:
    async def run() -> None:
        config = Config(refuse, lifespan="off", log_config=None)
        config.load()
        protocol, wire = Protocol.of(Settings())(config, ServerState(), {}), Wire()
        protocol.connection_made(wire)
        for _ in range(2):
            before = wire.sent.count(b"404")
            protocol.data_received(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nab")
            while protocol.tasks:
                await asyncio.wait(protocol.tasks)
                await asyncio.sleep(0)
            assert wire.sent.count(b"404") == before + 1
            assert protocol.timeout_keep_alive_task is None  # a slow client has the deadline of bodies
            protocol.data_received(b"cd")
            assert protocol.timeout_keep_alive_task is not None
            assert not protocol.timeout_keep_alive_task.cancelled()
        protocol.connection_lost(None)

    asyncio.run(run())
