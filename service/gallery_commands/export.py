"""``seisbind gallery export`` and ``duplicates``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

PathArgument = Annotated[Path, typer.Argument(help="Folder of the gallery.")]


def register(app: typer.Typer) -> None:
    """Put the commands of this module into ``app``."""
    for command in (export, duplicates):
        app.command()(command)


def export(
    path: PathArgument,
    out: Annotated[Path, typer.Argument(help="A .parquet or .npz file, or a folder for npy files.")],
    what: Annotated[
        str, typer.Option(help="Parts, separated by commas: maps, descriptors, embeddings; may be empty.")
    ] = "maps,descriptors,embeddings",
    filter: Annotated[str | None, typer.Option(metavar="JSON", help="Which models, as in a search.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace the file that is there.")] = False,
) -> None:
    """Write maps, descriptors and embeddings as a Parquet table, an npz, or a folder of npy files."""
    from seisbind.index import Filter
    from seisbind.index.maintenance.export import export as write
    from seisbind.service.http.parameters import parse_json
    from seisbind.service.terminal.console import counting

    chosen = None if filter is None else Filter.parse(parse_json(filter, "--filter"))
    parts = tuple(part.strip() for part in what.split(",") if part.strip())
    with counting("Exporting", 0) as progress:
        written = write(path, out, what=parts, filter=chosen, overwrite=overwrite, progress=progress)
    print(f"{out}: {written.count} velocity models of generation {written.generation}")


def duplicates(
    path: PathArgument,
    similarity: Annotated[
        float | None,
        typer.Option(help="Also pairs whose velocity embeddings have at least this cosine, such as 0.999."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object a line.")] = False,
) -> None:
    """List the groups of models that have the same map, and with --similarity pairs that look alike."""
    import json

    from seisbind.index import Gallery
    from seisbind.index.maintenance.duplicates import equal_maps, near_equal

    groups, same = 0, set()
    for group in equal_maps(path):
        groups += 1
        same |= {(group.model_ids[0], other) for other in group.model_ids[1:]} if similarity is not None else set()
        print(json.dumps({"same_map": group.model_ids}) if as_json else "same map: " + " ".join(group.model_ids))
    pairs = 0
    if similarity is not None:
        with Gallery.open(path, fingerprint=None) as gallery:
            for pair in near_equal(gallery, similarity):
                if (pair.first, pair.second) in same:
                    continue
                pairs += 1
                line = {"alike": [pair.first, pair.second], "similarity": round(pair.similarity, 6)}
                text = f"alike:    {pair.first} {pair.second} {pair.similarity:.6f}"
                print(json.dumps(line) if as_json else text)
    if not as_json:
        alike = "" if similarity is None else f", {pairs} pairs alike at {similarity:g} or more"
        print(f"{path}: {groups} groups of the same map{alike}")
