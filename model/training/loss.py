"""Contrastive losses between modalities, with one-hot or structure-aware targets.

``L = w_sv L(seismic, velocity) + w_vp L(velocity, physics) + w_sp L(seismic, physics) + heads``; the paper's recipe
(arXiv 2601.14607) is ``w = 1, 0.1, 0``, one-hot targets and no heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from seisbind.model.encoders.seismic import GatherEmbedding
from seisbind.model.errors import InvalidConfig
from seisbind.model.frame import MAP_STEP, OPENFWI_FRAME, Frame


@dataclass(frozen=True, slots=True)
class LossConfig:
    """Weights and softness of the terms.

    Attributes:
        seismic_velocity, velocity_physics, seismic_physics: weights of the contrastive terms.
        soft_share: share of the target that follows the distance between velocity models; the rest is one-hot.
        softness_m_s: mean absolute difference at which a model's share falls by e.
        descriptor_head, map_head: weights of the regressions on the gathers.
        map_error: weight of the likelihood of the errors that the map head states, given the model that it draws.
        family_head, kind_head: weights of the classifications by these heads (cross-entropy).
        descriptor_beta: power of the stated scale that each descriptor's term is multiplied by (Seitzer et al. 2022,
            beta-NLL): 0 is the likelihood, which pulls by 1 / scale; at 1 all errors pull alike.
    """

    seismic_velocity: float = 1.0
    velocity_physics: float = 1.0
    seismic_physics: float = 0.1
    soft_share: float = 0.25
    softness_m_s: float = 40.0
    descriptor_head: float = 0.2
    map_head: float = 2.0
    map_error: float = 0.0
    family_head: float = 0.05
    kind_head: float = 0.0
    descriptor_beta: float = 0.0

    @property
    def contrastive(self) -> bool:
        """Whether any embedding is trained."""
        return bool(self.seismic_velocity or self.velocity_physics or self.seismic_physics)

    def __post_init__(self) -> None:
        if not 0 <= self.descriptor_beta <= 1:
            raise InvalidConfig(f"A loss needs descriptor_beta from 0 to 1 (got {self.descriptor_beta:g}).")


PAPER_LOSS = LossConfig(1.0, 0.1, 0.0, soft_share=0.0, descriptor_head=0.0, map_head=0.0, family_head=0.0)


def structure_distance(velocity: Tensor) -> Tensor:
    """``(batch, batch)`` mean absolute differences, m/s, of models ``(batch, 70, 70)`` averaged over 5 x 5 cells."""
    coarse = F.avg_pool2d(velocity.float()[:, None], 5).flatten(1)
    return torch.cdist(coarse, coarse, p=1) / coarse.shape[1]


def targets(velocity: Tensor, config: LossConfig) -> Tensor | None:
    """``(batch, batch)`` target distribution of each row, or None for one-hot."""
    if config.soft_share == 0:
        return None
    soft = torch.softmax(-structure_distance(velocity) / config.softness_m_s, dim=1)
    one_hot = torch.eye(len(velocity), device=velocity.device)
    return config.soft_share * soft + (1 - config.soft_share) * one_hot


def contrastive(a: Tensor, b: Tensor, scale: Tensor, target: Tensor | None = None) -> Tensor:
    """Symmetric InfoNCE of unit vectors ``(batch, 256)`` that match row by row.

    Args:
        a, b: embeddings of two modalities.
        scale: inverse temperature.
        target: ``(batch, batch)`` target distribution of each row, used for both directions; None for one-hot.
    """
    logits = scale * a @ b.T
    if target is None:
        match = torch.arange(len(a), device=a.device)
        return 0.5 * (F.cross_entropy(logits, match) + F.cross_entropy(logits.T, match))
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))


@dataclass(frozen=True, slots=True)
class LossTerms:
    """The total and its parts before weighting (scalars)."""

    total: Tensor
    parts: dict[str, Tensor]


def total_loss(
    gathers: GatherEmbedding,
    velocity_embedding: Tensor | None,
    physics_embedding: Tensor | None,
    *,
    velocity: Tensor,
    descriptors: Tensor,
    family: Tensor,
    scale: Tensor,
    config: LossConfig,
    frame: Frame = OPENFWI_FRAME,
) -> LossTerms:
    """The training loss of a batch.

    Args:
        gathers: output of the seismic encoder.
        velocity_embedding, physics_embedding: ``(batch, 256)`` unit vectors; None: no contrastive term.
        velocity: ``(batch, 70, 70)``, m/s.
        descriptors: ``(batch, 13)``, standardised.
        family: ``(batch,)`` index of each model's family, or kind of ground.
        scale: inverse temperature, clamped.
        frame: whose unit of velocity the map head uses.
    """
    terms: list[tuple[str, float, Tensor]] = []
    if velocity_embedding is not None and physics_embedding is not None:
        embeddings = gathers.embedding, velocity_embedding, physics_embedding
        terms += _contrastive_terms(*embeddings, velocity, scale, config)
    return _total([*terms, *_head_terms(gathers, velocity, descriptors, family, config, frame)])


def contrastive_loss(
    seismic: Tensor, velocity_embedding: Tensor, physics_embedding: Tensor, *, velocity: Tensor, scale: Tensor,
    config: LossConfig,
) -> LossTerms:  # fmt: skip
    """The part of `total_loss` that compares the pairs of a batch with each other."""
    return _total(_contrastive_terms(seismic, velocity_embedding, physics_embedding, velocity, scale, config))


def head_loss(
    gathers: GatherEmbedding, *, velocity: Tensor, descriptors: Tensor, family: Tensor, config: LossConfig,
    frame: Frame = OPENFWI_FRAME,
) -> LossTerms:  # fmt: skip
    """The rest of `total_loss`: a mean over pairs, none of which matters to another. Zero without heads."""
    return _total(_head_terms(gathers, velocity, descriptors, family, config, frame))


def _total(terms: list[tuple[str, float, Tensor]]) -> LossTerms:
    weighted = [weight * part for _, weight, part in terms]
    total = torch.stack(weighted).sum() if weighted else torch.zeros(())
    return LossTerms(total, {name: part.detach() for name, _, part in terms})


def _contrastive_terms(
    seismic: Tensor,
    velocity_embedding: Tensor,
    physics_embedding: Tensor,
    velocity: Tensor,
    scale: Tensor,
    config: LossConfig,
) -> list[tuple[str, float, Tensor]]:
    target = targets(velocity, config)
    terms = [
        ("seismic_velocity", config.seismic_velocity, contrastive(seismic, velocity_embedding, scale, target)),
    ]
    if config.velocity_physics:
        part = contrastive(velocity_embedding, physics_embedding, scale)
        terms.append(("velocity_physics", config.velocity_physics, part))
    if config.seismic_physics:
        terms.append(("seismic_physics", config.seismic_physics, contrastive(seismic, physics_embedding, scale)))
    return terms


def _head_terms(
    gathers: GatherEmbedding,
    velocity: Tensor,
    descriptors: Tensor,
    family: Tensor,
    config: LossConfig,
    frame: Frame,
) -> list[tuple[str, float, Tensor]]:
    terms: list[tuple[str, float, Tensor]] = []
    if config.descriptor_head and gathers.descriptors is not None and gathers.descriptor_scale is not None:
        scale_of_error = gathers.descriptor_scale
        error = (gathers.descriptors - descriptors).abs()
        likelihood = error / scale_of_error + scale_of_error.log()  # negative logarithm, of a Laplace law
        part = (likelihood * scale_of_error.detach() ** config.descriptor_beta).mean()
        terms.append(("descriptors", config.descriptor_head, part))
    if config.map_head and gathers.velocity is not None:
        coarse = F.avg_pool2d((velocity.float()[:, None] - frame.middle_m_s) / frame.spread_m_s, MAP_STEP)
        terms.append(("map", config.map_head, F.l1_loss(gathers.velocity, coarse[:, 0])))
        if config.map_error and gathers.velocity_scale is not None:
            off = (gathers.velocity.detach() - coarse[:, 0]).abs()
            part = (off / gathers.velocity_scale + gathers.velocity_scale.log()).mean()
            terms.append(("map_error", config.map_error, part))
    if config.family_head and gathers.family is not None:
        terms.append(("family", config.family_head, F.cross_entropy(gathers.family, family)))
    if config.kind_head and gathers.kind is not None:
        terms.append(("kind", config.kind_head, F.cross_entropy(gathers.kind, family)))
    return terms
