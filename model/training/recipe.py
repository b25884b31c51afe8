"""Training recipes: all that determines a run except its pairs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from seisbind.model.encoders.config import EncoderConfig
from seisbind.model.errors import InvalidConfig
from seisbind.model.training.augment import AugmentConfig
from seisbind.model.training.loss import PAPER_LOSS, LossConfig


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """A recipe; the default is that of the first of the shipped weights' runs.

    Attributes:
        steps, batch: updates, and pairs in each.
        learning_rate, weight_decay, warmup: AdamW, linear warm-up over ``warmup`` steps, then a cosine to zero.
        ema: decay of the averaged weights that are kept; 0 keeps the last ones.
        hard_negatives: share of the batches that hold runs of similar models (`batches`).
        locked: train the seismic encoder only, towards the others and the temperature, which stay fixed.
        errors_only: train only what is said of the readings: the error of each cell, and the kind of ground; every
            embedding and all that the other heads state stays as it is. Goes with contrastive weights and a
            `family_head` of zero.
        augment: data augmentation; None trains on the pairs as they are.
        parts: parts of a batch that are embedded one after another, or by as many processes; the contrastive loss is
            over all of them (`step`). Divides the batch.
        precision: ``bf16`` autocast, ``fp32``, or ``auto``: bf16 where the device computes in it (a CPU without
            AVX-512 or AMX emulates it, thirty times slower).
        checkpoint_every: steps from one checkpoint to the next.
    """

    encoders: EncoderConfig = field(default_factory=EncoderConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    augment: AugmentConfig | None = field(default_factory=AugmentConfig)
    steps: int = 3600
    batch: int = 128
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.05
    warmup: int = 60
    ema: float = 0.99
    hard_negatives: float = 0.4
    locked: bool = False
    errors_only: bool = False
    parts: int = 1
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    seed: int = 0
    checkpoint_every: int = 50

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "checkpoint_every", "parts"):
            if getattr(self, name) < 1:
                raise InvalidConfig(f"A recipe's {name!r} is {getattr(self, name)}; at least 1 is needed.")
        if self.batch % self.parts or (self.parts > 1 and self.batch // self.parts < 2):
            raise InvalidConfig(
                f"A batch of {self.batch} cannot be made of {self.parts} equal parts of two pairs or more; give "
                "another 'batch' or 'parts' (under torchrun, a multiple of the number of processes)."
            )
        if not self.learning_rate > 0 or not 0 <= self.ema < 1 or not 0 <= self.hard_negatives <= 1:
            raise InvalidConfig("A recipe needs learning_rate > 0, 0 <= ema < 1 and 0 <= hard_negatives <= 1.")
        if self.errors_only and (self.loss.contrastive or self.loss.family_head or self.encoders.kind == "paper"):
            raise InvalidConfig("A recipe of 'errors_only' needs heads, and contrastive and family weights of zero.")
        if not self.errors_only and not self.loss.contrastive:
            raise InvalidConfig("A recipe needs a contrastive weight, unless it trains 'errors_only'.")


def described_recipe(config: TrainConfig) -> dict[str, Any]:
    """A recipe as JSON; ``parts`` only where there are several, so that runs of before it go on."""
    fields = asdict(config)
    if config.parts == 1:
        del fields["parts"]
    return fields


PAPER = TrainConfig(encoders=EncoderConfig(kind="paper"), loss=PAPER_LOSS, augment=None, ema=0.0, hard_negatives=0.0)
# continues from trained weights with other pairs: smaller steps, harder batches, targets nearer one-hot
FURTHER = TrainConfig(
    loss=LossConfig(soft_share=0.15), steps=2600, learning_rate=8e-4, hard_negatives=0.7, checkpoint_every=100
)
# continues from those with more layers, and more weight on the heads
LARGER = replace(
    FURTHER,
    encoders=EncoderConfig(ahead=1, blocks=(3, 3, 2), mixers=1, finish=1),
    loss=LossConfig(soft_share=0.15, map_head=3.0, descriptor_head=0.3),
    steps=3200,
    learning_rate=1e-3,
    seed=1,  # other batches and augmentation than the run before
)
# continues from those with the seismic encoder alone, which already retrieves models in the gallery, to predict others
# better: the heads weigh more and all errors alike; less augmentation and fewer hard negatives, which retrieval needs
READING = replace(
    LARGER,
    loss=LossConfig(velocity_physics=0.0, soft_share=0.15, map_head=4.0, descriptor_head=2.0, descriptor_beta=1.0),
    augment=AugmentConfig(noise=0.5, shift=0.35),
    locked=True,
    steps=4800,
    hard_negatives=0.4,
    seed=2,  # as above
)
# continues from those over broad ground and any line's spreads, sources and shots, and learns how wrong each cell is
BROAD = replace(
    READING,
    encoders=replace(LARGER.encoders, map_error=1),
    loss=replace(READING.loss, map_error=0.2),
    augment=AugmentConfig(
        noise=0.5, shift=0.4, phase=0.2, tilt=0.2, tilt_power=0.8, gap=0.25, far=0.2, one_sided=0.12, low_cut=0.25,
        ghost=0.1, shots=0.15, sparse=0.08,
    ),
    steps=2200,
    seed=3,
)  # fmt: skip
# continues from trained weights over broad ground with what they say of their own readings: all that is retrieved and
# read stays exactly the same
ERRORS = replace(
    BROAD,
    loss=replace(
        BROAD.loss,
        seismic_velocity=0.0,
        velocity_physics=0.0,
        seismic_physics=0.0,
        descriptor_head=0.0,
        family_head=0.0,
        kind_head=0.1,
    ),
    locked=False,
    errors_only=True,
    hard_negatives=0.0,
    weight_decay=0.0,
    learning_rate=2e-3,
    steps=1200,
    seed=4,
)
# the same once more, over more kinds of ground
KINDS = replace(ERRORS, steps=600, seed=5)
NAMED = {
    "default": TrainConfig(),
    "further": FURTHER,
    "larger": LARGER,
    "reading": READING,
    "broad": BROAD,
    "errors": ERRORS,
    "kinds": KINDS,
    "paper": PAPER,
}


def load_config(name: str) -> TrainConfig:
    """A recipe by name (of `NAMED`) or from a JSON file.

    The file gives any of `TrainConfig`'s fields, nested ones too, over those of its ``base`` (a name; ``default``).

    Raises:
        InvalidConfig: no such file, an unknown field, or a value of the wrong type or out of range.
    """
    if name in NAMED:
        return NAMED[name]
    path = Path(name)
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidConfig(f"No recipe {name!r}: give {', '.join(NAMED)} or a JSON file.") from error
    except ValueError as error:
        raise InvalidConfig(f"{path} is not JSON: {error}.") from error
    if not isinstance(raw, dict) or raw.get("base", "default") not in NAMED:
        raise InvalidConfig(f"{path} must be a JSON object whose 'base', if given, is one of {', '.join(NAMED)}.")
    whole = asdict(NAMED[raw.pop("base", "default")])
    for key, value in raw.items():
        if key not in whole:
            raise InvalidConfig(f"{path}: a recipe has no {key!r}; it has {', '.join(whole)}.")
        if key == "augment" and whole[key] is None:
            whole[key] = asdict(AugmentConfig())
        if isinstance(value, dict) and isinstance(whole[key], dict):
            unknown = sorted(value.keys() - whole[key].keys())
            if unknown:
                raise InvalidConfig(f"{path}: {key!r} has no {unknown[0]!r}; it has {', '.join(whole[key])}.")
            whole[key] |= value
        else:
            whole[key] = value
    try:
        return TypeAdapter(TrainConfig).validate_python(whole)
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidConfig(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}.") from error
