"""``seisbind retrieve``: ask a server, or a gallery on this machine, about gathers in files."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from seisbind.service.bulk.backends import GalleryBackend, RetrieveOptions, ServerBackend
    from seisbind.service.formats.starting_model import StartOptions
    from seisbind.service.formats.velocity_model import VelocityModel
    from seisbind.service.schemas import RetrieveAnswer, RetrieveFields


TOP_K = "Matches a gather: 1000 at most, and of a server its SEISBIND_MAX_TOP_K (100 where nothing else is set)."

ModelGrid = Annotated[
    str | None,
    typer.Option("--grid", help="With --model-out: its grid in metres, dx=12.5, and as wanted dz, x0, z0, nx, nz."),
]
ModelSmooth = Annotated[
    float | None, typer.Option("--smooth", help="With --model-out: over so many metres (Gaussian, of slowness).")
]
ModelWater = Annotated[
    str | None,
    typer.Option("--water", help="With --model-out: kept sharp and exact; depth=60, velocity=1480, or both."),
]
ModelExtend = Annotated[
    bool, typer.Option("--extend", help="With --model-out: continue the model over all of the grid; else NaN.")
]


def retrieve(
    file: Annotated[
        list[str],
        typer.Argument(
            help="npy, npz, SEG-Y, SU, SEG-2 or MDIO files of gathers, folders, patterns, or URLs of them (s3://…)."
        ),
    ],
    url: Annotated[str | None, typer.Option(help="A running server, as in http://127.0.0.1:8000.")] = None,
    key: Annotated[
        str | None, typer.Option(envvar="SEISBIND_API_KEY", help="API key; other users see options, not variables.")
    ] = None,
    gallery: Annotated[str | None, typer.Option(help="Folder (or URL) of a gallery to ask without a server.")] = None,
    weights: Annotated[Path | None, typer.Option(help="With --gallery; default: those that ship.")] = None,
    exact: Annotated[bool, typer.Option("--exact", help="With --gallery: never search approximately.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda; with --gallery.")] = "auto",
    top_k: Annotated[int, typer.Option(min=1, help=TOP_K)] = 5,
    filter: Annotated[str | None, typer.Option(help='JSON, as in {"family": "FlatVel-A"}.')] = None,
    include: Annotated[
        str, typer.Option(help="Parts of the answer, separated by commas; may be empty.")
    ] = "descriptors,physics",
    distinct: Annotated[
        float | None,
        typer.Option(metavar="M_S", help="Only different ground: models that differ by more, in the mean, m/s."),
    ] = None,
    dt_s: Annotated[float | None, typer.Option("--dt-s", help="Sampling interval, seconds.")] = None,
    shot_x_m: Annotated[
        str | None, typer.Option("--shot-x-m", help="Shot positions, metres, separated by commas.")
    ] = None,
    receiver_x_m: Annotated[
        str | None, typer.Option("--receiver-x-m", help="Receiver positions, metres, separated by commas.")
    ] = None,
    peak_hz: Annotated[float | None, typer.Option("--peak-hz", help="Peak frequency of the source, hertz.")] = None,
    scale: Annotated[
        str | None,
        typer.Option(metavar="auto|S[,K]", help="Of a line of another size than the weights'; see answers.md."),
    ] = None,
    target_depth: Annotated[
        float | None, typer.Option("--target-depth", help="Metres that a scale of 'auto' has to reach.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Write a JSON line a gather here (or a table: .parquet); the same command continues it."),
    ] = None,
    model_out: Annotated[
        Path | None,
        typer.Option(help="Write the velocity model that is read from the one gather: .npz, .npy, .sgy, .nc (netCDF)."),
    ] = None,
    grid: ModelGrid = None,
    smooth: ModelSmooth = None,
    water: ModelWater = None,
    extend: ModelExtend = False,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="With --out: stop at the first error.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: one answer a file.")] = False,
) -> None:
    """Retrieve velocity models and physics for shot gathers.

    With --out it ends with 0: all gathers answered, 1: some failed, 2: unusable options, gallery or output,
    3: no server, or one that went on refusing, 130: interrupted.
    """
    from seisbind.model.errors import InvalidConfig, SeisBindError
    from seisbind.service.bulk.backends import GalleryBackend, ServerBackend
    from seisbind.service.bulk.run import exit_code
    from seisbind.service.commands.errors import print_error
    from seisbind.service.http.parameters import split
    from seisbind.service.schemas import MODEL_PART, RetrieveFields

    try:
        fields = RetrieveFields.model_construct(
            top_k=top_k, filter=filter, include=include,
            dt_s=dt_s, shot_x_m=shot_x_m, receiver_x_m=receiver_x_m, peak_hz=peak_hz,
            scale=scale, target_depth_m=target_depth, distinct=distinct,
        )  # fmt: skip
        options = retrieve_options(fields, with_model=model_out is not None)
        start = start_options(model_out, grid=grid, smooth_m=smooth, water=water, extend=extend)
        if (url is None) == (gallery is None):
            raise InvalidConfig("Give --url http://… (a server) or --gallery PATH (on this machine), one of the two.")
        if out is not None and as_json:
            raise InvalidConfig("--json prints the answers and --out writes them; give one of the two.")
        if out is not None and model_out is not None:
            raise InvalidConfig("--model-out is of one gather, --out of any number; --include model has their models.")
        if out is None and fail_fast:
            raise InvalidConfig("--fail-fast goes with --out; without it, the first error ends the command anyway.")
        with (
            ServerBackend(url, options, key=key)
            if url is not None
            else GalleryBackend(gallery or "", weights, device, options, exact=exact)
        ) as backend:
            if out is None:
                _print_answers(file, backend, as_json, model_out, start, MODEL_PART in split(include))
                return
            failed = _write_answers(file, backend, options, out, fail_fast)
        sys.exit(int(failed))
    except (SeisBindError, OSError, KeyboardInterrupt) as error:
        if out is None:
            raise
        if isinstance(error, KeyboardInterrupt):
            print(f"Interrupted. The same command continues {out}.", file=sys.stderr)
        else:
            print_error(error)
        sys.exit(exit_code(error))


def retrieve_options(fields: RetrieveFields, *, with_model: bool) -> RetrieveOptions:
    """The options, read as the fields of a request are; with the model that is read, if it will be written."""
    from seisbind.model.scale import parse_scale
    from seisbind.service.bulk.backends import RetrieveOptions
    from seisbind.service.http.parameters import parse_geometry, parse_include, parse_json
    from seisbind.service.schemas import BULK_PARTS, MODEL_PART

    conditions = None if fields.filter is None else parse_json(fields.filter, "The filter")
    scale = parse_scale(fields.scale, fields.target_depth_m)
    include = parse_include(fields.include, BULK_PARTS)
    if with_model and MODEL_PART not in include:
        include = (*include, MODEL_PART)
    return RetrieveOptions(fields.top_k, conditions, include, parse_geometry(fields), scale, fields.distinct)


def _write_answers(
    named: Sequence[str], backend: GalleryBackend | ServerBackend, options: RetrieveOptions, out: Path, fail_fast: bool
) -> bool:
    """Write answers into a file. Returns whether some gathers failed."""
    from seisbind.service.bulk.parquet import need_pyarrow, write_parquet
    from seisbind.service.bulk.places import count_at, named_inputs
    from seisbind.service.bulk.run import PARQUET, lines_of, retrieve_all
    from seisbind.service.terminal.console import counting

    if out.suffix == PARQUET:
        need_pyarrow()  # not after hours of work
    files, lines = named_inputs(named), lines_of(out)
    with counting("Retrieving", sum(map(count_at, files))) as progress:
        tally = retrieve_all(files, backend, options, lines, fail_fast=fail_fast, progress=progress)
    if out.suffix == PARQUET:
        write_parquet(lines, out)
    earlier = f", {tally.earlier} of them by an earlier run" if tally.earlier else ""
    print(f"{tally.answered} gathers answered, {tally.failed} failed{earlier}. Written to {out}", file=sys.stderr)
    return tally.failed > 0


def _print_answers(
    named: Sequence[str],
    backend: GalleryBackend | ServerBackend,
    as_json: bool,
    model_out: Path | None,
    start: StartOptions,
    print_model: bool,
) -> None:
    """Print answers as tables, or as one JSON object, and write the model of one gather to ``model_out``."""
    import json

    from seisbind.model.errors import InvalidConfig
    from seisbind.service.bulk.places import local_copy, named_inputs
    from seisbind.service.client.calls import file_bytes

    found: dict[str, RetrieveAnswer] = {}
    names = named_inputs(named)
    if model_out is not None and len(names) > 1:
        raise InvalidConfig(f"--model-out is of one gather; {len(names)} files were named.")
    for name in names:
        with local_copy(name) as path:
            found[name] = answer = backend.file(file_bytes(path))
        if model_out is not None:
            _write_read(path, answer, model_out, start)
        if not print_model:
            for result in answer.results:
                result.model = None
        if not as_json:
            _print_tables(path, answer)
    if as_json:
        print(json.dumps({name: answer.model_dump() for name, answer in found.items()}, indent=1))


def _write_read(path: Path, answer: RetrieveAnswer, out: Path, start: StartOptions) -> None:
    """Write the model of the one gather of an answer."""
    from seisbind.model.errors import InvalidConfig
    from seisbind.service.engine.bodies import velocity_model

    if len(answer.results) > 1:
        raise InvalidConfig(f"--model-out is of one gather; {path} holds {len(answer.results)}. Write them one by one.")
    (result,) = answer.results
    if result.model is None:
        raise InvalidConfig("These weights read no velocity model from a gather: they have no head for it.")
    write_model(velocity_model(result.model), out, start, title=f"READ FROM {path.name} BY SEISBIND")


def start_options(
    model_out: Path | None, *, grid: str | None, smooth_m: float | None, water: str | None, extend: bool
) -> StartOptions:
    """What is asked of the model of ``--model-out``, before anything is read. Raises InvalidConfig."""
    from seisbind.model.errors import InvalidConfig, InvalidQuery
    from seisbind.service.formats.starting_model import AS_READ, parse_start
    from seisbind.service.formats.velocity_model import format_of

    try:
        start = parse_start(grid=grid, smooth_m=smooth_m, water=water, extend=extend)
    except InvalidQuery as error:
        raise InvalidConfig(error.sentence) from error
    if model_out is not None:
        format_of(model_out)
    elif start != AS_READ:
        raise InvalidConfig("--grid, --smooth, --water and --extend go with --model-out, the model that they are of.")
    return start


def write_model(model: VelocityModel, out: Path, start: StartOptions, *, title: str) -> None:
    """Write a model as it is wanted, whole or not at all, and say what was written."""
    import numpy as np

    from seisbind.model.files import replacing
    from seisbind.service.formats.starting_model import AS_READ, starting_model
    from seisbind.service.formats.velocity_model import format_of, write

    model = starting_model(model, start)
    with replacing(out) as partial:
        partial.write_bytes(write(model, format_of(out), title=title))
    depth, columns = model.value.shape
    steps = f"{model.cell_m:g} m" if model.dz_m is None else f"{model.dz_m:g} x {model.cell_m:g} m"
    interval = "no interval: these weights state none"
    if model.interval is not None:
        low, high = model.interval
        name = "90 % interval" if start == AS_READ else "bounds"
        interval = f"{name} {float(np.nanmean(high - low)):.0f} m/s wide on average"
    unknown = ""
    if model.known is not None:
        unknown = f", {1 - model.known.mean():.0%} of them {'continued' if start.extend else 'without a number'}"
    print(
        f"{out}: {depth} x {columns} samples of {steps}{unknown}, x from {model.x0_m:g} m, "
        f"{np.nanmin(model.value):.0f} to {np.nanmax(model.value):.0f} m/s, {interval}",
        file=sys.stderr,
    )


def _print_tables(path: Path, answer: RetrieveAnswer) -> None:
    from rich.table import Table

    from seisbind.model.ground.descriptors import DESCRIPTORS
    from seisbind.service.terminal.console import console

    out = console()
    read = answer.ingest
    out.print(
        f"{path.name}: {read.format}, {read.sample_format}, {read.shots} shots into {read.receivers} receivers, "
        f"{read.samples} samples of {read.dt_s * 1e3:g} ms, receivers at {read.receiver_x_m[0]:g} to "
        f"{read.receiver_x_m[1]:g} m",
        markup=False,
    )
    for number, result in enumerate(answer.results):
        title = f"{path.name}, gather {number}" if len(answer.results) > 1 else path.name
        table = Table("rank", "model", "family", "similarity", title=title, title_justify="left")
        for match in result.matches:
            table.add_row(str(match.rank), match.model_id, match.family or "", f"{match.similarity:.3f}")
        if result.scale is not None:
            out.print(f"Scale {result.scale.reason}", markup=False)
        out.print(table)
        physics = Table("quantity", "inferred", "90 % interval")
        for d in DESCRIPTORS:
            q = (result.physics or {}).get(d.name)
            if q is not None:
                interval = f"{q.low:.{d.decimals}f} to {q.high:.{d.decimals}f}"
                physics.add_row(d.name.replace("_", " "), d.format(q.value), interval)
        out.print(physics)
        if result.in_gallery is not None:
            ranked = " Ranked by structure." if result.ranked_by == "structure" else ""
            chance = f"{result.in_gallery:.0%}"
            out.print(f"Probability that the gallery's most similar model is the true model: {chance}.{ranked}")
        if result.in_distribution.likely is False:
            out.print(f"Unlike the gathers of training: {result.in_distribution.detail}", markup=False)
        for warning in result.warnings:
            if warning.code == "scale_chosen":  # printed above
                continue
            out.print(f"{warning.code}: {warning.detail}", markup=False)
