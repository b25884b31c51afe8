"""Checks as they cross HTTP or leave in a file: in true units."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seisbind.model.inversion.check import Measures, Verdict
from seisbind.service.check_schemas import CandidateBody, CheckBody, MeasuresBody, ShotBody, VerdictBody
from seisbind.service.engine.check import Checked, CheckedCandidate
from seisbind.service.formats.npy import npz

DIGITS = 4  # of a measure, significant: what noise leaves of it is less


def check_body(checked: Checked) -> CheckBody:
    """The figures of a check."""
    first, scale = checked.candidates[0], checked.scale
    return CheckBody(
        lowest_hz=first.check.comparison.lowest_hz * scale.frequency,
        free_surface=first.check.free_surface,
        best=checked.candidates[checked.best].candidate.name,
        reordered=checked.reordered,
        candidates=[_candidate(each, checked) for each in checked.candidates],
    )


def check_npz(checked: Checked, answer: str) -> bytes:
    """The npz that docs/http.md describes. ``answer``: the JSON."""
    observed, scale, found = checked.observed, checked.scale, checked.candidates
    own = scale.frame(observed.frame)
    arrays: dict[str, NDArray[Any]] = {
        "observed": observed.traces,
        "live": observed.live,
        "shot_x_m": observed.shot_x_m * np.float32(scale.s),
        "receiver_x_m": np.array(own.survey.receiver_x_m),
        "dt_s": np.array(own.dt_s),
        "candidate": np.array([each.candidate.name for each in found]),
        "velocity": np.stack([each.candidate.velocity for each in found]) * np.float32(scale.k),
        "predicted": np.stack([each.check.predicted for each in found]),
        "window_s": found[0].check.comparison.window_s * scale.time,
        "lag_s": np.stack([each.check.comparison.lag_s for each in found]) * np.float32(scale.time),
        "phase_rad": np.stack([each.check.comparison.phase_rad for each in found]),
        "answer": np.frombuffer(answer.encode(), np.uint8),
    }
    return npz(arrays)


def verdict_body(verdict: Verdict) -> VerdictBody:
    """A verdict, for a client."""
    return VerdictBody(usable=verdict.usable, reason=verdict.reason, detail=verdict.detail)


def measures_body(measures: Measures) -> MeasuresBody:
    """Measures, for a client."""
    return MeasuresBody(**_numbers(measures))


def _candidate(each: CheckedCandidate, checked: Checked) -> CandidateBody:
    comparison, candidate, verdict = each.check.comparison, each.candidate, each.verdict
    positions = checked.observed.shot_x_m * checked.scale.s
    return CandidateBody(
        name=candidate.name,
        kind=candidate.kind,
        rank=candidate.rank,
        model_id=candidate.model_id,
        verdict=verdict_body(verdict),
        measures=measures_body(comparison.whole),
        shots=[
            ShotBody(x_m=float(x), **_numbers(shot)) for x, shot in zip(positions, comparison.shots, strict=True)
        ],
    )  # fmt: skip


def _numbers(m: Measures) -> dict[str, Any]:
    values = {
        "residual": m.residual,
        "unexplained": m.unexplained,
        "in_time": m.in_time,
        "phase_rad": m.phase_rad,
        "cosine": m.cosine,
    }
    return {name: None if math.isnan(value) else float(f"{value:.{DIGITS}g}") for name, value in values.items()}
