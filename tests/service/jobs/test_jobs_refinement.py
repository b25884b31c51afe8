"""A real refinement as a job: stopped after an iteration and taken up again, it is that of the model's own package."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from seisbind.model.frame import Frame
from seisbind.model.ground.families import generate
from seisbind.model.survey.preparation import prepare
from seisbind.model.waves.wavefield import simulate
from seisbind.service.jobs import worker
from seisbind.service.jobs.job import JobState, RefineInput, RefineRequest
from seisbind.service.jobs.refinement import make_refinement
from seisbind.service.jobs.store import JobStore


def test_a_refinement_as_a_job(other_frame: Frame, tmp_path: Path) -> None:
    pytest.importorskip("deepwave", reason="deepwave, which a refinement simulates with, is not installed")
    frame = replace(
        other_frame, depth_cells=24, x_cells=24, receivers=24, shot_x_m=(30.0, 85.0), samples=100, record_samples=400
    )
    velocity = generate("FlatVel-A", 1, np.random.default_rng(5), frame=frame)
    prepared = prepare(simulate(velocity, frame=frame), frame=frame)
    prior = np.concatenate([velocity, np.full_like(velocity, 100)])
    inputs = RefineInput(prepared.traces[0], prepared.live[0], prepared.shot_x_m[0], 0.95 * velocity, prior)
    request = RefineRequest(frame, 2, 600.0, "read")
    store, stop, committed = JobStore(tmp_path), threading.Event(), []
    job = store.submit(request, inputs)

    def at_step(name: str) -> None:
        if name == "step:committed":
            stop.set()
        committed.append(name)

    worker.work(tmp_path, make_refinement, stop=stop, at_step=at_step)
    assert store.job(job.job_id).state is JobState.QUEUED
    worker.work(tmp_path, make_refinement, stop=threading.Event(), idle_s=0)
    ended, found = store.job(job.job_id), store.arrays(job, "result")
    store.close()
    assert ended.state is JobState.DONE and found is not None, ended.sentence

    steps = make_refinement(request, inputs, None)
    residuals = [steps.step().residual for _ in range(2)]
    assert ended.last is not None and ended.last.residual == residuals[-1]
    wanted = steps.arrays()
    assert (
        set(found) == set(wanted) >= {"velocity", "low", "high", "illumination", "residual", "source", "free_surface"}
    )
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
