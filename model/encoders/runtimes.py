"""Runtimes of the seismic encoder: torch, or onnxruntime, which is faster on a CPU and gives the same answers.

The graph for onnxruntime is exported from torch, in memory, when the encoders are loaded. Velocity models and
descriptors are always embedded by torch.
"""

from __future__ import annotations

import io
import warnings
from importlib.util import find_spec
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from seisbind.model.encoders.networks import Encoders
from seisbind.model.errors import InvalidConfig

Float32 = NDArray[np.float32]
Bool = NDArray[np.bool_]

RUNTIMES = ("auto", "torch", "onnxruntime")
PRECISIONS = ("auto", "fp32", "bf16")
ONNX_PACKAGES = ("onnxruntime", "onnx")
OPSET = 18
INPUTS = ("traces", "live", "shot_x_m")


class Runtime(Protocol):
    """The seismic encoder with its heads, numpy in and numpy out. Safe to call from several threads."""

    name: str

    def read_gathers(self, traces: Float32, live: Bool, shot_x_m: Float32) -> dict[str, Float32]:
        """See `read_gathers`; inputs as in `preparation.Prepared`, at least one gather."""


def read_gathers(encoders: Encoders, traces: Tensor, live: Tensor, shot_x_m: Tensor) -> dict[str, Tensor]:
    """The fields of `embedder.EncodedGathers` that these encoders have, in their units."""
    std, mean, frame = encoders.descriptor_std, encoders.descriptor_mean, encoders.frame
    out = encoders.embed_gathers(traces, live, shot_x_m)
    read = {"embedding": out.embedding}
    if out.descriptors is not None and out.descriptor_scale is not None and out.velocity is not None:
        read["descriptors"] = out.descriptors * std + mean
        read["descriptor_scale"] = out.descriptor_scale * std
        read["velocity"] = out.velocity * frame.spread_m_s + frame.middle_m_s
    if out.velocity_scale is not None:
        read["velocity_scale"] = out.velocity_scale * frame.spread_m_s
    if out.family is not None:
        read["family"] = out.family.softmax(dim=1)
    if out.kind is not None:
        read["kind"] = out.kind.softmax(dim=1)
    return read


def gflop(encoders: Encoders) -> float:
    """Cost of one gather of their frame's geometry, where a multiplication and an addition count as two."""
    from torch.utils.flop_counter import FlopCounterMode

    shots, samples, receivers = encoders.frame.prepared_shape
    gather = torch.ones(1, shots, samples, receivers), torch.ones(1, shots, receivers) > 0
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        encoders.embed_gathers(*gather, torch.tensor([encoders.frame.shot_x_m]))
    return float(counter.get_total_flops()) / 1e9


class TorchRuntime:
    """The encoders in torch, on any device; with ``bf16`` convolutions and matrices are in bfloat16 (autocast)."""

    name = "torch"

    def __init__(self, encoders: Encoders, device: torch.device, *, bf16: bool = False) -> None:
        self._encoders, self._device, self._bf16 = encoders, device, bf16

    @torch.inference_mode()
    def read_gathers(self, traces: Float32, live: Bool, shot_x_m: Float32) -> dict[str, Float32]:
        inputs = [as_tensor(array, self._device) for array in (traces, live, shot_x_m)]
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            heads = read_gathers(self._encoders, *inputs)
        return {name: head.float().cpu().numpy() for name, head in heads.items()}


class OnnxRuntime:
    """The encoders as a graph that onnxruntime has optimised for this CPU, with as many threads as torch has."""

    name = "onnxruntime"

    def __init__(self, encoders: Encoders) -> None:
        import onnxruntime

        graph, self._heads = export(encoders)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.enable_mem_pattern = False  # else it keeps a plan for each number of gathers and shots
        options.add_session_config_entry("session.force_spinning_stop", "1")  # between batches others need the cores
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self._inputs = [each.name for each in self._session.get_inputs()]  # the paper's encoders read no positions

    def read_gathers(self, traces: Float32, live: Bool, shot_x_m: Float32) -> dict[str, Float32]:
        given = {"traces": traces, "live": live, "shot_x_m": shot_x_m}
        heads = self._session.run(None, {name: given[name] for name in self._inputs})
        return dict(zip(self._heads, heads, strict=True))


def as_tensor(array: Float32 | Bool, device: torch.device) -> Tensor:
    """``array`` on ``device``; shared with numpy where that is the CPU, by page-locked memory where it is a GPU."""
    tensor = torch.from_numpy(np.require(array, requirements=["C", "W"]))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class _Heads(nn.Module):
    """`read_gathers` as the exporter takes it: a module that returns a tuple."""

    def __init__(self, encoders: Encoders) -> None:
        super().__init__()
        self.encoders = encoders

    def forward(self, traces: Tensor, live: Tensor, shot_x_m: Tensor) -> tuple[Tensor, ...]:
        return tuple(read_gathers(self.encoders, traces, live, shot_x_m).values())


def export(encoders: Encoders) -> tuple[bytes, tuple[str, ...]]:
    """The seismic encoder as an ONNX file for any number of gathers and shots, and the names of its outputs.

    Raises:
        InvalidConfig: this torch cannot export them.
    """
    example = (
        torch.ones(2, 3, encoders.frame.samples, encoders.frame.receivers),
        torch.ones(2, 3, encoders.frame.receivers, dtype=torch.bool),
        torch.zeros(2, 3),
    )
    file = io.BytesIO()
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer, about sizes that are constants
        heads = tuple(read_gathers(encoders, *example))
        try:
            torch.onnx.export(
                _Heads(encoders).eval(),
                example,
                file,  # type: ignore[arg-type]  # typed as a path; in memory, since a disk may be read-only
                dynamo=False,  # torch.export's successor takes 40 times as long and another package
                opset_version=OPSET,
                input_names=INPUTS,
                output_names=heads,
                dynamic_axes={name: {0: "gathers", 1: "shots"} for name in INPUTS},
            )
        except Exception as error:  # later versions of torch may raise anything
            raise InvalidConfig(
                f"torch {torch.__version__} cannot hand these encoders to onnxruntime ({error}). Run them by torch "
                "(SEISBIND_RUNTIME=torch for the server), or uninstall onnxruntime."
            ) from error
    return file.getvalue(), heads


def choose_runtime(runtime: str, encoders: Encoders, device: torch.device, *, precision: str = "auto") -> Runtime:
    """``auto`` is onnxruntime on a CPU where it is installed, else torch; in fp32.

    Raises:
        InvalidConfig: an unknown runtime or precision, or one that is not installed or not for this device; see also
            `export`.
    """
    if runtime not in RUNTIMES:
        raise InvalidConfig(f"Unknown runtime {runtime!r}; use {', '.join(RUNTIMES)}.")
    if precision not in PRECISIONS:
        raise InvalidConfig(f"Unknown precision {precision!r}; use {', '.join(PRECISIONS)}.")
    missing = [name for name in ONNX_PACKAGES if find_spec(name) is None]
    if runtime == "auto":
        runtime = "torch" if missing or device.type != "cpu" or precision == "bf16" else "onnxruntime"
    if runtime == "torch":
        return TorchRuntime(encoders, device, bf16=precision == "bf16")
    if precision == "bf16":
        raise InvalidConfig("The runtime onnxruntime computes in fp32 only; for bf16 use torch, or auto.")
    if device.type != "cpu":
        raise InvalidConfig(f"The runtime onnxruntime is for the CPU; on {device} use torch, or auto.")
    if missing:
        raise InvalidConfig(
            f"The runtime onnxruntime needs {' and '.join(missing)}: pip install 'seisbind[onnxruntime]', "
            "or use torch, or auto."
        )
    return OnnxRuntime(encoders)
