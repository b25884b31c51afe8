"""``seisbind gallery …``: build, add to, remove from, look at, list, check and shrink a gallery."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from seisbind.model.frame import Frame
    from seisbind.model.scale import Scale
    from seisbind.service.building.build import Encoders, Outcome
    from seisbind.service.building.sources import Source

app = typer.Typer(help="Build, add to, look at, list, check and copy a gallery.", no_args_is_help=True)

PlaceArgument = Annotated[str, typer.Argument(metavar="PATH", help="Folder of the gallery, or its URL in Milvus.")]
WeightsOption = Annotated[Path | None, typer.Option(help="Weights file; default: those that ship.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda.")]
CountOption = Annotated[int | None, typer.Option(min=1, help="Random velocity models to make, all families together.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Of the random models.")]
FamilyOption = Annotated[list[str] | None, typer.Option(help="Family to make; repeat for several. Default: all.")]
DataOption = Annotated[
    list[Path] | None,
    typer.Option(
        help="An OpenFWI folder, an npy of velocity models, or a .parquet of gallery export; repeat for several."
    ),
]
TagOption = Annotated[list[str] | None, typer.Option("--tag", help="Tag for each model; repeat for several.")]
ScaleOption = Annotated[
    str | None, typer.Option(metavar="S[,K]", help="Of models (--data) in cells of S times those of the weights.")
]
PrecisionOption = Annotated[
    str | None,
    typer.Option(
        metavar="M_S|exact",
        help="By how much velocities may be rounded; default: .5 for random ones, exact for --data.",
    ),
]
WorkersOption = Annotated[
    str,
    typer.Option(metavar="N|auto", help="Processes; auto: one a core, none for a few models. 0: in this process."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]

MAX_WORKERS = 1024
LISTED = "{:<20} {:<18} {:>13}  {:<19}  {}"  # line by line: a gallery may be larger than memory


@app.command()
def build(
    path: PlaceArgument,
    count: CountOption = None,
    seed: SeedOption = 0,
    family: FamilyOption = None,
    data: DataOption = None,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    scale: ScaleOption = None,
    precision: PrecisionOption = None,
    workers: WorkersOption = "auto",
    overwrite: Annotated[bool, typer.Option(help="Replace a gallery that is there, when all is done.")] = False,
    restart: Annotated[bool, typer.Option(help="Discard what a stopped build has done, and begin anew.")] = False,
) -> None:
    """Make a gallery of random velocity models (--count) or of your own (--data).

    A build that was stopped or killed goes on where it was when the same command is given again.
    """
    from seisbind.service.building.build import build as build_gallery
    from seisbind.service.terminal.console import counting

    true, bound, encoders = _scale(scale, data), _precision(precision, data), _encoders(weights, device, workers)
    models = _source(count, seed, family, data, encoders.embedder.frame)

    def resumed(earlier: int) -> None:
        print(f"{path}: going on, {earlier} of {models.count} velocity models were done before", file=sys.stderr)

    with counting("Describing and embedding", models.count) as progress:
        done = build_gallery(
            path,
            models,
            encoders,
            scale=true,
            precision_m_s=bound,
            overwrite=overwrite,
            restart=restart,
            resumed=resumed,
            progress=progress,
        )
    _note(done)
    print(f"{path}: {done.held} velocity models, weights {encoders.embedder.fingerprint}")


@app.command()
def add(
    path: PlaceArgument,
    count: CountOption = None,
    seed: SeedOption = 0,
    family: FamilyOption = None,
    data: DataOption = None,
    tag: TagOption = None,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    scale: ScaleOption = None,
    workers: WorkersOption = "auto",
) -> None:
    """Add velocity models to a gallery; those that it already holds are left out."""
    from seisbind.index import open_store
    from seisbind.service.building.build import add as add_to_gallery
    from seisbind.service.terminal.console import counting

    true, encoders = _scale(scale, data), _encoders(weights, device, workers)
    embedder = encoders.embedder
    models = _source(count, seed, family, data, embedder.frame)
    with open_store(path, fingerprint=embedder.fingerprint, frame=embedder.frame, writable=True) as gallery:
        with counting("Describing and embedding", models.count) as progress:
            done = add_to_gallery(gallery, models, encoders, tags=tag or (), scale=true, progress=progress)
        _note(done)
        print(f"{path}: {done.stored} velocity models added, {done.held} in all")


@app.command()
def remove(path: PlaceArgument, model_id: Annotated[list[str], typer.Argument(help="Ids of models.")]) -> None:
    """Remove velocity models; all of those named, or none."""
    from seisbind.index import open_store

    with open_store(path, fingerprint=None, writable=True) as gallery:
        removed = gallery.remove(model_id)
        print(f"{path}: {removed} velocity models removed, {len(gallery)} left")


@app.command()
def info(path: PlaceArgument, as_json: JsonOption = False) -> None:
    """Say what a gallery holds."""
    import json
    from dataclasses import asdict

    from rich.table import Table

    from seisbind.index import open_store
    from seisbind.model.ground.descriptors import DESCRIPTORS
    from seisbind.service.terminal.console import console

    with open_store(path, fingerprint=None) as gallery:
        found = gallery.info()
    if as_json:
        more = {"path": str(found.path), "frame": found.frame.to_dict(), "bytes_per_model": found.bytes_per_model}
        print(json.dumps(asdict(found) | more, indent=1))
        return
    size = f", {found.bytes / 1e6:.1f} MB" if found.bytes else ""  # Milvus does not say
    print(f"{path}: {found.count} velocity models{size}, made {found.created_at}")
    print(f"weights {found.fingerprint}, generation {found.generation}, format {found.format_version}")
    rounding = f"rounded by at most {found.precision_m_s:g} m/s" if found.precision_m_s else "exact"
    print(f"{found.bytes_per_model:,.0f} bytes a model on disk, all in; velocities {rounding}")
    print(found.search_text)
    for note in found.notes:
        print(f"note: {note}")
    table = Table("family", "models")
    for name, models in found.families.items():
        table.add_row(name, str(models))
    console().print(table)
    table = Table("quantity", "lowest", "highest")
    for d in DESCRIPTORS:
        if d.name in found.descriptor_ranges:
            low, high = found.descriptor_ranges[d.name]
            table.add_row(d.name.replace("_", " "), d.format(low), d.format(high))
    console().print(table)


@app.command("list")
def list_(
    path: PlaceArgument,
    family: Annotated[list[str] | None, typer.Option(help="Only of this family; repeat for several.")] = None,
    tag: Annotated[
        list[str] | None, typer.Option(help="Only with this tag; repeat for several, which all hold.")
    ] = None,
    filter: Annotated[
        str | None, typer.Option(metavar="JSON", help='As of retrieve: {"any": [{"source": "a"}, {"source": "b"}]}.')
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object a line.")] = False,
) -> None:
    """List the velocity models of a gallery, in the order they were added."""
    import json

    from seisbind.index import Filter, list_store
    from seisbind.model.ground.descriptors import NAMES
    from seisbind.service.http.parameters import parse_json

    mean = NAMES.index("mean_velocity")
    chosen = Filter(
        tuple(family or ()),
        tuple(tag or ()),
        all_of=() if filter is None else (Filter.parse(parse_json(filter, "--filter")),),
    )
    number = -1
    for number, record in enumerate(list_store(path, filter=chosen, limit=limit)):
        if not number and not as_json:
            print(LISTED.format("model", "family", "mean velocity", "added at", "tags"))
        mean_velocity = float(record.descriptors[mean])
        if as_json:
            line = {
                "model_id": record.model_id,
                "family": record.family,
                "tags": record.tags,
                "mean_velocity": mean_velocity,
                "source": record.source,
                "added_at": record.added_at,
            }
            print(json.dumps(line))
        else:
            velocity = f"{mean_velocity:.0f} m/s"
            tags = ", ".join(record.tags)
            print(LISTED.format(record.model_id, record.family or "", velocity, record.added_at[:19], tags).rstrip())
    if number < 0:
        print(f"{path}: no velocity model" + (" that passes" if chosen else ""), file=sys.stderr)


@app.command()
def verify(path: PlaceArgument, as_json: JsonOption = False) -> None:
    """Read every byte of a gallery and compare it with its checksum; exit code 1 if something is wrong."""
    import json

    from seisbind.index import verify_store

    report = verify_store(path)  # which needs no gallery that can be opened
    if as_json:
        found = {"problems": list(report.problems), "notes": list(report.notes)}
        print(json.dumps({"ok": report.ok, "models": report.count} | found, indent=1))
    else:
        print(f"{path}: {report.count} velocity models, " + ("all is well" if report.ok else "NOT well:"))
        for problem in report.problems:
            print(f"  {problem}")
        for note in report.notes:
            print(f"note: {note}")
    sys.exit(0 if report.ok else 1)


def _note(done: Outcome) -> None:
    """What else is to be said of models that were given."""
    if done.duplicates:
        print(
            f"note: {done.duplicates} of {done.given} were already there (same map) and are not stored twice",
            file=sys.stderr,
        )
    if done.untrained:
        print(f"note: {done.untrained.sentence}", file=sys.stderr)


def _encoders(weights: Path | None, device: str, workers: str) -> Encoders:
    """Who embeds."""
    from seisbind.model.encoders.embedder import Embedder
    from seisbind.model.errors import InvalidConfig
    from seisbind.service.building.build import Encoders

    if workers != "auto" and not (workers.isdecimal() and int(workers) <= MAX_WORKERS):
        raise InvalidConfig(f"--workers is auto or a number from 0 to {MAX_WORKERS}; got {workers!r:.40}.")
    return Encoders(
        Embedder.load(weights, device=device, runtime="torch"), weights, None if workers == "auto" else int(workers)
    )


def _scale(asked: str | None, data: Sequence[Path] | None) -> Scale:
    """The scale of models of a true size."""
    from seisbind.model.errors import InvalidConfig
    from seisbind.model.scale import parse_model_scale

    if asked is not None and data is None:
        raise InvalidConfig("--scale is of models with a true size (--data); random ones are made in the frame's.")
    if asked is not None and any(path.suffix == ".parquet" for path in data or ()):
        raise InvalidConfig("--scale is not for an exported gallery (.parquet), whose models are in its frame's units.")
    return parse_model_scale(asked)


def _precision(asked: str | None, data: Sequence[Path] | None) -> float:
    """By how much velocities may be rounded, m/s; 0: not at all."""
    from seisbind.model.errors import InvalidConfig
    from seisbind.service.building.build import RANDOM_PRECISION_M_S

    if asked is None:
        return RANDOM_PRECISION_M_S if data is None else 0.0
    if asked == "exact":
        return 0.0
    try:
        return float(asked)
    except ValueError:
        raise InvalidConfig(f"--precision is a number of m/s, or exact; got {asked!r:.60}.") from None


def _source(
    count: int | None, seed: int, family: Sequence[str] | None, data: Sequence[Path] | None, frame: Frame
) -> Source:
    """Where models come from."""
    from seisbind.model.errors import InvalidConfig
    from seisbind.service.building.sources import ModelFiles, RandomModels

    if (count is None) == (data is None):
        raise InvalidConfig("Say where the velocity models come from: --count N (random ones), or --data PATH.")
    if data is not None:
        return ModelFiles.of(data, frame=frame)
    return RandomModels.of(count or 0, seed, family, frame=frame)
