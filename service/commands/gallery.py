"""``seisbind gallery …``: build, add to, remove from, look at, list and check a gallery."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from seisbind.model.frame import Frame
    from seisbind.model.scale import Scale

app = typer.Typer(help="Build, add to, remove from, look at, list and check a gallery.", no_args_is_help=True)

PathArgument = Annotated[Path, typer.Argument(help="Folder of the gallery.")]
WeightsOption = Annotated[Path | None, typer.Option(help="Weights file; default: those that ship.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda.")]
CountOption = Annotated[int | None, typer.Option(min=1, help="Random velocity models to make, all families together.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Of the random models.")]
FamilyOption = Annotated[list[str] | None, typer.Option(help="Family to make; repeat for several. Default: all.")]
DataOption = Annotated[
    list[Path] | None, typer.Option(help="An OpenFWI folder, or an npy of velocity models; repeat for several.")
]
TagOption = Annotated[list[str] | None, typer.Option("--tag", help="Tag for each model; repeat for several.")]
ScaleOption = Annotated[
    str | None, typer.Option(metavar="S[,K]", help="Of models (--data) in cells of S times those of the weights.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]

LISTED = "{:<20} {:<18} {:>13}  {:<19}  {}"  # line by line: a gallery may be larger than memory


@app.command()
def build(
    path: PathArgument,
    count: CountOption = None,
    seed: SeedOption = 0,
    family: FamilyOption = None,
    data: DataOption = None,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    scale: ScaleOption = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a gallery that is there.")] = False,
) -> None:
    """Make a gallery of random velocity models (--count) or of your own (--data)."""
    from seisbind.model.encoders.embedder import Embedder
    from seisbind.service.commands.console import counting
    from seisbind.service.engine.gallery_builder import build_gallery

    true = _scale(scale, data)
    embedder = Embedder.load(weights, device=device)
    models, total, source = _models(count, seed, family, data, embedder.frame)
    with counting("Describing and embedding", total) as progress:
        held = build_gallery(
            path, embedder, models, source=source, overwrite=overwrite, scale=true, progress=progress, warn=_warn
        )
    print(f"{path}: {held} velocity models, weights {embedder.fingerprint}")


@app.command()
def add(
    path: PathArgument,
    count: CountOption = None,
    seed: SeedOption = 0,
    family: FamilyOption = None,
    data: DataOption = None,
    tag: TagOption = None,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
    scale: ScaleOption = None,
) -> None:
    """Add velocity models to a gallery; those that it already holds are left out."""
    from seisbind.index import Gallery
    from seisbind.model.encoders.embedder import Embedder
    from seisbind.service.commands.console import counting
    from seisbind.service.engine.engine import Engine
    from seisbind.service.engine.gallery_builder import add_to_gallery

    true = _scale(scale, data)
    embedder = Embedder.load(weights, device=device)
    models, total, source = _models(count, seed, family, data, embedder.frame)
    with Gallery.open(path, fingerprint=embedder.fingerprint, frame=embedder.frame, writable=True) as gallery:
        engine = Engine(embedder, gallery)
        with counting("Describing and embedding", total) as progress:
            added = add_to_gallery(
                engine, models, source=source, tags=tag or (), scale=true, progress=progress, warn=_warn
            )
        print(f"{path}: {added} velocity models added, {len(gallery)} in all")


@app.command()
def remove(path: PathArgument, model_id: Annotated[list[str], typer.Argument(help="Ids of models.")]) -> None:
    """Remove velocity models; all of those named, or none."""
    from seisbind.index import Gallery

    with Gallery.open(path, fingerprint=None, writable=True) as gallery:
        removed = gallery.remove(model_id)
        print(f"{path}: {removed} velocity models removed, {len(gallery)} left")


@app.command()
def info(path: PathArgument, as_json: JsonOption = False) -> None:
    """Say what a gallery holds."""
    import json
    from dataclasses import asdict

    from rich.table import Table

    from seisbind.index import Gallery
    from seisbind.model.ground.descriptors import DESCRIPTORS
    from seisbind.service.commands.console import console

    with Gallery.open(path, fingerprint=None) as gallery:
        found = gallery.info()
    if as_json:
        print(json.dumps(asdict(found) | {"path": str(found.path), "frame": found.frame.to_dict()}, indent=1))
        return
    print(f"{path}: {found.count} velocity models, {found.bytes / 1e6:.1f} MB, made {found.created_at}")
    print(f"weights {found.fingerprint}, generation {found.generation}, format {found.format_version}")
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
    path: PathArgument,
    family: Annotated[list[str] | None, typer.Option(help="Only of this family; repeat for several.")] = None,
    tag: Annotated[
        list[str] | None, typer.Option(help="Only with this tag; repeat for several, which all hold.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object a line.")] = False,
) -> None:
    """List the velocity models of a gallery, in the order they were added."""
    import json

    from seisbind.index import Filter
    from seisbind.index.listing import list_records
    from seisbind.model.ground.descriptors import NAMES

    mean = NAMES.index("mean_velocity")
    chosen = Filter(tuple(family or ()), tuple(tag or ()))
    number = -1
    for number, record in enumerate(list_records(path, filter=chosen, limit=limit)):
        if not number and not as_json:
            print(LISTED.format("model", "family", "mean velocity", "added at", "tags"))
        mean_velocity = float(record.descriptors[mean])
        if as_json:
            line = {
                "model_id": record.model_id,
                "family": record.family,
                "tags": record.tags,
                "mean_velocity": mean_velocity,
                "added_at": record.added_at,
            }
            print(json.dumps(line))
        else:
            velocity = f"{mean_velocity:.0f} m/s"
            tags = ", ".join(record.tags)
            print(LISTED.format(record.model_id, record.family or "", velocity, record.added_at[:19], tags).rstrip())
    if number < 0:
        print(f"{path}: no velocity model" + (" of that family and those tags" if chosen else ""), file=sys.stderr)


@app.command()
def verify(path: PathArgument, as_json: JsonOption = False) -> None:
    """Read every byte of a gallery and compare it with its checksum; exit code 1 if something is wrong."""
    import json

    from seisbind.index import verify_folder

    report = verify_folder(path)  # which needs no gallery that can be opened
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


def _warn(sentence: str) -> None:
    print(f"note: {sentence}", file=sys.stderr)


def _scale(asked: str | None, data: Sequence[Path] | None) -> Scale:
    """The scale of models of a true size."""
    from seisbind.model.errors import InvalidConfig
    from seisbind.model.scale import parse_model_scale

    if asked is not None and data is None:
        raise InvalidConfig("--scale is of models with a true size (--data); random ones are made in the frame's.")
    return parse_model_scale(asked)


def _models(
    count: int | None, seed: int, family: Sequence[str] | None, data: Sequence[Path] | None, frame: Frame
) -> tuple[Iterator[tuple[NDArray[np.float32], Sequence[str | None]]], int, str]:
    """Batches of models with their families, how many there are, and where they come from."""
    from seisbind.model.errors import InvalidConfig
    from seisbind.service.engine.gallery_builder import from_files, random_models

    if (count is None) == (data is None):
        raise InvalidConfig("Say where the velocity models come from: --count N (random ones), or --data PATH.")
    if data is not None:
        models, total = from_files(data, frame=frame)
        return models, total, ", ".join(path.name for path in data)
    models = random_models(count or 0, seed, family, frame=frame)
    return models, count or 0, f"seisbind geology, seed {seed}"
