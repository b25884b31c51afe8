"""``seisbind bulk``: many files side by side, into a folder of Parquet parts, on the cores of a machine or on Ray."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from seisbind.service.commands.training import WaveEngine
from seisbind.service.terminal.options import takes_options

if TYPE_CHECKING:
    from seisbind.service.bulk.chunks import Job
    from seisbind.service.bulk.run import Tally

app = typer.Typer(help="Many files side by side, into a folder of Parquet parts.", no_args_is_help=True)

Inputs = Annotated[
    list[str],
    typer.Argument(help="npy, npz, SEG-Y, SU, SEG-2 or MDIO files, folders, patterns, or URLs of them (s3://…)."),
]
GalleryPlace = Annotated[str, typer.Option(help="Folder (or URL) of the gallery; workers have to reach it.")]
Chunk_ = Annotated[int, typer.Option("--chunk", min=1, help="Gathers a part.")]
WORDS = {  # of progress, and of the end
    "retrieve": ("Retrieving", "gathers answered"),
    "embed": ("Embedding", "gathers answered"),
    "check": ("Checking", "gathers answered"),
    "section": ("Sections", "lines answered"),
    "simulate": ("Simulating", "pairs simulated"),
}


@dataclass(frozen=True, slots=True)
class EncoderOptions:
    """What encodes."""

    weights: Annotated[Path | None, typer.Option(help="Weights file; default: those that ship.")] = None
    device: Annotated[str, typer.Option(help="auto, cpu, cuda.")] = "auto"


@dataclass(frozen=True, slots=True)
class MatchOptions:
    """What is matched."""

    gallery: GalleryPlace
    exact: Annotated[bool, typer.Option("--exact", help="Never search approximately.")] = False
    filter: Annotated[str | None, typer.Option("--filter", help='JSON, as in {"family": "FlatVel-A"}.')] = None
    distinct: Annotated[
        float | None, typer.Option(metavar="M_S", help="Only different ground: models that differ by more, m/s.")
    ] = None


@dataclass(frozen=True, slots=True)
class LineOptions:
    """How gathers were recorded: fields of a request."""

    dt_s: Annotated[float | None, typer.Option("--dt-s", help="Sampling interval, seconds.")] = None
    shot_x_m: Annotated[str | None, typer.Option("--shot-x-m", help="Shot positions, metres, separated by commas.")] = (
        None
    )
    receiver_x_m: Annotated[
        str | None, typer.Option("--receiver-x-m", help="Receiver positions, metres, separated by commas.")
    ] = None
    peak_hz: Annotated[float | None, typer.Option("--peak-hz", help="Peak frequency of the source, hertz.")] = None
    scale: Annotated[str | None, typer.Option("--scale", metavar="auto|S[,K]", help="See answers.md.")] = None
    target_depth_m: Annotated[
        float | None, typer.Option("--target-depth", help="Metres that a scale of 'auto' has to reach.")
    ] = None


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Where parts go, and what makes them."""

    out: Annotated[str, typer.Option(help="Folder (or s3:// URL) for the parts; the same command continues it.")]
    workers: Annotated[
        int | None, typer.Option(min=1, help="Side by side; default: one a GPU, or one a core.")
    ] = None  # fmt: skip
    engine: Annotated[
        str, typer.Option("--engine", help="ray, processes, or auto: Ray where it is installed, else processes.")
    ] = "auto"
    address: Annotated[
        str | None, typer.Option(help="Of a running Ray cluster, as in auto or 10.0.0.1:6379.")
    ] = None  # fmt: skip
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop after the first part with an error.")] = False


@app.command()
@takes_options
def retrieve(
    inputs: Inputs,
    match: MatchOptions,
    run: RunOptions,
    encoder: EncoderOptions,
    line: LineOptions,
    top_k: Annotated[int, typer.Option(min=1, help="Matches a gather.")] = 5,
    chunk: Chunk_ = 64,
) -> None:
    """Velocity models and physics of every gather, as `seisbind retrieve --gallery` gives them.

    It ends with 0: all gathers answered, 1: some failed, 2: unusable options, gallery or output, 130: interrupted.
    """
    _gathers("retrieve", inputs, match, run, encoder, line, top_k, chunk)


@app.command()
@takes_options
def check(
    inputs: Inputs,
    match: MatchOptions,
    run: RunOptions,
    encoder: EncoderOptions,
    line: LineOptions,
    top_k: Annotated[int, typer.Option(min=1, max=16, help="Matches to check.")] = 5,
    chunk: Chunk_ = 8,
) -> None:
    """The candidates of every gather against the wave equation, as `seisbind check --gallery` does it.

    It ends as `seisbind bulk retrieve` does.
    """
    _gathers("check", inputs, match, run, encoder, line, top_k, chunk)


@app.command()
@takes_options
def embed(
    inputs: Inputs,
    run: RunOptions,
    encoder: EncoderOptions,
    line: LineOptions,
    chunk: Chunk_ = 64,
) -> None:
    """The embedding of every gather: a unit vector, as galleries are searched with.

    It ends as `seisbind bulk retrieve` does.
    """
    _gathers("embed", inputs, None, run, encoder, line, 1, chunk)


@app.command()
@takes_options
def section(
    inputs: Annotated[
        list[str],
        typer.Argument(help="SEG-Y, SU, SEG-2, MDIO or npz files, one a line; folders, patterns or URLs of them."),
    ],
    gallery: GalleryPlace,
    run: RunOptions,
    encoder: EncoderOptions,
    scale: Annotated[
        str, typer.Option(help="True lengths over the frame's, s; with velocities, s,k; or auto. Of every line.")
    ] = "1",
    target_depth: Annotated[
        float | None, typer.Option(help="Depth in metres that sections have to reach; with --scale auto.")
    ] = None,
    step: Annotated[
        float | None, typer.Option(help="From one window to the next, metres; default: half a window.")
    ] = None,
    write: Annotated[str, typer.Option(help="What is written of a section: npz, png, sgy, or several.")] = "npz",
) -> None:
    """A velocity section of every line, as `seisbind section` makes it of one, beside a row for each.

    It ends as `seisbind bulk retrieve` does.
    """
    from seisbind.service.bulk.places import output_place
    from seisbind.service.bulk.section_jobs import SectionJob
    from seisbind.service.commands.section import asked_scale

    def job() -> Job:
        place, formats = output_place(run.out), tuple(word.strip() for word in write.split(","))
        asked = asked_scale(scale, target_depth)
        return SectionJob(gallery, encoder.weights, encoder.device, place, asked, step, formats)

    _run(job, inputs, run)


@app.command()
@takes_options
def simulate(
    run: RunOptions,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(help="npy stacks of velocity models, OpenFWI's model*.npy, folders, patterns or URLs of them."),
    ] = None,
    family: Annotated[
        list[str] | None,
        typer.Option(help="In place of files: a family, or openfwi, extra or broad, to draw; repeat for several."),
    ] = None,
    count: Annotated[int | None, typer.Option(min=1, help="With --family: pairs of each.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="With --family: of everything drawn; default 0.")] = None,
    solver: Annotated[
        WaveEngine, typer.Option(help="Wave-equation solver, --engine of `seisbind simulate`.")
    ] = WaveEngine.DEEPWAVE,
    per_file: Annotated[int, typer.Option(min=1, help="Pairs a file, which a worker makes at a time.")] = 500,
    frame: Annotated[Path | None, typer.Option(help="JSON file of another line; default: OpenFWI's.")] = None,
    device: Annotated[str, typer.Option(help="Of deepwave: cpu or cuda.")] = "cpu",
) -> None:
    """Pairs of velocity models and gathers in OpenFWI's layout: drawn, as `seisbind simulate` does, or of given models.

    It ends as `seisbind bulk retrieve` does. Pairs of acquisitions drawn at random, or of a survey of one's own, are
    shards of another form: `seisbind simulate --acquisitions any-line` and `--survey` make them.
    """
    from seisbind.model.errors import InvalidConfig
    from seisbind.model.frame import OPENFWI_FRAME, load_frame
    from seisbind.model.ground.families import expanded
    from seisbind.service.bulk.simulation_jobs import SimulationJob

    def job() -> Job:
        if bool(inputs) == bool(family):
            raise InvalidConfig(
                "Name files of velocity models, or draw some with --family and --count; one of the two."
            )
        if bool(family) != (count is not None) or (seed is not None and not family):
            raise InvalidConfig("--count, and --seed where one is given, go with --family: so many of each are drawn.")
        line = load_frame(frame) if frame else OPENFWI_FRAME
        families = tuple(expanded(family)) if family else ()
        return SimulationJob(run.out, solver.value, line, device, per_file, families, count or 0, seed or 0)

    _run(job, inputs or [], run)


def _gathers(
    kind: str,
    inputs: list[str],
    match: MatchOptions | None,
    run: RunOptions,
    encoder: EncoderOptions,
    line: LineOptions,
    top_k: int,
    chunk: int,
) -> None:
    """Run a job over gathers."""
    from seisbind.service.bulk.gather_jobs import GatherJob
    from seisbind.service.commands.retrieve import retrieve_options
    from seisbind.service.schemas import RetrieveFields

    def job() -> Job:
        given: dict[str, object] = {"top_k": top_k, "include": "descriptors,physics"} | asdict(line)
        given |= {} if match is None else {"filter": match.filter, "distinct": match.distinct}
        options = retrieve_options(RetrieveFields.model_construct(**given), with_model=False)  # type: ignore[arg-type]
        gallery, exact = (None, False) if match is None else (match.gallery, match.exact)
        return GatherJob(kind, gallery, encoder.weights, encoder.device, exact, options, chunk)

    _run(job, inputs, run)


def _run(make: Callable[[], Job], inputs: Sequence[str], run: RunOptions) -> None:
    """Run the job that is made, say what came of it, and end with the exit code."""
    from seisbind.model.errors import SeisBindError
    from seisbind.service.bulk.run import exit_code
    from seisbind.service.commands.errors import print_error

    try:
        job = make()
        tally = _write(job, inputs, run)
    except (SeisBindError, OSError, KeyboardInterrupt) as error:
        if isinstance(error, KeyboardInterrupt):
            print(f"Interrupted. The same command continues {run.out}.", file=sys.stderr)
        else:
            print_error(error)
        sys.exit(exit_code(error))
    earlier = f", {tally.earlier} of them by an earlier run" if tally.earlier else ""
    print(
        f"{tally.answered} {WORDS[job.kind][1]}, {tally.failed} failed{earlier}. Written to {run.out}", file=sys.stderr
    )
    sys.exit(int(tally.failed > 0))


def _write(job: Job, inputs: Sequence[str], run: RunOptions) -> Tally:
    from functools import partial

    from seisbind.model.errors import InvalidConfig
    from seisbind.service.bulk.executors import default_workers, have_ray, in_processes, on_ray
    from seisbind.service.bulk.folder import PartsFolder, write_parts
    from seisbind.service.bulk.parquet import need_pyarrow
    from seisbind.service.bulk.places import named_inputs, state_of
    from seisbind.service.terminal.console import counting

    if run.engine not in ("auto", "ray", "processes"):
        raise InvalidConfig(f"--engine is auto, ray or processes; got {run.engine!r}.")
    if run.engine == "processes" and run.address is not None:
        raise InvalidConfig("--address is that of a Ray cluster; it does not go with --engine processes.")
    need_pyarrow()
    files = named_inputs(inputs)
    first = job.open()  # says at once what is wrong with weights and gallery, and which they are
    asked: dict[str, object] = {
        "kind": job.kind,
        "options": job.asked(),
        **first.source(),
        "inputs": [[name, *state_of(name)] for name in files],
    }
    first.close()
    chunks = job.chunks(files)
    if run.engine == "ray" or run.address is not None or (run.engine == "auto" and have_ray()):
        execute = partial(on_ray, job, workers=run.workers, address=run.address)
        print(f"On Ray: {run.address or 'started on this machine'}.", file=sys.stderr)
    else:
        count = run.workers or default_workers(job.device)
        execute = partial(in_processes, job, workers=count)
        why = "" if run.engine == "processes" else "Ray is not installed (pip install 'seisbind[bulk]'): "
        print(f"{why}{count} process{'' if count == 1 else 'es'} of this machine.", file=sys.stderr)
    bar = counting(WORDS[job.kind][0], sum(map(len, chunks)))
    with job.holding(), PartsFolder(run.out, asked) as folder, bar as progress:
        return write_parts(folder, chunks, execute, fail_fast=run.fail_fast, progress=progress)
