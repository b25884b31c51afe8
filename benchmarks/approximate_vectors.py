"""Vectors and queries for `approximate.py`, as a gallery holds and is asked them, kept in a folder once made.

Entries: embeddings, by the shipped velocity encoder, of ``real`` maps of `geology` ground and of the ten families, half
each; what goes beyond them lies between an embedding and one of its `NEIGHBOURS` nearest, so that the neighbourhoods
stay those of real ground. Queries are embeddings that are not among the entries: of maps drawn apart ("held out"), and
of maps that are entries but were changed as an inversion's reading of one is, smoothed, off by some per cent and
shifted by a cell ("perturbed").
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, shift

from seisbind.model.encoders.embedder import Embedder
from seisbind.model.ground.families import BROAD_FAMILIES, FAMILIES, mixed
from seisbind.model.survey.preparation import prepare
from seisbind.model.waves.wavefield import simulate
from seisbind.service.terminal.console import counting

SEED = 29
PART = 2_000
NEIGHBOURS = 10
QUERIES = 1_000  # of each kind


def real(cache: Path, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings of ``count`` entries, of the held-out queries, and of the perturbed ones."""
    path = cache / f"real-{count}.npz"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        embedder, parts, seen = Embedder.load(), [], []
        with counting("Embedding maps", count) as progress:
            for number, start in enumerate(range(0, count, PART)):
                families = (BROAD_FAMILIES, FAMILIES)[number % 2]
                maps, _ = mixed(min(PART, count - start), SEED + number, families)
                if number < 2:
                    seen.append(maps[: QUERIES // 2])
                parts.append(embedder.embed_velocity(maps))
                progress(start + len(maps))
        apart = np.concatenate(
            [mixed(QUERIES // 2, SEED + 10**6 + i, f)[0] for i, f in enumerate((BROAD_FAMILIES, FAMILIES))]
        )
        changed = np.stack(
            [perturbed(each, np.random.default_rng([SEED, i])) for i, each in enumerate(np.concatenate(seen))]
        )
        np.savez(
            path,
            entries=np.concatenate(parts),
            held_out=embedder.embed_velocity(apart),
            perturbed=embedder.embed_velocity(changed),
        )
    with np.load(path) as held:
        return held["entries"], held["held_out"], held["perturbed"]


def perturbed(velocity: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A map ``(depth, x)`` smoothed by one to two cells, each part off by 2 % or so, shifted by up to a cell."""
    smooth = gaussian_filter(velocity.astype(np.float64), rng.uniform(1, 2))
    off = gaussian_filter(rng.standard_normal(velocity.shape), 8)
    moved = shift(smooth * (1 + 0.02 * off / off.std()), rng.uniform(-1, 1, 2), order=1, mode="nearest")
    return np.clip(moved, 1500, 4500).astype(np.float32)


def entries(embeddings: np.ndarray, count: int) -> np.ndarray:
    """The embeddings, and unit vectors between near ones up to ``count``, in float32."""
    if count <= len(embeddings):
        return embeddings[:count]
    rng = np.random.default_rng(SEED)
    near = np.concatenate(
        [
            torch.topk(torch.from_numpy(embeddings[i : i + 1000]) @ torch.from_numpy(embeddings).T, NEIGHBOURS + 1)[
                1
            ].numpy()
            for i in range(0, len(embeddings), 1000)
        ]
    )[:, 1:]
    found = np.empty((count, embeddings.shape[1]), np.float32)
    found[: len(embeddings)] = embeddings
    for start in range(len(embeddings), count, 50_000):
        out = found[start : start + 50_000]
        first = rng.integers(len(embeddings), size=len(out))
        other = near[first, rng.integers(NEIGHBOURS, size=len(out))]
        weight = rng.random((len(out), 1), np.float32)
        out[:] = (1 - weight) * embeddings[first] + weight * embeddings[other]
        out /= np.linalg.norm(out, axis=1, keepdims=True)
    return found


def records(cache: Path, count: int) -> np.ndarray:
    """Embeddings of gathers modelled over maps that are entries: what a server is asked."""
    path = cache / f"records-{count}.npy"
    if not path.exists():
        embedder = Embedder.load()
        maps = np.concatenate(
            [mixed(PART, SEED + n, f)[0][: count // 2] for n, f in enumerate((BROAD_FAMILIES, FAMILIES))]
        )
        gathers = np.concatenate([simulate(each, engine="openfwi") for each in maps])
        np.save(path, embedder.embed_gathers(prepare(gathers)).embedding)
    return np.load(path)
