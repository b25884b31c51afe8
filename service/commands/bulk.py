"""``seisbind bulk``: many files side by side, into a folder of Parquet parts, on the cores of a machine or on Ray."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from seisbind.service.bulk.chunks import Job
    from seisbind.service.bulk.run import Tally

app = typer.Typer(help="Many files side by side, into a folder of Parquet parts.", no_args_is_help=True)

Inputs = Annotated[
    list[str], typer.Argument(help="npy, npz, SEG-Y or SU files, folders, patterns, or URLs of them (s3://…).")
]
Out = Annotated[Path, typer.Option(help="Folder for the parts; the same command continues it.")]
GalleryPlace = Annotated[str, typer.Option(help="Folder (or URL) of the gallery; workers have to reach it.")]
Weights = Annotated[Path | None, typer.Option(help="Weights file; default: those that ship.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Side by side; default: one a GPU, or one a core.")]
Address = Annotated[str | None, typer.Option(help="Of a running Ray cluster, as in auto or 10.0.0.1:6379.")]
Engine = Annotated[
    str, typer.Option("--engine", help="ray, processes, or auto: Ray where it is installed, else processes.")
]
FailFast = Annotated[bool, typer.Option("--fail-fast", help="Stop after the first part with an error.")]
Chunk = Annotated[int, typer.Option(min=1, help="Gathers a part.")]
DtS = Annotated[float | None, typer.Option("--dt-s", help="Sampling interval, seconds.")]
ShotX = Annotated[str | None, typer.Option("--shot-x-m", help="Shot positions, metres, separated by commas.")]
ReceiverX = Annotated[
    str | None, typer.Option("--receiver-x-m", help="Receiver positions, metres, separated by commas.")
]
PeakHz = Annotated[float | None, typer.Option("--peak-hz", help="Peak frequency of the source, hertz.")]
ScaleText = Annotated[str | None, typer.Option("--scale", metavar="auto|S[,K]", help="See answers.md.")]
TargetDepth = Annotated[
    float | None, typer.Option("--target-depth", help="Metres that a scale of 'auto' has to reach.")
]
FilterText = Annotated[str | None, typer.Option("--filter", help='JSON, as in {"family": "FlatVel-A"}.')]
Exact = Annotated[bool, typer.Option("--exact", help="Never search approximately.")]
Distinct = Annotated[
    float | None, typer.Option(metavar="M_S", help="Only different ground: models that differ by more, m/s.")
]


@app.command()
def retrieve(
    inputs: Inputs,
    gallery: GalleryPlace,
    out: Out,
    weights: Weights = None,
    device: Device = "auto",
    exact: Exact = False,
    top_k: Annotated[int, typer.Option(min=1, help="Matches a gather.")] = 5,
    filter: FilterText = None,
    distinct: Distinct = None,
    dt_s: DtS = None,
    shot_x_m: ShotX = None,
    receiver_x_m: ReceiverX = None,
    peak_hz: PeakHz = None,
    scale: ScaleText = None,
    target_depth: TargetDepth = None,
    workers: Workers = None,
    engine: Engine = "auto",
    address: Address = None,
    chunk: Chunk = 64,
    fail_fast: FailFast = False,
) -> None:
    """Velocity models and physics of every gather, as `seisbind retrieve --gallery` gives them.

    It ends with 0: all gathers answered, 1: some failed, 2: unusable options, gallery or output, 130: interrupted.
    """
    fields = _geometry(dt_s, shot_x_m, receiver_x_m, peak_hz, scale, target_depth)
    fields |= {"top_k": top_k, "filter": filter, "distinct": distinct}
    _run("retrieve", inputs, gallery, out, weights, device, exact, fields, workers, engine, address, chunk, fail_fast)


@app.command()
def check(
    inputs: Inputs,
    gallery: GalleryPlace,
    out: Out,
    weights: Weights = None,
    device: Device = "auto",
    exact: Exact = False,
    top_k: Annotated[int, typer.Option(min=1, max=16, help="Matches to check.")] = 5,
    filter: FilterText = None,
    distinct: Distinct = None,
    dt_s: DtS = None,
    shot_x_m: ShotX = None,
    receiver_x_m: ReceiverX = None,
    peak_hz: PeakHz = None,
    scale: ScaleText = None,
    target_depth: TargetDepth = None,
    workers: Workers = None,
    engine: Engine = "auto",
    address: Address = None,
    chunk: Chunk = 8,
    fail_fast: FailFast = False,
) -> None:
    """The candidates of every gather against the wave equation, as `seisbind check --gallery` does it.

    It ends as `seisbind bulk retrieve` does.
    """
    fields = _geometry(dt_s, shot_x_m, receiver_x_m, peak_hz, scale, target_depth)
    fields |= {"top_k": top_k, "filter": filter, "distinct": distinct}
    _run("check", inputs, gallery, out, weights, device, exact, fields, workers, engine, address, chunk, fail_fast)


@app.command()
def embed(
    inputs: Inputs,
    out: Out,
    weights: Weights = None,
    device: Device = "auto",
    dt_s: DtS = None,
    shot_x_m: ShotX = None,
    receiver_x_m: ReceiverX = None,
    peak_hz: PeakHz = None,
    scale: ScaleText = None,
    target_depth: TargetDepth = None,
    workers: Workers = None,
    engine: Engine = "auto",
    address: Address = None,
    chunk: Chunk = 64,
    fail_fast: FailFast = False,
) -> None:
    """The embedding of every gather: a unit vector, as galleries are searched with.

    It ends as `seisbind bulk retrieve` does.
    """
    fields = {"top_k": 1} | _geometry(dt_s, shot_x_m, receiver_x_m, peak_hz, scale, target_depth)
    _run("embed", inputs, None, out, weights, device, False, fields, workers, engine, address, chunk, fail_fast)


def _geometry(
    dt_s: float | None,
    shot_x_m: str | None,
    receiver_x_m: str | None,
    peak_hz: float | None,
    scale: str | None,
    target_depth: float | None,
) -> dict[str, object]:
    """Fields of a request that every kind of job has."""
    return {"dt_s": dt_s, "shot_x_m": shot_x_m, "receiver_x_m": receiver_x_m, "peak_hz": peak_hz, "scale": scale,
            "target_depth_m": target_depth}  # fmt: skip


def _run(
    kind: str,
    inputs: list[str],
    gallery: str | None,
    out: Path,
    weights: Path | None,
    device: str,
    exact: bool,
    fields: dict[str, object],
    workers: int | None,
    engine: str,
    address: str | None,
    chunk: int,
    fail_fast: bool,
) -> None:
    """Run a kind of job, say what came of it, and end with the exit code."""
    from seisbind.model.errors import SeisBindError
    from seisbind.service.bulk.chunks import Job
    from seisbind.service.bulk.run import exit_code
    from seisbind.service.commands.errors import print_error
    from seisbind.service.commands.retrieve import retrieve_options
    from seisbind.service.schemas import RetrieveFields

    try:
        given = {"include": "descriptors,physics"} | fields
        options = retrieve_options(RetrieveFields.model_construct(**given), with_model=False)  # type: ignore[arg-type]
        job = Job(kind, gallery, weights, device, exact, options)
        tally = _write(job, inputs, out, workers, engine, address, chunk, fail_fast)
    except (SeisBindError, OSError, KeyboardInterrupt) as error:
        if isinstance(error, KeyboardInterrupt):
            print(f"Interrupted. The same command continues {out}.", file=sys.stderr)
        else:
            print_error(error)
        sys.exit(exit_code(error))
    earlier = f", {tally.earlier} of them by an earlier run" if tally.earlier else ""
    print(f"{tally.answered} gathers answered, {tally.failed} failed{earlier}. Written to {out}", file=sys.stderr)
    sys.exit(int(tally.failed > 0))


def _write(
    job: Job,
    inputs: list[str],
    out: Path,
    workers: int | None,
    engine: str,
    address: str | None,
    chunk: int,
    fail_fast: bool,
) -> Tally:
    from functools import partial

    from seisbind.model.errors import InvalidConfig
    from seisbind.service.bulk.chunks import Worker, plan_chunks
    from seisbind.service.bulk.executors import default_workers, have_ray, in_processes, on_ray
    from seisbind.service.bulk.folder import PartsFolder, write_parts
    from seisbind.service.bulk.parquet import need_pyarrow
    from seisbind.service.bulk.places import named_inputs, state_of
    from seisbind.service.terminal.console import counting

    if engine not in ("auto", "ray", "processes"):
        raise InvalidConfig(f"--engine is auto, ray or processes; got {engine!r}.")
    if engine == "processes" and address is not None:
        raise InvalidConfig("--address is that of a Ray cluster; it does not go with --engine processes.")
    need_pyarrow()
    files = named_inputs(inputs)
    first = Worker(job)  # says at once what is wrong with weights and gallery, and which they are
    asked: dict[str, object] = {
        "kind": job.kind,
        "options": job.options.to_json() | {"exact": job.exact},
        "chunk": chunk,
        "weights": first.weights.model_dump(mode="json"),
        "gallery": first.gallery,
        "inputs": [[name, *state_of(name)] for name in files],
    }
    first.close()
    chunks = plan_chunks(files, chunk=chunk)
    if engine == "ray" or address is not None or (engine == "auto" and have_ray()):
        execute = partial(on_ray, job, workers=workers, address=address)
        print(f"On Ray: {address or 'started on this machine'}.", file=sys.stderr)
    else:
        count = workers or default_workers(job.device)
        execute = partial(in_processes, job, workers=count)
        why = "" if engine == "processes" else "Ray is not installed (pip install 'seisbind[bulk]'): "
        print(f"{why}{count} processes of this machine.", file=sys.stderr)
    what = {"retrieve": "Retrieving", "embed": "Embedding"}.get(job.kind, "Checking")
    with PartsFolder(out, asked) as folder, counting(what, sum(map(len, chunks))) as bar:
        return write_parts(folder, chunks, execute, fail_fast=fail_fast, progress=bar)
