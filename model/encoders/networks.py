"""The three encoders: shot gathers, velocity models and descriptors into one space of unit vectors.

`Encoders` are built from an `EncoderConfig` and a `Frame`, which determines their sizes: SeisBind's own or the paper's.
Both answer `embed_gathers`, `embed_velocity` and `embed_descriptors`. Sizes in comments are those of OpenFWI's frame.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from seisbind.model.encoders.config import EncoderConfig
from seisbind.model.encoders.paper import PaperSeismicEncoder, PaperVelocityEncoder
from seisbind.model.encoders.seismic import GatherEmbedding, SeismicEncoder
from seisbind.model.encoders.velocity import PhysicsEncoder, VelocityEncoder
from seisbind.model.frame import OPENFWI_FRAME, Frame
from seisbind.model.ground.descriptors import NAMES

MAX_LOGIT_SCALE = 100.0  # CLIP's clamp, exp(ln 100)


class Encoders(nn.Module):
    """Seismic, velocity and physics encoders with the temperature and the descriptors' standardisation.

    Buffers ``descriptor_mean`` and ``descriptor_std`` (13,) come from the training set.
    """

    descriptor_mean: Tensor
    descriptor_std: Tensor

    def __init__(self, config: EncoderConfig, *, frame: Frame = OPENFWI_FRAME) -> None:
        super().__init__()
        self.config = config
        self.frame = frame
        self.seismic: nn.Module
        self.velocity: nn.Module
        if config.kind == "paper":
            self.seismic, self.velocity = PaperSeismicEncoder(frame), PaperVelocityEncoder(frame)
            self.physics = PhysicsEncoder(256, layers=2)
        else:
            self.seismic, self.velocity = SeismicEncoder(config, frame), VelocityEncoder(config, frame)
            self.physics = PhysicsEncoder(config.hidden)
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())  # CLIP's start
        self.register_buffer("descriptor_mean", torch.zeros(len(NAMES)))
        self.register_buffer("descriptor_std", torch.ones(len(NAMES)))

    def lock(self) -> None:
        """Train the seismic encoder only (Zhai et al. 2022, LiT); the others and the temperature stay fixed."""
        for part in (self.velocity, self.physics):
            part.requires_grad_(False).eval()
        self.logit_scale.requires_grad_(False)

    def lock_readings(self) -> None:
        """Train what is said of the readings: the error of each cell, and the kind of ground. Embeddings and all that
        the other heads state stay what they are, to the bit."""
        self.lock()
        self.seismic.requires_grad_(False).eval()
        for name, parameter in self.seismic.named_parameters():
            parameter.requires_grad_(name.startswith(("kind_head.", "map_head.error.")))
        for name, part in self.seismic.named_children():
            part.train(name == "kind_head")  # which forgets a part of what it sees

    def embed_gathers(self, traces: Tensor, live: Tensor, shot_x_m: Tensor) -> GatherEmbedding:
        """See `SeismicEncoder.forward`; inputs as in `preparation.Prepared`."""
        out: GatherEmbedding = self.seismic(traces, live, shot_x_m)
        return out

    def embed_velocity(self, velocity: Tensor) -> Tensor:
        """``(batch, 70, 70)`` m/s -> ``(batch, 256)`` unit vectors."""
        out: Tensor = self.velocity(velocity)
        return out

    def embed_descriptors(self, descriptors: Tensor) -> Tensor:
        """``(batch, 13)`` in the units of `descriptors.DESCRIPTORS` -> ``(batch, 256)`` unit vectors."""
        out: Tensor = self.physics(self.standardise(descriptors))
        return out

    def standardise(self, descriptors: Tensor) -> Tensor:
        return (descriptors - self.descriptor_mean) / self.descriptor_std

    def scale(self) -> Tensor:
        """Inverse temperature, clamped at 100."""
        return self.logit_scale.exp().clamp_max(MAX_LOGIT_SCALE)
