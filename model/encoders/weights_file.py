"""Trained encoders as one safetensors file that describes and checks itself.

The metadata holds a JSON `Description` (configuration, policies, calibration, training) and a SHA-256 over that JSON
and every tensor, so that a damaged file is refused. The fingerprint is the start of that SHA-256; a gallery stores it,
beside that of its embeddings, and works only with weights that make the same embeddings (`seisbind.model.fingerprint`).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from seisbind.model.confidence.novelty import TrainingRanges
from seisbind.model.confidence.presence import Presence
from seisbind.model.encoders.blocks import COMPRESSION, OPENFWI_RMS
from seisbind.model.encoders.config import EncoderConfig
from seisbind.model.encoders.networks import Encoders
from seisbind.model.errors import InvalidConfig, WeightsError
from seisbind.model.files import replacing
from seisbind.model.fingerprint import Fingerprint, kept_since
from seisbind.model.frame import OPENFWI_FRAME, Frame, stored_frame
from seisbind.model.ground.descriptors import INTERFACE_STEP_M_S, NAMES
from seisbind.model.survey.preparation import POLARITY_RATIO
from seisbind.model.survey.resampling import SINC_HALF_WIDTH

FORMAT = 4
BEFORE_FRAMES = 3  # the same without a frame: OpenFWI's
SHIPPED = Path(__file__).parents[1] / "weights" / "seisbind.safetensors"
FINGERPRINT_LENGTH = 16
EMBEDS = ("velocity.", "physics.", "descriptor_")  # tensors that a gallery's embeddings depend on
LATER = ("log_cell_factor", "log_excess", "log_cell_excess")  # of a calibration, stored only where there are any
PRESENCE_KEYS = {"log_structure_difference": "log_far", "uncertainty": "doubt"}  # stored names of `Presence`'s fields


def policy_of(frame: Frame) -> dict[str, float]:
    """Parameters of the preparation of gathers for encoders of a frame."""
    return {
        "dt_s": frame.dt_s,
        "samples": frame.samples,
        "receivers": frame.receivers,
        "spacing_m": frame.receiver_spacing_m,
        "shot_rms": OPENFWI_RMS,
        "compression": COMPRESSION,
        "time_kernel": SINC_HALF_WIDTH,
        "max_gap_m": frame.max_gap_m,
        "polarity_ratio": POLARITY_RATIO,
        "interface_step_m_s": INTERFACE_STEP_M_S,
    }


@dataclass(frozen=True, slots=True)
class Calibration:
    """Measured on pairs that training never saw.

    Attributes:
        log_factor: ``(families, 13)``, or one row without a family head: the half width of a 90 % interval is the
            head's scale times exp(mean of the rows, weighted by the families' probabilities); see
            `confidence.intervals`.
        presence: law of the probability that the best match is the true model; see `confidence.presence`.
        novelty: what gathers looked like in training; see `confidence.novelty`.
        pairs: how many pairs it was measured on.
        log_cell_factor: ``(families,)``, the same as ``log_factor`` for the cells of the read model; empty where the
            weights state no error of cells.
        log_excess: ``(departures, 13)``, by how much that exponent rises with each of `intervals.departures`; empty
            where intervals follow the families alone.
        log_cell_excess: ``(departures,)``, the same for the cells.
    """

    log_factor: tuple[tuple[float, ...], ...]
    presence: Presence
    novelty: TrainingRanges
    pairs: int
    log_cell_factor: tuple[float, ...] = ()
    log_excess: tuple[tuple[float, ...], ...] = ()
    log_cell_excess: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Description:
    """Everything but the tensors: enough to build the encoders, to prepare their input and to know their origin.

    ``policy``: `policy_of` the frame, unless given.
    """

    name: str
    config: EncoderConfig
    training: dict[str, Any] = field(default_factory=dict)
    calibration: Calibration | None = None
    descriptors: tuple[str, ...] = NAMES
    policy: dict[str, float] = field(default_factory=dict)
    format: int = FORMAT
    frame: Frame = OPENFWI_FRAME

    def __post_init__(self) -> None:
        if not self.policy:
            object.__setattr__(self, "policy", policy_of(self.frame))

    def to_dict(self) -> dict[str, Any]:
        """As it is stored in the file."""
        stored = asdict(self) | {"frame": self.frame.to_dict()}
        if self.format == BEFORE_FRAMES:  # loaded, and saved again as it was
            del stored["frame"]
        if calibration := stored["calibration"]:
            calibration["familiar"] = calibration.pop("novelty")
            for name in LATER:
                if not calibration[name]:
                    del calibration[name]
            presence = calibration["presence"]
            calibration["presence"] = {PRESENCE_KEYS.get(name, name): value for name, value in presence.items()}
        return stored


@dataclass(frozen=True, slots=True)
class Weights:
    """Encoders in evaluation mode, their description and their fingerprint, a `Fingerprint` where they were loaded."""

    encoders: Encoders
    description: Description
    fingerprint: str

    @property
    def as_start(self) -> dict[str, Any]:
        """What the description of weights that go on from these says of them, as ``start`` of its ``training``."""
        told = {"fingerprint": str(self.fingerprint)}
        if isinstance(self.fingerprint, Fingerprint):
            told["embeddings"] = self.fingerprint.embeddings
        return self.description.training | told


def save_weights(path: Path, encoders: Encoders, description: Description) -> str:
    """Write ``path`` (temporary file, fsync, rename), matrices in float16; returns the fingerprint."""
    if description.frame != encoders.frame:
        raise InvalidConfig(
            f"The description is of another frame than the encoders: {description.frame} there, {encoders.frame} here."
        )
    text, tensors = json.dumps(description.to_dict(), sort_keys=True), _stored_tensors(encoders)
    whole = digest(text, tensors)
    payload = save(tensors, metadata={"seisbind": text, "sha256": whole})
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_bytes(payload)
    return whole[:FINGERPRINT_LENGTH]


def load_weights(path: Path | None = None, *, device: str | torch.device = "cpu") -> Weights:
    """Load weights; None means those that ship with SeisBind.

    Raises:
        WeightsError: no such file, damaged, or made for another format, policy or set of descriptors.
    """
    path = SHIPPED if path is None else path
    if not path.is_file():
        raise WeightsError(f"No weights at {path}. Train some with 'seisbind train', or leave --weights out.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path} is not a readable safetensors file ({error}); fetch it again.") from error
    text, stated = metadata.get("seisbind"), metadata.get("sha256")
    if text is None or stated is None:
        raise WeightsError(f"{path} is a safetensors file, but not of SeisBind weights: its metadata lacks 'seisbind'.")
    if digest(text, tensors) != stated:
        raise WeightsError(f"{path} is damaged: its content does not have the SHA-256 {stated[:16]}… that it states.")
    description = _parse_description(text, path)
    try:
        encoders = _built(description.config, description.frame, tensors)
    except RuntimeError as error:
        raise WeightsError(f"{path} does not fit its own configuration: {error}") from error
    return Weights(encoders.to(device), description, _fingerprint(stated, description, tensors))


def _fingerprint(stated: str, description: Description, tensors: dict[str, Tensor]) -> Fingerprint:
    embeddings = embeddings_digest(description, tensors)[:FINGERPRINT_LENGTH]
    same = kept_since(description.training, embeddings)
    return Fingerprint(stated[:FINGERPRINT_LENGTH], embeddings=embeddings, same=same)


def embeddings_digest(description: Description, tensors: dict[str, Tensor]) -> str:
    """SHA-256, in hexadecimal digits, of all that a gallery's embeddings depend on: the velocity and the physics
    encoder, the standardisation of descriptors, the form of both, the frame and the descriptors."""
    config = description.config
    made_of = {
        "kind": config.kind,
        "velocity_width": config.velocity_width,
        "hidden": config.hidden,
        "frame": description.frame.to_dict(),
        "descriptors": description.descriptors,
        "interface_step_m_s": description.policy["interface_step_m_s"],
    }
    used = {name: t for name, t in tensors.items() if name.startswith(EMBEDS)}
    return digest(json.dumps(made_of, sort_keys=True), used)


def as_saved(encoders: Encoders) -> Encoders:
    """The encoders as saved and loaded: on the CPU, matrices rounded to float16."""
    return _built(encoders.config, encoders.frame, _stored_tensors(encoders))


def _stored_tensors(encoders: Encoders) -> dict[str, Tensor]:
    """Matrices and kernels as float16 (half the file; the card states what it costs), the rest unchanged."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in encoders.state_dict().items()}
    return {name: t.half() if t.is_floating_point() and t.ndim >= 2 else t for name, t in tensors.items()}


def _built(config: EncoderConfig, frame: Frame, tensors: dict[str, Tensor]) -> Encoders:
    encoders = Encoders(config, frame=frame)
    encoders.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in tensors.items()})
    return encoders.eval()


def digest(text: str, tensors: dict[str, Tensor]) -> str:
    """SHA-256, in hexadecimal digits, of a description and the tensors beside it, on the CPU."""
    hashed = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        hashed.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        hashed.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()


def _parse_calibration(stored: dict[str, Any]) -> Calibration:
    ranges, names = stored["familiar"], {key: name for name, key in PRESENCE_KEYS.items()}
    halfway = [(a + b) / 2 for a, b in zip(ranges["low"], ranges["high"], strict=True)]  # older weights lack the median
    return Calibration(
        log_factor=tuple(tuple(map(float, row)) for row in stored["log_factor"]),
        presence=Presence(**{names.get(key, key): value for key, value in stored["presence"].items()}),
        novelty=TrainingRanges(
            low=tuple(ranges["low"]),
            middle=tuple(ranges.get("middle", halfway)),
            high=tuple(ranges["high"]),
            limit=ranges["limit"],
        ),
        pairs=int(stored["pairs"]),
        log_cell_factor=tuple(map(float, stored.get("log_cell_factor", ()))),
        log_excess=tuple(tuple(map(float, row)) for row in stored.get("log_excess", ())),
        log_cell_excess=tuple(map(float, stored.get("log_cell_excess", ()))),
    )


def _parse_description(text: str, path: Path) -> Description:
    try:
        raw = json.loads(text)
        if raw.get("format") not in (BEFORE_FRAMES, FORMAT):
            raise WeightsError(
                f"{path} has weights format {raw.get('format')!r}; this SeisBind reads formats {BEFORE_FRAMES} and "
                f"{FORMAT}."
            )
        calibration, stored = raw.pop("calibration"), raw.pop("config")
        config: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()}
        description = Description(
            config=EncoderConfig(**config),
            calibration=None if calibration is None else _parse_calibration(calibration),
            descriptors=tuple(raw.pop("descriptors")),
            frame=stored_frame(raw.pop("frame") if raw["format"] == FORMAT else None),
            **raw,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{path} has a description that cannot be read ({error!r}).") from error
    if description.descriptors != NAMES:
        raise WeightsError(f"{path} was trained on other descriptors than this SeisBind computes.")
    policy = policy_of(description.frame)
    if description.policy != policy:
        raise WeightsError(
            f"{path} was trained with the preparation {description.policy}; this SeisBind does {policy}."
        )
    return description
