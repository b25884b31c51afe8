"""A job: what was asked, how far it is, and how it ended."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seisbind.model.frame import Frame
from seisbind.model.scale import Scale

Float32 = NDArray[np.float32]


class JobState(StrEnum):
    """Where a job is. The last three are ends."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether nothing will change any more."""
        return self in (JobState.DONE, JobState.FAILED, JobState.CANCELLED)


@dataclass(frozen=True, slots=True)
class RefineRequest:
    """A refinement that was asked for, at the scale of its gather.

    Attributes:
        frame: of the weights that the gather was prepared for.
        iterations: at most.
        seconds: of work at most, however often it is interrupted.
        start: where the models that it starts from come from, in words; ``starts``: how many they are.
        s, k, x0_m: of the gather's scale, and the place of its first receiver: true units of the result.
        warnings: of the gather's preparation, sentences.
        parents: of each start, the ids of the models that it is made of, or its name where no gallery has it.
    """

    frame: Frame
    iterations: int
    seconds: float
    start: str
    starts: int = 1
    s: float = 1.0
    k: float = 1.0
    x0_m: float = 0.0
    warnings: tuple[str, ...] = ()
    parents: tuple[tuple[str, ...], ...] = ()

    @property
    def scale(self) -> Scale:
        """Of true units to those of the frame."""
        return Scale(self.s, self.k)

    def to_json(self) -> str:
        """As it is stored."""
        return json.dumps({name: getattr(self, name) for name in self.__slots__} | {"frame": self.frame.to_dict()})

    @classmethod
    def from_json(cls, text: str) -> RefineRequest:
        """What `to_json` wrote."""
        stored: dict[str, Any] = json.loads(text)
        frame, warnings = Frame.from_dict(stored.pop("frame")), tuple(stored.pop("warnings"))
        parents = tuple(tuple(each) for each in stored.pop("parents"))
        return cls(frame=frame, warnings=warnings, parents=parents, **stored)


@dataclass(frozen=True, slots=True)
class RefineInput:
    """The arrays of a refinement, in the frame's units. They are stored with the job, which so needs no gallery and no
    weights, and whose size the frame bounds whatever was sent.

    Attributes:
        traces: ``(shot, time, receiver)`` float32; zero where not live.
        live: ``(shot, receiver)`` bool.
        shot_x_m: ``(shot,)`` metres from the first receiver.
        starts: ``(start, depth, x)`` float32, m/s.
        prior: ``(2, depth, x)`` float32, m/s, of `Refinement.begin`; None without one.
    """

    traces: Float32
    live: NDArray[np.bool_]
    shot_x_m: Float32
    starts: Float32
    prior: Float32 | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """A line of a job's progress.

    Attributes:
        line: 0, 1, 2 … within the job.
        at: seconds since the epoch.
        iteration: done so far; None before the first.
        of: most there will be.
        stage: of the refinement, a word of its own.
        residual: of the record that the model does not explain, over the record's rms.
        step_s: that the iteration took, seconds.
        seconds_left: as the last iterations went.
        detail: a sentence, where there is more to say.
    """

    line: int
    at: float
    state: JobState
    iteration: int | None = None
    of: int | None = None
    stage: str | None = None
    residual: float | None = None
    step_s: float | None = None
    seconds_left: float | None = None
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """What is known of a job.

    Attributes:
        created_at, started_at, ended_at: seconds since the epoch; None: not yet.
        deaths: workers that have taken it since its last iteration and have not put it back, this one's included.
        worked_s: seconds of work so far.
        code, sentence: of an error, where it failed; the sentence also says why it ended before its last iteration.
        ahead: jobs that come before it; 0 unless it is queued.
        last: the last event with an iteration.
    """

    row: int
    job_id: str
    request: RefineRequest
    state: JobState
    created_at: float
    started_at: float | None
    ended_at: float | None
    deaths: int
    worked_s: float
    code: str | None
    sentence: str | None
    ahead: int
    last: Event | None
