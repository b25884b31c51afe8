"""Refinements of one gather, or of each window of a line: where they start, and what they say in true units.

The inversion itself is `seisbind.model.inversion.refinement`; whoever steps it (the command, a job) begins here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import CancelledError
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seisbind.model.encoders.embedder import Embedder, ReadModel
from seisbind.model.errors import InvalidConfig, InvalidQuery
from seisbind.model.frame import VELOCITY_LIMITS_M_S, Frame
from seisbind.model.inversion.forward import require_deepwave
from seisbind.model.inversion.interval import INTERVAL
from seisbind.model.inversion.observed import Observed
from seisbind.model.inversion.refined import RefineConfig, Refined
from seisbind.model.inversion.refinement import Refinement
from seisbind.model.processes import usable_cores, worker_pool
from seisbind.model.scale import Scale
from seisbind.model.survey.preparation import Prepared
from seisbind.service.engine.answers import Match, Retrieval, WindowRefinement
from seisbind.service.engine.check import given_model
from seisbind.service.engine.engine import Engine, Stopwatch
from seisbind.service.engine.query import Query, encode
from seisbind.service.engine.section import REFINED_BLOCK, Read, Refiner, WindowReading
from seisbind.service.formats.npy import npz
from seisbind.service.formats.velocity_model import VelocityModel, arrays_of, write

Float32 = NDArray[np.float32]
Start = Literal["best", "read", "match", "mean", "given"]
STARTS: tuple[Start, ...] = get_args(Start)
MEAN_OF = 5  # first matches
# Of a result, beside the model
MORE = ("illumination", "residual", "residual_before", "residual_after", "source", "start", "free_surface")
SUREST_M_S = 10.0  # half-width of an interval that a prior takes at its word


@dataclass(frozen=True, slots=True)
class Starts:
    """Models that a refinement may start from.

    Attributes:
        names: ``read``, ``match``, ``mean`` or ``given``, of each.
        velocity: ``(start, depth, x)`` m/s of the frame.
        matches: ids of the models that ``match`` is the first and ``mean`` the mean of.
        prior: ``(2, depth, x)`` m/s of the frame: the model that is read, and the standard deviation of its error; None
            where the weights state no interval for it.
    """

    names: tuple[str, ...]
    velocity: Float32
    matches: tuple[str, ...] = ()
    prior: Float32 | None = None

    def parents(self, name: str) -> tuple[str, ...]:
        """Ids of the models that a start is made of; its name where no gallery has it."""
        return {"match": self.matches[:1], "mean": self.matches}.get(name, (name,))


def find_starts(engine: Engine, query: Query, *, start: Start = "best") -> Starts:
    """The models of the engine's answer to a query of one gather.

    Args:
        start: ``read`` from the gather, the first ``match``, the ``mean`` of the first five; ``best`` for all that
            there are, between which a trial decides.

    Raises:
        InvalidQuery: not one gather, or no such model.
        InvalidConfig: an unknown start.
    """
    if start not in STARTS or start == "given":
        raise InvalidConfig(f"There is no start {start!r}; there are {', '.join(STARTS[:-1])}.")
    if len(query) != 1:
        raise InvalidQuery(f"A refinement is of one gather; there are {len(query)}. Send them one by one.")

    def read(matches: list[tuple[Match, ...]]) -> ArrayLike:
        return engine.gallery.velocities([each.model_id for each in matches[0]]) if matches[0] else []

    (retrieval,), matches = engine.retrieve_and_read(replace(query, top_k=MEAN_OF), read, watch=Stopwatch())
    return choose_starts(query, retrieval, matches, start)


def choose_starts(query: Query, retrieval: Retrieval, matches: ArrayLike, start: Start) -> Starts:
    """`find_starts` of an answer; ``matches``: ``(match, depth, x)`` m/s of the frame, best first."""
    velocity, found = np.asarray(matches, np.float32), dict[str, Float32]()
    true, k, prior = retrieval.model, np.float32(query.scale.k), None
    if true is not None:
        low, high = (None if each is None else each[None] / k for each in (true.low, true.high))
        prior = prior_of(ReadModel(true.value[None] / k, low, high))
        found["read"] = np.clip(true.value / k, *VELOCITY_LIMITS_M_S)
    if len(velocity):
        found |= {"match": velocity[0], "mean": velocity.mean(axis=0)}
    wanted = [name for name in found if start in ("best", name)]
    if not wanted:
        raise InvalidQuery(
            f"There is no model to start from by {start!r}; there are {', '.join(found) or 'none'}. Give a model of "
            "your own, weights that read one, or a gallery with models."
        )
    ids = tuple(match.model_id for match in retrieval.matches[: len(velocity)])
    return Starts(tuple(wanted), np.stack([found[name] for name in wanted]), ids, prior)


def prior_of(read: ReadModel) -> Float32 | None:
    """`Refinement.begin`'s prior: the first read model and the deviation that its 90 % interval is of; None without.

    The wider side is taken: the other may end at the frame's range.
    """
    if read.low is None or read.high is None:
        return None
    half = np.maximum(read.high[0] - read.value[0], read.value[0] - read.low[0])
    return np.stack([read.value[0], np.maximum(half, SUREST_M_S) / np.float32(INTERVAL)])


def given_start(query: Query, velocity: ArrayLike) -> Starts:
    """A model of one's own, ``(depth, x)`` in true m/s and cells of ``s`` times the frame's.

    Raises:
        InvalidVelocityModel: not one model of the frame's cells, or one that `check_velocity` refuses.
    """
    return Starts(("given",), given_model(velocity, query)[None])


def read_start(embedder: Embedder, query: Query) -> Starts:
    """The model that is read from the one gather of ``query``, where there is no gallery. Raises InvalidQuery."""
    read = embedder.read_model(encode(embedder, [query]))
    if read is None:
        raise InvalidQuery("These weights read no model from a gather; start from one of your own, or from a gallery.")
    velocity = np.clip(read.value[:1], *VELOCITY_LIMITS_M_S)
    return Starts(("read",), velocity, prior=prior_of(read))


def begin(query: Query, starts: Starts, config: RefineConfig) -> Refinement:
    """A refinement of the one gather of ``query``. Raises as `Refinement.begin`."""
    return Refinement.begin(Observed.of(query.prepared), starts.velocity, config, prior=starts.prior)


@contextmanager
def window_refiner(iterations: int, device: str, *, workers: int | None = None) -> Iterator[Refiner]:
    """What `section.section_blocks` refines windows with, each from the model that was read.

    On a CPU it does so in processes of one thread, some 1 GB each with the frame of the shipped weights, which import
    the script that calls this (which therefore does so below ``if __name__ == "__main__":``); else in this process. An
    exception that leaves it ends the processes after the iteration that each is at.

    Args:
        iterations: at most, of a window.
        device: of torch.
        workers: processes; None: one a core. No more than a block has windows.

    Raises:
        InvalidConfig: numbers that no refinement has; or, of what it yields, a process that died.
        MissingExtra: deepwave is not installed.
    """
    require_deepwave()
    if workers is not None and workers < 1:
        raise InvalidConfig(f"Windows are refined by one process at least; got {workers}.")
    work = partial(_refined_window, config=RefineConfig(iterations, device=device))
    if not device.startswith("cpu"):
        yield lambda read, readings: list(map(work, _prepared(read), readings))
        return
    count, leaving = min(workers or usable_cores(), REFINED_BLOCK), get_context("spawn").RawValue("b", 0)
    with worker_pool(count, uses_torch=True, initializer=_leave_with, initargs=(leaving,)) as pool:

        def refine(read: Read, readings: list[WindowReading]) -> list[WindowReading]:
            try:
                return list(pool.map(work, _prepared(read), readings))
            except (BrokenProcessPool, MemoryError) as error:
                raise InvalidConfig(
                    f"One of {count} processes that refine windows died or had no memory left. What is done is kept: "
                    "the same command continues; --workers gives fewer of them."
                ) from error

        try:
            yield refine
        except BaseException:
            leaving.value = 1  # some windows more than there are processes cannot be cancelled any more
            raise


_leaving: Any = None  # in a process that refines windows: its ``value`` is 1 once nobody waits for them


def _leave_with(leaving: Any) -> None:
    global _leaving
    _leaving = leaving


def _prepared(read: Read) -> list[Prepared | None]:
    return [None if query is None else query.prepared for _, query in read]


def _refined_window(prepared: Prepared | None, reading: WindowReading, *, config: RefineConfig) -> WindowReading:
    """A reading with its model refined; as it is where nothing was read.

    Raises:
        MemoryError: there is not enough.
        CancelledError: nobody waits for it any more.
    """
    if prepared is None or reading.value is None:
        return reading
    low, high = (None if each is None else each[None] for each in (reading.low, reading.high))
    read = ReadModel(reading.value[None], low, high)
    start = np.clip(read.value, *VELOCITY_LIMITS_M_S)
    try:
        found = _refined(Observed.of(prepared), start, config, prior_of(read))
    except RuntimeError as error:
        if "allocate memory" in str(error):  # torch's own, on a CPU
            raise MemoryError(str(error)) from error
        raise
    did = WindowRefinement(len(found.residual), found.free_surface, found.residual_before, found.residual_after)
    return replace(
        reading,
        answer=replace(reading.answer, refined=did),
        value=found.velocity,
        low=None if low is None else found.low,
        high=None if high is None else found.high,
    )


def _refined(observed: Observed, start: Float32, config: RefineConfig, prior: Float32 | None) -> Refined:
    """A refinement to its end, or until nobody waits for it."""
    _check_waited_for()
    refinement = Refinement.begin(observed, start, config, prior=prior)
    while not refinement.done:
        _check_waited_for()
        refinement.step()
    return refinement.result()


def _check_waited_for() -> None:
    if _leaving is not None and _leaving.value:
        raise CancelledError


def contents(query: Query, refined: Refined, format: str, *, title: str) -> bytes:
    """A file of a format of `seisbind.service.formats.velocity_model`, in true units; npz has all that is known."""
    model, more = in_true_units(result_arrays(refined), query.prepared.frame, query.scale, x0_m=query.x0_m)
    return npz({**arrays_of(model), **more}) if format == "npz" else write(model, format, title=title)


def result_arrays(refined: Refined) -> dict[str, NDArray[Any]]:
    """What is kept of a result, in the frame's units."""
    return {name: np.asarray(getattr(refined, name)) for name in ("velocity", "low", "high", *MORE)}


def in_true_units(
    arrays: Mapping[str, NDArray[Any]], frame: Frame, scale: Scale, *, x0_m: float
) -> tuple[VelocityModel, dict[str, NDArray[Any]]]:
    """The model of `result_arrays`, with its interval where there is one; and what else there is of them."""
    k = np.float32(scale.k)
    low, high = (arrays[name] * k if name in arrays else None for name in ("low", "high"))
    more = {name: arrays[name] for name in MORE if name in arrays}
    model = VelocityModel(arrays["velocity"] * k, low, high, frame.cell_m * scale.s, x0_m)
    return model, more | {"source_dt_s": np.array(frame.dt_s * scale.time)}
