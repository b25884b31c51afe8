"""Sections that a server makes: a line of JSON for each block of windows as it is read, and the section as the last."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
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

    with serving.using() as engine:  # one gallery for all windows, also over a reload
        async with aclosing(_lines(serving, plan, engine)) as lines:
            async for line in lines:
                yield line


async def _lines(serving: Serving, plan: SectionPlan, own: Engine) -> AsyncGenerator[bytes, None]:
    def read(windows: range, engine: Engine) -> list[tuple[WindowGather, Query | None]]:
        return plan.read(windows)

    def answer(block: list[tuple[WindowGather, Query | None]], engine: Engine) -> tuple[list[WindowReading], set[str]]:
        before = own.gallery.stamp
        return answer_windows(own, block, plan.scale), {before, own.gallery.stamp}

    def join(engine: Engine) -> bytes:
        answered = section_answer(join_section(own, plan, readings))
        answered.section.generation = _only(stamps)
        return answered.model_dump_json().encode() + b"\n"

    readings: list[WindowReading] = []
    stamps: set[str] = set()
    blocks = plan.blocks(BLOCK)
    coming = asyncio.ensure_future(serving.on_reader(partial(read, blocks[0])))
    try:
        for number in range(len(blocks)):
            if serving.stopping.is_set():
                raise NotReady(f"The server is shutting down after {len(readings)} windows. Ask another one.")
            block = await coming
            if number + 1 < len(blocks):
                coming = asyncio.ensure_future(serving.on_reader(partial(read, blocks[number + 1])))
            answered, seen = await serving.on_model(partial(answer, block))
            readings += answered
            stamps |= seen
            progress = section_progress([each.answer for each in answered], done=len(readings), windows=len(plan))
            progress.generation = _only(seen)
            yield progress.model_dump_json().encode() + b"\n"
        yield await serving.on_file(join)
    finally:
        coming.cancel()
        await asyncio.gather(coming, return_exceptions=True)


def _only(stamps: set[str]) -> str | None:
    """The one gallery of all; None if a writer has changed it in between."""
    return stamps.copy().pop() if len(stamps) == 1 else None
