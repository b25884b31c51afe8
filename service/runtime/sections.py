"""Sections that a server makes: a line of JSON for each block of windows as it is read, and the section as the last."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from functools import partial

from seisbind.model.errors import NotReady, UploadTooLarge
from seisbind.model.survey.windows import WindowGather
from seisbind.service.engine.bodies import section_answer, section_progress
from seisbind.service.engine.engine import Engine
from seisbind.service.engine.query import Query
from seisbind.service.engine.section import SectionPlan, WindowReading, answer_windows, join_section
from seisbind.service.runtime.serving import Serving

BLOCK = 8  # windows that the model thread reads at once; gathers of other requests have their turn between two blocks


def check_windows(plan: SectionPlan, limit: int) -> SectionPlan:
    """``plan``, if a server makes so many windows. Raises UploadTooLarge."""
    if len(plan) > limit:
        raise UploadTooLarge(
            f"The section has {len(plan)} windows; this server reads at most {limit} (SEISBIND_MAX_WINDOWS). Take a "
            "larger step_m or scale, send a part of the line, or use seisbind section."
        )
    return plan


async def section_lines(serving: Serving, plan: SectionPlan) -> AsyncGenerator[bytes, None]:
    """The lines, each with its end. The next block is read on a reader thread while one is encoded.

    Raises:
        NotReady: the server is shutting down.
        SeisBindError: see `engine.section.answer_windows` and `join_section`.
    """

    def read(windows: range, engine: Engine) -> list[tuple[WindowGather, Query | None]]:
        return plan.read(windows)

    def answer(block: list[tuple[WindowGather, Query | None]], engine: Engine) -> list[WindowReading]:
        return answer_windows(engine, block, plan.scale)

    readings: list[WindowReading] = []
    blocks = plan.blocks(BLOCK)
    coming = asyncio.ensure_future(serving.on_reader(partial(read, blocks[0])))
    try:
        for number in range(len(blocks)):
            if serving.stopping.is_set():
                raise NotReady(f"The server is shutting down after {len(readings)} windows. Ask another one.")
            block = await coming
            if number + 1 < len(blocks):
                coming = asyncio.ensure_future(serving.on_reader(partial(read, blocks[number + 1])))
            answered = await serving.on_model(partial(answer, block))
            readings += answered
            progress = section_progress([each.answer for each in answered], done=len(readings), windows=len(plan))
            yield progress.model_dump_json().encode() + b"\n"
        yield await serving.on_file(
            lambda engine: section_answer(join_section(engine, plan, readings)).model_dump_json().encode() + b"\n"
        )
    finally:
        coming.cancel()
        await asyncio.gather(coming, return_exceptions=True)
