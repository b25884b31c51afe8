"""What runs the seismic encoder fastest on one CPU thread, and whether its answers are still torch's.

    python benchmarks/train_weights.py --only test      # the 1,000 pairs
    pip install onnxruntime onnx openvino psutil        # a runtime that is not there is left out
    python benchmarks/encode_speed.py [--weights W] [--compile]

Processor time, not the clock's: on a machine that does other things the two differ. Every round runs all of them in
turn; a ratio is the median over the rounds of torch fp32's time by the other's of the same round. Changed answers are
counted over all pairs: each gather's first match among the models of all pairs, against the first match by torch fp32.
"Start" is a process from its birth to its first embedding; "memory" is what it then holds. Those of onnxruntime and
OpenVINO have neither torch nor SeisBind, but a file that was exported before. torch's is `Embedder.load`, and the last
line the same with onnxruntime, which needs torch for the export.
"""

from __future__ import annotations

import argparse
import logging
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seisbind.model.datasets.pairs import load_pairs
from seisbind.model.encoders.embedder import Embedder
from seisbind.model.encoders.networks import Encoders
from seisbind.model.encoders.runtimes import INPUTS, OnnxRuntime, TorchRuntime, export, gflop, read_gathers
from seisbind.model.encoders.weights_file import load_weights
from seisbind.model.survey.preparation import Prepared
from seisbind.model.training.evaluation import as_prepared

Arrays = tuple[np.ndarray, ...]
Run = Callable[..., np.ndarray]  # traces, live, shot_x_m -> embeddings
CPU = torch.device("cpu")
ALONE = 8  # calls with one gather a round
CHUNK = 64
CALIBRATION = 64  # gathers, the last ones, that int8 takes its ranges from

BARE = """
import sys, numpy as np
traces, live, shot_x_m = np.ones((1, 5, 250, 70), np.float32), np.ones((1, 5, 70), bool), np.zeros((1, 5), np.float32)
kind, path = sys.argv[1:]
if kind == "onnxruntime":
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    run = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    run.run(None, {"traces": traces, "live": live, "shot_x_m": shot_x_m})
elif kind.startswith("openvino"):
    import openvino
    options = {"INFERENCE_PRECISION_HINT": kind.split()[1], "INFERENCE_NUM_THREADS": 1}
    openvino.compile_model(path, "CPU", options)([traces, live, shot_x_m])
else:
    import torch
    torch.set_num_threads(1)
    from pathlib import Path
    from seisbind.model.encoders.embedder import Embedder
    from seisbind.model.survey.preparation import Prepared
    embedder = Embedder.load(Path(path) if path else None, device="cpu", runtime=kind.split()[1])
    embedder.embed_gathers(Prepared(traces, live, shot_x_m))
status = open("/proc/self/status").read().split("VmRSS:")[1].split()[0]
print(int(status) // 1024)
"""


@dataclass
class Contender:
    """A way to run the encoder: what it answers, and its seconds of processor time, round by round."""

    name: str
    run: Run
    bare: str = ""
    alone: list[float] = field(default_factory=list)
    batch: list[float] = field(default_factory=list)


def by_torch(read: Callable[..., dict[str, torch.Tensor]]) -> Run:
    """``read`` over numpy arrays."""

    def run(*arrays: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return read(*map(torch.from_numpy, arrays))["embedding"].float().numpy()

    return run


def torch_ones(encoders: Encoders, *, compiled: bool) -> Iterator[Contender]:
    """torch as it is, in bf16, frozen (norms folded into kernels), compiled."""
    product = TorchRuntime(encoders, CPU)
    yield Contender("torch fp32", lambda *a: product.read_gathers(*a)["embedding"], "SeisBind torch")

    def autocast(*inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return read_gathers(encoders, *inputs)

    yield Contender("torch bf16 autocast", by_torch(autocast))

    class Heads(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoders = encoders

        def forward(self, traces: torch.Tensor, live: torch.Tensor, shot_x_m: torch.Tensor) -> dict[str, torch.Tensor]:
            return read_gathers(self.encoders, traces, live, shot_x_m)

    example = (torch.ones(2, 5, 250, 70), torch.ones(2, 5, 70, dtype=torch.bool), torch.zeros(2, 5))
    with torch.inference_mode():
        traced = torch.jit.trace(Heads().eval(), example, strict=False, check_trace=False)
        yield Contender("torch fp32, traced and frozen", by_torch(torch.jit.freeze(traced)))
    if compiled:
        yield Contender("torch fp32, compiled", by_torch(torch.compile(lambda *a: read_gathers(encoders, *a))))


def onnx_ones(encoders: Encoders, file: Path, calibration: list[Arrays]) -> Iterator[Contender]:
    """onnxruntime in fp32 as SeisBind uses it, and in int8 by static quantisation (U8S8, a scale a channel)."""
    product = OnnxRuntime(encoders)
    yield Contender("onnxruntime fp32", lambda *a: product.read_gathers(*a)["embedding"], "onnxruntime")
    import onnxruntime
    from onnxruntime import quantization as q

    class Reader(q.CalibrationDataReader):
        rest = iter(calibration)

        def get_next(self) -> dict[str, np.ndarray] | None:
            arrays = next(self.rest, None)
            return None if arrays is None else dict(zip(INPUTS, arrays, strict=True))

    small = file.with_name("int8.onnx")
    q.quantize_static(
        file,
        small,
        Reader(),
        quant_format=q.QuantFormat.QDQ,
        per_channel=True,
        op_types_to_quantize=["Conv", "Gemm", "MatMul"],
        activation_type=q.QuantType.QUInt8,
        weight_type=q.QuantType.QInt8,
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(small, options, providers=["CPUExecutionProvider"])
    yield Contender("onnxruntime int8", lambda *a: session.run(["embedding"], dict(zip(INPUTS, a, strict=True)))[0])


def openvino_ones(file: Path) -> Iterator[Contender]:
    """OpenVINO over the same graph, in fp32 and in the processor's bf16."""
    import openvino

    core = openvino.Core()
    for precision, name in (("f32", "fp32"), ("bf16", "bf16")):
        options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY"}
        request = core.compile_model(file, "CPU", options).create_infer_request()

        def run(*arrays: np.ndarray, request: Any = request) -> np.ndarray:
            return request.infer(list(arrays))["embedding"].copy()

        yield Contender(f"OpenVINO {name}", run, f"openvino {precision}")


def start(bare: str, path: Path | None) -> tuple[float, int]:
    """Processor seconds until a process of its own has embedded a gather, and the MB it then holds: the less of two."""
    taken = []
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-c", BARE, bare, "" if path is None else str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        taken.append((seconds, int(done.stdout.split()[-1])))
    return min(taken)


def processor_time(run: Run, arrays: Arrays, calls: int = 1) -> float:
    """Seconds a call."""
    began = time.process_time()
    for _ in range(calls):
        run(*arrays)
    return (time.process_time() - began) / calls


def part(prepared: Prepared, start: int, count: int) -> Arrays:
    rows = slice(start, start + count)
    return prepared.traces[rows], prepared.live[rows], prepared.shot_x_m[rows]


def hardware() -> str:
    """Cores, and the vector units that matter here."""
    listed = Path("/proc/cpuinfo")
    flags = set(listed.read_text(encoding="utf-8").split()) if listed.exists() else set()
    found = [name for flag, name in (("avx2", "AVX2"), ("avx512f", "AVX-512"), ("avx512_bf16", "its bf16"),
                                     ("avx512_vnni", "its int8"), ("amx_tile", "AMX")) if flag in flags]  # fmt: skip
    return f"{os.cpu_count()} cores, {', '.join(found)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, default=Path("runs/pairs/test"))
    parser.add_argument("--weights", type=Path, default=None)
    parser.add_argument("--count", type=int, default=1000, help="pairs: gathers asked about, models in the gallery")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--compile", action="store_true", help="torch.compile as well: takes a minute or more")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of tracers, about sizes that are constant here
    logging.disable(logging.WARNING)  # of the quantiser, which knows a preparation that changes nothing here
    weights = load_weights(args.weights)
    pairs = load_pairs(args.pairs)
    pairs = pairs.select(range(min(args.count, len(pairs))))
    prepared = as_prepared(pairs)
    gallery = Embedder(weights, device="cpu", runtime="torch").embed_velocity(pairs.velocity.numpy())
    with tempfile.TemporaryDirectory() as folder:
        contenders = list(torch_ones(weights.encoders, compiled=args.compile))
        file = Path(folder) / "gathers.onnx"
        present = {name for name in ("onnxruntime", "onnx", "openvino") if find_spec(name) is not None}
        if "onnx" in present:
            file.write_bytes(export(weights.encoders)[0])
            if "onnxruntime" in present:
                calibration = [part(prepared, i, 1) for i in range(len(prepared) - CALIBRATION, len(prepared))]
                contenders += onnx_ones(weights.encoders, file, calibration)
            if "openvino" in present:
                contenders += openvino_ones(file)

        one, many = part(prepared, 0, 1), part(prepared, 0, args.batch)
        answers = {
            each.name: np.concatenate([each.run(*part(prepared, i, CHUNK)) for i in range(0, len(prepared), CHUNK)])
            for each in contenders
        }
        for round_ in range(args.rounds + 1):
            for each in contenders:
                alone, batch = processor_time(each.run, one, ALONE), processor_time(each.run, many)
                if round_:  # kernels are chosen in the first
                    each.alone.append(alone)
                    each.batch.append(batch)

        first = contenders[0]
        expected = answers[first.name]
        matches = (expected @ gallery.T).argmax(axis=1)
        right = float((matches == np.arange(len(matches))).mean())
        millions = sum(p.numel() for p in weights.encoders.parameters()) / 1e6
        cost = gflop(weights.encoders)
        print(f"weights {weights.fingerprint}, {millions:.1f} million parameters, {cost:.2f} GFLOP a gather;", end=" ")
        print(f"{len(pairs)} pairs, torch's R@1 {right:.3f}; {hardware()}; torch {torch.__version__}; one", end=" ")
        print(f"thread, {args.rounds} rounds\n")
        print("| runtime | one gather, ms | x torch | gathers a second, batches | x torch | largest difference | "
              "lowest cosine | first matches changed | start, s | memory, MB |\n" + 10 * "|---" + "|")  # fmt: skip
        for each in contenders:
            got = answers[each.name]
            changed = ((got @ gallery.T).argmax(axis=1) != matches).mean()
            cells = [
                each.name,
                f"{1e3 * statistics.median(each.alone):.1f}",
                f"{statistics.median(a / b for a, b in zip(first.alone, each.alone, strict=True)):.2f}",
                f"{args.batch / statistics.median(each.batch):.0f}",
                f"{statistics.median(a / b for a, b in zip(first.batch, each.batch, strict=True)):.2f}",
                f"{np.abs(got - expected).max():.1e}",
                f"{(got * expected).sum(axis=1).min():.6f}",
                f"{changed:.1%}",
            ]
            if each.bare:
                seconds, memory = start(each.bare, args.weights if each is first else file)
                cells += [f"{seconds:.1f}", f"{memory}"]
            print("| " + " | ".join(cells + [""] * (10 - len(cells))) + " |", flush=True)
        if present >= {"onnxruntime", "onnx"}:
            seconds, memory = start("SeisBind onnxruntime", args.weights)
            print(f"\nSeisBind with onnxruntime starts in {seconds:.1f} s and holds {memory} MB.")


if __name__ == "__main__":
    main()
